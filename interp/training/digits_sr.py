"""The recipe of ``zoo:digits-sr``: super-resolution, 12 × 12 to 24 × 24.

conv5-32, conv3-32, conv3-4 and a pixel shuffle, on procedural pictures of discs, bars and boxes
(``tasks/scenes.py``; digits of 8 × 8 pixels have nothing to sharpen to). The input is the mean of
2 × 2 pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.tasks.scenes import COUNT, TRAIN, coarse, pictures
from interp.training.pictures import Picture, conv, mean_squared, psnr, split_of

PICTURE = Picture(
    "digits-sr", "super-resolution of small scenes, 12 × 12 to 24 × 24",
    "Which coarse pixels make a sharp one, and with what filter?", (1, 12, 12),
    [conv(1, 32, 5), ["ReLU", {}], conv(32, 32, 3), ["ReLU", {}], conv(32, 4, 3),
     ["PixelShuffle", {"upscale_factor": 2}]],
    epochs=250, batch=64, rate=2e-3,
    data={"what": "1,200 procedural pictures: four discs, bars or boxes on a ramp; the input is "
          "the mean of 2 × 2 pixels", "train": f"the first {TRAIN}",
          "test": f"the other {COUNT - TRAIN}"},
    facts={"layers": "conv5-32, ReLU, conv3-32, ReLU, conv3-4, pixel shuffle 2"},
)  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    """Coarse ``[picture, 1, 12, 12]`` and sharp ``[picture, 1, 24, 24]``."""
    sharp, _ = pictures(range(COUNT))
    both = (torch.tensor(a, dtype=torch.float32)[:, None] for a in (coarse(sharp), sharp))
    return tuple(both)  # type: ignore[return-value]


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    began = time.process_time()
    x, y = data()
    net = PICTURE.trained(x[:TRAIN], y[:TRAIN], mean_squared, steps, seed)
    metrics = measured(net, x[TRAIN:], y[TRAIN:])
    say("  " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    return PICTURE.write(out, net, began, steps, seed, metrics)


def measured(net: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """PSNR of the network, of its linear part alone, and of plain enlargements, in dB."""
    f, linear = split_of(net, x)
    r = f - linear
    bicubic = F.interpolate(x.double(), scale_factor=2, mode="bicubic", align_corners=False)
    nearest = F.interpolate(x.double(), scale_factor=2)
    y = y.double()
    return {
        "psnr": psnr(f, y), "linear_psnr": psnr(linear, y), "bicubic_psnr": psnr(bicubic, y),
        "nearest_psnr": psnr(nearest, y),
        "remainder_share": float((r.flatten(1).norm(dim=1) / f.flatten(1).norm(dim=1)).mean()),
    }  # fmt: skip
