"""The recipes of ``zoo:digits-denoise`` and ``zoo:digits-autoencoder``: noise off digits.

A convolutional network (conv3-16, conv3-16, conv3-1), which can copy from neighbours, and a
network with a ReLU bottleneck of 16 units, which cannot: its picture is a sum of templates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.training.pictures import (
    NOISE,
    Picture,
    conv,
    digits,
    mean_squared,
    neighbourhood,
    parts,
    psnr,
    split_of,
)

COPIES = 4
"""How often each training image is shown, each time with other noise."""

DATA = {
    "what": f"scikit-learn's 1,797 digits, pixels divided by 16, with noise of spread {NOISE} "
    "cut to 0 … 1", "train": f"the first 1300, {COPIES} times each", "test": "the other 497",
}  # fmt: skip

BOTTLENECK = 4
"""Parts of the autoencoder up to the bottleneck's input."""


def linear(into: int, out: int) -> list[Any]:
    """A linear layer."""
    return ["Linear", {"in_features": into, "out_features": out}]


PICTURES = {
    "digits-denoise": Picture(
        "digits-denoise", "takes noise off digits, by convolutions",
        "Does a denoiser copy pixels or draw templates?", (1, 8, 8),
        [conv(1, 16, 3), ["ReLU", {}], conv(16, 16, 3), ["ReLU", {}], conv(16, 1, 3)],
        epochs=60, batch=64, rate=2e-3, data=DATA,
        facts={"layers": "conv3-16, ReLU, conv3-16, ReLU, conv3-1"},
    ),
    "digits-autoencoder": Picture(
        "digits-autoencoder", "takes noise off digits, through 16 ReLU units",
        "Does a denoiser copy pixels or draw templates?", (1, 8, 8),
        [["Flatten", {}], linear(64, 64), ["ReLU", {}], linear(64, 16), ["ReLU", {}],
         linear(16, 64), ["ReLU", {}], linear(64, 64),
         ["Unflatten", {"dim": 1, "unflattened_size": [1, 8, 8]}]],
        epochs=100, batch=64, rate=2e-3, data=DATA,
        facts={"layers": "linear 64, ReLU, linear 16, ReLU, linear 64, ReLU, linear 64",
               "bottleneck": 16},
    ),
}  # fmt: skip


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """``zoo:digits-denoise``; see ``made``."""
    return made("digits-denoise", out, say, steps, seed)


def made(
    name: str, out: Path, say: Callable[[str], None], steps: int | None, seed: int
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    began = time.process_time()
    picture = PICTURES[name]
    shown, clean, _ = digits(NOISE, COPIES)
    (x, _), (y, _) = parts(shown, COPIES), parts(clean, COPIES)
    net = picture.trained(x, y, mean_squared, steps, seed)
    metrics = measured(net, *test_data())
    say("  " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    return picture.write(out, net, began, steps, seed, metrics)


def test_data() -> tuple[Tensor, Tensor]:
    """The 497 images that were never trained on, noisy and clean."""
    shown, clean, _ = digits(NOISE, COPIES)
    return parts(shown[: len(shown) // COPIES])[1], parts(clean[: len(clean) // COPIES])[1]


def measured(net: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, float]:
    """PSNR of input and output in dB, ‖r‖/‖f‖, the share of Σ|F| in the 3 × 3 around a pixel.

    And, with a bottleneck, the mean number of its open gates over the first 20 images.
    """
    f, linear = split_of(net, x)
    r = (f - linear).flatten(1).norm(dim=1) / f.flatten(1).norm(dim=1)
    out = {
        "noisy_psnr": psnr(x.double(), y.double()), "psnr": psnr(f, y.double()),
        "remainder_share": float(r.mean()), "local_share": neighbourhood(net, x[:20]),
    }  # fmt: skip
    if isinstance(net[1], nn.Linear):
        with torch.no_grad():
            gates = (net[:BOTTLENECK](x[:20]) > 0).double().sum(1)
        out |= {"open_gates": float(gates.mean()), "fewest_gates": float(gates.min()),
                "most_gates": float(gates.max())}  # fmt: skip
    return out
