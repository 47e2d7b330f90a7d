"""Hard random models, wrapped once a session for each back-end and dtype; and the untouched one."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from interp.models import load_model
from tests.checkpoints import FAMILY_NAMES, hard_model, prompts

__all__ = ["FAMILY_NAMES", "close", "prompts", "raw", "wrapped"]


@cache
def raw(family: str, dtype: str = "float64") -> Any:
    """The untouched transformers module."""
    module = hard_model(family)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return module.eval()


@cache
def wrapped(family: str, backend: str = "transformer_lens", dtype: str = "float64") -> Any:
    """The same weights behind a back-end."""
    return load_model(hard_model(family), backend=backend, dtype=dtype)


def close(a: Any, b: Any) -> float:
    """Largest difference in standard deviations of ``b``."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.std())
