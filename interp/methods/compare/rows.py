"""Rows: the same tokens seen by two models, boundary by boundary, with what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth import Corpus, walk, wide
from interp.terms import HookedModel, RefusedError, TaskError, TooLargeError, UsageError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Plan:
    """Which tokens are rows, and where each belongs.

    Args:
        places: per prompt number its positions.
        split: per prompt number 0 (train), 1 (validation) or 2 (test).
    """

    places: dict[int, np.ndarray]
    split: dict[int, int]

    @property
    def splits(self) -> np.ndarray:
        """The split of every row, in the order of prompts."""
        return np.concatenate(
            [np.full(len(self.places[i]), self.split[i]) for i in sorted(self.places)]
        )


def planned(corpus: Corpus, each: int, n_test: float, seed: int) -> Plan:
    """At most so many tokens a prompt, split by prompt: half of what is held out validates.

    Raises:
        TaskError: too few prompts to split.
    """
    if corpus.n_prompts < 4:
        raise TaskError(
            f"{corpus.n_prompts} prompts were given; a map is trained, chosen and tested on "
            "different prompts.",
            remedy="Give at least four prompts.",
        )
    dice = np.random.default_rng(seed)
    places: dict[int, np.ndarray] = {}
    for batch in corpus.batches:
        every = np.flatnonzero(batch.counted)
        for row in batch.rows:
            chosen = dice.choice(every, min(each, len(every)), replace=False)
            places[int(row)] = np.sort(chosen)
    order = dice.permutation(corpus.n_prompts)
    held = max(2, round(n_test * corpus.n_prompts))
    split = {int(i): 0 for i in order}
    split |= {int(i): 2 for i in order[: -(-held // 2)]} | {
        int(i): 1 for i in order[-(-held // 2) : held]
    }
    return Plan(places, split)


def check_alike(a: HookedModel, b: HookedModel) -> None:
    """Refuse two models that cannot read the same token ids.

    Raises:
        UsageError: other vocabularies or tokenizers.
    """
    if a is b:
        return
    sizes = a.shape.vocab, b.shape.vocab
    speaks = a.tokenizer is not None, b.tokenizer is not None
    same = sizes[0] == sizes[1] and speaks[0] == speaks[1]
    if same and a.tokenizer is not None and b.tokenizer is not None:
        ids = list(range(sizes[0]))
        same = a.tokenizer.texts(ids) == b.tokenizer.texts(ids)
    if not same:
        raise UsageError(
            f"{a.id} and {b.id} read tokens differently ({sizes[0]} and {sizes[1]} tokens).",
            remedy="Compare models with one tokenizer: both see the same token ids.",
        )


def read_rows(
    model: HookedModel, corpus: Corpus, plan: Plan, what: str, limit: int, memory: int
) -> Tensor:
    """Values of every row at every boundary, ``[boundary, row, width]``, rows in prompt order.

    Args:
        model: which.
        corpus: the prompts.
        plan: which tokens.
        what: ``residual`` (H_0 … H_L) or ``contribution`` (c_0 … c_{L-1}).
        limit: tokens at once.
        memory: bytes that may be used.

    Raises:
        TooLargeError: they do not fit.
        RefusedError: a value that is not finite.
    """
    order = sorted(plan.places)
    first = np.concatenate([[0], np.cumsum([len(plan.places[i]) for i in order])])
    start = dict(zip(order, first[:-1].tolist(), strict=True))
    n = model.shape.n_layers + (what == "residual")
    blocks: Any = model.blocks
    dtype = torch.float64 if blocks.dtype == torch.float64 else torch.float32
    size = n * int(first[-1]) * model.shape.d_model * dtype.itemsize
    if size > memory // 2:
        raise TooLargeError(
            f"The rows of {model.id} take {size / 2**30:.2f} GiB.",
            remedy="Give fewer prompts, or a smaller tokens_per_prompt.",
        )
    out = torch.empty(n, int(first[-1]), model.shape.d_model, dtype=dtype)
    for batch in corpus.pieces(limit):
        row = np.concatenate([np.full(len(plan.places[int(i)]), k)
                              for k, i in enumerate(batch.rows)])  # fmt: skip
        at = np.concatenate([plan.places[int(i)] for i in batch.rows])
        to = np.concatenate([start[int(i)] + np.arange(len(plan.places[int(i)]))
                             for i in batch.rows])  # fmt: skip
        rows, places, target = (torch.from_numpy(i) for i in (row, at, to))
        with torch.no_grad():
            for step in walk(blocks, batch.tokens):
                value = wide(step.attn) + wide(step.mlp) if what == "contribution" else step.resid
                out[step.layer, target] = value[rows, places].to("cpu", dtype)
                if what == "residual" and step.layer == n - 2:
                    out[n - 1, target] = step.following[rows, places].to("cpu", dtype)
    bad = ~torch.isfinite(out).all(-1).all(-1)
    if bad.any():
        raise RefusedError(
            f"{model.id} has values that are not finite at boundary {int(bad.nonzero()[0])}.",
            remedy="Load it with dtype='float32'.",
        )
    return out


def ordinary(rows: Tensor, ratio: float) -> Tensor:
    """Rows that are nowhere longer than ``ratio`` times the boundary's median, ``[row]``."""
    norm = rows.norm(dim=-1)
    middle = norm.median(dim=1, keepdim=True).values
    return (norm <= ratio * middle).all(0)
