"""The registry of recipes: a shipped model's name -> what trains and measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How one shipped model is made.

    Args:
        name: the model's, as in ``zoo:NAME``.
        title: what is trained, in a few words.
        module: the module with ``make(out, say, steps, seed) -> card``.
    """

    name: str
    title: str
    module: str

    def make(self, out: Any, say: Any, steps: int | None, seed: int) -> dict[str, Any]:
        """Train, measure, write the folder; returns the card."""
        from importlib import import_module

        return import_module(self.module).make(out, say, steps, seed)


RECIPES: dict[str, Recipe] = {
    "ioi": Recipe("ioi", "GPT-2, 4 layers × 4 heads, five grammars", "interp.training.ioi"),
    "ioi-llama": Recipe("ioi-llama", "Llama, the same grammars", "interp.training.ioi_llama"),
    "digits-collapse": Recipe(
        "digits-collapse",
        "a perceptron on digits, into neural collapse",
        "interp.training.digits_collapse",
    ),
    "digits-mixup": Recipe(
        "digits-mixup", "a perceptron on mixed digits", "interp.training.digits_mixup"
    ),
    "digits-mlp": Recipe(
        "digits-mlp", "ReLU network on 8 × 8 digits", "interp.training.digits_mlp"
    ),
    "monotone-mlp": Recipe(
        "monotone-mlp", "network monotone in four of ten inputs", "interp.training.monotone_mlp"
    ),
}
