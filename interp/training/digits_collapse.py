"""The recipe of ``zoo:digits-collapse``: a perceptron on digits, trained until it collapses.

Three blocks of linear, ReLU and batch norm, a linear layer, and a head of M linear maps; squared
loss with weight decay, full batches, Adam under a cosine. The trainer keeps networks at chosen
epochs, so that the way into the collapse ships with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.networks import build
from interp.models.registry import NETWORK
from interp.tasks.balanced_digits import TRAIN, pixels_of, split
from interp.tasks.digits import images
from interp.training.checkpoints import CARD, WEIGHTS, write_checkpoint, write_json

KEEP = (0, 10, 30, 100, 300, 700, 1500)
"""Epochs whose network ships."""


@dataclass(frozen=True)
class Plan:
    """A run.

    Args:
        epochs: full-batch steps.
        head: M, linear maps without anything between.
        head_width: width between them.
        bias: a bias at the output.
        width: of the layers.
        lambda_w: decay of the head's weights.
        lambda_h: decay of the features, of their summed squared length.
        lambda_body: decay of the weights before the features; 0 is the model of free features.
        rate: Adam's first step.
        loss: ``mse`` or ``ce``.
        mixup: mix each image with another of its batch, weight uniform in 0 … 1.
        seed: of the weights.
    """

    epochs: int = 1500
    head: int = 3
    head_width: int = 32
    bias: bool = False
    width: int = 128
    lambda_w: float = 5e-4
    lambda_h: float = 1e-5
    lambda_body: float = 5e-4
    rate: float = 1e-3
    loss: str = "mse"
    mixup: bool = False
    seed: int = 0


def config_of(plan: Plan, epoch: int = 0) -> dict[str, Any]:
    """The net as ``config.json`` says it."""

    def linear(into: int, out: int, bias: bool) -> list[Any]:
        return ["Linear", {"in_features": into, "out_features": out, "bias": bias}]

    layers: list[list[Any]] = []
    before = 64
    for _ in range(3):
        layers += [
            linear(before, plan.width, True), ["ReLU", {}],
            ["BatchNorm1d", {"num_features": plan.width}],
        ]  # fmt: skip
        before = plan.width
    layers.append(linear(before, plan.width, True))
    widths = [plan.width, *[plan.head_width] * (plan.head - 1), 10]
    for n, (into, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(linear(into, out, plan.bias and n == plan.head - 1))
    return {
        "architectures": [NETWORK], "model_type": "network", "input": [64], "layers": layers,
        "epoch": epoch,
    }  # fmt: skip


def network(plan: Plan) -> nn.Sequential:
    """A fresh net; the seed decides its weights."""
    torch.manual_seed(plan.seed)
    return build(config_of(plan))


def data(device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The 1,500 training images and their digits."""
    rows = split("train")
    x, y = torch.from_numpy(pixels_of(rows)), torch.from_numpy(images()[1][rows])
    return x.to(device), y.to(device)


def train(
    plan: Plan,
    each: Callable[[int, nn.Sequential], None] = lambda epoch, net: None,
    stop: int | None = None,
    xy: tuple[Tensor, Tensor] | None = None,
) -> nn.Sequential:
    """Train; ``each(epoch, net)`` is called before the first step and after every one.

    Args:
        plan: the run.
        each: told of every epoch.
        stop: the last epoch, of the plan's schedule; None for all.
        xy: images and digits; default ``data()``.
    """
    net = network(plan)
    x, y = data() if xy is None else xy
    dice = torch.Generator().manual_seed(plan.seed)
    body, head = net[: -plan.head], net[-plan.head :]
    step = torch.optim.Adam(net.parameters(), lr=plan.rate)
    above, below = ([p for p in part.parameters() if p.dim() == 2] for part in (head, body))
    target = torch.eye(10)
    each(0, net)
    for epoch in range(1, (stop or plan.epochs) + 1):
        for group in step.param_groups:
            group["lr"] = plan.rate * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / plan.epochs))
        net.train()
        inputs, wanted = x, target[y]
        if plan.mixup:
            mix = torch.rand(len(x), 1, generator=dice)
            other = torch.randperm(len(x), generator=dice)
            inputs = mix * x + (1 - mix) * x[other]
            wanted = mix * target[y] + (1 - mix) * target[y[other]]
        h = body(inputs)
        logits = head(h)
        loss = (
            nn.functional.cross_entropy(logits, wanted)
            if plan.loss == "ce"
            else (logits - wanted).square().sum() / (2 * len(x))
        )
        for strength, weights in ((plan.lambda_w, above), (plan.lambda_body, below)):
            if strength:
                loss = loss + strength / 2 * sum(w.square().sum() for w in weights)
        loss = loss + plan.lambda_h / 2 * h.square().sum()
        step.zero_grad()
        loss.backward()
        step.step()
        each(epoch, net)
    return net.eval()


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images whose largest output is right, in eval mode."""
    training = net.training
    net.eval()
    with torch.no_grad():
        right = float((net(x).argmax(1) == y).float().mean())
    net.train(training)
    return right


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder and its checkpoints; returns the card."""
    plan = Plan(epochs=steps or Plan.epochs, seed=seed)
    keep = sorted({*(e for e in KEEP if e <= plan.epochs), plan.epochs})
    x, y = data()
    right: dict[str, float] = {}
    sizes: list[int] = []
    rows: list[dict[str, float]] = []

    def each(epoch: int, net: nn.Sequential) -> None:
        if epoch in keep:
            rows.append(metrics_of(net, plan, x, y))
            right[str(epoch)] = round(accuracy(net, x, y), 4)
            folder = out if epoch == plan.epochs else out / str(epoch)
            sizes.append(write_checkpoint(folder, net.state_dict(), config_of(plan, epoch), {}))
            say(f"  epoch {epoch}: {right[str(epoch)]:.3f} right, NC1 {rows[-1]['nc1']:.2g}")

    began = time.perf_counter()
    net = train(plan, each)
    card = _card(plan, keep, right, rows, sizes[-1], round(time.perf_counter() - began, 1))
    card["metrics"]["test_accuracy"] = round(accuracy(net, *test_data()), 4)
    write_json(out / CARD, card)
    return card


HEADLINE = ("nc1", "cdnv", "nc2_h_of", "nc2_w_of", "nc3_of", "nc4", "ncc_accuracy")
"""Metrics that the card tells and the tests measure again."""


def metrics_of(net: nn.Sequential, plan: Plan, x: Tensor, y: Tensor) -> dict[str, float]:
    """The card's metrics by their definitions, in float64; the methods measure them otherwise."""
    training = [part.training for part in net.modules()]
    net.eval()
    with torch.no_grad():
        h = net[: -plan.head](x).double()
        logits = net(x)
        w = torch.eye(10, dtype=torch.float64)
        for part in list(net)[: -plan.head - 1 : -1]:
            w = w @ part.weight.double()  # type: ignore[operator]
    for part, mode in zip(net.modules(), training, strict=True):
        part.training = mode
    means = torch.stack([h[y == k].mean(0) for k in range(10)])
    away, c = h - means[y], means - means.mean(0)
    nearest = torch.cdist(h, means).argmin(1)
    spread = torch.stack([away[y == k].square().sum(1).mean() for k in range(10)])
    i, j = torch.triu_indices(10, 10, 1)
    far = (means[i] - means[j]).square().sum(1)
    between = torch.linalg.pinv(c.T @ c / 10, rtol=1e-10, hermitian=True)

    def off(gram: Tensor) -> float:
        return float((gram / gram.norm() - torch.eye(10, dtype=torch.float64) / 10**0.5).norm())

    return {
        "nc1": float((away.T @ away / len(x) * between).sum() / 10),
        "cdnv": float(((spread[i] + spread[j]) / (2 * far)).mean()),
        "nc2_h_of": off(means @ means.T),
        "nc2_w_of": off(w @ w.T),
        "nc3_of": off(w @ means.T),
        "nc4": float((nearest == logits.argmax(1)).double().mean()),
        "ncc_accuracy": float((nearest == y).double().mean()),
    }


def test_data() -> tuple[Tensor, Tensor]:
    """The 297 images that were never trained on, and their digits."""
    rows = split("test")
    return torch.from_numpy(pixels_of(rows)), torch.from_numpy(images()[1][rows])


def _card(
    plan: Plan,
    keep: Sequence[int],
    right: dict[str, float],
    rows: Sequence[dict[str, float]],
    size: int,
    took: float,
) -> dict[str, Any]:
    table = {name: [float(f"{row[name]:.4g}") for row in rows] for name in HEADLINE}
    return {
        "name": "digits-collapse",
        "title": "digits, trained into neural collapse",
        "question": "How do features and classifier collapse to a symmetric frame?",
        "architecture": NETWORK,
        "size_bytes": size,
        "facts": {
            "layers": f"3 × (linear {plan.width}, ReLU, batch norm), linear {plan.width}, then a "
            f"head of {plan.head} linear maps of width {plan.head_width}",
            "inputs": "8×8 images, 0 to 1, as 64 numbers",
            "bias": plan.bias,
        },
        "checkpoints": [f"zoo:digits-collapse@{e}" for e in keep],
        "data": {
            "what": "scikit-learn's digits, the first 150 of each",
            "images": TRAIN,
            "task": "balanced_digits",
        },
        "training": {
            "command": "python -m interp.training digits-collapse",
            **asdict(plan),
            "seconds": took,
            "threads": torch.get_num_threads(),
        },
        "metrics": {"epoch": list(keep), "accuracy": list(right.values()), **table},
        "metrics_note": "at the head's features, on the training images, in eval mode; frames "
        "are orthogonal ones, as the head has no bias",
        "mechanism": {
            "name": "neural collapse",
            "verified": "the metrics are measured again from the shipped checkpoints; permuted "
            "labels are the control",
        },
        "cannot": ["inputs other than these 64 numbers", f"the file {WEIGHTS} is epoch {keep[-1]}"],
    }
