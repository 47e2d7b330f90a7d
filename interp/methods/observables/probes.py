"""Probes: what labelled examples teach, held against a vector that needs none; AUROC and r²."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RANDOM = 100
"""Random directions that are tried."""

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Inverse L2 penalties of the logistic regression that inner folds choose from."""


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Share of (1, 0) pairs that the score puts in order, ties a half; NaN for one class."""
    ones = int(label.sum())
    zeros = len(label) - ones
    if not ones or not zeros:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[label == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def r_squared(score: np.ndarray, o: np.ndarray) -> float:
    """Square of Pearson's correlation; NaN where one of both does not vary."""
    a, b = score - score.mean(), o - o.mean()
    size = float((a @ a) * (b @ b))
    return float((a @ b) ** 2 / size) if size > 0 else float("nan")


def intervals(
    score: np.ndarray, fit: np.ndarray, label: np.ndarray, o: np.ndarray, n_boot: int, seed: int
) -> np.ndarray:
    """95 % bootstrap intervals over documents, ``[2 (low, high), 2]``.

    Of the AUROC of ``score`` and of the r² of ``fit`` with o.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(score), (n_boot, len(score)))
    found = [(auroc(score[i], label[i]), r_squared(fit[i], o[i])) for i in drawn]
    if not found:
        return np.full((2, 2), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw of one class alone says nothing
        return np.nanpercentile(np.array(found), [2.5, 97.5], axis=0)


@dataclass(frozen=True, eq=False)
class Split:
    """Documents to learn from and to judge on: both sides of a pair stand on one side.

    Args:
        train: rows; test: rows.
        test: see ``train``.
    """

    train: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, documents: np.ndarray, seed: int) -> Split:
        """Half of the documents each, drawn."""
        names = np.unique(documents)
        order = np.random.default_rng(seed).permutation(names)
        first = set(order[: len(names) // 2].tolist())
        inside = np.array([d in first for d in documents])
        return cls(np.flatnonzero(inside), np.flatnonzero(~inside))


def logistic(x: np.ndarray, label: np.ndarray, seed: int) -> np.ndarray:
    """Direction of a logistic regression on standardised x, its penalty chosen by inner folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    centre, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    z = (x - centre) / scale

    def fit(c: float, rows: np.ndarray) -> np.ndarray:
        model = LogisticRegression(C=c, max_iter=2000)
        return model.fit(z[rows], label[rows]).coef_[0]

    least = int(min(label.sum(), len(label) - label.sum()))
    everything = np.arange(len(z))
    if least < 3:
        return fit(1.0, everything) / scale
    folds = list(StratifiedKFold(min(5, least), shuffle=True, random_state=seed).split(z, label))
    scores = [np.mean([auroc(z[b] @ fit(c, a), label[b]) for a, b in folds]) for c in PENALTIES]
    return fit(PENALTIES[int(np.argmax(scores))], everything) / scale


def mean_difference(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Mean of the one class less mean of the other."""
    return x[label == 1].mean(0) - x[label == 0].mean(0)


def ridge(x: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Direction of a ridge regression on standardised x, its penalty by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    scale = np.where(x.std(0) > 0, x.std(0), 1.0)
    z = (x - x.mean(0)) / scale
    return RidgeCV(alphas=np.geomspace(1e-2, 1e4, 13)).fit(z, o).coef_ / scale
