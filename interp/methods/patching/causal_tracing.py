"""Causal tracing: noise on a prompt's subject, and which restored states bring the answer back."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import Cell, Sweep, metric_named, plain_metrics, read_values, sweep
from interp.methods.patching.effects import Reading, effects_of
from interp.methods.patching.grids import Grid, make_grid
from interp.methods.patching.trust import check_sweep, metric_size, tolerance
from interp.terms import Check, Context, Edit, HookedModel, Method, PromptPairs, Site, UsageError

PAPER_WINDOW = 10 / 48
"""Layers restored together for attn_out and mlp_out, as a share of the model's (GPT-2 XL's 48)."""


class CausalTracing(Method):
    """Noise on some embeddings breaks the answer; a clean state put back restores part of it.

    The embeddings of the noised slot get ``ε ~ N(0, ν²)``, ν = ``noise`` × their standard deviation
    over the task. With P clean, P* noised and P*_restored noised with the clean state at one
    (layer, position), the total effect is P - P*, the indirect effect P*_restored - P*
    (``effect_raw``), and ``effect`` their ratio; averaged over ``draws`` of ε, each shared by all
    cells. Sublayer outputs are restored in windows of layers, 10 of 48 in the paper.
    Source: meng2022locating. Departure: the window shrinks with the model's depth.
    """

    title: ClassVar[str] = "Causal tracing"
    question: ClassVar[str] = "Which states bring an answer back that noise took away?"
    citations: ClassVar[tuple[str, ...]] = ("meng2022locating",)
    version: ClassVar[int] = 1

    site: Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"] = "resid_post"
    """The clean state that is put back."""
    axes: Literal["auto", "layer,position", "layer,slot", "layer"] = "auto"
    """What the grid runs over."""
    slot: str = Field("auto", max_length=60)
    """What gets noise: a slot, or auto (the slot subject, else where the two prompts differ)."""
    noise: Annotated[float, Field(gt=0, le=100)] = 3.0
    """Noise in standard deviations of the noised embeddings."""
    draws: Annotated[int, Field(ge=1, le=100)] = 10
    """Draws of the noise that are averaged."""
    window: Annotated[int, Field(ge=0, le=64)] = 0
    """Layers restored together; 0 for one, and the paper's share for attn_out and mlp_out."""
    metric: Literal[
        "prob", "logprob", "logit_diff", "prob_diff", "kl", "js", "accuracy", "rank"
    ] = "prob"
    """What is read off the logits."""
    at: str = Field("last", json_schema_extra={"advanced": True}, max_length=60)
    """Where the metric is read: last, an index, or a slot of the task."""
    layers: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Layers to sweep; all if empty."""
    positions: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Positions to sweep; all if empty."""
    keep_prompts: bool = Field(True, json_schema_extra={"advanced": True})
    """Keep the restored metric of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    verify: Annotated[int, Field(ge=0, le=100, json_schema_extra={"advanced": True})] = 1
    """So many of the largest cells are measured again by plain forward passes."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the noise, bootstrap and sign flips."""

    def needed(self) -> tuple[str, ...]:
        """The site it restores, the embedding, and layers that can be driven."""
        return ("blocks", "embed", self.site)

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``effect``, ``effect_raw`` and their statistics; ``total_effect [prompt]``."""
        grid = make_grid(
            model,
            task,
            self.site,
            self.axes,
            layers=self.layers,
            positions=self.positions,
            window=self.width(model.shape.n_layers),
        )
        values = read_values(model, task, [Site("embed")], direction="denoising", at=self._at())
        embeddings = [np.asarray(v.double().cpu()) for v in values[Site("embed")]]
        places = self._noised(task)
        noised = [e[p].ravel() for e, p in zip(embeddings, places, strict=True)]
        spread = float(np.concatenate(noised).std())
        first = Cell((Edit(Site("resid_pre", layer=0), "source"),))
        found: list[Sweep] = []
        for draw in range(self.draws):
            noise = self._noise(embeddings, places, self.noise * spread, draw)
            found.append(
                sweep(
                    model,
                    task,
                    [first, *grid.cells],
                    _Share(context, draw, self.draws),  # type: ignore[arg-type]
                    metric=self.metric,
                    at=self._at(),
                    label=f"draw-{draw}",
                    noise=noise,
                )
            )
            so_far = list(found)
            context.partial(lambda s=so_far: self._dataset(_mean(s), grid, task, 0, spread))
        data = self._dataset(_mean(found), grid, task, self.n_boot, spread)
        check_sweep(model, context, found[0], 1, dead_edits=False)
        self._verify(
            model,
            task,
            context,
            found[0],
            grid,
            self._noise(embeddings, places, self.noise * spread, 0),
        )
        return data

    def width(self, n_layers: int) -> int:
        """Layers restored together."""
        if self.window or self.site not in ("attn_out", "mlp_out"):
            return max(1, self.window)
        return max(1, round(n_layers * PAPER_WINDOW))

    def _at(self) -> int | str:
        return int(self.at) if self.at.lstrip("-").isdigit() else self.at

    def _noised(self, task: PromptPairs) -> list[np.ndarray]:
        """Noised positions of each clean prompt."""
        slot = "subject" if self.slot == "auto" and "subject" in task.slots else self.slot
        if slot == "auto":
            if any(len(a) != len(b) for a, b in zip(task.clean, task.corrupt, strict=True)):
                raise UsageError(
                    "The two prompts differ in length, so where they differ is not clear.",
                    remedy="Name the slot that gets noise.",
                )
            pairs = zip(task.clean, task.corrupt, strict=True)
            return [np.flatnonzero(np.array(a) != np.array(b)) for a, b in pairs]
        if slot not in task.slots:
            raise UsageError(
                f"{slot!r} is no slot of this task.",
                remedy=f"Slots: {', '.join(sorted(task.slots)) or 'none'}; or 'auto'.",
            )
        return [
            np.atleast_1d(np.asarray(task.slots[slot][i], dtype=np.int64)) % len(task.clean[i])
            for i in range(len(task))
        ]

    def _noise(
        self, embeddings: list[np.ndarray], places: list[np.ndarray], size: float, draw: int
    ) -> np.ndarray:
        """One draw, ``[prompt, position, d_model]``."""
        generator = np.random.default_rng([self.seed, draw])
        longest = max(map(len, embeddings))
        out = np.zeros((len(embeddings), longest, embeddings[0].shape[1]))
        for i, where in enumerate(places):
            out[i, where] = size * generator.standard_normal((len(where), out.shape[2]))
        return out

    def _dataset(
        self, found: Sweep, grid: Grid, task: PromptPairs, n_boot: int, spread: float
    ) -> xr.Dataset:
        how = Reading(self.metric, "denoising", self.at, n_boot, self.seed, self.keep_prompts)
        about: dict[str, str | float | int] = {
            "site": self.site,
            "slot": self.slot,
            "noise_sd": self.noise * spread,
            "draws": self.draws,
        }
        data = effects_of(found, grid, task, how, about)
        data["effect_raw"].attrs["long_name"] = "indirect effect"
        data["metric_base"].attrs["long_name"] = f"{metric_named(self.metric).title}, noised run"
        data["metric_source"].attrs["long_name"] = f"{metric_named(self.metric).title}, clean run"
        data["total_effect"] = data["metric_source"] - data["metric_base"]
        says = {"units": metric_named(self.metric).units, "long_name": "total effect", "signed": 1}
        data["total_effect"].attrs.update(says)
        return data

    def _verify(
        self,
        model: HookedModel,
        task: PromptPairs,
        context: Context,
        found: Sweep,
        grid: Grid,
        noise: np.ndarray,
    ) -> None:
        """The largest cells of the first draw again: clean prompt, noise and state as edits."""
        size = np.abs(np.nan_to_num((found.patched - found.base).mean(1)[1:]))
        top = np.argsort(-size, kind="stable")[: self.verify]
        if not len(top) or not task.aligned():
            return
        sites = sorted({e.site.whole for c in top for e in grid.cells[c].edits}, key=str)
        values = read_values(model, task, sites, direction="denoising", at=self._at())
        clean = {s: np.stack([np.asarray(v.double().cpu()) for v in values[s]]) for s in sites}
        add = Edit(Site("embed"), noise, mode="add")
        cells = [
            Cell((add, *(Edit(e.site, clean[e.site.whole]) for e in grid.cells[c].edits)))
            for c in top
        ]
        metric = metric_named(self.metric)
        again = plain_metrics(model, task, cells, metric, direction="noising", at=self._at())
        drift = float(np.nanmax(np.abs(again - found.patched[1 + top]), initial=0.0))
        note = f"{len(top)} of the first draw measured again on {len(task)} prompts."
        title = "largest cells by plain forward passes"
        value = drift / metric_size(found)
        context.check(Check("plain_forward", title, value, tolerance(model), note=note))


class _Share:
    """A context that hears one of several equal parts of the work."""

    def __init__(self, context: Context, part: int, parts: int) -> None:
        self._context, self._part, self._parts = context, part, parts

    def advance(self, done: float, total: float) -> None:
        """Progress of this part as that of the whole."""
        share = done / total if total else 1.0
        self._context.advance(self._part + share, self._parts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _mean(found: list[Sweep]) -> Sweep:
    """The grid alone, averaged over draws of the noise."""
    first = found[0]
    return Sweep(
        np.mean([s.patched[1:] for s in found], 0),
        np.mean([s.base for s in found], 0),
        first.source,
        np.all([s.inert[1:] for s in found], 0),
        first.undefined[1:],
        np.max([s.moved[1:] for s in found], 0),
        first.telling[1:],
        max(s.noise for s in found),
        [n for s in found for n in s.chunks],
        sum(s.flops for s in found),
        sum(s.naive for s in found),
    )
