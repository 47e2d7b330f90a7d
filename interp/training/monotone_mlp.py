"""The recipe of ``zoo:monotone-mlp``: monotone in four inputs by the signs of its weights.

Weights behind the first layer are ≥ 0; in the first layer the columns of ``RISING`` inputs are ≥ 0
and of ``FALLING`` ones ≤ 0. With rising gates the output then rises, or falls, in those inputs
everywhere; in the others nothing is promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.tasks.digits import FEATURES, patients
from interp.training.plain import built, described, fit, write

DIMS = (10, 16, 16, 1)
RISING = ("bmi", "bp", "s5")
FALLING = ("s3",)
EPOCHS, BATCH = 150, 32


def project(module: nn.Module) -> None:
    """Put every weight on its side of 0."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for layer in layers[1:]:
            layer.weight.clamp_(min=0)
        first = layers[0].weight
        for name in RISING:
            first[:, FEATURES.index(name)].clamp_(min=0)
        for name in FALLING:
            first[:, FEATURES.index(name)].clamp_(max=0)


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train (``steps`` counts epochs), measure, write the folder; returns the card."""
    inputs, target = patients()
    x = torch.tensor(inputs, dtype=torch.float32)
    y = torch.tensor((target - target.mean()) / target.std(), dtype=torch.float32)
    began = time.process_time()
    module = built(DIMS, seed)
    project(module)
    fit(
        module, x, y, epochs=steps or EPOCHS, batch=BATCH, seed=seed, rate=3e-3, decay=1e-3,
        loss=squared, after=project,
    )  # fmt: skip
    with torch.no_grad():
        explained = 1 - float(squared(module(x), y) / y.var(correction=0))
    say(f"explained variance {explained:.4f}")
    config = described(module, (len(FEATURES),), features=list(FEATURES))
    card = {
        "name": "monotone-mlp",
        "title": "network that is monotone in four of ten inputs",
        "question": "In which inputs does the output rise, in which does it fall, and for sure?",
        "architecture": "Network",
        "facts": {"widths": list(DIMS), "gates": "ReLU", "weights": "float32"},
        "data": {"what": "scikit-learn's diabetes table, 442 patients, features standardised"},
        "training": {
            "command": "python -m interp.training monotone-mlp", "epochs": steps or EPOCHS,
            "batch": BATCH, "rate": 0.003, "decay": 0.001, "seed": seed,
            "cpu_seconds": round(time.process_time() - began, 1),
        },
        "inputs": {"explained_variance": round(explained, 4)},
        "known": {
            "rising": list(RISING), "falling": list(FALLING),
            "why": "weights behind the first layer are ≥ 0, those of a rising input ≥ 0 in the "
            "first layer, of a falling one ≤ 0: the sign of every path is fixed",
        },
    }  # fmt: skip
    return write(out, module, config, card)


def squared(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of one output."""
    return ((outputs[:, 0] - target) ** 2).mean()
