"""Casting: the same blocks in another precision, as a copy; the model itself is left alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from interp.models.blocks import LayerBlock, ModelBlocks, Projection
from interp.models.kernels import Norm, Rotary

PARTS = (ModelBlocks, LayerBlock, Projection, Norm, Rotary)
KEPT = ("inv_freq",)
"""Rotary angles are made in float32 whatever the model's dtype."""


def cast_blocks(blocks: Any, dtype: torch.dtype) -> ModelBlocks:
    """Blocks with every parameter in ``dtype``; tied parameters stay tied.

    Args:
        blocks: a ``ModelBlocks``.
        dtype: of the copy.
    """
    return _cast(blocks, dtype, {})


def _cast(value: Any, dtype: torch.dtype, done: dict[int, Any]) -> Any:
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        new = value.detach().to(dtype) if value.is_floating_point() else value
    elif isinstance(value, list):
        new = [_cast(v, dtype, done) for v in value]
    elif isinstance(value, PARTS):
        new = copy.copy(value)
        done[id(value)] = new
        for name, part in vars(value).items():
            if name not in KEPT:
                setattr(new, name, _cast(part, dtype, done))
        if isinstance(new, Rotary):
            new._last = None
    else:
        new = value
    done[id(value)] = new
    return new
