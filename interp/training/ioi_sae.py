"""The recipe of ``zoo:ioi-sae``: a sparse autoencoder for the residual stream of each ioi layer.

``f`` holds the k largest of ReLU((x - b_dec) W_enc + b_enc), and x = f W_dec + b_dec + e with rows
of W_dec of length 1 (gao2024topk). In training x is scaled to a mean square of 1, and the scale is
folded into the biases afterwards, so that a dictionary reads the stream as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.dictionaries import Dictionary, load_dictionary
from interp.models.loading import Loaded, load
from interp.models.tensors import write_tensors
from interp.training.batches import batches
from interp.training.checkpoints import CARD, write_json
from interp.training.loop import Plan, fit
from interp.training.vocabulary import Words

MODEL = "zoo:ioi"
FEATURES, K = 512, 16
WIDE, NARROWING = 64, 0.5
"""Features kept at the start, and the share of the steps in which they fall to K: so that few die.
"""
PLAN = Plan(steps=1500, rows=1024, rate=2e-3, warm=100, decay=0.0)
SENTENCES, HELD_OUT = 6144, 1024
"""Sentences that are trained and measured on."""
FILE = "sae_weights.safetensors"


def hook(layer: int) -> str:
    """What SAELens calls the place, and the dictionary's folder."""
    return f"blocks.{layer}.hook_resid_post"


def batches_of(seed: int, sentences: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens ``[row, position]``, and True where a word stands and its next one is known."""
    stream = batches(seed, 64, 1.0, Words())
    for _ in range(sentences // 64):
        tokens, weight = next(stream)
        kept = weight > 0
        kept[:, 0] = False  # the stream at <bos> is the same in every sentence
        yield tokens, kept


@contextmanager
def replaced(module: Any, layer: int, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While inside, what a layer gives goes through ``change`` (None leaves it)."""

    def hooked(_: nn.Module, args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        new = change(value)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.transformer.h[layer].register_forward_hook(hooked)
    try:
        yield
    finally:
        handle.remove()


def streams(module: Any, layer: int, seed: int, sentences: int) -> Tensor:
    """The residual stream behind a layer at every word, ``[word, d_model]``."""
    found: list[Tensor] = []
    for tokens, kept in batches_of(seed, sentences):
        with replaced(module, layer, lambda x, kept=kept: found.append(x[kept])), torch.no_grad():
            module.transformer(tokens)
    return torch.cat(found)


class Autoencoder(nn.Module):
    """One dictionary while it is trained, on scaled values.

    Args:
        values: ``[word, d]``, of which the first decoder rows are drawn.
        dice: draws them.
    """

    def __init__(self, values: Tensor, dice: torch.Generator) -> None:
        super().__init__()
        centre = values.mean(0)
        rows = values[torch.randint(len(values), (FEATURES,), generator=dice)] - centre
        rows = rows + 0.3 * torch.randn(rows.shape, generator=dice)
        self.W_dec = nn.Parameter(F.normalize(rows, dim=1))
        self.W_enc = nn.Parameter(self.W_dec.detach().T.clone())
        self.b_enc = nn.Parameter(torch.zeros(FEATURES))
        self.b_dec = nn.Parameter(centre.clone())

    def loss(self, values: Tensor, k: int) -> Tensor:
        """Mean squared error with the ``k`` largest features."""
        f = ((values - self.b_dec) @ self.W_enc + self.b_enc).relu()
        best = f.topk(k, -1)
        f = torch.zeros_like(f).scatter(-1, best.indices, best.values)
        return (f @ self.W_dec + self.b_dec - values).square().mean()

    def shorten(self) -> None:
        """Rows of ``W_dec`` back to length 1."""
        with torch.no_grad():
            self.W_dec.copy_(F.normalize(self.W_dec, dim=1))


def train(
    values: Tensor, say: Callable[[str], None], steps: int | None, seed: int
) -> dict[str, Tensor]:
    """The tensors of a dictionary of these values ``[word, d]``."""
    dice = torch.Generator().manual_seed(seed)
    scale = float(values.square().mean() ** -0.5)
    values = values * scale
    module = Autoencoder(values, dice)
    narrow = NARROWING * (steps or PLAN.steps)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(values), (PLAN.rows,), generator=dice)
        k = max(K, round(WIDE - (WIDE - K) * step / narrow))
        return module.loss(values[rows], k)

    fit(module, loss, PLAN, say, lambda _: module.shorten(), stop=steps)
    found = {name: p.detach().clone() for name, p in module.named_parameters()}
    return {**found, "b_enc": found["b_enc"] / scale, "b_dec": found["b_dec"] / scale}


def config(layer: int, loaded: Loaded) -> dict[str, Any]:
    """``cfg.json`` as SAELens writes it."""
    return {
        "architecture": "topk", "d_in": int(loaded.config.hidden_size), "d_sae": FEATURES, "k": K,
        "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "model_name": MODEL, "model_weight_hash": loaded.weight_hash,
            "hook_name": hook(layer), "hook_head_index": None, "prepend_bos": True,
            "context_size": int(loaded.config.max_position_embeddings),
        },
    }  # fmt: skip


def cross_entropy(
    module: Any, layer: int, change: Callable[[Tensor], Tensor] | None, seed: int
) -> float:
    """Mean loss of the next words, in nats, with the stream at every word changed."""
    total, count = 0.0, 0
    for tokens, kept in batches_of(seed, HELD_OUT):

        def put(x: Tensor, kept: Tensor = kept) -> Tensor | None:
            if change is None:
                return None
            x = x.clone()
            x[kept] = change(x[kept])
            return x

        with replaced(module, layer, put), torch.no_grad():
            logits = module(tokens).logits
        total += float(
            F.cross_entropy(logits[kept], tokens.roll(-1, dims=1)[kept], reduction="sum")
        )
        count += int(kept.sum())
    return total / count


def measures(module: Any, dictionary: Dictionary, seed: int) -> dict[str, float]:
    """What one dictionary is worth, on sentences it was not trained on.

    ``loss_recovered`` is (L₀ - L) / (L₀ - L_model), L with the reconstruction in the stream's
    place at every word and L₀ with zeros; ``…_of_mean``: L₀ with the mean there.
    """
    layer = int(dictionary.site.layer or 0)
    values = streams(module, layer, seed, HELD_OUT)
    f = dictionary.encode(values)
    error = values - dictionary.decode(f)
    mean = values.mean(0)
    losses = {
        "model": cross_entropy(module, layer, None, seed),
        "reconstructed": cross_entropy(
            module, layer, lambda x: dictionary.decode(dictionary.encode(x)), seed
        ),
        "zero": cross_entropy(module, layer, torch.zeros_like, seed),
        "mean": cross_entropy(module, layer, lambda x: mean.expand_as(x), seed),
    }
    over = losses["reconstructed"] - losses["model"]
    return {
        "l0": float((f > 0).sum(1).double().mean()),
        "dead": float((f.sum(0) == 0).double().mean()),
        "explained_variance": 1 - float(error.square().sum() / (values - mean).square().sum()),
        "loss_model": losses["model"],
        "loss_reconstructed": losses["reconstructed"],
        "loss_recovered": 1 - over / (losses["zero"] - losses["model"]),
        "loss_recovered_of_mean": 1 - over / (losses["mean"] - losses["model"]),
    }


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write a folder a layer; returns the card."""
    loaded = load(MODEL)
    before, rows, size = time.process_time(), {}, 0
    for layer in range(loaded.config.num_hidden_layers):
        values = streams(loaded.module, layer, seed, SENTENCES)
        say(f"  layer {layer}: {len(values)} words")
        folder = out / hook(layer)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = train(values, say, steps, seed)
        size += write_tensors(folder / FILE, tensors).stat().st_size
        write_json(folder / "cfg.json", config(layer, loaded))
        found = measures(loaded.module, load_dictionary(folder), seed + 1)
        rows[hook(layer)] = {k: float(f"{v:.4g}") for k, v in found.items()}
        say(f"  layer {layer}: {rows[hook(layer)]}")
    card = {
        "name": "ioi-sae",
        "title": "sparse autoencoders of zoo:ioi, one a layer",
        "question": "Which directions of the residual stream stand for something by themselves?",
        "architecture": "SparseAutoencoder",
        "size_bytes": size,
        "facts": {
            "of": MODEL, "model_weight_hash": loaded.weight_hash, "site": "resid_post",
            "features": FEATURES, "k": K, "weights": "float32",
            "layout": "SAELens: a folder a layer with cfg.json and sae_weights.safetensors",
            "dictionaries": [f"zoo:ioi-sae/{name}" for name in rows],
        },
        "data": {
            "what": "residual streams of zoo:ioi at every word but <bos>, on sentences of "
            "interp.tasks.grammar",
            "sentences": SENTENCES, "held_out": HELD_OUT,
        },
        "training": {
            "command": "python -m interp.training ioi-sae", "steps": steps or PLAN.steps,
            "rows": PLAN.rows, "rate": PLAN.rate, "seed": seed,
            "cpu_seconds": round(time.process_time() - before, 1),
            "threads": 1,
        },
        "dictionaries": rows,
        "dictionaries_note": "on held-out sentences; loss_recovered: 0 with zeros in the stream's "
        "place, 1 with the stream itself; of_mean: 0 with the mean there; dead: share of features "
        "that never fired",
    }  # fmt: skip
    write_json(out / CARD, card)
    return card
