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
    "ioi": Recipe("ioi", "GPT-2, 4 layers × 8 heads, five grammars", "interp.training.ioi"),
    "ioi-llama": Recipe("ioi-llama", "Llama, the same grammars", "interp.training.ioi_llama"),
    "induction": Recipe(
        "induction", "two layers of attention, runs of letters", "interp.training.induction"
    ),
    "modadd": Recipe("modadd", "one layer, addition modulo 53", "interp.training.modadd"),
    "hops": Recipe("hops", "pointer chains, weights set by hand", "interp.training.hops"),
    "hops-trained": Recipe(
        "hops-trained", "pointer chains, six layers, trained", "interp.training.hops_trained"
    ),
    "deep": Recipe("deep", "the grammar in twelve thin layers", "interp.training.deep"),
    "shallow": Recipe("shallow", "the grammar in four thin layers", "interp.training.shallow"),
    "ioi-sae": Recipe("ioi-sae", "sparse autoencoders of zoo:ioi", "interp.training.ioi_sae"),
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
    "digits-cnn": Recipe(
        "digits-cnn", "convolutional network on digits", "interp.training.digits_cnn"
    ),
    "digits-cnn-nobias": Recipe(
        "digits-cnn-nobias", "the same without biases", "interp.training.digits_cnn_nobias"
    ),
    "digits-cnn-bn": Recipe(
        "digits-cnn-bn", "the same with batch norm", "interp.training.digits_cnn_bn"
    ),
    "digits-sr": Recipe(
        "digits-sr", "super-resolution, 12 × 12 to 24 × 24", "interp.training.digits_sr"
    ),
    "digits-denoise": Recipe(
        "digits-denoise", "noise off digits, convolutional", "interp.training.digits_denoise"
    ),
    "digits-autoencoder": Recipe(
        "digits-autoencoder", "noise off digits, 16 units", "interp.training.digits_autoencoder"
    ),
    "monotone-mlp": Recipe(
        "monotone-mlp", "network monotone in four of ten inputs", "interp.training.monotone_mlp"
    ),
}
