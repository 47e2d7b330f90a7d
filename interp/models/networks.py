"""Networks: shipped models that are no transformers, built layer by layer from their config.json.

``config.json`` says ``{"architectures": ["Network"], "input": [64], "layers": [["Linear", {…}],
["ReLU", {}], …]}``; only the layers of ``LAYERS`` exist, so a config cannot name other code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.models import registry, safety
from interp.models.registry import Card
from interp.models.tensors import read_tensors
from interp.terms import RefusedError, UsageError, unknown_name

LAYERS: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear, "Conv2d": nn.Conv2d, "BatchNorm2d": nn.BatchNorm2d,
    "BatchNorm1d": nn.BatchNorm1d, "ReLU": nn.ReLU, "LeakyReLU": nn.LeakyReLU, "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid, "MaxPool2d": nn.MaxPool2d, "AvgPool2d": nn.AvgPool2d,
    "Flatten": nn.Flatten, "Unflatten": nn.Unflatten, "PixelShuffle": nn.PixelShuffle,
}  # fmt: skip
"""Layers that a config may name."""


def build(config: dict[str, Any]) -> nn.Sequential:
    """The module that a config describes, its weights not yet read.

    Raises:
        RefusedError: a layer that is not on the list.
    """
    layers = []
    for name, arguments in config["layers"]:
        if name not in LAYERS:
            raise RefusedError(f"The network has a layer {name!r}; known are {', '.join(LAYERS)}.")
        layers.append(LAYERS[name](**arguments))
    return nn.Sequential(*layers)


def open_network(card: Card, *, device: str, dtype: str | None, verify: bool) -> Any:
    """A shipped network behind the torch_module back-end.

    Raises:
        RefusedError: its folder is missing.
    """
    folder = card.path
    if folder is None or not folder.is_dir():
        raise RefusedError(
            f"zoo:{card.name} is not in this installation: {folder} is missing.",
            remedy=f"Train it: python -m interp.training {card.name}",
        )
    return opened(folder, f"zoo:{card.name}", device=device, dtype=dtype, verify=verify)


def opened(
    folder: Path, name: str, *, device: str = "cpu", dtype: str | None = None, verify: bool = True
) -> Any:
    """The network in a folder behind the torch_module back-end, called ``name``."""
    from interp.models.torch_module import wrap

    module, config = read_network(folder)
    example = torch.full((1, *config["input"]), 0.5)
    model = wrap(module, example=example, device=device, dtype=dtype, verify=verify)
    model.id = name
    model.feature_names = tuple(config.get("features", ()))  # type: ignore[attr-defined]
    return model


def read_network(folder: Path) -> tuple[nn.Sequential, dict[str, Any]]:
    """The module with its weights, and its config.

    Raises:
        UnsafeError: a damaged file.
        RefusedError: a config without layers or input, or weights that do not fit it.
    """
    config = safety.read_json(folder / "config.json")
    for key in ("layers", "input"):
        if not isinstance(config.get(key), list):
            raise RefusedError(f"{folder / 'config.json'} does not list its {key}.")
    try:
        module = build(config)
        module.load_state_dict(read_tensors(folder / safety.WEIGHTS))
    except (RuntimeError, TypeError, ValueError) as error:
        raise RefusedError(
            f"{folder} holds weights that do not fit its config.json: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return module.eval(), config


def find(source: Any, roots: tuple[str | Path, ...] = ()) -> tuple[Path, str] | None:
    """The folder and id of a network, or None where the source is something else.

    Args:
        source: ``zoo:NAME``, ``zoo:NAME@CHECKPOINT``, a folder, or a name under ``roots``.
        roots: folders in which a bare name is looked for.

    Raises:
        UsageError: a shipped network without that checkpoint, with those that are there.
    """
    if not isinstance(source, (str, Path)):
        return None
    text = str(source).strip()
    if text.startswith("zoo:"):
        name, _, checkpoint = text.removeprefix("zoo:").partition("@")
        card = registry.MODELS.get(name)
        if card is None or card.path is None or not registry.is_network(card.path):
            return None
        return (checkpoint_of(card, checkpoint) if checkpoint else card.path), text
    path = Path(text).expanduser()
    folder = path if text and path.is_dir() else registry.find_in_roots(text, roots)
    return (folder, str(folder.resolve())) if folder and registry.is_network(folder) else None


def checkpoint_of(card: Card, name: str) -> Path:
    """The folder of a checkpoint of a shipped run: ``zoo:NAME@300`` is its folder ``300``.

    Raises:
        UsageError: no such checkpoint, with those that are there.
    """
    found = (card.path or Path()).glob(f"*/{safety.WEIGHTS}")
    there = {p.parent.name: p.parent for p in found}
    if card.path is not None:
        last = safety.read_json(card.path / "config.json").get("epoch")
        there |= {} if last is None else {str(last): card.path}
    if name in there:
        return there[name]
    if not there:
        raise UsageError(f"zoo:{card.name} ships no checkpoints, so there is no @{name}.")
    raise unknown_name(f"checkpoint of zoo:{card.name} called", name, sorted(there))
