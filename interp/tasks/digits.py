"""Digits and diabetes: scikit-learn's own small tables as labelled inputs, offline."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.tasks.families import SEED, Knob, TaskFamily
from interp.terms import LabelledInputs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel

TRAIN = 1300
"""The first images train the shipped networks; the rest they never saw."""

COUNT = Knob(int, 8, (1, 1797), "how many inputs")
FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images ``[image, 8, 8]`` with pixels in [0, 1], and their digits."""
    from sklearn.datasets import load_digits

    table: Any = load_digits()
    return table.images / 16.0, table.target.astype(np.int64)


@cache
def patients() -> tuple[np.ndarray, np.ndarray]:
    """442 patients: ten standardised features, and the progression of their disease."""
    from sklearn.datasets import load_diabetes

    table: Any = load_diabetes(scaled=False)
    x = (table.data - table.data.mean(0)) / table.data.std(0)
    return x, table.target


def noisy(pixels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Pixels with normal noise of this spread, cut to [0, 1]."""
    draw = np.random.default_rng([7, seed])
    return np.clip(pixels + noise * draw.normal(size=pixels.shape), 0.0, 1.0)


def make_digits(
    model: HookedModel, *, n: int, seed: int, split: str, noise: float
) -> LabelledInputs:
    """Images shaped as the model takes them, drawn without repetition."""
    pixels, labels = images()
    rows = {"test": range(TRAIN, len(pixels)), "train": range(TRAIN), "any": range(len(pixels))}
    chosen = _draw(rows[split], n, seed)
    shape = shape_of(model)
    if int(np.prod(shape)) != 64:
        raise TaskError(
            f"Digits are 8 × 8 images; the model takes inputs of shape {tuple(shape)}.",
            remedy="Take zoo:digits-mlp, or give LabelledInputs of your own.",
        )
    shown = noisy(pixels[chosen], noise, seed) if noise else pixels[chosen]
    return LabelledInputs(
        shown.reshape(len(chosen), *shape), labels[chosen],
        {k: str(k) for k in range(10)},
    )  # fmt: skip


def make_diabetes(model: HookedModel, *, n: int, seed: int) -> LabelledInputs:
    """Patients; the label is the progression, rounded. The first input is the mean patient."""
    x, target = patients()
    if shape_of(model) != (len(FEATURES),):
        raise TaskError(
            f"A patient has {len(FEATURES)} features; the model takes {shape_of(model)}.",
            remedy="Take zoo:monotone-mlp, or give LabelledInputs of your own.",
        )
    chosen = _draw(range(len(x)), n - 1, seed) if n > 1 else np.zeros(0, dtype=int)
    inputs = np.concatenate([x.mean(0, keepdims=True), x[chosen]])
    labels = np.concatenate([[target.mean()], target[chosen]]).round().astype(np.int64)
    return LabelledInputs(inputs, labels)


def _draw(rows: range, n: int, seed: int) -> np.ndarray:
    if n > len(rows):
        raise TaskError(f"{n} inputs were asked for; there are {len(rows)}.")
    return np.random.default_rng(seed).choice(np.array(rows), n, replace=False)


def shape_of(model: HookedModel) -> tuple[int, ...]:
    """The shape of one input of a plain network.

    Raises:
        TaskError: a model that reads tokens.
    """
    example = getattr(model, "example", None)
    if example is None or getattr(model, "takes_tokens", False):
        raise TaskError(
            "This task is made of numbers, and the model reads tokens.",
            remedy="Take zoo:digits-mlp, or a plain nn.Module with an example.",
        )
    return tuple(example.shape[1:])


DIGITS = TaskFamily(
    "digits", "Handwritten digits",
    "Which digit does an 8 × 8 image show?",
    {
        "n": COUNT, "seed": SEED,
        "split": Knob(str, "test", ("test", "train", "any"), "images the shipped networks never "
                      "saw, those they were trained on, or all"),
        "noise": Knob(float, 0.0, (0.0, 10.0), "spread of noise added to every pixel; the sum is "
                      "cut to 0 … 1"),
    },
    make_digits, type_name="LabelledInputs",
)  # fmt: skip

DIABETES = TaskFamily(
    "diabetes", "Progression of diabetes",
    "How far does the disease go within a year, from ten measurements?",
    {"n": Knob(int, 8, (1, 442), "how many patients, the mean patient first"), "seed": SEED},
    make_diabetes, type_name="LabelledInputs",
)  # fmt: skip
