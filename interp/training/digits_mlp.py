"""The recipe of ``zoo:digits-mlp``: 64-20-20-10 ReLU network on scikit-learn's digits, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.training.plain import built, default_float64, described, digit_images, fit, write

DIMS = (64, 20, 20, 10)
TRAIN, EPOCHS = 1300, 60


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    pixels, labels = (torch.tensor(a) for a in digit_images())
    began = time.process_time()
    with default_float64():
        module = built(DIMS, seed)
        fit(module, pixels[:TRAIN], labels[:TRAIN], epochs=steps or EPOCHS, batch=64, seed=seed)
    module = module.float()
    right = accuracy(module, pixels[TRAIN:].float(), labels[TRAIN:])
    say(f"test accuracy {right:.4f}")
    card = {
        "name": "digits-mlp",
        "title": "small network that reads 8 × 8 digits",
        "question": "How far may a pixel change before the digit it reads can?",
        "architecture": "Network",
        "facts": {"widths": list(DIMS), "gates": "ReLU", "weights": "float32"},
        "data": {
            "what": "scikit-learn's 1,797 digits, pixels divided by 16",
            "train": f"the first {TRAIN}", "test": f"the other {len(pixels) - TRAIN}",
        },
        "training": {
            "command": "python -m interp.training digits-mlp", "epochs": steps or EPOCHS,
            "batch": 64, "rate": 0.001, "seed": seed,
            "cpu_seconds": round(time.process_time() - began, 1),
        },
        "inputs": {"test_accuracy": round(right, 4)},
    }  # fmt: skip
    return write(out, module, described(module, (64,)), card)


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of inputs whose largest output is the label."""
    with torch.no_grad():
        return float((module(inputs).argmax(-1) == labels).double().mean())
