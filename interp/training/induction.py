"""The recipe of ``zoo:induction``: two layers of attention alone, on runs of letters said again.

What it learns is known from larger models (olsson2022context): a head that looks one back, and
heads that find what followed the last time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.tasks import load_task
from interp.tasks.grammar import BOS, UNKNOWN
from interp.tasks.induction import LETTERS
from interp.terms import ModelShape, PromptPairs
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.circuit import Ablation, Head
from interp.training.decoder import Decoder
from interp.training.gpt2 import Shape
from interp.training.loop import Plan, fit
from interp.training.scoring import Reader, scores
from interp.training.vocabulary import Words, tokenizer_files

WORDS = (BOS, UNKNOWN, *LETTERS)
SHAPE = Shape(len(WORDS), context=64, layers=2, heads=2, width=64)
PLAN = Plan(steps=2000, rows=64, rate=3e-3, warm=100)
LENGTH = 40
"""Letters of a training prompt."""
SHORTEST, LONGEST = 3, 24
"""Letters of a run in training."""
JUMPS = 0.4
"""Share of the letters behind the run that start a new stretch."""
LOOKS = 0.5
"""Mean attention from which a head counts as looking somewhere."""
TASK = "induction:n=200,seed=11"
ACCURACY = {
    "runs of 12": "induction:n=1000,seed=1",
    "runs of 4": "induction:n=1000,seed=2,length=4",
    "runs of 24": "induction:n=1000,seed=3,length=24",
    "runs of 12, three said again": "induction:n=1000,seed=4,again=3",
    "runs of 12, another cue": "induction:n=1000,seed=5,contrast=cue",
}


def batch(dice: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """Prompts and where the next letter can be known.

    A run of different letters is said once; then short stretches of it, each from a letter drawn
    anew, so that neither place nor distance tells what comes, only what followed before.

    Args:
        dice: decides all of it.
        rows: how many.

    Returns:
        Tokens ``[row, 1 + LENGTH]`` and a mask of positions whose next token is counted.
    """
    order = torch.rand(rows, len(LETTERS), generator=dice).argsort(1) + 2
    period = torch.randint(SHORTEST, LONGEST + 1, (rows, 1), generator=dice)
    steps = torch.arange(LENGTH)[None]
    jumps = (torch.rand(rows, LENGTH, generator=dice) < JUMPS) & (steps >= period)
    jumps |= steps == period
    shift = (jumps * torch.randint(0, LONGEST, (rows, LENGTH), generator=dice)).cumsum(1)
    place = (steps + shift).remainder(period)
    letters = order.gather(1, place)
    tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.long), letters], 1)
    known = torch.zeros(tokens.shape, dtype=torch.bool)
    told = (place < period - 1) & (steps >= period)
    known[:, 1:-1] = told[:, :-1] & ~jumps[:, 1:]
    return tokens, known


def sinusoids(context: int, width: int) -> Tensor:
    """Where learned positions start: ``[position, width]``, so that one step is one rotation."""
    rates = 200.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(context).float(), rates)
    return torch.cat([angles.sin(), angles.cos()], 1)


def loss_of(module: Decoder, tokens: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy of the letters that can be known."""
    logits = module.unembed(module.hidden(tokens)[known])
    return F.cross_entropy(logits, tokens.roll(-1, dims=1)[known])


def attention(module: Decoder, task: PromptPairs) -> dict[str, dict[str, float]]:
    """Mean attention of every head: one back, to itself, from the cue to what followed it."""
    tokens = torch.tensor(task.clean)
    rows = torch.arange(len(tokens))
    end, after = (torch.tensor(task.slots[k]) for k in ("END", "NEXT"))
    out = {}
    for layer, pattern in enumerate(module.patterns(tokens)):
        for head in range(pattern.shape[1]):
            seen = {
                "one back": pattern[:, head].diagonal(-1, 1, 2)[:, 1:].mean(),
                "itself": pattern[:, head].diagonal(0, 1, 2)[:, 1:].mean(),
                "END to NEXT": pattern[rows, head, end, after].mean(),
            }
            out[f"{layer}.{head}"] = {k: round(float(v), 3) for k, v in seen.items()}
    return out


def make(
    out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    torch.manual_seed(seed)
    module = Decoder(SHAPE, neurons=0, embed=0.3)
    with torch.no_grad():
        module.wpe.weight.copy_(0.5 * sinusoids(SHAPE.context, SHAPE.width))
    dice = torch.Generator().manual_seed(seed)
    took = fit(module, lambda _: loss_of(module, *batch(dice, PLAN.rows)), PLAN, say, stop=steps)
    size = write_checkpoint(
        out, module.checkpoint(), module.config(), tokenizer_files(WORDS, SHAPE.context)
    )
    card = card_of(module, size, steps or PLAN.steps, seed, took)
    write_json(out / CARD, card)
    return card


def card_of(module: Decoder, size: int, steps: int, seed: int, took: float) -> dict[str, Any]:
    """What is measured of the trained model, and how it was made."""
    shape = SHAPE
    read = Reader(
        Words(WORDS),
        ModelShape(
            shape.layers, shape.heads, shape.heads, shape.width, shape.width // shape.heads,
            4, shape.vocab, shape.context,
        ),
    )  # fmt: skip

    def last(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return module(tokens)[:, -1]

    found = scores(last, read, ACCURACY)
    task = load_task(TASK, read)  # type: ignore[arg-type]
    assert isinstance(task, PromptPairs)
    return {
        "name": "induction",
        "title": "two layers of attention that complete a run of letters",
        "question": "Which head looks one back, and which finds what followed the last time?",
        "architecture": "GPT2LMHeadModel",
        "size_bytes": size,
        "facts": {
            "layers": shape.layers, "heads": shape.heads, "d_model": shape.width,
            "vocabulary": shape.vocab, "context": shape.context, "positions": "learned",
            "mlp": "none: its input weights are 0, so it adds 0",
            "tokenizer": "capital letters, one token each; <bos> is prepended, as in training",
        },
        "data": {
            "what": f"a run of {SHORTEST} to {LONGEST} different letters, then short stretches "
            f"of it; {LENGTH} letters a prompt",
            "prompts": steps * PLAN.rows,
        },
        "training": {
            "command": "python -m interp.training induction", "steps": steps, "rows": PLAN.rows,
            "rate": PLAN.rate, "warm": PLAN.warm, "decay": PLAN.decay, "seed": seed,
            "cpu_seconds": round(took, 1), "threads": 1,
        },
        "accuracy": {
            name: {"task": ACCURACY[name], **row.to_json()} for name, row in found.items()
        },
        "mechanism": mechanism(module, task),
    }  # fmt: skip


def mechanism(module: Decoder, task: PromptPairs) -> dict[str, Any]:
    """What each head looks at, and what every set of heads keeps when the others are ablated."""
    ablation = Ablation(module, module.projections, SHAPE.heads, task)
    seen = attention(module, task)

    def looking(layer: int, where: str) -> list[Head]:
        found = [(layer, h) for h in range(SHAPE.heads)]
        return [h for h in found if seen[f"{h[0]}.{h[1]}"][where] >= LOOKS]

    roles = {
        "previous_token": looking(0, "one back"),
        "same_token": looking(0, "itself"),
        "induction": looking(1, "END to NEXT"),
    }
    with ablation.ablated(roles["previous_token"]):
        without = attention(module, task)
    sets = [s for n in range(1, len(ablation.all)) for s in combinations(ablation.all, n)]
    return {
        "task": TASK,
        **{name: [list(h) for h in heads] for name, heads in roles.items()},
        "logit_diff": round(ablation.full, 3),
        "left_without": {k: round(ablation.left(heads), 4) for k, heads in roles.items()},
        "controls": "every proper set of heads, the others giving their mean",
        "kept": {
            " ".join(f"{i}.{h}" for i, h in heads): round(ablation.kept(heads), 4) for heads in sets
        },
        "attention": seen,
        "attention_without_previous_token": {
            f"{i}.{h}": without[f"{i}.{h}"]["END to NEXT"] for i, h in roles["induction"]
        },
        "reading": "In layer 0 one head looks one back, so that each place also holds the letter "
        "before it, and one looks at the place itself and writes its letter anew, as an MLP "
        "could; the heads of layer 1 look from the cue to the place that holds it as the letter "
        "before, and copy what stands there. Verified by mean ablation: none of the three kinds "
        "can be spared, and without the first the heads of layer 1 no longer find their place.",
    }
