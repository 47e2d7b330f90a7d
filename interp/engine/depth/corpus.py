"""Corpus: the prompts of a task as rectangles, with what is averaged, predicted and scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.engine import memory as machine
from interp.engine.costs import layer_flops
from interp.terms import (
    CapabilityError,
    Context,
    HookedModel,
    PromptPairs,
    TaskError,
    Texts,
    TooLargeError,
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length.

    Args:
        rows: their numbers in the task, ``[row]``.
        tokens: ids ``[row, position]``.
        targets: tokens that are right behind each position, ``[row, position, alternative]``, -1
            where there is none.
        answers: 1 where the answer is predicted, ``[row, position]`` (bool).
        counted: positions that are averaged, ``[position]`` (bool).
        donors: for each prompt the tokens of the one before it of the same length (the last for
            the first), ``[row, position]``.
    """

    rows: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    answers: np.ndarray
    counted: np.ndarray
    donors: np.ndarray

    @property
    def length(self) -> int:
        """Positions."""
        return self.tokens.shape[1]

    @property
    def scored(self) -> np.ndarray:
        """Where the loss is taken: at answers, or wherever a next token is known (bool)."""
        return self.answers if self.answers.any() else self.targets[..., 0] >= 0

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> Batch:
        """Some of the rows."""
        s = slice(start, stop)
        return Batch(
            self.rows[s], self.tokens[s], self.targets[s], self.answers[s], self.counted,
            self.donors[s],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Corpus:
    """A task as a depth analysis reads it.

    Args:
        batches: prompts by length, shortest first.
        n_prompts: how many there are.
        marked: whether the task says which tokens are the answer.
        bos: whether position 0 is a beginning of sequence; first: first position counted.
        first: see ``bos``.
    """

    batches: tuple[Batch, ...]
    n_prompts: int
    marked: bool
    bos: bool
    first: int

    @property
    def n_tokens(self) -> int:
        """Positions that are averaged."""
        return sum(len(b) * int(b.counted.sum()) for b in self.batches)

    @property
    def longest(self) -> int:
        """The longest prompt."""
        return max(b.length for b in self.batches)

    @property
    def aligned(self) -> bool:
        """Whether all prompts have one length."""
        return len(self.batches) == 1

    def pieces(self, tokens: int) -> Iterator[Batch]:
        """Batches of at most so many tokens, and at least one prompt."""
        for batch in self.batches:
            step = max(1, tokens // batch.length)
            for start in range(0, len(batch), step):
                yield batch.part(start, min(len(batch), start + step))


def corpus_of(model: HookedModel, task: Texts | PromptPairs, *, keep_first: bool = False) -> Corpus:
    """Read a task: texts, or the clean side of pairs with its right answers.

    Args:
        model: whose layers are driven.
        task: the prompts.
        keep_first: count position 0 too. By default it is neither averaged nor skipped: there
            stands a beginning of sequence, or a token that serves as one.

    Raises:
        CapabilityError: the engine cannot drive this model's layers.
        TaskError: no position is left to look at.
    """
    _ = layers_of(model)
    first = 0 if keep_first else 1
    found: dict[int, list[int]] = {}
    prompts, targets, marks = (_pairs if isinstance(task, PromptPairs) else _texts)(task)
    for i, prompt in enumerate(prompts):
        found.setdefault(len(prompt), []).append(i)
    short = [(i + 1, "it is a single token") for i, p in enumerate(prompts) if len(p) <= first]
    if short:
        raise TaskError(
            f"{len(short)} prompts have no token behind position 0.", rows=short,
            remedy="Leave them out, or count position 0 too (keep_first).",
        )  # fmt: skip
    width = max((len(a) for row in targets for a in row), default=1)
    batches = []
    for length, rows in sorted(found.items()):
        tokens = np.array([prompts[i] for i in rows], dtype=np.int64)
        padded = np.full((len(rows), length, max(1, width)), -1, dtype=np.int64)
        for r, i in enumerate(rows):
            for t, names in enumerate(targets[i]):
                padded[r, t, : len(names)] = names
        answers = np.array([marks[i] for i in rows], dtype=bool)
        counted = np.arange(length) >= first
        donors = np.roll(tokens, 1, 0)
        batches.append(Batch(np.array(rows), tokens, padded, answers, counted, donors))
    marked = any(b.answers.any() for b in batches)
    return Corpus(tuple(batches), len(prompts), marked, bool(task.bos), first)


Read = tuple[list[Sequence[int]], list[list[tuple[int, ...]]], list[list[bool]]]


def _pairs(task: Any) -> Read:
    """Clean prompts; the right answer stands behind the last token (a span behind its first)."""
    prompts, targets, marks = [], [], []
    for prompt, right in zip(task.clean, task.right, strict=True):
        span = task.answer_form == "span"
        whole = (*prompt, *right[:-1]) if span else prompt
        follow: list[tuple[int, ...]] = [(t,) for t in whole[1:]]
        follow.append((right[-1],) if span else tuple(right))
        prompts.append(whole)
        targets.append(follow)
        marks.append([t >= len(prompt) - 1 for t in range(len(whole))])
    return prompts, targets, marks


def _texts(task: Any) -> Read:
    prompts = list(task.tokens)
    targets = [[*((t,) for t in row[1:]), ()] for row in prompts]
    given = task.answer_mask or tuple((0,) * len(row) for row in prompts)
    marks = [[*(bool(m) for m in row[1:]), False] for row in given]
    return prompts, targets, marks


def layers_of(model: HookedModel) -> Any:
    """The model's blocks.

    Raises:
        CapabilityError: with the model's own reason.
    """
    for ability in model.capabilities():
        if ability.name == "blocks" and not ability.ok:
            raise CapabilityError(
                f"A depth analysis drives a model layer by layer, and here {ability.reason}",
                remedy="Load it with backend='transformer_lens'.",
            )
    return model.blocks


def tokens_at_once(model: HookedModel, limit: int, held: int = 12, most: int = 1 << 15) -> int:
    """Tokens of one pass: about two seconds of work that fit in a share of the memory.

    Args:
        model: what runs.
        limit: bytes that may be used.
        held: residual-sized tensors that stand at once.
        most: never more.

    Raises:
        TooLargeError: not one token fits.
    """
    blocks, shape = model.blocks, model.shape
    size = 2 if str(blocks.dtype) in ("torch.float16", "torch.bfloat16") else blocks.dtype.itemsize
    each = size * (held * shape.d_model + 4 * shape.n_heads * shape.d_head + 2 * shape.d_mlp)
    flops = shape.n_layers * layer_flops(shape, any(b.gated for b in blocks.layers))[0]
    rate = 0.5 * machine.matmul_rate(blocks.device, blocks.dtype, shape.d_model)
    fits = int(limit // (2 * each))
    if fits < 1:
        raise TooLargeError(
            f"One token takes {each:,} bytes and {limit:,} may be used.",
            remedy="Give more memory, or a smaller dtype.",
        )
    return max(1, min(fits, most, int(machine.SECONDS * rate / max(flops, 1.0))))


def kept_limit(context: Context, limit: int) -> int:
    """The tokens of one pass as an earlier try of this run chose them, else as given, and kept.

    Finished pieces are found by their number, so a resumed run must be cut as before.
    """
    found = context.load_chunk("partition")
    if found is None:
        context.save_chunk("partition", {"limit": np.array(limit)})
        context.note("partition", limit)
        return limit
    return int(found["limit"])
