"""Untrained: a model's architecture with freshly drawn weights, the control of a comparison."""

from __future__ import annotations

from typing import Any

from interp.models.loading import quiet
from interp.models.opening import load_model
from interp.terms import HookedModel, RefusedError


def untrained_like(model: HookedModel, seed: int) -> HookedModel:
    """The same architecture and sizes, weights drawn as the architecture draws them.

    Args:
        model: a transformer of a known family.
        seed: everything follows from it.

    Raises:
        RefusedError: a model without a Hugging Face config.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not model.shape.architecture:
        raise RefusedError(
            f"{model.id} has no config from which an untrained copy could be built.",
            remedy="Compare transformers of the known families.",
        )
    import torch
    import transformers

    blocks = model.blocks
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        module = getattr(transformers, model.shape.architecture)(config).eval()
    dtype = str(blocks.dtype).removeprefix("torch.")
    return load_model(module, device=str(blocks.device), dtype=dtype, verify=False)
