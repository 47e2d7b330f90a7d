"""Trust: what a patching sweep is checked for, line by line of the trust panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interp.engine import Cell, Screened, Sweep, metric_named, plain_metrics
from interp.terms import Check, Context, HookedModel, PromptPairs

DEPTH_TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 4e-2, "float16": 4e-3}
"""Relative error allowed for each layer."""

SCREEN_AGREEMENT = 0.99
VERIFIED_PROMPTS = 4
"""A cell is verified on so many prompts: each is a whole forward pass."""


def tolerance(model: HookedModel) -> float:
    """Relative tolerance for this model's depth and dtype."""
    dtype = str(getattr(model, "dtype", "float32")).removeprefix("torch.")
    return DEPTH_TOLERANCE.get(dtype, 1e-5) * max(1, model.shape.n_layers)


def metric_size(found: Sweep) -> float:
    """Size of the metric over both runs: its spread or its mean magnitude."""
    values = np.concatenate([found.base, found.source])
    values = values[np.isfinite(values)]
    return float(max(values.std(), np.abs(values).mean(), 1e-12)) if len(values) else 1.0


def dead_cells(found: Sweep, extra: int) -> float:
    """Cells that changed no value in a prompt although the two runs' tokens differ there."""
    dead = (found.moved[extra:] == 0) & found.telling[extra:]
    return float(dead.any(1).sum())


def check_sweep(
    model: HookedModel, context: Context, found: Sweep, extra: int, *, dead_edits: bool
) -> None:
    """Noise floor, patching everything, edits that never fired.

    Args:
        model: for its depth and dtype.
        context: takes the checks.
        found: the sweep.
        extra: 1 where its first cell patches every position of layer 0.
        dead_edits: whether cells that change nothing are a fault.
    """
    relative, scale = tolerance(model), metric_size(found)
    context.check(
        Check(
            "noise_floor",
            "noise floor (self-patched rows)",
            found.noise / scale,
            relative,
            note="Largest change of the metric when a run's own values are put back, relative.",
        )
    )
    if extra:
        drift = float(np.nanmax(np.abs(found.patched[0] - found.source), initial=0.0))
        context.check(
            Check(
                "patch_everything",
                "patching everything gives the source run",
                drift / scale,
                relative,
                note="resid_pre of layer 0 at every position, over the metric's size.",
            )
        )
    if dead_edits:
        context.check(
            Check(
                "edits_fired",
                "edits that changed nothing",
                dead_cells(found, extra),
                0.0,
                note="Cells whose value stayed the same although the runs' tokens differ there.",
            )
        )


def check_plain(
    model: HookedModel,
    task: PromptPairs,
    context: Context,
    found: Sweep,
    cells: Sequence[Cell],
    rows: np.ndarray,
    *,
    metric: str,
    direction: str,
    at: int | str,
) -> None:
    """The largest cells again by plain forward passes of the back-end.

    Args:
        model: whose ``run`` measures them.
        task: the prompts.
        context: takes the check.
        found: the sweep.
        cells: what to measure again.
        rows: where they stand in the sweep.
        metric: as of the sweep.
        direction: as of the sweep.
        at: as of the sweep.
    """
    some = task.select(range(min(len(task), VERIFIED_PROMPTS)))
    again = plain_metrics(model, some, cells, metric_named(metric), direction=direction, at=at)
    drift = float(np.nanmax(np.abs(again - found.patched[rows, : len(some)]), initial=0.0))
    context.check(
        Check(
            "plain_forward",
            "largest cells by plain forward passes",
            drift / metric_size(found),
            tolerance(model),
            note=f"{len(cells)} measured again by the back-end on {len(some)} prompts.",
        )
    )


def check_screen(context: Context, screened: Screened) -> None:
    """How well the bfloat16 screen agrees with full precision on the cells measured twice."""
    context.check(
        Check(
            "screen_agreement",
            "bfloat16 screen against full precision (correlation)",
            screened.correlation,
            SCREEN_AGREEMENT,
            at_least=True,
            note=f"Mean effects of the {int(screened.exact.sum())} cells that were measured twice.",
        )
    )
