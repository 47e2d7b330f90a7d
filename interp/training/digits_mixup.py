"""The recipe of ``zoo:digits-mixup``: a small perceptron on mixed digits, cross-entropy.

64-128-128-32-10 with ReLU between, 400 full-batch steps of Adam; each batch is mixed with a
shuffled copy of itself, one weight an image. ``study`` trains the same net under other losses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.networks import build
from interp.models.registry import NETWORK
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.digits_collapse import accuracy, data, test_data

WIDTHS = (64, 128, 128, 32, 10)
STEPS = 400
RATE = 3e-3


def config() -> dict[str, Any]:
    """The net as ``config.json`` says it."""
    layers: list[list[Any]] = []
    for into, out in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        layers += [["Linear", {"in_features": into, "out_features": out}], ["ReLU", {}]]
    return {
        "architectures": [NETWORK], "model_type": "network", "input": [64], "layers": layers[:-1],
    }  # fmt: skip


def study(
    loss: str = "ce", mixup: bool = True, steps: int = STEPS, seed: int = 0, decay: float = 1e-4
) -> nn.Sequential:
    """Train one net.

    Args:
        loss: ``ce`` or ``mse``.
        mixup: mix the batch.
        steps: full-batch steps.
        seed: of weights and mixing.
        decay: Adam's weight decay.
    """
    torch.manual_seed(seed)
    net = build(config())
    x, y = data()
    wanted = torch.eye(10)[y]
    dice = torch.Generator().manual_seed(seed)
    step = torch.optim.Adam(net.parameters(), RATE, weight_decay=decay)
    net.train()
    for _ in range(steps):
        inputs, target = (x, wanted) if not mixup else _mixed(x, wanted, dice)
        out = net(inputs)
        value = (
            F.cross_entropy(out, target)
            if loss == "ce"
            else (out - target).square().sum() / (2 * len(x))
        )
        step.zero_grad()
        value.backward()
        step.step()
    return net.eval()


def _mixed(x: Tensor, target: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    mix = torch.rand(len(x), 1, generator=dice)
    other = torch.randperm(len(x), generator=dice)
    return mix * x + (1 - mix) * x[other], mix * target + (1 - mix) * target[other]


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    began = time.perf_counter()
    net = study(steps=steps or STEPS, seed=seed)
    seconds = round(time.perf_counter() - began, 1)
    size = write_checkpoint(out, net.state_dict(), config(), {})
    train, test = accuracy(net, *data()), accuracy(net, *test_data())
    say(f"  {train:.3f} right in training, {test:.3f} on digits never seen")
    card = {
        "name": "digits-mixup",
        "title": "digits, trained on mixtures",
        "question": "Where does a network put mixtures of two inputs?",
        "architecture": NETWORK,
        "size_bytes": size,
        "facts": {"layers": "64-128-128-32-10, ReLU", "inputs": "8×8 images as 64 numbers"},
        "data": {"what": "scikit-learn's digits, the first 150 of each", "task": "balanced_digits"},
        "training": {
            "command": "python -m interp.training digits-mixup", "loss": "cross-entropy",
            "mixup": "one weight an image, uniform in 0 … 1", "steps": steps or STEPS,
            "rate": RATE, "decay": 1e-4, "seed": seed, "seconds": seconds,
            "threads": torch.get_num_threads(),
        },
        "metrics": {"accuracy": round(train, 4), "test_accuracy": round(test, 4)},
    }  # fmt: skip
    write_json(out / CARD, card)
    return card
