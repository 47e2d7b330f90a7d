"""Plans: which rows a sweep needs, where each enters, and what it costs. Pure; no tensors.

A *cell* is what one number of the result stands for: edits made together in the base run. A *row*
is a cell in one prompt. A row carries only the tokens from its first edited position on, and joins
the growing batch at the layer where its first edit stands (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interp.engine.buckets import Bucket
from interp.engine.edges import EDGE, route_of
from interp.terms import Edit, PromptPairs, Site, UsageError

PRE = ("embed", "resid_pre")
INNER = ("q", "k", "v", "pattern")
MID = ("z", "attn_out", "resid_mid")
POST = ("mlp_post", "mlp_out", "resid_post")
DRIVEN = (*PRE, *INNER, *MID, *POST)
"""Kinds the packed engine edits; a model's own ``run`` edits the others."""

ORDER = {kind: i for i, kind in enumerate(DRIVEN)}
SOURCE, ZERO, BASE, ARRAY = 0, 1, 2, 3


@dataclass(frozen=True)
class Cell:
    """Edits made together; one number a prompt.

    Args:
        edits: their values are ``"source"``, ``"zero"``, ``"base"`` is not a word: an array
            broadcasts to ``[prompt of the task, position, *site dims]``. An edit with a reader
            changes that reader's own copy of the residual alone.
        frozen: readers read what they read in a run with the writers edited as nodes and the
            attention behind them held at the base run's (MLPs computed anew).
    """

    edits: tuple[Edit, ...]
    frozen: bool = False


@dataclass(frozen=True, eq=False)
class Row:
    """A cell in one prompt of a bucket.

    Args:
        cell: index of the cell; -1 for a row that is only there to show the noise.
        prompt: index in the bucket.
        start: first position it carries.
        live: boundary from which it carries tokens of its own (n_layers: only the final norm).
        parts: its edits as ``(layer, kind, head, unit, positions, value, array, add)``; ``unit`` is
            a neuron, or the key of a pattern entry. An edge has the layer of its reader, kind
            ``"edge"``, the writer's head, and its ``Route`` as a last entry.
        partner: a row of the same prompt whose readers' inputs this one's readers take.
    """

    cell: int
    prompt: int
    start: int
    live: int
    parts: tuple[tuple[Any, ...], ...]
    partner: Row | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows of one bucket.

    Args:
        bucket: the prompts.
        rows: what has to be computed.
        inert: ``[cell, prompt]``, cells that cannot change the metric: their effect is exactly 0.
        undefined: ``[cell, prompt]``, cells whose positions have no counterpart in the source run.
        telling: ``[cell, prompt]``, cells that edit a position where the runs' tokens differ, so
            that their value must change.
    """

    bucket: Bucket
    rows: list[Row]
    inert: np.ndarray
    undefined: np.ndarray
    telling: np.ndarray


@dataclass
class TokenEdits:
    """Edits of one layer and kind, flattened to tokens, for rows of a chunk.

    Args:
        row: row in the chunk; position: in the prompt; head: -1 for all.
        unit: neuron, or key of a pattern entry; -1 for all.
        value: ``SOURCE``, ``ZERO``, ``BASE`` or ``ARRAY``; array: index in the chunk's arrays.
        add: whether the value is added.
    """

    row: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    unit: list[int] = field(default_factory=list)
    value: list[int] = field(default_factory=list)
    array: list[int] = field(default_factory=list)
    add: list[bool] = field(default_factory=list)

    def extend(self, row: int, part: tuple[Any, ...]) -> None:
        """Append one row's part, a token at a time."""
        _, _, head, unit, positions, value, array, add = part[:8]
        n = len(positions)
        self.row += [row] * n
        self.position += [int(p) for p in positions]
        self.head += [head] * n
        self.unit += [unit] * n
        self.value += [value] * n
        self.array += [array] * n
        self.add += [add] * n


def positions_of(site: Site, bucket: Bucket, prompt: int, pairs: PromptPairs) -> np.ndarray:
    """Base positions that a site selects in one prompt."""
    where = site.position
    if where is None:
        return np.arange(bucket.length)
    if isinstance(where, str):
        if where not in pairs.slots:
            raise UsageError(
                f"{where!r} is no slot of this task.",
                remedy=f"Slots: {', '.join(sorted(pairs.slots)) or 'none'}.",
            )
        where = pairs.slots[where][bucket.rows[prompt]]
    places = np.atleast_1d(np.asarray(where, dtype=np.int64))
    places = np.where(places < 0, places + bucket.length, places)
    if (places < 0).any() or (places >= bucket.length).any():
        raise UsageError(f"Position {where} is outside a prompt of {bucket.length} tokens.")
    return np.unique(places)


def _value(edit: Edit, arrays: list[Any]) -> tuple[int, int]:
    """What kind of value an edit has, and its index among the arrays."""
    if isinstance(edit.with_, str):
        if edit.with_ not in ("source", "zero"):
            raise UsageError(f"The engine was given {edit.with_!r}; it takes values, not words.")
        return (SOURCE if edit.with_ == "source" else ZERO), -1
    index = next((i for i, a in enumerate(arrays) if a is edit.with_), -1)
    if index < 0:
        arrays.append(edit.with_)
        index = len(arrays) - 1
    return ARRAY, index


def _part(
    edit: Edit, bucket: Bucket, prompt: int, pairs: PromptPairs, arrays: list[Any]
) -> tuple[Any, ...]:
    site = edit.site
    places = positions_of(site, bucket, prompt, pairs)
    layer = 0 if site.kind == "embed" else site.layer
    if layer is None:
        raise UsageError(f"An edit of {site.kind!r} needs a layer.")
    value, index = _value(edit, arrays)
    head = -1 if site.head is None else site.head
    unit = site.key if site.kind == "pattern" else site.neuron
    unit = -1 if unit is None else unit
    return (layer, site.kind, head, unit, places, value, index, edit.mode == "add")


def _edge_part(
    edit: Edit,
    bucket: Bucket,
    prompt: int,
    pairs: PromptPairs,
    arrays: list[Any],
    n_layers: int,
    frozen: bool,
) -> tuple[Any, ...]:
    """A part whose layer is its reader's (n_layers for the logits), with its route."""
    assert edit.reader is not None
    part = _part(edit, bucket, prompt, pairs, arrays)
    places = part[4]
    if edit.reader.position is not None:
        places = np.intersect1d(places, positions_of(edit.reader, bucket, prompt, pairs))
    layer = n_layers if edit.reader.kind == "logits" else edit.reader.layer
    return (layer, EDGE, *part[2:4], places, *part[5:], route_of(edit, frozen))


def _reaching(part: tuple[Any, ...], bucket: Bucket, prompt: int, n_layers: int) -> np.ndarray:
    """Positions of a part from which the metric can be reached at all."""
    layer, kind, places = part[0], part[1], part[4]
    at = bucket.at[prompt]
    kind = part[8].reader if kind == EDGE else kind
    if layer >= n_layers - 1 and kind not in PRE and kind not in ("k", "v"):
        return places[np.isin(places, at)]
    return places[places <= at.max()]


def _live(parts: Sequence[tuple[Any, ...]]) -> int:
    layer = min(p[0] for p in parts)
    if any(p[1] == EDGE for p in parts):
        return layer
    late = all(p[1] in MID or p[1] in POST for p in parts if p[0] == layer)
    return layer + 1 if late else layer


def make_plan(
    cells: Sequence[Cell],
    bucket: Bucket,
    pairs: PromptPairs,
    n_layers: int,
    arrays: list[Any],
    *,
    nulls: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> Plan:
    """Turn cells into rows.

    Args:
        cells: what to measure.
        bucket: the prompts to measure it in.
        pairs: the task, for its slots.
        n_layers: layers of the model.
        arrays: values given as arrays are collected here.
        nulls: self-patched rows a prompt, whose spread is the noise floor.
        tick: called before each prompt; it may raise to cancel.
    """
    shape = (len(cells), len(bucket))
    inert, undefined, telling = (np.zeros(shape, bool) for _ in range(3))
    rows: list[Row] = []
    held = _Partners(bucket, pairs, n_layers, arrays)
    for i in range(len(bucket)):
        tick()
        for k in range(nulls):
            layer = ((2 * k + 1) * n_layers) // (2 * nulls)
            where = np.arange(min(bucket.first[i], bucket.at[i].max()), bucket.length)
            part = (layer, "resid_pre", -1, -1, where, BASE, -1, False)
            rows.append(Row(-1, i, int(where[0]), layer, (part,)))
        for c, cell in enumerate(cells):
            parts = [
                _part(e, bucket, i, pairs, arrays)
                if e.reader is None
                else _edge_part(e, bucket, i, pairs, arrays, n_layers, cell.frozen)
                for e in cell.edits
            ]
            parts, lost = _useful(parts, bucket, i, n_layers)
            if lost:
                undefined[c, i] = True
            elif not parts:
                inert[c, i] = True
            else:
                start = int(min(p[4].min() for p in parts))
                partner = held.row(cell, i) if cell.frozen else None
                rows.append(Row(c, i, start, _live(parts), tuple(parts), partner))
                telling[c, i] = all(_differs(p, bucket, i) for p in parts)
    return Plan(bucket, rows, inert, undefined, telling)


class _Partners:
    """Rows whose readers' inputs frozen cells take, each made once."""

    def __init__(
        self, bucket: Bucket, pairs: PromptPairs, n_layers: int, arrays: list[Any]
    ) -> None:
        self.bucket, self.pairs, self.n_layers = bucket, pairs, n_layers
        self.arrays = arrays
        self.known: dict[tuple[Any, ...], Row] = {}

    def row(self, cell: Cell, prompt: int) -> Row:
        """The writers edited as nodes, the attention behind them held at the base run's."""
        parts = [_part(e, self.bucket, prompt, self.pairs, self.arrays) for e in cell.edits]
        parts, _ = _useful(parts, self.bucket, prompt, self.n_layers)
        key = (prompt, *((*p[:4], tuple(p[4].tolist()), *p[5:]) for p in parts))
        if key not in self.known:
            start = int(min(p[4].min() for p in parts))
            first = min(-1 if p[1] == "embed" else p[0] for p in parts)
            where = np.arange(start, self.bucket.length)
            hold = [
                (layer, "z", -1, -1, where, BASE, -1, False)
                for layer in range(first + 1, self.n_layers)
            ]
            hold, _ = _useful(hold, self.bucket, prompt, self.n_layers)
            live = max(first, 0)
            self.known[key] = Row(-1, prompt, start, live, (*parts, *hold))
        return self.known[key]


def _differs(part: tuple[Any, ...], bucket: Bucket, prompt: int) -> bool:
    places = part[4][bucket.match[prompt, part[4]] >= 0]
    lent = bucket.source[prompt, bucket.match[prompt, places]]
    return part[5] == SOURCE and bool((bucket.base[prompt, places] != lent).any())


def _useful(
    parts: list[tuple[Any, ...]], bucket: Bucket, prompt: int, n_layers: int
) -> tuple[list[tuple[Any, ...]], bool]:
    """Parts that can change anything, and whether a position has no counterpart."""
    match = bucket.match[prompt]
    chosen_alone = all(p[5] == SOURCE for p in parts)
    out = []
    for part in parts:
        places = _reaching(part, bucket, prompt, n_layers)
        if part[5] == SOURCE:
            known = places[match[places] >= 0]
            if len(known) < len(places) and len(part[4]) < bucket.length:
                return [], True
            places = known
            if chosen_alone:
                places = places[places >= bucket.first[prompt]]
        if len(places):
            out.append((*part[:4], places, *part[5:]))
    return out, False
