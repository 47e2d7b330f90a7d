"""Blocks: a model's layers as functions over its own parameters (Protocol in terms/models.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class ModelBlocks:
    """``ModelBlocks(module)``: build before a back-end wraps the module; parameters by reference.

    Args:
        module: an untouched Hugging Face module of a known family (``Loaded.module``).
    """

    def __init__(self, module: nn.Module) -> None:
        raise AssertionError("published first for its signature")
