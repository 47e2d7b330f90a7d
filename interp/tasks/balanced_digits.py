"""Handwritten digits by class: as many of each as wanted, or unequally many. Offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.tasks.digits import images
from interp.tasks.families import SEED, Knob, TaskFamily
from interp.terms import LabelledInputs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel

PER_CLASS = 150
"""Images of each digit in the training half: the first so many of it in the collection."""

TRAIN = 10 * PER_CLASS


def pixels_of(rows: np.ndarray) -> np.ndarray:
    """Images as 64 numbers from 0 to 1, float32 ``[row, 64]``."""
    return images()[0].reshape(-1, 64).astype(np.float32)[rows]


def split(part: str) -> np.ndarray:
    """Row numbers: ``train`` the first 150 of each digit, ``test`` the rest, ``any`` all."""
    digits = images()[1]
    first = np.concatenate([np.flatnonzero(digits == d)[:PER_CLASS] for d in range(10)])
    if part == "train":
        return np.sort(first)
    every = np.arange(len(digits))
    return np.setdiff1d(every, first) if part == "test" else every


def imbalanced(rows: np.ndarray, ratio: float) -> np.ndarray:
    """Fewer of each next digit, geometrically, down to 1/``ratio`` of the first."""
    digits = images()[1][rows]
    kept = []
    for d in range(10):
        own = rows[digits == d]
        kept.append(own[: max(2, round(len(own) * ratio ** (-d / 9)))])
    return np.sort(np.concatenate(kept))


def evenly(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """``n`` of the rows, the digits taking turns, drawn by the seed."""
    rng = np.random.default_rng(seed)
    digits = images()[1][rows]
    turn = np.zeros(len(rows))
    for d in range(10):
        own = np.flatnonzero(digits == d)
        turn[rng.permutation(own)] = np.arange(len(own)) + d / 10
    return np.sort(rows[np.argsort(turn)[:n]])


def make(model: HookedModel, *, n: int, seed: int, part: str, imbalance: float) -> LabelledInputs:
    """``n`` images, the digits equally often (or the later ones less)."""
    example = getattr(model, "example", None)
    if example is None or getattr(model, "takes_tokens", False):
        raise TaskError(
            "Task 'balanced_digits' is made of images, and this model reads tokens.",
            remedy="Take a network of images, such as zoo:digits-collapse, or a task of words.",
        )
    shape = tuple(example.shape[1:])
    if int(np.prod(shape)) != 64:
        raise TaskError(
            f"Digits are 8 × 8 images; the model takes inputs of shape {shape}.",
            remedy="Take zoo:digits-collapse, or give LabelledInputs of your own.",
        )
    rows = split(part)
    if imbalance > 1:
        rows = imbalanced(rows, imbalance)
    if n < len(rows):
        rows = evenly(rows, n, seed)
    return LabelledInputs(
        pixels_of(rows).reshape(-1, *shape), images()[1][rows], {d: str(d) for d in range(10)}
    )


BALANCED_DIGITS = TaskFamily(
    "balanced_digits", "Handwritten digits, class by class",
    "Which digit does an 8 × 8 image show, where every digit is shown equally often?",
    {
        "n": Knob(int, TRAIN, (20, 1797), "how many images, the digits taking turns"),
        "seed": SEED,
        "part": Knob(str, "train", ("train", "test", "any"), "the first 150 of each digit, on "
                     "which zoo:digits-collapse was trained; the rest; or all"),
        "imbalance": Knob(float, 1.0, (1.0, 50.0), "so many times more zeros than nines, the "
                          "others between"),
    },
    make, type_name="LabelledInputs",
)  # fmt: skip
