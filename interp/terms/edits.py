"""Edit: an intervention written down as data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp.terms.errors import UsageError
from interp.terms.sites import Site

Mode = Literal["replace", "add"]
WORDS = ("source", "zero", "mean", "resample")


@dataclass(frozen=True, eq=False)
class Edit:
    """What to put where. Data, never a closure, so edits stack, cache, hash and travel.

    Args:
        site: where.
        with_: ``"source"`` (the source run's value), ``"zero"``, ``"mean"`` (over the task),
            ``"resample"`` (another prompt's value), or an array that broadcasts to the site's
            value ``[batch, position, *site dims]`` after the site's selections. A model's own
            ``run`` takes ``"zero"`` and arrays; the words that need other runs are the engine's.
        mode: ``"replace"`` puts the value in place, ``"add"`` adds it.
        reader: a site whose own copy of the residual alone is changed (edges, local skips).

    Raises:
        UsageError: an unknown word or mode.
    """

    site: Site
    with_: Any = "source"
    mode: Mode = "replace"
    reader: Site | None = None

    def __post_init__(self) -> None:
        if isinstance(self.with_, str) and self.with_ not in WORDS:
            raise UsageError(
                f"An edit's value was given as {self.with_!r}; wanted one of {', '.join(WORDS)} "
                "or an array."
            )
        if self.mode not in ("replace", "add"):
            raise UsageError(f"An edit's mode was {self.mode!r}; wanted 'replace' or 'add'.")

    def digest(self) -> str:
        """sha256 of the site, mode, reader and value."""
        sha = hashlib.sha256()
        sha.update(repr((str(self.site), self.mode, str(self.reader))).encode())
        if isinstance(self.with_, str):
            sha.update(self.with_.encode())
        else:
            value = self.with_
            if hasattr(value, "detach"):
                value = value.detach().cpu().double().numpy()
            value = np.ascontiguousarray(value)
            sha.update(repr((value.shape, value.dtype.str)).encode())
            sha.update(value.tobytes())
        return sha.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())
