"""Activation patching: exact effect of putting one run's activations into another."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import (
    Cell,
    Sweep,
    estimate,
    read_values,
    screened_sweep,
    sweep,
    undriven,
)
from interp.methods.patching.effects import Reading, averaged, effects_of
from interp.methods.patching.grids import Grid, make_grid
from interp.methods.patching.trust import check_plain, check_screen, check_sweep
from interp.terms import Context, Edit, HookedModel, Method, PromptPairs, Site, UsageError


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
            return averaged(found, extra, len(grids))

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
        how = Reading(self.metric, self.direction, self.at, n_boot, self.seed, self.keep_prompts)
        about = {"site": self.site, "with_": self.with_, "window": self.window}
        return effects_of(found, grid, task, how, about)


def _array(value: object) -> np.ndarray:
    return value.detach().double().cpu().numpy()  # type: ignore[attr-defined]


def _derangement(n: int, seed: int) -> np.ndarray:
    """A random order in which no prompt keeps its place."""
    if n < 2:
        raise UsageError("Resampling needs another prompt.", remedy="Give at least two prompts.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, 1)
    return out
