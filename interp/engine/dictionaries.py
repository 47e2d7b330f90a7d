"""Dictionaries: features of both runs, and edits that move one feature of a value.

With ``x = f W_dec + b_dec + e``, feature j at value v is ``x + (v - f_j) W_dec[j]``: the error and
all other features stay. So an edit of a feature is an addition to its site, which the packed
engine and plain forward passes both take (marks2025sparse).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.engine.buckets import buckets_of
from interp.engine.plans import Cell
from interp.terms import Edit, HookedModel, PromptPairs

if TYPE_CHECKING:
    from interp.models.dictionaries import Dictionary


def feature_values(
    model: HookedModel,
    pairs: PromptPairs,
    dictionary: Dictionary,
    features: Sequence[int],
    *,
    direction: str,
    at: int | str = "last",
) -> tuple[np.ndarray, np.ndarray]:
    """Chosen features in the base run and in the source run, ``[prompt, position, feature]``.

    Positions are the base run's; NaN where the source run has no counterpart, 0 behind the end.
    """
    buckets = buckets_of(pairs, direction, at)
    shape = (len(pairs), max(b.length for b in buckets), len(features))
    base, source = np.zeros(shape), np.zeros(shape)
    chosen = torch.as_tensor(list(features), dtype=torch.long)
    for bucket in buckets:
        for tokens, into in ((bucket.base, base), (bucket.source, source)):
            with torch.no_grad():
                read = model.run(tokens, read=[dictionary.site], positions=[-1]).reads
                f = dictionary.encode(read[dictionary.site])[..., chosen.to(model_device(read))]
            values = f.double().cpu().numpy()
            if into is source:
                rows = np.arange(len(bucket))[:, None]
                values = np.where(
                    (bucket.match < 0)[..., None], np.nan, values[rows, bucket.match.clip(0)]
                )
            into[bucket.rows, : bucket.length] = values
    return base, source


def model_device(reads: Mapping[Any, torch.Tensor]) -> torch.device:
    """Where read values lie."""
    return next(iter(reads.values())).device


def feature_cells(
    dictionary: Dictionary,
    features: Sequence[int],
    change: np.ndarray,
    positions: Sequence[int | str | None],
) -> list[Cell]:
    """Cells that change one feature each, row-major over features and positions.

    Args:
        dictionary: whose features.
        features: their numbers.
        change: by how much, ``[prompt, position, feature]``; NaN moves nothing.
        positions: where: an index, a slot's name, or None for everywhere.
    """
    rows = dictionary.W_dec.detach().double().cpu().numpy()
    known = np.nan_to_num(change)
    cells = []
    for i, feature in enumerate(features):
        array = known[:, :, i, None] * rows[feature]
        array = array.astype(np.float32) if dictionary.W_dec.itemsize < 8 else array
        cells += [Cell((Edit(dictionary.site.at(p), array, "add"),)) for p in positions]
    return cells
