"""Side by side: results that differ in one thing only, their numbers compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.figures import drawn_names, figure_json, figures_of, number
from interp.store import compare
from interp.terms import UsageError

if TYPE_CHECKING:
    from interp.report.page import Section

ONE = {"models": "model", "tasks": "task", "methods": "method"}
MOST_GROUP = 8


def comparisons(
    sections: Sequence[Section], along: Sequence[str], blocks: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """For each of ``models``, ``tasks``, ``methods``: groups that differ in that alone.

    Every member is set against the group's first: largest difference, correlation, and where the
    axes have equal sizes a map of the difference. Figures go to ``blocks`` as JSON.
    """
    out = []
    for word in along:
        for name, members in _groups(sections, ONE[word]).items():
            if len(members) > 1:
                out.append(_group(word, name, members[:MOST_GROUP], blocks))
    return out


def _groups(sections: Sequence[Section], varied: str) -> dict[str, list[Section]]:
    """Results that differ in one thing: same axes of the first array, and the rest alike."""
    groups: dict[tuple[str, ...], list[Section]] = {}
    for s in sections:
        if s.result is None or not drawn_names(s.result.data):
            continue
        name = drawn_names(s.result.data)[0]
        dims = ", ".join(map(str, s.result.data[name].dims))
        kept = [getattr(s, k) for k in ("method", "model", "task") if k != varied]
        groups.setdefault((*kept, f"{name}[{dims}]"), []).append(s)
    return {" · ".join(filter(None, k)): v for k, v in groups.items()}


def _group(
    word: str, name: str, members: list[Section], blocks: list[tuple[str, str]]
) -> dict[str, Any]:
    first = members[0]
    rows, figures = [], []
    for other in members[1:]:
        assert first.result is not None and other.result is not None, "groups hold results"
        found = compare(first.result.record, other.result.record)
        drawn = drawn_names(other.result.data)
        rows += [_row(getattr(other, ONE[word]), a) for a in found.arrays if a.name in drawn]
        figures += _difference(found, first, other, word, blocks)
    return {
        "along": word,
        "name": name,
        "first": getattr(first, ONE[word]),
        "rows": rows,
        "figures": figures,
    }


def _row(label: str, line: Any) -> dict[str, Any]:
    """One array of one pair."""
    units = "" if line.units in ("", "1") else f" {line.units}"
    return {
        "pair": label,
        "array": line.name,
        "cells": line.cells,
        "max": "–" if line.max_abs is None else number(line.max_abs) + units,
        "correlation": "–" if line.correlation is None else number(line.correlation),
        "reason": line.reason,
    }


def _difference(
    found: Any, first: Section, other: Section, word: str, blocks: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    names = [str(n) for n in found.difference.data_vars][:1]
    if not names or found.arrays[0].reason:
        return []
    assert other.result is not None, "groups hold results"
    title = f"{getattr(other, ONE[word])} minus {getattr(first, ONE[word])}"
    try:
        figure = figures_of(
            found.difference[names], tokens=other.result.tokens, title=title, only=names[0]
        )[names[0]]
    except UsageError:
        return []
    layout: Any = figure.layout
    key = f"figure-{len(blocks)}"
    blocks.append((key, f"[{figure_json(figure)}]"))
    return [{"key": key, "alt": layout.meta["alt"], "height": int(layout.height or 400)}]
