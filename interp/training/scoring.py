"""How right a model is on a task's clean prompts: the numbers of a card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.tasks import load_task
from interp.terms import ModelShape, PromptPairs, Tokenizer

Forward = Callable[[Tensor], Tensor]
"""Token ids ``[row, position]`` -> logits ``[row, vocab]`` of the last position."""


@dataclass(frozen=True)
class Reader:
    """What a task needs to know of a model: its tokenizer and sizes."""

    tokenizer: Tokenizer | None
    shape: ModelShape


@dataclass(frozen=True)
class Score:
    """Accuracy on a task.

    Args:
        right: share of prompts whose most likely word, of the whole vocabulary, is a right one.
        preferred: share whose right words are more likely, summed, than the wrong ones.
        logit_diff: mean logit of the right words less that of the wrong ones, averaged.
        n: prompts.
    """

    right: float
    preferred: float
    logit_diff: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Rounded, for a card."""
        return {
            "right": round(self.right, 4),
            "preferred": round(self.preferred, 4),
            "logit_diff": round(self.logit_diff, 3),
            "n": self.n,
        }


def score(forward: Forward, task: PromptPairs) -> Score:
    """The score on the clean side of ``task``."""
    right, preferred, gap = [], [], []
    for rows in task.buckets().values():
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            logits = forward(torch.tensor([task.clean[i] for i in part])).float()
            probs = logits.softmax(-1)
            for row, i in enumerate(part):
                good, bad = list(task.right[i]), list(task.wrong[i])
                right.append(int(logits[row].argmax()) in good)
                preferred.append(bool(probs[row, good].sum() > probs[row, bad].sum()))
                gap.append(float(logits[row, good].mean() - logits[row, bad].mean()))
    n = len(right)
    return Score(sum(right) / n, sum(preferred) / n, sum(gap) / n, n)


def scores(forward: Forward, reader: Reader, refs: dict[str, str]) -> dict[str, Score]:
    """Title -> score, for refs of tasks."""
    out = {}
    for title, ref in refs.items():
        task = load_task(ref, reader)  # type: ignore[arg-type]
        assert isinstance(task, PromptPairs)
        out[title] = score(forward, task)
    return out
