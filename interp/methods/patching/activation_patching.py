"""Activation patching: exact effect of putting one run's activations into another."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import (
    Cell,
    Sweep,
    estimate,
    metric_named,
    read_values,
    screened_sweep,
    sweep,
    undriven,
)
from interp.engine.statistics import (
    bootstrap_interval,
    mean_and_error,
    ratio_of_means,
    resampling_weights,
    sign_flip_tests,
)
from interp.methods.patching.grids import Grid, make_grid
from interp.methods.patching.trust import check_plain, check_screen, check_sweep
from interp.terms import Context, Edit, HookedModel, Method, PromptPairs, Site, UsageError

SMALL_SAMPLE = 8
SHARE = "share of the gap"
"""Unit of an effect: 0 nothing moved, 1 the metric went all the way to the source run."""


class ActivationPatching(Method):
    """Effect of each activation: 0 when nothing moved, 1 when the metric reached the source run.

    A base run is executed with one activation taken from a source run. Denoising puts clean into
    corrupt (what suffices), noising corrupt into clean (what is needed).
    ``effect_raw = m(patched) - m(base)`` per prompt;
    ``effect = mean effect_raw / mean (m(source) - m(base))``. Every cell is measured exactly.
    Sources: vig2020causal, meng2022locating, zhang2024best, heimersheim2024use.
    """

    title: ClassVar[str] = "Activation patching"
    question: ClassVar[str] = "Which activations carry what makes the two prompts differ?"
    citations: ClassVar[tuple[str, ...]] = (
        "vig2020causal",
        "meng2022locating",
        "zhang2024best",
        "heimersheim2024use",
    )
    version: ClassVar[int] = 1

    site: Literal[
        "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v"
    ] = "resid_pre"
    """What is put in place of the base run's value."""
    axes: Literal[
        "auto",
        "layer,position",
        "layer,slot",
        "layer",
        "layer,head",
        "layer,head,position",
        "layer,head,slot",
        "position",
        "slot",
    ] = "auto"
    """What the grid runs over; heads of k and v are key/value heads."""
    direction: Literal["denoising", "noising"] = "denoising"
    """Denoising: clean into the corrupt run. Noising: corrupt into the clean run."""
    with_: Literal["source", "zero", "mean", "resample"] = "source"
    """The value put in: the other run's, zero, the task's mean, or another prompt's."""
    metric: Literal[
        "logit_diff",
        "prob",
        "logprob",
        "prob_diff",
        "kl",
        "js",
        "accuracy",
        "rank",
        "span_logprob",
    ] = "logit_diff"
    """What is read off the logits."""
    at: str = Field("last", json_schema_extra={"advanced": True}, max_length=60)
    """Where the metric is read: last, an index, or a slot of the task."""
    window: Annotated[int, Field(ge=1, le=64, json_schema_extra={"advanced": True})] = 1
    """Neighbouring layers edited together, centred on the named one."""
    layers: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Layers to sweep; all if empty."""
    positions: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Positions to sweep; all if empty."""
    draws: Annotated[int, Field(ge=1, le=100, json_schema_extra={"advanced": True})] = 1
    """Random draws averaged by resampling."""
    keep_prompts: bool = Field(True, json_schema_extra={"advanced": True})
    """Keep the patched metric of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    verify: Annotated[int, Field(ge=0, le=100, json_schema_extra={"advanced": True})] = 1
    """So many of the largest cells are measured again by plain forward passes."""
    screen: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 0
    """Screen all cells in bfloat16 and measure so many of the largest again; 0 for no screen."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of resampling, bootstrap and sign flips."""

    def needed(self) -> tuple[str, ...]:
        """The site it patches."""
        return (self.site,)

    def estimate(self, model: HookedModel, task: PromptPairs) -> dict[str, float]:
        """Cells, rows, FLOPs, bytes and seconds before it runs (``engine.Estimate``)."""
        cells = [c for g in self._grids(model, task) for c in g.cells]
        if undriven(model, cells):
            return {"cells": len(cells), "rows": len(cells) * len(task), "prompts": len(task)}
        found = estimate(
            model, task, cells, metric=self.metric, direction=self.direction, at=self._at()
        )
        return vars(found)

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """Dataset of ``effect``, ``effect_raw`` and their statistics over the chosen axes."""
        grids = self._grids(model, task)
        grid = grids[0]
        cells = [*self._identities(model), *(c for g in grids for c in g.cells)]
        extra = len(cells) - len(grids) * len(grid.cells)

        def gather(found: Sweep) -> Sweep:
            return _averaged(found, extra, len(grids))

        knobs = {
            "metric": self.metric,
            "direction": self.direction,
            "at": self._at(),
            "on_chunk": lambda s: context.partial(lambda: self._dataset(gather(s), grid, task, 0)),
        }
        if self.screen:
            screened = screened_sweep(
                model, task, cells, context, top=self.screen, always=extra, **knobs
            )
            found = screened.sweep
            check_screen(context, screened)
        else:
            found = sweep(model, task, cells, context, **knobs)
        data = self._dataset(gather(found), grid, task, self.n_boot)
        size = np.abs(np.nan_to_num(data["effect_raw"].values.ravel()))
        top = np.argsort(-size, kind="stable")[: self.verify]
        if self.screen:
            exact = np.all(screened.exact[extra:].reshape(len(grids), -1), axis=0)
            data["exact"] = (
                grid.dims,
                exact.reshape(grid.shape).astype(np.int8),
                {"units": "1", "long_name": "1 where measured in full precision", "signed": 0},
            )
            top = top[exact[top]]
        check_sweep(model, context, found, extra, dead_edits=self.with_ == "source")
        if len(top):
            verified = [grid.cells[c] for c in top]
            check_plain(
                model,
                task,
                context,
                found,
                verified,
                extra + top,
                metric=self.metric,
                direction=self.direction,
                at=self._at(),
            )
        return data

    def _at(self) -> int | str:
        return int(self.at) if self.at.lstrip("-").isdigit() else self.at

    def _identities(self, model: HookedModel) -> list[Cell]:
        """Cells whose answer is known: patching everything at layer 0 gives the source run."""
        sites = {s.kind for s in model.sites}
        if "resid_pre" not in sites:
            return []
        return [Cell((Edit(Site("resid_pre", layer=0), "source"),))]

    def _grids(self, model: HookedModel, task: PromptPairs) -> list[Grid]:
        """One grid, or one a draw."""
        fields = {"layers": self.layers, "positions": self.positions, "window": self.window}
        if self.with_ in ("source", "zero"):
            return [make_grid(model, task, self.site, self.axes, with_=self.with_, **fields)]
        if not task.aligned():
            raise UsageError(
                f"with_={self.with_!r} needs prompts of one length; these differ.",
                remedy="Use with_='source' or 'zero', or prompts of one length.",
            )
        layers = [None] if self.site == "embed" else range(model.shape.n_layers)
        sites = [Site(self.site, layer=n) for n in layers]
        found = read_values(model, task, sites, direction=self.direction, at=self._at())
        stacked = {s: np.stack([_array(v) for v in values]) for s, values in found.items()}
        out = []
        for draw in range(self.draws if self.with_ == "resample" else 1):
            if self.with_ == "mean":
                values = {s: v.mean(0, keepdims=True) for s, v in stacked.items()}
            else:
                order = _derangement(len(task), self.seed + draw)
                values = {s: v[order] for s, v in stacked.items()}
            out.append(make_grid(model, task, self.site, self.axes, values=values, **fields))
        return out

    def _dataset(self, found: Sweep, grid: Grid, task: PromptPairs, n_boot: int) -> xr.Dataset:
        metric = metric_named(self.metric)
        prompts = np.arange(len(task))
        raw = (found.patched - found.base).T
        gap = found.source - found.base
        reason = self._vanishing(found, gap, task, n_boot)
        mean, error = mean_and_error(raw)
        effect, effect_error = ratio_of_means(raw, gap)
        weights = resampling_weights(len(task), task.template, max(n_boot, 1), self.seed)
        has_interval = n_boot > 0 and len(task) > 1
        interval = np.full((2, raw.shape[1]), np.nan)
        if has_interval:
            interval = bootstrap_interval(raw, None if reason else gap, weights)
        p, p_grid = np.full(raw.shape[1], np.nan), np.full(raw.shape[1], np.nan)
        if has_interval:
            p, p_grid = sign_flip_tests(raw, self.seed)
        if reason:
            effect, effect_error = np.full_like(effect, np.nan), np.full_like(effect, np.nan)

        def laid(values: np.ndarray) -> np.ndarray:
            return values.reshape(*values.shape[:-1], *grid.shape)

        unit, dims = metric.units, grid.dims
        arrays = {
            "effect": (dims, laid(effect), SHARE, "effect", 1),
            "effect_raw": (dims, laid(mean), unit, "change of the metric", 1),
            "effect_se": (dims, laid(effect_error), SHARE, "standard error of the effect", 0),
            "effect_raw_se": (dims, laid(error), unit, "standard error of the change", 0),
            "effect_ci": (
                ("bound", *dims),
                laid(interval),
                unit if reason else SHARE,
                "95 % bootstrap interval",
                1,
            ),
            "p_value": (dims, laid(p), "1", "p of a zero effect (sign flips)", 0),
            "p_fwer": (dims, laid(p_grid), "1", "p over the whole grid (max-T)", 0),
            "inert": (
                dims,
                laid(_inert(found)),
                "1",
                "1 where the value is the same or cannot reach the metric",
                0,
            ),
            "metric_base": (("prompt",), found.base, unit, f"{metric.title}, base run", 1),
            "metric_source": (("prompt",), found.source, unit, f"{metric.title}, source run", 1),
        }
        if self.keep_prompts:
            arrays["patched_metric"] = (
                ("prompt", *dims),
                laid(found.patched.T),
                unit,
                f"{metric.title}, patched",
                1,
            )
        data = xr.Dataset(
            {
                k: (d, v, {"units": u, "long_name": n, "signed": s})
                for k, (d, v, u, n, s) in arrays.items()
            },
            coords={**grid.coords, "prompt": prompts, "bound": ["low", "high"]},
        )
        data.attrs.update(self._attrs(found, gap, task, metric.title, reason))
        return data

    def _vanishing(self, found: Sweep, gap: np.ndarray, task: PromptPairs, n_boot: int) -> str:
        """Why the effect cannot be a share of the gap; empty where it can."""
        if not np.isfinite(gap).all():
            return "unfinished" if np.isnan(found.base).any() else "the metric is not finite"
        mean = abs(gap.mean())
        floor = max(10 * found.noise, 1e-6 * np.abs(found.base).mean())
        if mean < floor:
            return f"the mean gap {mean:.3g} is below {floor:.3g}, ten times the noise floor"
        if n_boot > 0 and len(task) > 1:
            weights = resampling_weights(len(task), task.template, n_boot, self.seed)
            low, high = bootstrap_interval(gap[:, None], None, weights)[:, 0]
            if low <= 0 <= high:
                return f"the interval of the mean gap, {low:.3g} to {high:.3g}, contains 0"
        return ""

    def _attrs(
        self, found: Sweep, gap: np.ndarray, task: PromptPairs, title: str, reason: str
    ) -> dict[str, str | float | int]:
        scale = abs(float(np.nanmean(gap))) if np.isfinite(gap).any() else math.nan
        return {
            "site": self.site,
            "direction": self.direction,
            "with_": self.with_,
            "metric": self.metric,
            "metric_title": title,
            "at": self.at,
            "window": self.window,
            "noise_floor": found.noise,
            "noise_floor_effect": found.noise / scale if scale > 0 else math.nan,
            "mean_gap": float(np.nanmean(gap)) if np.isfinite(gap).any() else math.nan,
            "undefined_reason": reason,
            "undefined_cells": int(np.isnan(found.patched).all(1).sum()),
            "n_prompts": len(task),
            "small_sample": int(len(task) < SMALL_SAMPLE),
            "rows": int(sum(found.chunks)),
            "flops": found.flops,
            "naive_flops": found.naive,
        }


def _array(value: object) -> np.ndarray:
    return value.detach().double().cpu().numpy()  # type: ignore[attr-defined]


def _inert(found: Sweep) -> np.ndarray:
    """Cells that change nothing in any prompt: out of reach, or equal values in both runs."""
    same = (found.moved == 0) & np.isfinite(found.patched) & (found.patched == found.base)
    return (found.inert | same).all(1).astype(np.int8)


def _averaged(found: Sweep, extra: int, draws: int) -> Sweep:
    """The grid alone, averaged over draws."""

    def mean(values: np.ndarray) -> np.ndarray:
        return values[extra:].reshape(draws, -1, values.shape[1]).mean(0)

    first = len(found.patched[extra:]) // draws
    return Sweep(
        mean(found.patched),
        found.base,
        found.source,
        found.inert[extra : extra + first],
        found.undefined[extra : extra + first],
        mean(found.moved),
        found.telling[:first],
        found.noise,
        found.chunks,
        found.flops,
        found.naive,
    )


def _derangement(n: int, seed: int) -> np.ndarray:
    """A random order in which no prompt keeps its place."""
    if n < 2:
        raise UsageError("Resampling needs another prompt.", remedy="Give at least two prompts.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, 1)
    return out
