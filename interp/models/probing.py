"""Probing: the prompt on which a wrapped model is held against the unwrapped one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.models.families import Family, layer_facts

if TYPE_CHECKING:
    from torch import Tensor


def probe_of(family: Family, config: Any) -> Tensor:
    """Token ids ``[1, T]`` that fit the model and, where it can be had, outrun its window.

    A checkpoint may name a prompt itself (``probe_tokens`` in its config), for a model that does
    nothing on any other.
    """
    import torch

    own = getattr(config, "probe_tokens", None)
    if isinstance(own, list) and own and all(type(t) is int for t in own):
        known = [t % int(config.vocab_size) for t in own[: int(config.max_position_embeddings)]]
        return torch.tensor([known])
    windows = [layer_facts(family, config, n).window for n in range(config.num_hidden_layers)]
    reach = max((w for w in windows if w is not None and w <= 60), default=0)
    length = min(int(config.max_position_embeddings), max(16, reach + 4))
    return (7 + 31 * torch.arange(length))[None] % int(config.vocab_size)
