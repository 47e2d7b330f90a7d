"""Span maps: which tokens of two prompts of unequal lengths correspond; typed, read, proposed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import interp

Span = tuple[tuple[int, int], tuple[int, int]]
"""((clean start, stop), (corrupt start, stop)); stops are not part of it."""

PART = re.compile(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*=\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?")


def read_spans(text: str) -> list[Span]:
    """``0-3 = 0-3, 5 = 4``: positions of clean and of corrupt, ends included.

    Raises:
        InterpError: something else.
    """
    out: list[Span] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        found = PART.fullmatch(part)
        ends = [int(n) if n else None for n in found.groups()] if found else []
        spans = [(a, a if b is None else b) for a, b in zip(ends[::2], ends[1::2], strict=True)]
        if not spans or any(a is None or b is None or b < a for a, b in spans):
            raise interp.InterpError(
                f"The span map has the part {part[:40]!r}; wanted positions of clean = positions "
                "of corrupt.",
                remedy="Write ranges with both ends, apart by commas, as in 0-3 = 0-3, 5-8 = 4-7.",
            )
        (a, b), (c, d) = spans
        assert a is not None and b is not None and c is not None and d is not None
        out.append(((a, b + 1), (c, d + 1)))
    return out


def written(spans: Sequence[Span]) -> str:
    """A span map as ``read_spans`` takes it."""

    def ends(start: int, stop: int) -> str:
        return str(start) if stop == start + 1 else f"{start}-{stop - 1}"

    return ", ".join(f"{ends(*clean)} = {ends(*corrupt)}" for clean, corrupt in spans)


def proposed(clean: Sequence[Any], corrupt: Sequence[Any]) -> list[Span]:
    """The stretch in which two prompts differ; what stands before and after corresponds anyway.

    A stretch that is empty on one side takes in a token that both share, so that it has an end.

    Args:
        clean: its tokens.
        corrupt: likewise.
    """
    short = min(len(clean), len(corrupt))
    same = [a == b for a, b in zip(clean, corrupt, strict=False)]
    head = next((i for i, s in enumerate(same) if not s), short)
    tail = 0
    while tail < short - head and clean[-1 - tail] == corrupt[-1 - tail]:
        tail += 1
    if head + tail == short:
        head, tail = (head, tail - 1) if tail else (head - 1, tail)
    if head < 0:
        return []
    return [((head, len(clean) - tail), (head, len(corrupt) - tail))]
