"""Undriven: sweeps on models or sites that the packed engine cannot drive, a whole pass a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interp.engine.metrics import Metric
from interp.engine.plain import plain_metrics, plain_source
from interp.engine.plans import DRIVEN, Cell
from interp.terms import CapabilityError, Context, HookedModel, PromptPairs

PLAIN_CELLS = 8
"""Cells between two reports of progress."""


@dataclass(eq=False)
class Sweep:
    """What a sweep measured.

    Args:
        patched: metric of each cell, ``[cell, prompt]``; NaN where undefined.
        base: metric of the base run, ``[prompt]``; source: of the source run.
        inert: cells that cannot change the metric (their value is the base's), ``[cell, prompt]``.
        undefined: cells without a counterpart in the source run, ``[cell, prompt]``.
        moved: largest absolute change of the edited values, ``[cell, prompt]``.
        telling: cells whose value must change, as the runs' tokens differ there.
        noise: largest deviation of a self-patched row from its base row, in the metric's unit.
        chunks: rows of each chunk, in order.
        flops: planned FLOPs; naive: FLOPs of one full forward a row.
    """

    patched: np.ndarray
    base: np.ndarray
    source: np.ndarray
    inert: np.ndarray
    undefined: np.ndarray
    moved: np.ndarray
    telling: np.ndarray
    noise: float = 0.0
    chunks: list[int] = field(default_factory=list)
    flops: float = 0.0
    naive: float = 0.0


def undriven(model: HookedModel, cells: Sequence[Cell]) -> str:
    """Why the packed engine cannot measure these cells on this model; empty if it can."""
    kinds = {e.site.kind for c in cells for e in c.edits} - set(DRIVEN)
    if kinds:
        return f"The packed engine does not edit {', '.join(sorted(kinds))}."
    try:
        model.blocks  # noqa: B018
    except CapabilityError as error:
        return error.message
    return ""


def plain_sweep(
    model: HookedModel,
    pairs: PromptPairs,
    cells: Sequence[Cell],
    metric: Metric,
    context: Context,
    direction: str,
    at: int | str,
    on_chunk: Any,
) -> Sweep:
    """The same result by one whole forward pass a cell, for models that cannot be driven."""
    shape = (len(cells), len(pairs))
    base = plain_metrics(model, pairs, [Cell(())], metric, direction=direction, at=at)[0]
    again = plain_metrics(model, pairs, [Cell(())], metric, direction=direction, at=at)[0]
    source = plain_source(model, pairs, metric, direction=direction, at=at)
    found = Sweep(
        np.full(shape, np.nan),
        base,
        source,
        np.zeros(shape, bool),
        np.zeros(shape, bool),
        np.ones(shape),
        np.ones(shape, bool),
        noise=float(np.abs(base - again).max()),
    )
    for i in range(0, len(cells), PLAIN_CELLS):
        part = cells[i : i + PLAIN_CELLS]
        kept = context.load_chunk(f"plain-{i}")
        if kept is None:
            kept = {
                "patched": plain_metrics(model, pairs, part, metric, direction=direction, at=at)
            }
            context.save_chunk(f"plain-{i}", kept)
        found.patched[i : i + len(part)] = kept["patched"]
        found.chunks.append(len(part) * len(pairs))
        context.advance(i + len(part), len(cells))
        if on_chunk is not None:
            on_chunk(found)
    found.undefined = np.isnan(found.patched)
    return found
