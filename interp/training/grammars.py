"""Recipes on the whole grammar: train a decoder of any architecture, measure it, write its card."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from interp.tasks import load_task
from interp.tasks.grammar import KINDS
from interp.terms import ModelShape, PromptPairs
from interp.training.checkpoints import CARD, write_checkpoint, write_json
from interp.training.circuit import Ablation, Head, search
from interp.training.language import Schedule, train
from interp.training.scoring import Reader, scores
from interp.training.vocabulary import Words, tokenizer_files

NEW = "templates=held_out"

SPLITS: dict[str, str] = {
    "ioi · train": "ioi:n=1000,seed=1,names=train,templates=train",
    "ioi · held-out names": "ioi:n=1000,seed=2,names=held_out,templates=train",
    "ioi · held-out templates": "ioi:n=1000,seed=3,names=train,templates=held_out",
    "ioi · held-out names and templates": "ioi:n=1000,seed=4,names=held_out,templates=held_out",
    "agreement · train": "agreement:n=500,seed=1,nouns=train,templates=train",
    "agreement · held-out nouns and templates": f"agreement:n=500,seed=2,nouns=held_out,{NEW}",
    "pronouns · train": "pronouns:n=500,seed=1,names=train,templates=train",
    "pronouns · held-out names and templates, subject": (
        f"pronouns:n=400,seed=2,names=held_out,{NEW}"
    ),
    "pronouns · held-out names and templates, object": (
        f"pronouns:n=400,seed=3,case=object,names=held_out,{NEW}"
    ),
    "pronouns · occupations, held-out templates": f"pronouns:n=400,seed=4,cue=occupation,{NEW}",
    "greater_than · train": "greater_than:n=500,seed=1,events=train,templates=train",
    "greater_than · held-out events and templates": (
        f"greater_than:n=500,seed=2,events=held_out,{NEW}"
    ),
    "brackets · train": "brackets:n=500,seed=1,fillings=train,templates=train",
    "brackets · held-out words and shapes": f"brackets:n=500,seed=2,fillings=held_out,{NEW}",
}
"""Title -> the task a score of the card is measured on."""


class Sizes(Protocol):
    """The sizes that every architecture has."""

    vocab: int
    context: int
    layers: int
    heads: int
    width: int

    def config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        ...


class Trainable(Protocol):
    """What a recipe needs of a module."""

    shape: Any
    projections: list[nn.Module]

    def __call__(self, tokens_BT: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits."""
        ...

    def patterns(self, tokens_BT: Tensor) -> list[Tensor]:
        """Attention of every layer."""
        ...

    def checkpoint(self) -> dict[str, Tensor]:
        """Weights under a Hugging Face checkpoint's names."""
        ...


@dataclass(frozen=True)
class Plan:
    """One model trained on the whole grammar.

    Args:
        name: the model's, as in ``zoo:NAME``.
        title: a few words.
        question: what it is good for.
        build: vocabulary size -> an untrained module.
        schedule: how it is trained.
        facts: further facts of its card.
        reading: what the named heads' attention suggests they do, in words; "" before a person
            has looked.
        mechanism: the aligned task its circuit is searched on.
        splits: title -> the task a score of the card is measured on.
    """

    name: str
    title: str
    question: str
    build: Callable[[int], Any]
    schedule: Schedule
    facts: Mapping[str, Any]
    reading: str = ""
    mechanism: str = "ioi:n=200,seed=11"
    splits: Mapping[str, str] | None = None


def make(
    plan: Plan, out: Path, say: Callable[[str], None], steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train, measure, write the folder; returns the card."""
    schedule = replace(
        plan.schedule, seed=seed, **({} if steps is None else {"steps": steps, "stop": None})
    )
    tokenizer = Words()
    torch.manual_seed(schedule.seed)
    module = plan.build(len(tokenizer.words))
    before = time.process_time()
    seconds = train(module, schedule, tokenizer, say)
    spent = (seconds, time.process_time() - before)
    return finish(plan, module, out, spent, schedule, say)


def finish(
    plan: Plan,
    module: Any,
    out: Path,
    spent: tuple[float, float],
    schedule: Schedule,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the folder of a trained module, measure it and write its card."""
    tokenizer = Words()
    size = write_checkpoint(
        out,
        module.checkpoint(),
        module.shape.config(),
        tokenizer_files(tokenizer.words, module.shape.context),
    )
    say("measuring")
    data = card(plan, module, size, spent, schedule, tokenizer)
    write_json(out / CARD, data)
    return data


def card(
    plan: Plan,
    module: Any,
    size: int,
    spent: tuple[float, float],
    schedule: Schedule,
    tokenizer: Words,
) -> dict[str, Any]:
    """Everything the card states, measured on the module; ``spent``: seconds, CPU seconds."""
    read = reader(module.shape, tokenizer)
    splits = SPLITS if plan.splits is None else plan.splits
    found = scores(forward(module), read, dict(splits))
    circuit = mechanism(module, read, plan.mechanism)
    heads = [(layer, head) for layer, head in circuit["heads"]]
    shape = module.shape
    return {
        "name": plan.name,
        "title": plan.title,
        "question": plan.question,
        "architecture": shape.config()["architectures"][0],
        "size_bytes": size,
        "facts": {
            "layers": shape.layers,
            "heads": shape.heads,
            "d_model": shape.width,
            "vocabulary": shape.vocab,
            "context": shape.context,
            "tokenizer": "word-level; a year is two words; <bos> is prepended, as in training",
            **plan.facts,
        },
        "data": {
            "what": "sentences of interp.tasks.grammar, drawn from a seed",
            "shares": {k: share for k, (share, _) in KINDS.items()},
            "sentences": schedule.length * schedule.rows,
            "held_out": "names, nouns, events, words and templates as interp/tasks declares them; "
            "names held out of one kind of sentence stand in others (held-out "
            "receivers in direct objects, lists and greetings)",
        },
        "training": {
            "command": f"python -m interp.training {plan.name}",
            **asdict(schedule),
            "heads_dropped": shape.drop,
            "seconds": round(spent[0]),
            "cpu_seconds": round(spent[1]),
            "threads": torch.get_num_threads(),
        },
        "accuracy": {title: {"task": splits[title], **s.to_json()} for title, s in found.items()},
        "accuracy_note": "right: the most likely word of the whole vocabulary is a right one; "
        "preferred: right words are together more likely than wrong ones",
        "mechanism": {
            **circuit,
            "attention": attention_of(module, read, heads, plan.mechanism),
            "reading": plan.reading,
        },
        "cannot": [
            *(
                f"{t}: {s.right:.0%} right, {s.preferred:.0%} preferred"
                for t, s in found.items()
                if s.right < 0.95
            ),
            "addition: digits are read two at a time, so task 'addition' is refused",
            "words outside its vocabulary become <unk>",
        ],
    }


def forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Tokens -> logits of the last position, for a module with or without an output record."""

    def run(tokens_BT: Tensor) -> Tensor:
        with torch.no_grad():
            out = module(tokens_BT)
        return getattr(out, "logits", out)[:, -1]

    return run


def reader(shape: Sizes, tokenizer: Words) -> Reader:
    """What tasks need to know of this model."""
    return Reader(
        tokenizer,
        ModelShape(
            shape.layers,
            shape.heads,
            getattr(shape, "kv_heads", shape.heads),
            shape.width,
            shape.width // shape.heads,
            getattr(shape, "neurons", 4 * shape.width),
            shape.vocab,
            shape.context,
        ),
    )


def mechanism(module: Trainable, read: Reader, ref: str) -> dict[str, Any]:
    """The heads that carry indirect objects, and the controls, as the card states them."""
    task = load_task(ref, read)  # type: ignore[arg-type]
    assert isinstance(task, PromptPairs)
    ablation = Ablation(module, module.projections, module.shape.heads, task)
    found = search(ablation)
    drawn = ablation.random_sets(len(found.heads), 21, seed=0)
    controls = [s for s in drawn if tuple(s) != found.heads][:20]
    return {
        "task": ref,
        "heads": [list(h) for h in found.heads],
        "logit_diff": round(ablation.full, 3),
        "kept": round(found.kept, 4),
        "left": round(found.left, 4),
        "controls": "20 sets of as many heads, drawn from all heads",
        "random_kept": sorted(round(ablation.kept(s), 3) for s in controls),
        "random_left": sorted(round(ablation.left(s), 3) for s in controls),
        "single_left": {f"{i}.{h}": round(ablation.left([(i, h)]), 4) for i, h in ablation.all},
    }


def attention_of(
    module: Trainable, read: Reader, heads: list[Head], ref: str
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
