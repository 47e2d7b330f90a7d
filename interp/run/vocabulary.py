"""Vocabulary: the text of every token id that a result holds, so that it reads without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from interp.terms import HookedModel

UNIT = "token"
"""The unit of an array of token ids."""

MOST = 20_000
"""More different ids than this are left as numbers."""


def with_vocabulary(
    tokens: dict[str, Any] | None, data: xr.Dataset, model: HookedModel
) -> dict[str, Any] | None:
    """The texts of a task's tokens, and those of the ids in ``data`` (``answers``: id -> text)."""
    columns = [
        v.values.ravel()
        for v in data.data_vars.values()
        if v.attrs.get("units") == UNIT and v.dtype.kind in "iu"
    ]
    if not columns or model.tokenizer is None:
        return tokens
    known = dict((tokens or {}).get("answers") or {})
    held = np.unique(np.concatenate(columns))
    lost = [int(i) for i in held if i >= 0 and int(i) not in known]
    if not lost or len(lost) > MOST:
        return tokens
    texts = model.tokenizer.texts(lost)
    return {**(tokens or {}), "answers": {**known, **dict(zip(lost, texts, strict=True))}}
