"""Path patching: exact effect of one component on another's input alone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import Cell, all_edges, estimate, sweep, undriven
from interp.methods.patching.effects import Reading, averaged, effects_of
from interp.methods.patching.grids import Grid
from interp.methods.patching.nodes import (
    chosen_readers,
    chosen_writers,
    reader_name,
    writer_name,
)
from interp.methods.patching.trust import check_plain, check_sweep
from interp.terms import Context, Edit, HookedModel, Method, PromptPairs, Site, UsageError


class PathPatching(Method):
    """Effect of each edge: a reader alone sees what a writer writes in the other run.

    Writers are the embedding, heads and MLPs; readers the query, key and value inputs of heads, MLP
    inputs and the logits, each with its own copy of the residual. ``freeze="heads+mlps"`` changes
    that copy by ``write_source - write_base`` (the direct edge). ``freeze="heads"`` takes the
    reader's input from a run with the writer at source, attention behind it at base and MLPs
    computed anew. ``effect`` is as in activation patching; NaN where no edge exists.
    Sources: wang2023interpretability, goldowsky2023localizing.
    """

    title: ClassVar[str] = "Path patching"
    question: ClassVar[str] = "Which component feeds which, and by which input?"
    citations: ClassVar[tuple[str, ...]] = ("wang2023interpretability", "goldowsky2023localizing")
    needs: ClassVar[tuple[str, ...]] = ("z", "q", "k", "v", "attn_out", "mlp_out")
    version: ClassVar[int] = 1

    senders: Annotated[str, Field(max_length=2000)] = "all"
    """Writers: all, embed, heads, mlps, or names such as L0H1 and MLP2, with commas."""
    receivers: Annotated[str, Field(max_length=2000)] = "all"
    """Readers: all, q, k, v, mlps, logits, or names such as L3H1, L3H1.q and MLP2, with commas."""
    freeze: Literal["heads+mlps", "heads"] = "heads+mlps"
    """What stays at the base run between the two: everything, or attention alone."""
    direction: Literal["denoising", "noising"] = "denoising"
    """Denoising: clean into the corrupt run. Noising: corrupt into the clean run."""
    with_: Literal["source", "zero"] = "source"
    """What the writer writes instead: the other run's, or nothing."""
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
    position: str = Field("", json_schema_extra={"advanced": True}, max_length=60)
    """Where the writer is changed: an index or a slot; everywhere if empty."""
    keep_prompts: bool = Field(False, json_schema_extra={"advanced": True})
    """Keep the patched metric of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    verify: Annotated[int, Field(ge=0, le=100, json_schema_extra={"advanced": True})] = 1
    """So many of the largest edges are measured again by plain forward passes."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of bootstrap and sign flips."""

    def estimate(self, model: HookedModel, task: PromptPairs) -> dict[str, float]:
        """Cells, rows, FLOPs, bytes and seconds before it runs (``engine.Estimate``)."""
        cells = self._grid(model).cells
        if undriven(model, cells):
            return {"cells": len(cells), "rows": len(cells) * len(task), "prompts": len(task)}
        at = _place(self.at)
        found = estimate(model, task, cells, metric=self.metric, direction=self.direction, at=at)
        return vars(found)

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``effect [src, dst]``, ``effect_raw`` and their statistics."""
        grid = self._grid(model)
        first = [Cell((Edit(Site("resid_pre", layer=0), "source"),))]
        found = sweep(
            model,
            task,
            [*first, *grid.cells],
            context,
            metric=self.metric,
            direction=self.direction,
            at=_place(self.at),
            on_chunk=lambda s: context.partial(
                lambda: self._dataset(averaged(s, 1, 1), grid, task, 0)
            ),
        )
        data = self._dataset(averaged(found, 1, 1), grid, task, self.n_boot)
        check_sweep(model, context, found, 1, dead_edits=False)
        size = np.abs(np.nan_to_num((found.patched - found.base).mean(1)[1:]))
        top = np.argsort(-size, kind="stable")[: self.verify]
        if len(top):
            check_plain(
                model,
                task,
                context,
                found,
                [grid.cells[c] for c in top],
                1 + top,
                metric=self.metric,
                direction=self.direction,
                at=_place(self.at),
            )
        return data

    def _dataset(self, found: object, grid: Grid, task: PromptPairs, n_boot: int) -> xr.Dataset:
        how = Reading(self.metric, self.direction, self.at, n_boot, self.seed, self.keep_prompts)
        about: dict[str, str | float | int] = {
            "freeze": self.freeze,
            "with_": self.with_,
            "edges": len(grid.cells),
        }
        return effects_of(found, grid, task, how, about)  # type: ignore[arg-type]

    def _grid(self, model: HookedModel) -> Grid:
        shape = model.shape
        edges = all_edges(shape)
        writers = chosen_writers(self.senders, list(dict.fromkeys(u for u, _ in edges)))
        readers = chosen_readers(self.receivers, list(dict.fromkeys(v for _, v in edges)), shape)
        src, dst = ({s: i for i, s in enumerate(x)} for x in (writers, readers))
        chosen = [(u, v) for u, v in edges if u in src and v in dst]
        if not chosen:
            raise UsageError(
                "No edge leads from these senders to these receivers.",
                remedy="Take receivers behind the senders.",
            )
        chosen.sort(key=lambda e: (src[e[0]], dst[e[1]]))
        position = _place(self.position) if self.position else None
        cells = [
            Cell((Edit(u.at(position), self.with_, reader=v),), frozen=self.freeze == "heads")
            for u, v in chosen
        ]
        index = np.array([src[u] * len(readers) + dst[v] for u, v in chosen])
        names = {
            "src": np.array([writer_name(s) for s in writers]),
            "dst": np.array([reader_name(s, shape) for s in readers]),
        }
        further = {**_fields("src", writers), **_fields("dst", readers)}
        return Grid(("src", "dst"), names, cells, index, further)


def _place(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _fields(axis: str, sites: list[Site]) -> dict[str, tuple[str, np.ndarray]]:
    """Layer, head (-1 where there is none) and kind of each node, as coordinates of its axis."""
    parts = {"layer": [s.layer for s in sites], "head": [s.head for s in sites]}
    found = {
        f"{axis}_{name}": (axis, np.array([-1 if v is None else v for v in values]))
        for name, values in parts.items()
    }
    return {**found, f"{axis}_input": (axis, np.array([s.kind for s in sites]))}
