"""Weights: per-head and per-neuron views in TransformerLens's names and orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class ModelWeights:
    """``ModelWeights(module)``: build before a back-end wraps the module; views by reference."""

    def __init__(self, module: nn.Module) -> None:
        raise AssertionError("published first for its signature")
