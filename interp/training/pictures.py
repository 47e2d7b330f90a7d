"""Networks of pictures: their layers as a config, training in float32, and what their cards say.

For networks of ReLU, max-pool and batch norm the linear part at x is ``J x``, J the Jacobian, so a
card's shares are measured here by one product with J; the methods measure them otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.networks import build
from interp.models.registry import NETWORK
from interp.tasks.digits import TRAIN, images, noisy
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.plain import fit

NOISE = 0.3
"""Spread of the noise that the networks of noisy digits remove."""

Layers = list[list[Any]]


def config_of(shape: Sequence[int], layers: Layers) -> dict[str, Any]:
    """``config.json`` of a stack of layers."""
    return {
        "architectures": [NETWORK], "model_type": "network", "input": list(shape),
        "layers": layers,
    }  # fmt: skip


def conv(into: int, out: int, size: int, bias: bool = True) -> list[Any]:
    """A convolution that keeps the size of the picture."""
    return ["Conv2d", {
        "in_channels": into, "out_channels": out, "kernel_size": size, "padding": size // 2,
        "bias": bias,
    }]  # fmt: skip


def digits(noise: float = 0.0, copies: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Digits ``[image, 1, 8, 8]`` as shown (with noise), as they are, and their labels.

    Args:
        noise: spread of the noise.
        copies: how often each image comes, each time with other noise.
    """
    pixels, labels = images()
    shown = [noisy(pixels, noise, 1000 + k) if noise else pixels for k in range(copies)]
    x, clean = np.concatenate(shown), np.concatenate([pixels] * copies)
    both = (torch.tensor(a, dtype=torch.float32)[:, None] for a in (x, clean))
    return (*both, torch.tensor(np.concatenate([labels] * copies)))  # type: ignore[return-value]


def parts(rows: Tensor, copies: int = 1) -> tuple[Tensor, Tensor]:
    """The rows of the images that train, and of the rest."""
    each = rows.reshape(copies, -1, *rows.shape[1:])
    return each[:, :TRAIN].flatten(0, 1), each[:, TRAIN:].flatten(0, 1)


@dataclass(frozen=True)
class Picture:
    """What is trained.

    Args:
        name: the model's.
        title: a few words.
        question: what it is good for.
        shape: of an input.
        layers: of the network.
        epochs: passes over the data.
        batch: rows a step.
        rate: Adam's first step.
        data: what it was trained on, in words.
        facts: about its parts.
    """

    name: str
    title: str
    question: str
    shape: tuple[int, ...]
    layers: Layers
    epochs: int
    batch: int
    rate: float
    data: dict[str, str]
    facts: dict[str, Any]

    def trained(
        self,
        inputs: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        epochs: int | None = None,
        seed: int = 0,
    ) -> nn.Sequential:
        """A network with the weights of this seed, trained."""
        torch.manual_seed(seed)
        net = build(config_of(self.shape, self.layers))
        fit(
            net, inputs, targets, epochs=epochs or self.epochs, batch=self.batch, seed=seed,
            rate=self.rate, loss=loss,
        )  # fmt: skip
        return net

    def write(
        self, out: Path, net: nn.Sequential, began: float, steps: int | None, seed: int,
        metrics: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Write weights, config and card; returns the card."""
        size = write_checkpoint(out, net.state_dict(), config_of(self.shape, self.layers), {})
        card = {
            "name": self.name, "title": self.title, "question": self.question,
            "architecture": NETWORK, "size_bytes": size,
            "facts": {**self.facts, "weights": "float32"}, "data": self.data,
            "training": {
                "command": f"python -m interp.training {self.name}",
                "epochs": steps or self.epochs, "batch": self.batch, "rate": self.rate,
                "seed": seed, "cpu_seconds": round(time.process_time() - began, 1),
            },
            "metrics": {k: float(f"{v:.4g}") for k, v in metrics.items()},
        }  # fmt: skip
        write_json(out / CARD, card)
        return card


def split_of(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and its linear part J x, row by row, in float64; J x by the vjp of the vjp."""
    net, x = net.double(), x.double().requires_grad_()
    value = net(x)
    v = torch.zeros_like(value).requires_grad_()
    (back,) = torch.autograd.grad(value, x, v, create_graph=True)
    (linear,) = torch.autograd.grad(back, v, x.detach())
    net.float()
    return value.detach(), linear


def shares(net: nn.Module, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of f, of J x alone, of r = f - J x alone; mean ‖r‖/‖f‖."""
    f, linear = split_of(net, x)
    r = f - linear
    right = [float((v.argmax(1) == labels).double().mean()) for v in (f, linear, r)]
    return {
        "test_accuracy": right[0], "linear_accuracy": right[1],
        "remainder_accuracy": right[2] if float(r.abs().max()) > 0 else float("nan"),
        "remainder_share": float((r.norm(dim=1) / f.norm(dim=1)).mean()),
    }  # fmt: skip


def psnr(shown: Tensor, wanted: Tensor) -> float:
    """10 log₁₀(1 / mean squared error), pixels in 0 … 1, over all pictures together."""
    return float(-10 * torch.log10(((shown - wanted) ** 2).mean()))


def neighbourhood(net: nn.Module, x: Tensor) -> float:
    """Share of Σ|J| that joins a pixel to one of the 3 × 3 around it, mean over pictures.

    Inputs and outputs have the same shape ``[1, h, w]``.
    """
    side = x.shape[-1]
    where = torch.arange(side)
    near = (where[:, None] - where).abs() <= 1
    mask = (near[:, None, :, None] & near[None, :, None, :]).reshape(side**2, side**2)
    found = []
    for row in x.double():
        jacobian = torch.autograd.functional.jacobian(net.double(), row[None]).reshape(
            side**2, side**2
        )
        found.append(float(jacobian.abs()[mask].sum() / jacobian.abs().sum()))
    net.float()
    return float(np.mean(found))


def mean_squared(shown: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of all pixels."""
    return F.mse_loss(shown, wanted)
