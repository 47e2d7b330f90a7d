"""Scenes: procedural grey pictures for networks that sharpen, drawn from a seed. Offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interp.tasks.digits import shape_of
from interp.tasks.families import SEED, Knob, TaskFamily
from interp.terms import LabelledInputs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel

SIZE = 24
"""Pixels a side of a sharp picture; a coarse one has half as many."""

TRAIN = 1000
"""Pictures 0 … 999 of the collection train the shipped network; it never saw the rest."""

COUNT = 1200
KINDS = ("disc", "bar", "box")


def picture(number: int) -> tuple[np.ndarray, int]:
    """Picture ``number`` of the collection, ``[24, 24]`` in 0 … 1, and the kind on top.

    Four random discs, bars or boxes of random grey on a ramp; edges are hard.
    """
    draw = np.random.default_rng([24, number])
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1.0)
    angle = draw.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    out = 0.5 + draw.uniform(0.2, 0.6) * slope
    kind = 0
    for _ in range(4):
        kind = int(draw.integers(3))
        cx, cy = draw.uniform(0, 1, 2)
        if KINDS[kind] == "disc":
            inside = (x - cx) ** 2 + (y - cy) ** 2 < draw.uniform(0.08, 0.3) ** 2
        elif KINDS[kind] == "bar":
            turn = draw.uniform(0, np.pi)
            away = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
            inside = np.abs(away) < draw.uniform(0.03, 0.1)
        else:
            half = draw.uniform(0.08, 0.3, 2)
            inside = (np.abs(x - cx) < half[0]) & (np.abs(y - cy) < half[1])
        out = np.where(inside, draw.uniform(0, 1), out)
    return np.clip(out, 0.0, 1.0), kind


def pictures(numbers: range | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures ``[picture, 24, 24]`` and kinds of these numbers."""
    found = [picture(int(n)) for n in numbers]
    return np.stack([p for p, _ in found]), np.array([k for _, k in found])


def coarse(sharp: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels: ``[…, 2 h, 2 w]`` to ``[…, h, w]``."""
    *lead, h, w = sharp.shape
    return sharp.reshape(*lead, h // 2, 2, w // 2, 2).mean((-3, -1))


def make_scenes(model: HookedModel, *, n: int, seed: int, split: str) -> LabelledInputs:
    """Coarse pictures shaped as the model takes them, drawn without repetition."""
    rows = {"test": range(TRAIN, COUNT), "train": range(TRAIN), "any": range(COUNT)}[split]
    if n > len(rows):
        raise TaskError(f"{n} pictures were asked for; there are {len(rows)}.")
    chosen = np.random.default_rng(seed).choice(np.array(rows), n, replace=False)
    sharp, kinds = pictures(chosen)
    shape = shape_of(model)
    if int(np.prod(shape)) != (SIZE // 2) ** 2:
        raise TaskError(
            f"Scenes are {SIZE // 2} × {SIZE // 2} pictures; the model takes {tuple(shape)}.",
            remedy="Take zoo:digits-sr, or give LabelledInputs of your own.",
        )
    return LabelledInputs(
        coarse(sharp).reshape(n, *shape), kinds, {k: w for k, w in enumerate(KINDS)}
    )


SCENES = TaskFamily(
    "scenes", "Coarse scenes",
    "How does a network sharpen a coarse picture of discs, bars and boxes?",
    {
        "n": Knob(int, 4, (1, COUNT), "how many pictures"), "seed": SEED,
        "split": Knob(str, "test", ("test", "train", "any"), "pictures the shipped network never "
                      "saw, those it was trained on, or all"),
    },
    make_scenes, type_name="LabelledInputs",
)  # fmt: skip
