"""Screening: a sweep in bfloat16, and its largest cells again in the model's own precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.engine.plans import Cell
from interp.engine.sweeps import sweep
from interp.engine.undriven import Sweep, undriven
from interp.models.casting import cast_blocks
from interp.terms import Blocks, CapabilityError, Context, HookedModel, ModelShape, PromptPairs


@dataclass(frozen=True)
class _Screen:
    """The model as a sweep needs it, in another precision."""

    blocks: Blocks
    shape: ModelShape


@dataclass(frozen=True)
class Screened:
    """A screened sweep.

    Args:
        sweep: the screen's numbers, shifted to the exact base runs, the largest cells exact.
        exact: which cells were measured again, ``[cell]``.
        correlation: of the mean effects of those cells in both precisions; NaN below three.
    """

    sweep: Sweep
    exact: np.ndarray
    correlation: float


def screened_sweep(
    model: HookedModel,
    pairs: PromptPairs,
    cells: Sequence[Cell],
    context: Context,
    *,
    top: int,
    always: int = 0,
    **knobs: Any,
) -> Screened:
    """Measure all cells in bfloat16 and the ``top`` largest again.

    Args:
        model: in float32 or float64.
        pairs: the prompts.
        cells: what to measure.
        context: see ``sweep``.
        top: so many cells are measured again.
        always: the first so many cells are measured again in any case.
        **knobs: as of ``sweep``.

    Raises:
        CapabilityError: a model whose layers cannot be driven.
    """
    why = undriven(model, cells)
    if why:
        raise CapabilityError(why, remedy="Measure without a screen.")
    copy: Any = _Screen(cast_blocks(model.blocks, torch.bfloat16), model.shape)
    rough = sweep(copy, pairs, cells, context, label="screen", **knobs)
    size = np.abs(np.nan_to_num((rough.patched - rough.base).mean(1)))
    size[:always] = np.inf
    chosen = np.sort(np.argsort(-size, kind="stable")[: top + always])
    again = sweep(
        model,
        pairs,
        [cells[c] for c in chosen],
        context,
        label="recheck",
        **{**knobs, "on_chunk": None},
    )
    patched = rough.patched - rough.base + again.base
    moved, exact = rough.moved.copy(), np.zeros(len(cells), bool)
    both = [(s.patched - s.base).mean(1) for s in (again, rough)]
    both[1] = both[1][chosen]
    spread = len(chosen) > 2 and min(np.nanstd(b) for b in both) > 0
    correlation = float(np.corrcoef(both)[0, 1]) if spread else float("nan")
    patched[chosen], moved[chosen], exact[chosen] = again.patched, again.moved, True
    whole = dataclasses.replace(
        rough,
        patched=patched,
        base=again.base,
        source=again.source,
        moved=moved,
        noise=again.noise,
        chunks=[*rough.chunks, *again.chunks],
        flops=rough.flops + again.flops,
    )
    return Screened(whole, exact, correlation)
