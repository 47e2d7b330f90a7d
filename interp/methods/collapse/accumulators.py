"""Accumulators: class statistics of features that pass by in batches.

Legend: B rows of a batch, N rows in all, K classes, D width, r rank of the class means. Nothing
of size K·K, B·K·D or D·D a class is made, and no batch waits for an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from interp.terms import UsageError

Center = Literal["class", "sample"]
RANK = 1e-10
"""A singular value below this share of the largest counts as zero."""

SCORES = 2**22
"""Entries of the largest row-by-class table that is held."""

WIDEST = 4096
"""Features wider than this have no D×D matrix: one pass is refused."""


@dataclass(frozen=True)
class Means:
    """Class means and what follows from them.

    Args:
        counts: rows of every class ``[K]``, int64.
        means: class means ``[K, D]``, float64; NaN where a class has no row.
        present: numbers of the classes that have rows ``[P]``.
        centre: μ_G ``[D]``: the mean of the class means, or of all rows.
        centred: means of the present classes less the centre ``[P, D]``.
        directions: right singular vectors of ``centred`` ``[D, r]``.
        sizes: its singular values ``[r]``.
    """

    counts: Tensor
    means: Tensor
    present: Tensor
    centre: Tensor
    centred: Tensor
    directions: Tensor
    sizes: Tensor

    @property
    def n(self) -> int:
        """Rows in all."""
        return int(self.counts.sum())

    @property
    def rank(self) -> int:
        """r: how many directions the class means span about their centre."""
        return len(self.sizes)

    @property
    def here(self) -> Tensor:
        """Means of the present classes, uncentred ``[P, D]``."""
        return self.means[self.present]


@dataclass(frozen=True)
class Moments:
    """Everything that the metrics need of the features.

    Args:
        means: class means and their directions.
        within: mean over rows of the squared deviation from the own class mean along each
            direction ``[r]``.
        variance: mean squared distance from the own class mean, by present class ``[P]``.
        nearest_is_label: rows whose nearest class mean is their own; -1 where not counted.
        nearest_is_head: rows whose nearest class mean is the head's choice; -1 likewise.
        resolution: the least nc1 that this way of counting resolves.
    """

    means: Means
    within: Tensor
    variance: Tensor
    nearest_is_label: int = -1
    nearest_is_head: int = -1
    resolution: float = 0.0

    @property
    def within_trace(self) -> float:
        """tr Σ_W."""
        n = self.means.counts[self.means.present].double()
        return float((n * self.variance).sum() / self.means.n)


class Bad:
    """Remembers the first row that cannot be used, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.rows = 0
        self._labels = torch.full((), 2**62, dtype=torch.long, device=device)
        self._values = torch.full((), 2**62, dtype=torch.long, device=device)

    def look(self, h: Tensor, y: Tensor, n_labels: int) -> Tensor:
        """Note bad rows; returns the labels with the bad ones set to 0."""
        number = torch.arange(self.rows, self.rows + len(y), device=y.device)
        off = (y < 0) | (y >= n_labels)
        odd = ~torch.isfinite(h.sum(-1))
        never = torch.full_like(number, 2**62)
        self._labels = torch.minimum(self._labels, torch.where(off, number, never).min())
        self._values = torch.minimum(self._values, torch.where(odd, number, never).min())
        self.rows += len(y)
        return y.masked_fill(off, 0)

    def refuse(self, n_labels: int) -> None:
        """Raise if a row was bad.

        Raises:
            UsageError: a label outside, or features that are not finite, with the row.
        """
        for first, what in (
            (self._labels, f"has a label outside 0 … {n_labels - 1}"),
            (self._values, "has features that are not finite"),
        ):
            if int(first) < 2**62:
                raise UsageError(
                    f"Row {int(first)} (counted from 0) {what}.",
                    remedy="Leave it out, or mend it: no class mean can hold it.",
                )


class MeanCounter:
    """First pass: counts and sums by class, float64.

    Args:
        n_labels: K.
        width: D.
        device: where the features are.

    Raises:
        UsageError: a single class.
    """

    def __init__(self, n_labels: int, width: int, device: torch.device | str = "cpu") -> None:
        _two(n_labels)
        self.n_labels = n_labels
        self.counts = torch.zeros(n_labels, dtype=torch.long, device=device)
        self.sums = torch.zeros(n_labels, width, dtype=torch.float64, device=device)
        self.bad = Bad(self.sums.device)

    def add(self, h: Tensor, y: Tensor) -> None:
        """Count features ``[B, D]`` with labels ``[B]``."""
        h, y = _fitting(h, y, self.sums.shape[1])
        h = h.double()
        y = self.bad.look(h, y, self.n_labels)
        self.sums.index_add_(0, y, h)
        self.counts.index_add_(0, y, torch.ones_like(y))

    def means(self, center: Center = "class") -> Means:
        """The class means.

        Raises:
            UsageError: rows that cannot be used, or fewer than two classes with rows.
        """
        self.bad.refuse(self.n_labels)
        return means_of(self.counts, self.sums / self.counts.clamp(min=1)[:, None], center)


def _two(n_labels: int) -> None:
    if n_labels < 2:
        raise UsageError(
            f"There is {n_labels} class; neural collapse compares at least two.",
            remedy="Give labels of two or more classes.",
        )


def _fitting(h: Tensor, y: Tensor, width: int) -> tuple[Tensor, Tensor]:
    if h.dim() != 2 or h.shape[1] != width or y.shape != h.shape[:1]:
        raise UsageError(
            f"Features {tuple(h.shape)} and labels {tuple(y.shape)} were given; wanted "
            f"[row, {width}] and as many labels."
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UsageError(
            f"Labels of type {str(y.dtype).removeprefix('torch.')} were given; wanted whole "
            "numbers from 0."
        )
    return h, y.to(h.device).long()


def means_of(counts: Tensor, means: Tensor, center: Center = "class") -> Means:
    """Centre, centred means and their singular directions, from counts and class means.

    Raises:
        UsageError: fewer than two classes with rows.
    """
    present = counts.nonzero()[:, 0]
    if len(present) < 2:
        raise UsageError(
            f"{len(present)} class has samples; neural collapse compares at least two.",
            remedy="Give samples of two or more classes.",
        )
    here = means[present]
    weights = counts[present].double()
    weights = torch.ones_like(weights) if center == "class" else weights
    # Two steps: the second mean is of small numbers, so large offsets leave no rounding behind.
    centre = (weights[:, None] * here).sum(0) / weights.sum()
    shift = (weights[:, None] * (here - centre)).sum(0) / weights.sum()
    centre = centre + shift
    centred = here - centre
    _, sizes, across = torch.linalg.svd(centred, full_matrices=False)
    floor = RANK * sizes[0] if len(sizes) else 0.0
    scale = here.abs().max() * torch.finfo(torch.float64).eps * 8
    kept = (sizes > floor) & (sizes > scale)
    return Means(
        counts,
        means.masked_fill((counts == 0)[:, None], torch.nan),
        present,
        centre,
        centred,
        across[kept].T.contiguous(),
        sizes[kept],
    )


class SpreadCounter:
    """Second pass: deviations from the class means, and which mean is nearest.

    Args:
        means: of the first pass.
        weight: the head's weight ``[K, D]`` in the features' space, or None.
        bias: its bias ``[K]``, or None.
        nearest: count nearest means (costs K·D a row).
    """

    def __init__(
        self,
        means: Means,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        nearest: bool = True,
    ) -> None:
        self.given = means
        self.weight, self.bias, self.nearest = weight, bias, nearest
        device, p = means.centre.device, len(means.present)
        self.squares = torch.zeros(means.rank, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(p, dtype=torch.float64, device=device)
        self.place = torch.full_like(means.counts, -1)
        self.place[means.present] = torch.arange(p, device=device)
        self.hits = torch.zeros(2, dtype=torch.long, device=device)
        self._half = means.centred.square().sum(1) / 2

    def add(self, h: Tensor, y: Tensor) -> None:
        """Count features ``[B, D]`` with labels ``[B]``."""
        h, y = _fitting(h, y, len(self.given.centre))
        tilde = h.double() - self.given.centre
        at = self.place[y]
        away = tilde - self.given.centred[at]
        self.squares += (away @ self.given.directions).square().sum(0)
        self.scatter.index_add_(0, at, away.square().sum(1))
        if self.nearest:
            self._count_nearest(h, tilde, y)

    def _count_nearest(self, h: Tensor, tilde: Tensor, y: Tensor) -> None:
        """Hits from h̃·c_k − ‖c_k‖²/2, with h̃ = h − μ_G, so that large norms do not cancel."""
        kind = torch.float64 if h.dtype == torch.float64 else torch.float32
        c, half = self.given.centred.to(kind), self._half.to(kind)
        rows = max(1, SCORES // max(len(c), 0 if self.weight is None else len(self.weight)))
        for start in range(0, len(y), rows):
            part = slice(start, start + rows)
            scores = torch.addmm(half, tilde[part].to(kind), c.T, beta=-1)
            nearest = self.given.present[scores.argmax(1)]
            self.hits[0] += (nearest == y[part]).sum()
            if self.weight is not None:
                logits = h[part].to(kind) @ self.weight.to(kind).T
                if self.bias is not None:
                    logits = logits + self.bias.to(kind)
                self.hits[1] += (nearest == logits.argmax(1)).sum()

    def moments(self) -> Moments:
        """What both passes found."""
        n = self.given.counts[self.given.present].double()
        hits = self.hits.tolist() if self.nearest else [-1, -1]
        return Moments(
            self.given,
            self.squares / self.given.n,
            self.scatter / n,
            hits[0],
            hits[1] if self.weight is not None else -1,
        )


@dataclass
class OnePass:
    """Means and deviations in one pass: Chan's merge by class beside a D×D Gram matrix.

    float64 throughout. The Gram is taken about the first batch's mean; what is within classes is
    the difference of two large sums, so a small nc1 is not resolved (``Moments.resolution``), and
    nearest means are not known until the end, so they are not counted.

    Args:
        n_labels: K.
        width: D.
        device: where the features are.

    Raises:
        UsageError: features wider than 4,096, or a single class.
    """

    n_labels: int
    width: int
    device: torch.device | str = "cpu"
    origin: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _two(self.n_labels)
        if self.width > WIDEST:
            raise UsageError(
                f"One pass keeps a {self.width}×{self.width} matrix; at most {WIDEST} are taken.",
                remedy="Use two passes (one_pass=False).",
            )
        wide = {"dtype": torch.float64, "device": self.device}
        self.counts = torch.zeros(self.n_labels, dtype=torch.long, device=self.device)
        self.mean = torch.zeros(self.n_labels, self.width, **wide)
        self.scatter = torch.zeros(self.n_labels, **wide)
        self.gram = torch.zeros(self.width, self.width, **wide)
        self.bad = Bad(self.mean.device)

    def add(self, h: Tensor, y: Tensor) -> None:
        """Count features ``[B, D]`` with labels ``[B]``."""
        h, y = _fitting(h, y, self.width)
        h = h.double()
        y = self.bad.look(h, y, self.n_labels)
        if self.origin is None:
            self.origin = h.mean(0)
        h = h - self.origin
        self.gram.addmm_(h.T, h)
        seen, at = y.unique(return_inverse=True)
        n = torch.zeros(len(seen), dtype=torch.float64, device=h.device)
        n.index_add_(0, at, torch.ones_like(at, dtype=torch.float64))
        mean = torch.zeros(len(seen), self.width, dtype=torch.float64, device=h.device)
        mean.index_add_(0, at, h)
        mean /= n[:, None]
        scatter = torch.zeros_like(n).index_add_(0, at, (h - mean[at]).square().sum(1))
        old = self.counts[seen].double()
        step = mean - self.mean[seen]
        self.mean[seen] += step * (n / (n + old))[:, None]
        self.scatter[seen] += scatter + step.square().sum(1) * n * old / (n + old)
        self.counts[seen] += n.long()

    def moments(self, center: Center = "class") -> Moments:
        """What the pass found.

        Raises:
            UsageError: rows that cannot be used, or fewer than two classes with rows.
        """
        self.bad.refuse(self.n_labels)
        if self.origin is None:
            raise UsageError("No features were given.", remedy="Give at least one batch.")
        near = means_of(self.counts, self.mean, center)
        n = self.counts[near.present].double()
        v = near.directions
        total = (v * (self.gram @ v)).sum(0)
        between = (n[:, None] * (near.here @ v).square()).sum(0)
        within = ((total - between) / near.n).clamp(min=0)
        far = means_of(self.counts, self.mean + self.origin, center)
        shown = Means(far.counts, far.means, far.present, far.centre, near.centred, v, near.sizes)
        return Moments(shown, within, self.scatter[near.present] / n, resolution=1e-8)
