"""The recipes of ``zoo:digits-cnn``, ``-nobias`` and ``-bn``: a small convolutional network.

conv3-16, conv3-16, max-pool 2, linear, on scikit-learn's 8 × 8 digits; with biases, without any,
and with batch norm behind each convolution.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from interp.training.pictures import Layers, Picture, conv, digits, parts, shares

WHAT = {
    "digits-cnn": ("with biases", "How do pixels and biases vote for each digit?"),
    "digits-cnn-nobias": (
        "without any bias", "How do pixels vote for a digit where nothing else can?"
    ),
    "digits-cnn-bn": (
        "with batch norm and biases", "How much of a digit's score comes from no pixel at all?"
    ),
}  # fmt: skip


def layers(name: str) -> Layers:
    """The network of this name."""
    bias, norm = name != "digits-cnn-nobias", name == "digits-cnn-bn"
    out: Layers = []
    for into in (1, 16):
        out.append(conv(into, 16, 3, bias))
        out += [["BatchNorm2d", {"num_features": 16}]] * norm
        out.append(["ReLU", {}])
    linear = {"in_features": 256, "out_features": 10, "bias": bias}
    return [*out, ["MaxPool2d", {"kernel_size": 2}], ["Flatten", {}], ["Linear", linear]]


def picture_of(name: str) -> Picture:
    """What is trained under this name."""
    words, question = WHAT[name]
    return Picture(
        name, f"convolutional network that reads digits, {words}", question, (1, 8, 8),
        layers(name), epochs=30, batch=64, rate=2e-3,
        data={"what": "scikit-learn's 1,797 digits, pixels divided by 16",
              "train": "the first 1300", "test": "the other 497"},
        facts={"layers": "conv3-16, ReLU, conv3-16, ReLU, max-pool 2, linear 10",
               "bias": words},
    )  # fmt: skip


def made(
    name: str, out: Path, say: Callable[[str], None], steps: int | None, seed: int
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    began = time.process_time()
    _, x, labels = digits()
    (train, test), (known, wanted) = parts(x), parts(labels)
    picture = picture_of(name)
    net = picture.trained(train, known, F.cross_entropy, steps, seed)
    metrics = shares(net, test, wanted)
    say(f"  {metrics['test_accuracy']:.4f} right, ‖r‖/‖f‖ {metrics['remainder_share']:.3g}")
    if metrics["remainder_share"] < 1e-12:
        metrics = {k: v for k, v in metrics.items() if k != "remainder_accuracy"}
        metrics["remainder_share"] = 0.0
    return picture.write(out, net, began, steps, seed, metrics)


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """``zoo:digits-cnn``; see ``made``."""
    return made("digits-cnn", out, say, steps, seed)
