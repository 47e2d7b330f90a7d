"""The errors a person may see. Each says what was given, what was wanted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InterpError(Exception):
    """A mistake a person can mend, told in one sentence (given, wanted, remedy).

    Args:
        message: the sentence shown to the person.
        remedy: what to do instead, shown after the sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message} {remedy}".strip())


class UsageError(InterpError, ValueError):
    """A name, knob or value that does not exist or does not fit."""

    exit_code = 2


class RefusedError(InterpError):
    """Something the model, the memory or the safety rules do not allow."""

    exit_code = 4


class CapabilityError(RefusedError):
    """The model lacks a site or feature that the request needs."""


class UnsafeError(RefusedError):
    """Opening this would run its code, or read what it should not."""


class TooLargeError(RefusedError):
    """The estimate does not fit in the memory or limit given."""


class TaskError(InterpError, ValueError):
    """Prompts or inputs that cannot be used; ``rows`` names each bad row with its reason.

    Args:
        message: the sentence shown to the person.
        rows: pairs (row number counted from 1, reason).
        remedy: what to do instead.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, rows: Iterable[tuple[int, str]] = (), remedy: str = ""
    ) -> None:
        self.rows = tuple(rows)
        super().__init__(message, remedy=remedy)


class CancelledError(InterpError):
    """The person cancelled the run; finished chunks are kept.

    ``partial`` is the result as far as it came, where the method offered one.
    """

    exit_code = 130
    partial: Any = None


class DiskFullError(InterpError):
    """A write that did not fit on the disk; nothing that was there before is touched.

    Args:
        needed: bytes that were to be written.
        free: bytes that were free.
    """

    def __init__(self, *, needed: int, free: int) -> None:
        self.needed, self.free = needed, free
        self.result: Any = None
        super().__init__(
            f"The disk is full: {needed:,} bytes are needed and {free:,} are free.",
            remedy="Free some space, or choose another folder (INTERP_HOME); earlier runs are "
            "whole.",
        )


class DamagedError(InterpError):
    """A stored run whose files do not match its manifest."""


def near_misses(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names closest to ``name``, best first."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=limit, cutoff=0.4)
    return found or [k for k in known if name and (name in k or k in name)][:limit]


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a registry, with its near misses."""
    known = list(known)
    close = near_misses(name, known)
    remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else ""
    if not close:
        remedy = f"Known: {', '.join(known[:40])}." if known else "None is known here."
    return UsageError(f"There is no {what} {name!r}.", remedy=remedy)
