"""The recipes of ``zoo:deep`` and ``zoo:shallow``: the grammar of ``zoo:ioi`` in 12 and 4 layers.

Same sentences in the same order, same width, heads and learning rate; only the layers differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.tasks.grammar import KINDS
from interp.training.batches import batches
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.gpt2 import GPT2, Shape
from interp.training.grammars import SPLITS, forward, reader
from interp.training.language import Schedule, train
from interp.training.loop import one_thread
from interp.training.scoring import scores
from interp.training.vocabulary import Words, tokenizer_files

WIDTH, HEADS = 64, 4
SCHEDULE = Schedule(steps=2000, rows=64, rate=3e-3, warm=200)
LAYERS = {"deep": 12, "shallow": 4}
TITLES = {
    "deep": "the grammar of zoo:ioi in twelve thin layers",
    "shallow": "the grammar of zoo:ioi in four thin layers",
}
QUESTIONS = {
    "deep": "What does a network do with more layers than the work needs?",
    "shallow": "Which layers of zoo:deep do what these four do?",
}


def held_out_loss(module: Any, tokenizer: Words) -> float:
    """Mean cross-entropy of every next word of 2,048 sentences of another seed, in nats."""
    stream = batches(10_001, 64, 1.0, tokenizer)
    total, count = 0.0, 0
    for _ in range(32):
        tokens, weight = next(stream)
        with torch.no_grad():
            logits = module(tokens)
        logits = getattr(logits, "logits", logits)
        total += float(_summed(logits, tokens, weight))
        count += int((weight > 0).sum())
    return total / count


def _summed(logits: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    keep = weight > 0
    return F.cross_entropy(logits[keep], tokens.roll(-1, dims=1)[keep], reduction="sum")


def make(
    name: str, out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train ``deep`` or ``shallow``, measure, write the folder; returns the card."""
    schedule = replace(SCHEDULE, seed=seed, steps=steps or SCHEDULE.steps)
    words = Words()
    torch.manual_seed(seed)
    module = GPT2(Shape(len(words.words), layers=LAYERS[name], heads=HEADS, width=WIDTH))
    before = time.process_time()
    with one_thread():
        train(module, schedule, words, say)
    spent = time.process_time() - before
    files = tokenizer_files(words.words, module.shape.context)
    size = write_checkpoint(out, module.checkpoint(), module.shape.config(), files)
    shape: Any = module.shape
    found = scores(forward(module), reader(shape, words), SPLITS)
    card = {
        "name": name,
        "title": TITLES[name],
        "question": QUESTIONS[name],
        "architecture": "GPT2LMHeadModel",
        "size_bytes": size,
        "facts": {
            "layers": shape.layers, "heads": shape.heads, "d_model": shape.width,
            "vocabulary": shape.vocab, "context": shape.context, "positions": "learned",
            "tokenizer": "that of zoo:ioi: word-level; <bos> is prepended, as in training",
        },
        "data": {
            "what": "sentences of interp.tasks.grammar, drawn from a seed; the same for zoo:deep "
            "and zoo:shallow, in the same order",
            "shares": {k: share for k, (share, _) in KINDS.items()},
            "sentences": schedule.length * schedule.rows,
        },
        "training": {
            "command": f"python -m interp.training {name}", **asdict(schedule),
            "cpu_seconds": round(spent, 1), "threads": 1,
        },
        "loss": round(held_out_loss(module, words), 4),
        "loss_note": "mean cross-entropy in nats of every next word of 2,048 sentences of another "
        "seed; most words of a sentence cannot be known",
        "tolerance": 0.05,
        "accuracy": {title: {"task": SPLITS[title], **s.to_json()} for title, s in found.items()},
        "cannot": [
            f"{t}: {s.right:.0%} right, {s.preferred:.0%} preferred"
            for t, s in found.items()
            if s.right < 0.95
        ],
    }  # fmt: skip
    write_json(out / CARD, card)
    return card
