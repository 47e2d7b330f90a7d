"""Opening: what of a model is frozen, in a precision that can be checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.engine.gradients.active import blocks_of
from interp.engine.linear.frozen import Frozen
from interp.engine.linear.modules import freeze_rows
from interp.models.casting import cast_blocks
from interp.terms import HookedModel, TaskError

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
"""Completeness relative to the largest output, by precision."""


def driven(model: HookedModel) -> bool:
    """Whether the engine drives the model layer by layer."""
    return blocks_of(model) is not None


def module_of(model: HookedModel) -> nn.Module:
    """The model's module; a float32 copy of it where it is kept in half precision."""
    module = model.module()
    halves = any(p.dtype in HALF for p in module.parameters())
    return copy.deepcopy(module).float() if halves else module


def transformer_of(model: HookedModel) -> Any:
    """The model, or its blocks in float32 where they are kept in half precision."""
    blocks = blocks_of(model)
    if blocks.dtype not in HALF:
        return model
    return SimpleNamespace(
        blocks=cast_blocks(blocks, torch.float32), shape=model.shape, id=model.id, sites=()
    )


def tensors_of(module: nn.Module, inputs: np.ndarray) -> Tensor:
    """Inputs where the module computes and in its precision.

    Raises:
        TaskError: numbers that are not finite, with the row and place.
    """
    bad = [
        (i + 1, f"entry {tuple(map(int, np.argwhere(~np.isfinite(row))[0]))} is not finite")
        for i, row in enumerate(inputs)
        if not np.isfinite(row).all()
    ]
    if bad:
        shown = "; ".join(f"input {n}: {why}" for n, why in bad[:5])
        raise TaskError(f"Inputs that are not finite cannot be explained: {shown}.", rows=bad)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(1))
    return torch.as_tensor(inputs).to(device=like.device, dtype=like.dtype)


def frozen_batches(
    module: nn.Module, x: Tensor, most: int, memory: int, **how: Any
) -> Iterator[tuple[slice, Frozen]]:
    """Inputs frozen, at most so many at a time, each with its rows.

    Args:
        module: the network.
        x: ``[input, …]``.
        most: inputs at a time.
        memory: bytes that rows of F may take.
        **how: as for ``freeze``.
    """
    tolerance = 100 * TOLERANCE[x.dtype]
    for start in range(0, len(x), most):
        at = start
        for frozen in freeze_rows(module, x[start : start + most], tolerance, memory=memory, **how):
            yield slice(at, at + frozen.rows), frozen
            at += frozen.rows


def values_of(module: nn.Module, x: Tensor) -> Tensor:
    """The network's own output, ``[input, *out]``."""
    with torch.no_grad():
        out = module(x)
    return out if isinstance(out, Tensor) else out[0]
