"""The recipe of ``zoo:hops-trained``: pointer chains of one to four hops, six layers, trained.

The task is that of ``zoo:hops``, whose weights are set by hand. In training a prompt asks all
eighteen questions of up to four hops at once, each at the place of the one query and blind to the
others, so that every question sees what it would see alone; each number of hops counts the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.tasks import hops as words
from interp.tasks.families import draws
from interp.terms import ModelShape
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.decoder import Decoder
from interp.training.gpt2 import Shape
from interp.training.loop import Plan, fit
from interp.training.scoring import Reader, scores

HOPS = 4
"""Hops that are trained."""
N = len(words.SYMBOLS)
PAIRS = words.CHAIN + words.DISTRACTORS
SHAPE = Shape(words.VOCAB, context=16, layers=6, heads=4, width=64)
NEURONS = 128
PLAN = Plan(steps=6000, rows=64, rate=2e-3, hold=0.7)
ACCURACY = {f"{n} hop{'s' * (n > 1)}": f"hops:n=500,seed={n},hops={n}" for n in range(1, HOPS + 1)}
QUESTIONS = tuple((s, h) for h in range(1, HOPS + 1) for s in range(words.CHAIN + 1 - h))
"""(place of the start in the chain, hops)."""


def batch(dice: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """Prompts with every question, and the answers.

    Returns:
        Tokens ``[row, 1 + pairs + questions]`` and the tokens that answer ``[row, question]``.
    """
    order = torch.rand(rows, N, generator=dice).argsort(1)
    chain, others = order[:, : words.CHAIN + 1], order[:, words.CHAIN + 1 :]
    keys = torch.cat([chain[:, :-1], others], 1)
    ends = torch.randint(0, N, (rows, words.DISTRACTORS), generator=dice)
    values = torch.cat([chain[:, 1:], ends], 1)
    shuffle = torch.rand(rows, PAIRS, generator=dice).argsort(1)
    pairs = (words.FIRST_PAIR + N * keys + values).gather(1, shuffle)
    start, count = torch.tensor(QUESTIONS).T
    asked = words.FIRST_QUERY + (words.CHAIN + 1) * chain[:, start] + count
    begin = torch.full((rows, 1), words.BOS)
    return torch.cat([begin, pairs, asked], 1), words.FIRST_SYMBOL + chain[:, start + count]


def view() -> tuple[Tensor, Tensor]:
    """Who looks at whom ``[position, position]``, and the place each token is told to have."""
    known, asked = 1 + PAIRS, len(QUESTIONS)
    sees = torch.zeros(known + asked, known + asked, dtype=torch.bool)
    sees[:known, :known] = torch.ones(known, known, dtype=torch.bool).tril()
    sees[known:, :known] = True
    sees[known:, known:] = torch.eye(asked, dtype=torch.bool)
    return sees, torch.tensor([*range(known), *[known] * asked])


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    torch.manual_seed(seed)
    module = Decoder(SHAPE, neurons=NEURONS, embed=0.5)
    dice = torch.Generator().manual_seed(seed)
    sees, place = view()
    count = torch.tensor([h for _, h in QUESTIONS])
    weight = 1.0 / (HOPS * torch.bincount(count)[count])

    def loss(_: int) -> Tensor:
        tokens, answers = batch(dice, PLAN.rows)
        logits = module.unembed(module.hidden(tokens, sees, place)[:, 1 + PAIRS :])
        each = F.cross_entropy(logits.transpose(1, 2), answers, reduction="none")
        return (each.mean(0) * weight).sum()

    took = fit(module, loss, PLAN, say, stop=steps)
    probe = list(words.drawn(draws(0, "hops"), HOPS, reader=False).tokens)
    config = module.config(probe_tokens=probe, bos_token_id=words.BOS, eos_token_id=None)
    size = write_checkpoint(out, module.checkpoint(), config, {})
    card = card_of(module, size, steps or PLAN.steps, seed, took)
    write_json(out / CARD, card)
    return card


def card_of(module: Decoder, size: int, steps: int, seed: int, took: float) -> dict[str, Any]:
    """What is measured of the trained model, and how it was made."""
    shape = SHAPE
    read = Reader(
        None,
        ModelShape(
            shape.layers, shape.heads, shape.heads, shape.width, shape.width // shape.heads,
            NEURONS, shape.vocab, shape.context,
        ),
    )  # fmt: skip
    found = scores(lambda t: module(t)[:, -1].detach(), read, ACCURACY)
    return {
        "name": "hops-trained",
        "title": "pointer chains of one to four hops, trained, with layers to spare",
        "question": "Does a trained network use more layers for questions of more steps?",
        "architecture": "GPT2LMHeadModel",
        "size_bytes": size,
        "facts": {
            "layers": shape.layers, "heads": shape.heads, "d_model": shape.width,
            "neurons": NEURONS, "vocabulary": shape.vocab, "context": shape.context,
            "positions": "learned", "tokenizer": "none: token ids as interp.tasks.hops has them",
        },
        "data": {
            "what": "task 'hops': six pairs of a chain, three distractors, a query of 1 to "
            f"{HOPS} hops", "prompts": steps * PLAN.rows, "questions": len(QUESTIONS),
        },
        "training": {
            "command": "python -m interp.training hops-trained", "steps": steps,
            "rows": PLAN.rows, "rate": PLAN.rate, "warm": PLAN.warm, "decay": PLAN.decay,
            "seed": seed, "cpu_seconds": round(took, 1), "threads": 1,
        },
        "accuracy": {
            name: {"task": ACCURACY[name], **row.to_json()} for name, row in found.items()
        },
        "cannot": [
            *(f"{t}: {s.right:.0%} right" for t, s in found.items() if s.right < 0.95),
            "chains of five and six hops: it was never asked for more than four",
        ],
    }  # fmt: skip
