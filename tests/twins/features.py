"""The slow reference of a dictionary's features: loops over features, hooks on the raw module.

Imports nothing of interp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.twins.patching import patched_logits, read


def encoded(x: Tensor, book: dict[str, Any]) -> Tensor:
    """Features ``[prompt, position, n]``, one feature at a time."""
    if book["centred"]:
        x = x - book["b_dec"]
    columns = []
    for j in range(book["W_enc"].shape[1]):
        f = (x * book["W_enc"][:, j]).sum(-1) + book["b_enc"][j]
        floor = book["threshold"][j] if book["act"] == "jumprelu" else 0.0
        columns.append(torch.where(f > floor, f.clamp_min(0), torch.zeros_like(f)))
    f = torch.stack(columns, -1)
    if book["act"] == "topk":
        kept = torch.zeros_like(f)
        for place in range(f[..., 0].numel()):
            row, into = f.flatten(0, -2)[place], kept.flatten(0, -2)[place]
            for j in sorted(range(len(row)), key=lambda j: -float(row[j]))[: book["k"]]:
                into[j] = row[j]
        return kept
    return f


def patched_feature_logits(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor,
    kind: str,
    layer: int,
    book: dict[str, Any],
    feature: int,
    *,
    position: int | None = None,
    value: Tensor | None = None,
) -> Tensor:
    """Logits of the base run with one feature at the source run's value (or ``value``)."""
    own, lent = (read(model, family, kind, layer, t) for t in (base, source))
    f = encoded(own, book)
    target = encoded(lent, book)[..., feature] if value is None else value
    change = target - f[..., feature]
    if position is not None:
        keep = torch.zeros_like(change)
        keep[:, position] = change[:, position]
        change = keep
    new = own + change[..., None] * book["W_dec"][feature]
    return patched_logits(model, family, base, None, kind, layer, value=new)
