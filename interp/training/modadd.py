"""The recipe of ``zoo:modadd``: one layer that learns addition modulo 53 by heart, then groks it.

Full batches of a third of all sums, weight decay, and the networks of chosen steps kept. The
learned algorithm adds angles: numbers become cosines and sines of a few frequencies (nanda2023).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.tasks.grammar import UNKNOWN
from interp.tasks.modular_addition import SHARE, SIGN, training_sums
from interp.terms import ModelShape
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.decoder import Decoder
from interp.training.gpt2 import Shape
from interp.training.loop import Plan, fit
from interp.training.scoring import Reader, scores
from interp.training.vocabulary import Words, tokenizer_files

P = 53
WORDS = (*map(str, range(P)), SIGN, UNKNOWN)
SHAPE = Shape(len(WORDS), context=3, layers=1, heads=4, width=64)
PLAN = Plan(
    steps=1500,
    rows=round(SHARE * P * P),
    rate=3e-3,
    warm=10,
    hold=0.6,
    decay=1.0,
    vectors=1.0,
    clip=100.0,
)
KEEP = (0, 150, 400, 600, 1500)
"""Steps whose network ships."""
ENOUGH = 0.99
"""Accuracy that the key frequencies alone must keep."""
ACCURACY = {
    "sums it was trained on": "modular_addition:n=800,seed=1,split=train",
    "sums it never saw": "modular_addition:n=1500,seed=2,split=held_out",
}


def sums() -> tuple[Tensor, Tensor]:
    """Every prompt ``[a · p + b, 3]`` and its answer."""
    a, b = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
    tokens = torch.stack([a.flatten(), b.flatten(), torch.full((P * P,), P)], 1)
    return tokens, (tokens[:, 0] + tokens[:, 1]) % P


def trained_on() -> Tensor:
    """True for the sums of the training set, ``[a · p + b]``."""
    known = torch.zeros(P * P, dtype=torch.bool)
    known[[P * a + b for a, b in training_sums(P)]] = True
    return known


def waves() -> Tensor:
    """Cosine and sine of every frequency, ``[frequency, 2, number]``, of length 1; 1 … p // 2."""
    k = torch.arange(1, P // 2 + 1, dtype=torch.float64)
    angle = 2 * torch.pi * k[:, None] * torch.arange(P, dtype=torch.float64) / P
    return torch.stack([angle.cos(), angle.sin()], 1) * (2 / P) ** 0.5


def picked(frequencies: Iterable[int]) -> Tensor:
    """Rows of ``waves`` that hold these frequencies."""
    return torch.tensor([k - 1 for k in frequencies], dtype=torch.long)


def power(table_PD: Tensor) -> Tensor:
    """Share of each frequency in the numbers' embeddings, ``[frequency]``; they sum to 1."""
    squared = torch.einsum("ksn,nd->ksd", waves(), table_PD.double()).square().sum((1, 2))
    return squared / squared.sum()


def part(table_PD: Tensor, frequencies: Iterable[int]) -> Tensor:
    """What a table of numbers has in these frequencies, ``[number, d]``."""
    chosen = waves()[picked(frequencies)].flatten(0, 1)
    return (chosen.T @ (chosen @ table_PD.double())).to(table_PD.dtype)


def right_with(module: Decoder, table_PD: Tensor) -> float:
    """Accuracy over all sums with this table in the place of the numbers' embeddings.

    The unembedding keeps its own.
    """
    tokens, answers = sums()
    embeds = torch.cat([table_PD, module.wte.weight[P:]])[tokens] + module.wpe.weight
    with torch.no_grad():
        for block in module.blocks:
            embeds = block(embeds)
        logits = module.unembed(embeds[:, -1])
    return float((logits.argmax(-1) == answers).double().mean())


def only(module: Decoder, frequencies: Iterable[int]) -> float:
    """Accuracy with nothing but these frequencies (and the mean) in the embeddings."""
    table = module.wte.weight[:P].detach()
    return right_with(module, table.mean(0) + part(table, frequencies))


def without(module: Decoder, frequencies: Iterable[int]) -> float:
    """Accuracy with these frequencies taken out of the embeddings."""
    table = module.wte.weight[:P].detach()
    return right_with(module, table - part(table, frequencies))


def key_frequencies(module: Decoder) -> list[int]:
    """The fewest strongest frequencies of the embeddings that keep the accuracy."""
    order = (power(module.wte.weight[:P].detach()).argsort(descending=True) + 1).tolist()
    for n in range(1, len(order) + 1):
        if only(module, order[:n]) >= ENOUGH:
            return sorted(order[:n])
    return sorted(order)


def measures(module: Decoder, frequencies: list[int]) -> dict[str, float]:
    """Accuracy and loss on both sets, and the progress measures of nanda2023.

    ``restricted``: loss on all sums of logits that vary only with cos and sin of w(a + b) for the
    key frequencies; ``excluded``: loss on the training set with just those taken out.
    """
    tokens, answers = sums()
    known = trained_on()
    with torch.no_grad():
        every = module.unembed(module.hidden(tokens)[:, -1])
    right, logits = (every.argmax(-1) == answers).double(), every[:, :P].double()
    flat = waves()[picked(frequencies)].flatten(0, 1)
    basis = flat[:, (tokens[:, 0] + tokens[:, 1]) % P] / P**0.5
    main = basis.T @ (basis @ logits)
    loss = F.cross_entropy
    return {
        "train_accuracy": float(right[known].mean()),
        "test_accuracy": float(right[~known].mean()),
        "train_loss": float(loss(logits[known], answers[known])),
        "test_loss": float(loss(logits[~known], answers[~known])),
        "restricted_loss": float(loss(main + logits.mean(0), answers)),
        "excluded_loss": float(loss((logits - main)[known], answers[known])),
        "power": float(power(module.wte.weight[:P].detach())[picked(frequencies)].sum()),
    }


def cosines_explain(module: Decoder, frequencies: list[int]) -> float:
    """Share of the logits' variance that cos(w (a + b - c)) of these frequencies explains.

    Logits are centred over c; the fit has one coefficient a frequency.
    """
    tokens, answers = sums()
    with torch.no_grad():
        logits = module.unembed(module.hidden(tokens)[:, -1])[:, :P].double()
    gap = (answers[:, None] - torch.arange(P)) % P
    angle = 2 * torch.pi * torch.tensor(frequencies, dtype=torch.float64) / P
    wave = (angle * gap[..., None]).cos().flatten(0, 1)
    centred = (logits - logits.mean(1, keepdim=True)).flatten()
    fitted = wave @ torch.linalg.lstsq(wave, centred[:, None]).solution[:, 0]
    return 1 - float((centred - fitted).square().sum() / centred.square().sum())


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder and its checkpoints; returns the card."""
    torch.manual_seed(seed)
    module = Decoder(SHAPE, embed=0.02, matrix=0.16)
    tokens, answers = sums()
    known = trained_on()
    tokens, answers = tokens[known], answers[known]
    last = steps or PLAN.steps
    keep = sorted({*(k for k in KEEP if k < last), last})
    kept: dict[int, dict[str, Tensor]] = {}

    def each(step: int) -> None:
        if step in keep:
            kept[step] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    each(0)
    took = fit(
        module,
        lambda _: F.cross_entropy(module.unembed(module.hidden(tokens)[:, -1]), answers),
        PLAN, say, each, stop=steps,
    )  # fmt: skip
    frequencies = key_frequencies(module)
    files = tokenizer_files(WORDS, SHAPE.context, begins=False)
    rows, size = [], 0
    for step in keep:
        module.load_state_dict(kept[step])
        rows.append(measures(module, frequencies))
        config = module.config(bos_token_id=None, eos_token_id=None, epoch=step)
        folder = out if step == last else out / str(step)
        size = write_checkpoint(folder, module.checkpoint(), config, files)
        say(
            f"  step {step}: train {rows[-1]['train_accuracy']:.3f}, "
            f"test {rows[-1]['test_accuracy']:.3f}"
        )
    card = card_of(module, size, frequencies, keep, rows, seed, took)
    write_json(out / CARD, card)
    return card


def mechanism(module: Decoder, frequencies: list[int]) -> dict[str, Any]:
    """The frequencies that carry the sums, and controls."""
    others = [k for k in range(1, P // 2 + 1) if k not in frequencies]
    rng = random.Random("frequencies/1")
    size = min(len(frequencies), len(others))
    sets = [sorted(rng.sample(others, size)) for _ in range(20)]
    return {
        "name": "sums of angles",
        "frequencies": frequencies,
        "kept": round(only(module, frequencies), 4),
        "left": round(without(module, frequencies), 4),
        "controls": "20 sets of as many other frequencies",
        "random_kept_most": round(max(only(module, s) for s in sets), 4),
        "random_left_least": round(min(without(module, s) for s in sets), 4),
        "cosines_explain": round(cosines_explain(module, frequencies), 4),
        "verified": "accuracy over all sums with only these frequencies in the embeddings, and "
        "without them; the unembedding is left as it is; cosines_explain: share of the logits' "
        "variance that cos(w (a + b - c)) of these frequencies explains",
    }


def card_of(
    module: Decoder,
    size: int,
    frequencies: list[int],
    keep: list[int],
    rows: list[dict[str, float]],
    seed: int,
    took: float,
) -> dict[str, Any]:
    """What is measured of the trained model, and how it was made."""
    shape = SHAPE
    read = Reader(
        Words(WORDS, begins=False),
        ModelShape(
            1, shape.heads, shape.heads, shape.width, shape.width // shape.heads,
            4 * shape.width, shape.vocab, shape.context,
        ),
    )  # fmt: skip
    found = scores(lambda t: module(t)[:, -1].detach(), read, ACCURACY)
    return {
        "name": "modadd",
        "title": f"addition modulo {P}, with the way to it",
        "question": "How does a network that knew sums by heart come to compute them?",
        "architecture": "GPT2LMHeadModel",
        "size_bytes": size,
        "bos": False,
        "facts": {
            "layers": 1, "heads": shape.heads, "d_model": shape.width, "modulus": P,
            "vocabulary": shape.vocab, "context": shape.context,
            "prompt": "two numbers and =, one token each, as in '7 51 ='; no <bos>",
        },
        "checkpoints": [f"zoo:modadd@{k}" for k in keep],
        "data": {
            "what": f"sums modulo {P}", "train": PLAN.rows, "test": P * P - PLAN.rows,
            "held_out": "interp.tasks.modular_addition.training_sums draws them",
        },
        "training": {
            "command": "python -m interp.training modadd", "steps": keep[-1], "rows": PLAN.rows,
            "rate": PLAN.rate, "warm": PLAN.warm, "decay": PLAN.decay, "seed": seed,
            "cpu_seconds": round(took, 1), "threads": 1,
        },
        "accuracy": {
            name: {"task": ACCURACY[name], **row.to_json()} for name, row in found.items()
        },
        "metrics": {
            "step": keep,
            **{name: [float(f"{row[name]:.4g}") for row in rows] for name in rows[0]},
        },
        "metrics_note": "over all sums; power: share of the key frequencies in the embeddings; "
        "restricted, excluded: losses with only the key frequencies of a + b in the logits, on "
        "all sums, and without them, on the training set",
        "mechanism": mechanism(module, frequencies),
        "cannot": ["words other than numbers below the modulus and =", "subtraction, products"],
    }  # fmt: skip
