"""The recipe of ``zoo:ioi``: a GPT-2 of 4 layers × 4 heads on the whole grammar, and its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.tasks import load_task
from interp.tasks.grammar import KINDS
from interp.terms import ModelShape, PromptPairs
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.circuit import Ablation, Head, search
from interp.training.gpt2 import GPT2, Shape
from interp.training.language import Schedule, train
from interp.training.scoring import Reader, scores
from interp.training.vocabulary import Words, tokenizer_files

NAME = "ioi"
SCHEDULE = Schedule(steps=4000)
DROP = 0.2
MECHANISM = "ioi:n=200,seed=11"
"""The aligned task the circuit is searched on; the card is tested on another seed."""

SPLITS: dict[str, str] = {
    "ioi · train": "ioi:n=1000,seed=1,names=train,templates=train",
    "ioi · held-out names": "ioi:n=1000,seed=2,names=held_out,templates=train",
    "ioi · held-out templates": "ioi:n=1000,seed=3,names=train,templates=held_out",
    "ioi · held-out names and templates": "ioi:n=1000,seed=4,names=held_out,templates=held_out",
    "agreement · train": "agreement:n=500,seed=1,nouns=train,templates=train",
    "agreement · held-out nouns and templates":
        "agreement:n=500,seed=2,nouns=held_out,templates=held_out",
    "pronouns · train": "pronouns:n=500,seed=1,names=train,templates=train",
    "pronouns · held-out names and templates, subject":
        "pronouns:n=400,seed=2,names=held_out,templates=held_out",
    "pronouns · held-out names and templates, object":
        "pronouns:n=400,seed=3,case=object,names=held_out,templates=held_out",
    "pronouns · occupations, held-out templates":
        "pronouns:n=400,seed=4,cue=occupation,templates=held_out",
    "greater_than · train": "greater_than:n=500,seed=1,events=train,templates=train",
    "greater_than · held-out events and templates":
        "greater_than:n=500,seed=2,events=held_out,templates=held_out",
    "brackets · train": "brackets:n=500,seed=1,fillings=train,templates=train",
    "brackets · held-out words and shapes":
        "brackets:n=500,seed=2,fillings=held_out,templates=held_out",
}
"""Title -> the task a score of the card is measured on."""


def forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Tokens -> logits of the last position, for a module with or without an output record."""
    def run(tokens_BT: Tensor) -> Tensor:
        with torch.no_grad():
            out = module(tokens_BT)
        return getattr(out, "logits", out)[:, -1]
    return run


def reader(shape: Shape, tokenizer: Words) -> Reader:
    """What tasks need to know of this model."""
    return Reader(tokenizer, ModelShape(
        shape.layers, shape.heads, shape.heads, shape.width, shape.width // shape.heads,
        4 * shape.width, shape.vocab, shape.context))


def mechanism(module: GPT2, read: Reader, ref: str) -> dict[str, Any]:
    """The heads that carry indirect objects, and the controls, as the card states them."""
    task = load_task(ref, read)  # type: ignore[arg-type]
    assert isinstance(task, PromptPairs)
    ablation = Ablation(module, [b.out for b in module.blocks], module.shape.heads, task)
    found = search(ablation)
    controls = ablation.random_sets(len(found.heads), 20, seed=0, without=found.heads)
    anywhere = ablation.random_sets(len(found.heads), 20, seed=0)
    return {
        "task": ref, "heads": [list(h) for h in found.heads],
        "logit_diff": round(ablation.full, 3),
        "kept": round(found.kept, 4), "left": round(found.left, 4),
        "random_kept_most": round(max(map(ablation.kept, controls)), 4),
        "random_left_least": round(min(map(ablation.left, controls)), 4),
        "overlapping_kept": sorted(round(ablation.kept(s), 3) for s in anywhere),
        "overlapping_left": sorted(round(ablation.left(s), 3) for s in anywhere),
        "single_left": {f"{i}.{h}": round(ablation.left([(i, h)]), 4) for i, h in ablation.all},
    }


def attention_of(module: GPT2, read: Reader, heads: list[Head], ref: str
                 ) -> dict[str, dict[str, float]]:
    """For each head, the mean attention between the task's slots that says what it does."""
    task = load_task(ref, read)  # type: ignore[arg-type]
    assert isinstance(task, PromptPairs)
    tokens = torch.tensor(task.clean)
    slots = {k: torch.tensor(v) for k, v in task.slots.items()}
    rows = torch.arange(len(tokens))
    out: dict[str, dict[str, float]] = {}
    patterns = module.patterns(tokens)
    for layer, head in heads:
        pattern = patterns[layer][:, head]
        pairs = {
            "END to IO": pattern[rows, slots["END"], slots["IO"]],
            "END to S1": pattern[rows, slots["END"], slots["S1"]],
            "END to S2": pattern[rows, slots["END"], slots["S2"]],
            "S2 to S1": pattern[rows, slots["S2"], slots["S1"]],
            "S2 to after S1": pattern[rows, slots["S2"], slots["S1"] + 1],
            "after S1 to S1": pattern[rows, slots["S1"] + 1, slots["S1"]],
        }
        out[f"{layer}.{head}"] = {k: round(float(v.mean()), 3) for k, v in pairs.items()}
    return out


def make(out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0) -> dict:
    """Train, measure, write the folder; returns the card."""
    schedule = replace(SCHEDULE, seed=seed, **({} if steps is None else {"steps": steps}))
    tokenizer = Words()
    shape = Shape(len(tokenizer.words), drop=DROP)
    torch.manual_seed(schedule.seed)
    module = GPT2(shape)
    seconds = train(module, schedule, tokenizer, say)
    size = write_checkpoint(out, module.checkpoint(), shape.config(),
                            tokenizer_files(tokenizer.words, shape.context))
    say("measuring")
    return card(module, out, size, seconds, schedule)


def card(module: GPT2, out: Path, size: int, seconds: float, schedule: Schedule) -> dict:
    """Measure the trained module and write ``card.json``."""
    tokenizer = Words()
    read = reader(module.shape, tokenizer)
    found = scores(forward(module), read, SPLITS)
    circuit = mechanism(module, read, MECHANISM)
    heads = [(layer, head) for layer, head in circuit["heads"]]
    data = {
        "name": NAME,
        "title": "Indirect object, and four other grammars",
        "question": "Which heads find the name that was not repeated?",
        "architecture": "GPT2LMHeadModel",
        "size_bytes": size,
        "facts": {
            "layers": module.shape.layers, "heads": module.shape.heads,
            "d_model": module.shape.width, "vocabulary": module.shape.vocab,
            "context": module.shape.context,
            "tokenizer": "word-level; a year is two words; <bos> is prepended, as in training",
        },
        "data": {
            "what": "sentences of interp.tasks.grammar, drawn from a seed",
            "shares": {k: share for k, (share, _) in KINDS.items()},
            "sentences": schedule.steps * schedule.rows,
            "held_out": "names, nouns, events, words and templates as interp/tasks declares them",
        },
        "training": {
            "heads_dropped": DROP,
            "command": f"python -m interp.training {NAME}", **asdict(schedule),
            "seconds": round(seconds), "threads": torch.get_num_threads(),
        },
        "accuracy": {title: {"task": SPLITS[title], **s.to_json()} for title, s in found.items()},
        "accuracy_note": "right: the most likely word of the whole vocabulary is a right one; "
                         "preferred: right words are together more likely than wrong ones",
        "mechanism": {**circuit, "attention": attention_of(module, read, heads, MECHANISM)},
        "cannot": ["addition: digits are read two at a time, so task 'addition' is refused",
                   "words outside its vocabulary become <unk>"],
    }
    write_json(out / CARD, data)
    return data
