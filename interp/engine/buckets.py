"""Buckets: prompts of one length as rectangular arrays, and how the two runs' positions match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interp.terms import PromptPairs, UsageError

Direction = str


@dataclass(frozen=True, eq=False)
class Bucket:
    """Prompts with equally long base and source runs.

    Args:
        rows: row number in the task of each prompt, ``[prompt]``.
        base: token ids of the run that is executed, ``[prompt, position]``.
        source: token ids of the run that lends, ``[prompt, source position]``.
        first: first position where they differ, ``[prompt]``.
        match: source position of each base position or -1, ``[prompt, position]``.
        at: metric positions of the base run, ascending, ``[prompt, at]``.
        at_source: metric positions of the source run, ``[prompt, at]``.
    """

    rows: np.ndarray
    base: np.ndarray
    source: np.ndarray
    first: np.ndarray
    match: np.ndarray
    at: np.ndarray
    at_source: np.ndarray

    @property
    def length(self) -> int:
        """Positions of the base run."""
        return self.base.shape[1]

    def __len__(self) -> int:
        return len(self.rows)


def _match(base: tuple[int, ...], source: tuple[int, ...], spans: object, flip: bool) -> list[int]:
    """Source position of each base position; a span map moves what stands behind each span.

    Spans of equal length match token by token; of unequal length only their last tokens match.
    """
    if not spans:
        if len(base) != len(source):
            raise UsageError("Prompts of unequal length need a span map.")
        return list(range(len(base)))
    out = [-1] * len(base)
    b = s = 0
    for pair in spans:  # type: ignore[attr-defined]
        (b0, b1), (s0, s1) = (pair[1], pair[0]) if flip else pair
        for k in range(min(b0 - b, s0 - s)):
            out[b + k] = s + k
        if b1 - b0 == s1 - s0:
            for k in range(b1 - b0):
                out[b0 + k] = s0 + k
        elif b1 > b0 and s1 > s0:
            out[b1 - 1] = s1 - 1
        b, s = b1, s1
    for k in range(min(len(base) - b, len(source) - s)):
        out[b + k] = s + k
    return out


def _metric_positions(pairs: PromptPairs, i: int, side: str, at: int | str) -> list[int]:
    prompt = pairs.clean[i] if side == "clean" else pairs.corrupt[i]
    if pairs.answer_form == "span":
        return list(range(len(prompt) - 1, len(prompt) - 1 + len(pairs.right[i])))
    if at == "last":
        return [len(prompt) - 1]
    if isinstance(at, str):
        if at not in pairs.slots:
            raise UsageError(
                f"Metric position {at!r} is no slot of this task.",
                remedy=f"Use 'last', an index, or one of {sorted(pairs.slots)}.",
            )
        where = pairs.slots[at][i]
        at = max(where) if isinstance(where, (tuple, list)) else int(where)
    place = at + len(prompt) if at < 0 else at
    if not 0 <= place < len(prompt):
        raise UsageError(f"Metric position {at} is outside a prompt of {len(prompt)} tokens.")
    return [place]


def clean_buckets(pairs: PromptPairs, at: int | str = "last") -> list[Bucket]:
    """The clean prompts as base and as source runs, in buckets of equal lengths."""
    found: dict[tuple[int, int], list[int]] = {}
    tokens: list[tuple[int, ...]] = []
    for i in range(len(pairs)):
        tail = pairs.right[i][:-1] if pairs.answer_form == "span" else ()
        tokens.append((*pairs.clean[i], *tail))
        answer = len(pairs.right[i]) if pairs.answer_form == "span" else 1
        found.setdefault((len(tokens[i]), answer), []).append(i)
    out = []
    for (length, _), rows in sorted(found.items()):
        ids = np.array([tokens[i] for i in rows])
        places = np.array([_metric_positions(pairs, i, "clean", at) for i in rows])
        match = np.tile(np.arange(length), (len(rows), 1))
        first = np.full(len(rows), length)
        out.append(Bucket(np.array(rows), ids, ids, first, match, places, places))
    return out


def buckets_of(pairs: PromptPairs, direction: Direction, at: int | str = "last") -> list[Bucket]:
    """The task's prompts in buckets of equal lengths, nothing padded.

    Args:
        pairs: the task.
        direction: ``"denoising"`` (base is corrupt, source is clean) or ``"noising"``.
        at: where the metric is read: ``"last"``, an index, or a slot's name. Spans are read where
            their tokens are predicted; the span itself is appended to both prompts.
    """
    base_side, source_side = (
        ("corrupt", "clean") if direction == "denoising" else ("clean", "corrupt")
    )
    found: dict[tuple[int, ...], list[int]] = {}
    tokens: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for i in range(len(pairs)):
        tail = pairs.right[i][:-1] if pairs.answer_form == "span" else ()
        base = (*getattr(pairs, base_side)[i], *tail)
        source = (*getattr(pairs, source_side)[i], *tail)
        tokens.append((base, source))
        answer = len(pairs.right[i]) if pairs.answer_form == "span" else 1
        found.setdefault((len(base), len(source), answer), []).append(i)
    out = []
    for _, rows in sorted(found.items()):
        match = [
            _match(
                *tokens[i],
                pairs.span_map[i] if pairs.span_map else None,
                flip=base_side == "corrupt",
            )
            for i in rows
        ]
        first = [
            next(
                (p for p, (a, b) in enumerate(zip(*tokens[i], strict=False)) if a != b),
                min(map(len, tokens[i])),
            )
            for i in rows
        ]
        out.append(
            Bucket(
                np.array(rows),
                np.array([tokens[i][0] for i in rows]),
                np.array([tokens[i][1] for i in rows]),
                np.array(first),
                np.array(match),
                np.array([_metric_positions(pairs, i, base_side, at) for i in rows]),
                np.array([_metric_positions(pairs, i, source_side, at) for i in rows]),
            )
        )
    return out
