"""Plain networks: stacks of layers, their checkpoint, and the seeded training that the studies use.

``torch.manual_seed(seed)`` stands before building and again before training, so that a recipe is
its dimensions, its data and these lines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.training.checkpoints import CARD, write_checkpoint, write_json


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    """New tensors are float64 inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def stack(dims: Sequence[int], gate: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with a gate between any two."""
    layers: list[nn.Module] = []
    for into, out in zip(dims, dims[1:], strict=False):
        layers += [nn.Linear(into, out), gate()]
    return nn.Sequential(*layers[:-1])


def fit(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    seed: int = 0,
    rate: float = 1e-3,
    decay: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    after: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Adam on shuffled batches; the module in eval mode.

    Args:
        module: what is trained, in place.
        inputs: ``[row, …]``.
        labels: ``[row]``.
        epochs: passes over all rows.
        batch: rows a step.
        seed: of the shuffling.
        rate: learning rate.
        decay: weight decay.
        loss: what is minimised.
        after: told the module after every step (to project its weights).
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), rate, weight_decay=decay)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(batch):
            optimizer.zero_grad()
            loss(module(inputs[rows]), labels[rows]).backward()
            optimizer.step()
            if after is not None:
                after(module)
    return module.eval()


def built(dims: Sequence[int], seed: int = 0, gate: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """``stack`` with the weights of this seed."""
    torch.manual_seed(seed)
    return stack(dims, gate)


def random_leaders() -> tuple[np.ndarray, np.ndarray]:
    """10,000 points in the unit cube of 16 dimensions, labelled by the nearest of 80 leaders."""
    draw = np.random.RandomState(0)
    points = draw.uniform(size=(10_000, 16))
    leaders = draw.choice(10_000, 80, replace=False)
    labels = draw.randint(0, 10, 80)
    far = ((points[:, None] - points[leaders][None]) ** 2).sum(-1)
    return points, labels[far.argmin(1)]


def leaders_network(dims: Sequence[int]) -> nn.Module:
    """A float64 ReLU network trained on the first 7,000 of those points (seconds)."""
    points, labels = random_leaders()
    with default_float64():
        module = built(dims)
        return fit(
            module, torch.tensor(points[:7000]), torch.tensor(labels[:7000]), epochs=10, batch=256
        )


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits, pixels in [0, 1], ``[image, 64]``, and their labels."""
    from interp.tasks.digits import images

    pixels, labels = images()
    return pixels.reshape(len(pixels), -1), labels


def digits_network(dims: Sequence[int] = (64, 20, 20, 10)) -> nn.Module:
    """A float64 ReLU network trained on the first 1,300 digits (seconds)."""
    pixels, labels = digit_images()
    with default_float64():
        module = built(dims)
        return fit(
            module, torch.tensor(pixels[:1300]), torch.tensor(labels[:1300]), epochs=60, batch=64
        )


NAMES: dict[type[nn.Module], tuple[str, ...]] = {nn.Linear: ("in_features", "out_features")}


def described(module: nn.Sequential, shape: Sequence[int], **more: Any) -> dict[str, Any]:
    """The ``config.json`` of a stack of layers."""
    layers = [
        [type(part).__name__, {n: getattr(part, n) for n in NAMES.get(type(part), ())}]
        for part in module
    ]
    return {
        "architectures": ["Network"], "model_type": "network", "input": list(shape),
        "layers": layers, **more,
    }  # fmt: skip


def write(out: Path, module: nn.Sequential, config: dict[str, Any], card: dict[str, Any]) -> dict:
    """Write weights, config and card; returns the card with the size of the weights."""
    size = write_checkpoint(out, dict(module.state_dict()), config, {})
    card = {**card, "size_bytes": size}
    write_json(out / CARD, card)
    return card
