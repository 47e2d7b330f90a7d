"""Marked sentences of the grammar -> batches of token ids with loss weights."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from interp.tasks.grammar import sentences, spell
from interp.training.vocabulary import Words


class Batch(NamedTuple):
    """Token ids and how much each next word counts.

    Args:
        tokens: ``[row, position]``.
        weight: ``[row, position]``: of predicting the *next* token at each position.
    """

    tokens: Tensor
    weight: Tensor


def batches(seed: int, rows: int, other: float, tokenizer: Words) -> Iterator[Batch]:
    """Endless batches of the grammar, each of sentences of like length.

    Args:
        seed: decides all of them.
        rows: sentences a batch.
        other: weight of a word that is no answer (an answer counts 1).
        tokenizer: words to ids.
    """
    rng = random.Random(f"batches/{seed}")
    stream = sentences(seed)
    while True:
        spelled = sorted(
            (spell(text) for _, text in islice(stream, rows * 32)), key=lambda s: len(s[0])
        )
        starts = list(range(0, len(spelled), rows))
        rng.shuffle(starts)
        for start in starts:
            yield _batch(spelled[start : start + rows], other, tokenizer)


def _batch(spelled: list[tuple[list[str], list[bool]]], other: float, tokenizer: Words) -> Batch:
    longest = max(len(words) for words, _ in spelled)
    tokens = torch.zeros(len(spelled), longest + 1, dtype=torch.long)
    weight = torch.zeros(len(spelled), longest + 1)
    for i, (words, marks) in enumerate(spelled):
        tokens[i, 1 : len(words) + 1] = torch.tensor([tokenizer.ids[w] for w in words])
        weight[i, : len(words)] = torch.tensor([1.0 if m else other for m in marks])
    return Batch(tokens, weight)
