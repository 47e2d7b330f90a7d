"""Telling: pixels worth a look, and whether F joins neighbours or far pixels."""

from __future__ import annotations

import numpy as np

from interp.methods.interpreter.arrays import Layout
from interp.terms import UsageError


def telling_pixels(picture: np.ndarray) -> list[int]:
    """A corner, an edge and a flat place of a picture, as flat indices; of a list the top three.

    Corners by Harris' measure, edges by the size of the gradient; a pixel of the frame is taken
    only where the picture has no other.

    Args:
        picture: ``[channel, row, column]``, ``[row, column]`` or ``[number]``.
    """
    if picture.ndim == 1:
        return [int(i) for i in np.argsort(-np.abs(picture))[:3]]
    flat = picture.reshape(-1, *picture.shape[-2:])[0]
    dy, dx = np.gradient(flat.astype(float))
    strength = dx**2 + dy**2
    a, b, c = (_blurred(v) for v in (dx * dx, dy * dy, dx * dy))
    corner = a * b - c**2 - 0.05 * (a + b) ** 2
    inner = np.zeros_like(flat, dtype=bool)
    margin = 2 if min(flat.shape) > 6 else 0
    inner[margin : flat.shape[0] - margin, margin : flat.shape[1] - margin] = True
    found: list[int] = []
    for score in (corner, np.where(corner < 0, strength, -1.0), -_blurred(strength)):
        allowed = np.where(inner, score, -np.inf).ravel()
        allowed[found] = -np.inf
        found.append(int(allowed.argmax()))
    return found


def _blurred(values: np.ndarray) -> np.ndarray:
    """Mean of the 3 × 3 around each pixel."""
    wide = np.pad(values, 1, mode="edge")
    h, w = values.shape
    parts = [wide[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.mean(parts, axis=0)


def neighbours(into: Layout, onto: Layout) -> np.ndarray:
    """Which input pixels stand within 3 × 3 of an output pixel, ``[outputs, inputs]``.

    Pictures of different sizes are laid over each other by the ratio of their sides.

    Raises:
        UsageError: an input or output that is no picture.
    """
    if not (into.picture and onto.picture):
        raise UsageError(
            "Copying is a question for networks from pictures to pictures.",
            remedy="Use tour='votes' for a classifier, or give image=HEIGHT,WIDTH.",
        )
    near = []
    for axis in (-2, -1):
        n_out, n_in = onto.shape[axis], into.shape[axis]
        place = np.floor((np.arange(n_out) + 0.5) * n_in / n_out)
        near.append(np.abs(place[:, None] - np.arange(n_in)) <= 1)
    one = near[0][:, None, :, None] & near[1][None, :, None, :]
    sides = [int(np.prod(s.shape[-2:])) for s in (onto, into)]
    tile = one.reshape(*sides)
    return np.tile(
        tile, [int(np.prod(s.shape)) // n for s, n in zip((onto, into), sides, strict=True)]
    )


def local_share(size: np.ndarray, near: np.ndarray) -> float:
    """Share of Σ|F| that joins neighbours; NaN where F is zero."""
    total = float(size.sum())
    return float(size[near].sum() / total) if total > 0 else float("nan")
