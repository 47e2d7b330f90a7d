"""Counting: the passes over features that fill the accumulators, one set a place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.methods.collapse.accumulators import (
    Center,
    MeanCounter,
    Moments,
    OnePass,
    SpreadCounter,
)

Batches = Callable[[], Iterator[tuple[dict[str, Tensor], Tensor]]]
"""Name -> features ``[row, width]``, and labels ``[row]``; called once for every pass."""


@dataclass(frozen=True)
class Classifier:
    """A linear map that reads the features of a place.

    Args:
        weight: ``[K, D]``.
        bias: ``[K]`` or None.
    """

    weight: Tensor
    bias: Tensor | None = None


def count(
    batches: Batches,
    names: Sequence[str],
    n_labels: int,
    heads: dict[str, Classifier] | None = None,
    center: Center = "class",
    one_pass: bool = False,
    nearest: bool = True,
) -> dict[str, Moments]:
    """Class statistics at every place.

    Args:
        batches: gives the features, once a pass.
        names: places.
        n_labels: K.
        heads: places whose features a linear map reads.
        center: what the class means are centred on.
        one_pass: see ``OnePass``.
        nearest: count nearest class means.

    Raises:
        UsageError: rows that cannot be used, fewer than two classes with rows.
    """
    if one_pass:
        once: dict[str, OnePass] = {}
        for found, labels in batches():
            for name in names:
                h = found[name]
                if name not in once:
                    once[name] = OnePass(n_labels, h.shape[1], h.device)
                once[name].add(h, labels)
        return {name: once[name].moments(center) for name in names}
    first: dict[str, MeanCounter] = {}
    for found, labels in batches():
        for name in names:
            h = found[name]
            if name not in first:
                first[name] = MeanCounter(n_labels, h.shape[1], h.device)
            first[name].add(h, labels)
    second: dict[str, SpreadCounter] = {}
    for name in names:
        head = (heads or {}).get(name)
        weight, bias = (None, None) if head is None else (head.weight, head.bias)
        second[name] = SpreadCounter(first[name].means(center), weight, bias, nearest)
    for found, labels in batches():
        for name in names:
            second[name].add(found[name], labels)
    return {name: second[name].moments() for name in names}


def sample_rows(batches: Batches, name: str, most: int) -> tuple[Tensor, Tensor]:
    """The first rows of each class at a place, at most ``most`` together, and their labels."""
    rows, marks = [], []
    for found, labels in batches():
        rows.append(found[name])
        marks.append(labels)
        if sum(map(len, marks)) >= 8 * most:
            break
    h, y = torch.cat(rows), torch.cat(marks)
    order = torch.argsort(y, stable=True)
    place = torch.arange(len(y), device=y.device) - torch.searchsorted(y[order], y[order])
    each = max(1, most // max(1, len(y.unique())))
    chosen = order[place < each].sort().values[:most]
    return h[chosen].double(), y[chosen]
