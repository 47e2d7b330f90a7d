"""The slow reference of causal tracing: one forward a cell on the raw module (meng2022locating)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.twins.patching import patched_logits, read, tapped


def traced_logits(
    model: Any,
    family: str,
    clean: Tensor,
    noise: Tensor,
    kind: str | None = None,
    layer: int = 0,
    position: int | None = None,
) -> Tensor:
    """Logits of the clean prompt with noise on its embeddings and one clean state put back.

    ``noise`` is ``[prompt, position, width]``; without ``kind`` nothing is put back.
    """
    value = None if kind is None else read(model, family, kind, layer, clean)
    with torch.no_grad(), tapped(model, family, "embed", 0, lambda x: x + noise):
        if kind is None:
            return model(clean).logits
        return patched_logits(
            model, family, clean, None, kind, layer, position=position, value=value
        )
