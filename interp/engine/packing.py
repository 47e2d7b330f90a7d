"""Packing: where each token of a chunk lies in the growing batch. Index arithmetic, no model.

The batch is one matrix of tokens ``[N, d_model]``: first the base runs (every position), then the
source runs (from the first difference on), then the rows, grouped by the position they start at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from interp.engine.buckets import Bucket
from interp.engine.edges import EDGE, EdgeTable
from interp.engine.plans import MID, POST, PRE, Row, TokenEdits

WHICH = ("head", "unit", "all")
"""What an edit selects: one head (and perhaps a key), one unit of all heads, or the whole value."""


@dataclass(eq=False)
class Group:
    """Rows that start at one position and lie side by side.

    Args:
        start: first position they carry.
        rows: index in the chunk of each row (of each prompt, for source runs).
        prompts: prompt of each row, whose base run stands before the start.
        offset: packed index of the group's first token.
        width: tokens a row.
    """

    start: int
    rows: np.ndarray
    prompts: np.ndarray
    offset: int
    width: int


@dataclass(eq=False)
class Entry:
    """Tokens that rows bring along when they become live, at one boundary.

    Args:
        row: row of each token; position: its position.
        n_mid: the first so many pass through the MLP of the layer below.
    """

    row: np.ndarray
    position: np.ndarray
    n_mid: int


@dataclass(eq=False)
class Admission:
    """Rows that become live at one boundary, sorted by start.

    Args:
        groups: start -> rows, ascending.
        gather: packed index (base run) of each token they carry.
        offset: offset of each row (by chunk index) among these tokens.
    """

    groups: dict[int, np.ndarray]
    gather: np.ndarray
    offset: dict[int, int]


@dataclass(eq=False)
class Chunk:
    """Rows of one bucket that run together, with every index they need.

    Args:
        bucket: the prompts of the chunk (those its rows need), sorted by first difference.
        rows: the rows; ``prompt`` counts in ``bucket``. Rows that are only partners of others
            stand last.
        n_layers: layers of the model.
        n_own: rows that are asked for (default all).
    """

    bucket: Bucket
    rows: list[Row]
    n_layers: int
    n_own: int = -1
    prompt: np.ndarray = field(init=False)
    start: np.ndarray = field(init=False)
    live: np.ndarray = field(init=False)
    source_offset: np.ndarray = field(init=False)
    n_static: int = field(init=False)

    def __post_init__(self) -> None:
        b = self.bucket
        self.prompt = np.array([r.prompt for r in self.rows], dtype=np.int64)
        self.start = np.array([r.start for r in self.rows], dtype=np.int64)
        self.live = np.array([r.live for r in self.rows], dtype=np.int64)
        own = np.maximum(b.source.shape[1] - b.first, 0)
        base = len(b) * b.length
        self.source_offset = base + np.concatenate([[0], np.cumsum(own)[:-1]])
        self.n_static = int(base + own.sum())
        self._edits: dict[tuple[int, str, str, str], TokenEdits] = {}
        for r, row in enumerate(self.rows):
            for part in row.parts:
                layer, kind, head, unit = part[:4]
                if kind == EDGE:
                    continue
                which = "head" if head >= 0 else "unit" if unit >= 0 else "all"
                key = (layer, kind, _when(row, layer, kind), which)
                self._edits.setdefault(key, TokenEdits()).extend(r, part)

        self.n_own = len(self.rows) if self.n_own < 0 else self.n_own
        number = {id(row): r for r, row in enumerate(self.rows)}
        partner = [-1 if r.partner is None else number[id(r.partner)] for r in self.rows]
        self.edge_table = EdgeTable(self.rows, np.array(partner, dtype=np.int64))

    def edits(self, layer: int, kind: str, when: str, which: str) -> TokenEdits | None:
        """Edits of a layer and kind; ``when`` is ``entry``, ``admit`` or ``live``."""
        return self._edits.get((layer, kind, when, which))

    def static_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Token id and position of each static packed token."""
        b = self.bucket
        ids = [b.base.ravel()] + [b.source[i, f:] for i, f in enumerate(b.first)]
        places = [np.tile(np.arange(b.length), len(b))]
        places += [np.arange(f, b.source.shape[1]) for f in b.first]
        return np.concatenate(ids), np.concatenate(places)

    def base_index(self, prompt: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Packed index of the base run's token."""
        return prompt * self.bucket.length + position

    def source_index(self, prompt: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Packed index of the source run's counterpart of a base position."""
        return self.source_at(prompt, self.bucket.match[prompt, position])

    def source_at(self, prompt: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Packed index of the source run's token; in the shared prefix the base's."""
        first = self.bucket.first[prompt]
        own = self.source_offset[prompt] + place - first
        shared = self.base_index(prompt, np.minimum(place, self.bucket.length - 1))
        return np.where(place >= first, own, shared)

    def source_groups(self) -> list[Group]:
        """The source runs as groups (``rows`` are prompts here)."""
        out = []
        b = self.bucket
        for first in np.unique(b.first):
            prompts = np.flatnonzero(b.first == first)
            width = b.source.shape[1] - int(first)
            if width > 0:
                offset = int(self.source_offset[prompts[0]])
                out.append(Group(int(first), prompts, prompts, offset, width))
        return out

    def admission(self, boundary: int) -> Admission | None:
        """Rows that become live at a boundary below the final norm."""
        rows = np.flatnonzero(self.live == boundary)
        if not len(rows):
            return None
        rows = rows[np.argsort(self.start[rows], kind="stable")]
        starts = self.start[rows]
        groups = {int(s): rows[starts == s] for s in np.unique(starts)}
        width = self.bucket.length - starts
        offset = np.concatenate([[0], np.cumsum(width)])
        origin = self.base_index(self.prompt[rows], starts)
        gather = np.repeat(origin - offset[:-1], width) + np.arange(offset[-1])
        return Admission(groups, gather, dict(zip(rows.tolist(), offset.tolist(), strict=False)))

    def entry(self, layer: int) -> Entry | None:
        """Tokens edited behind attention or the MLP of ``layer`` by rows that enter there."""
        mid = self._tokens(layer, MID)
        post = [t for t in self._tokens(layer, POST) if t not in mid]
        tokens = [*mid, *post]
        if not tokens:
            return None
        row, position = np.array(tokens, dtype=np.int64).T
        return Entry(row, position, len(mid))

    def _tokens(self, layer: int, kinds: Sequence[str]) -> dict[tuple[int, int], None]:
        found: dict[tuple[int, int], None] = {}
        for kind in kinds:
            for which in WHICH:
                edits = self.edits(layer, kind, "entry", which)
                if edits is not None:
                    found.update(dict.fromkeys(zip(edits.row, edits.position, strict=True)))
        return found


def _when(row: Row, layer: int, kind: str) -> str:
    if layer == row.live - 1:
        return "entry"
    return "admit" if layer == row.live and kind in PRE else "live"


def chunk_of(rows: Sequence[Row], bucket: Bucket, n_layers: int) -> Chunk:
    """A chunk of these rows with only the prompts they need, sorted by first difference."""
    partners = list({id(r.partner): r.partner for r in rows if r.partner is not None}.values())
    needed = np.unique([r.prompt for r in rows])
    needed = needed[np.argsort(bucket.first[needed], kind="stable")]
    place = {int(p): i for i, p in enumerate(needed)}
    small = Bucket(
        *(
            getattr(bucket, f)[needed]
            for f in ("rows", "base", "source", "first", "match", "at", "at_source")
        )
    )
    new = {id(r): replace(r, prompt=place[r.prompt]) for r in partners}
    moved = [
        replace(
            r,
            prompt=place[r.prompt],
            partner=None if r.partner is None else new[id(r.partner)],
        )
        for r in rows
    ]
    return Chunk(small, [*moved, *new.values()], n_layers, n_own=len(rows))


@dataclass(eq=False)
class Places:
    """Packed index of a token, among all of a layer's tokens or among its metric tokens alone.

    Args:
        base: ``[prompt, position]``; source: ``[prompt, base position]``; -1 where not carried.
        offset: packed index minus position of each live row, ``[row]`` (all tokens carried).
        metric: index of each row's metric tokens ``[row, at]``, -1 where not carried; None where
            all tokens are carried.
        at: metric positions of each row, ``[row, at]``.
    """

    base: np.ndarray
    source: np.ndarray
    offset: np.ndarray
    metric: np.ndarray | None = None
    at: np.ndarray | None = None

    def row(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Packed index of tokens of live rows."""
        if self.metric is None or self.at is None:
            return self.offset[row] + position
        which = (self.at[row] == position[:, None]).argmax(1)
        return self.metric[row, which]


def all_places(chunk: Chunk, groups: Sequence[Group]) -> Places:
    """Indices when every token is carried."""
    b = chunk.bucket
    prompt, position = np.meshgrid(np.arange(len(b)), np.arange(b.length), indexing="ij")
    offset = np.full(len(chunk.rows), -(10**15), dtype=np.int64)
    for g in groups:
        offset[g.rows] = g.offset + np.arange(len(g.rows)) * g.width - g.start
    return Places(chunk.base_index(prompt, position), chunk.source_index(prompt, position), offset)


@dataclass(eq=False)
class Query:
    """Queries of one attention call in the last layer, where only metric tokens go on.

    Args:
        group: whose keys they look at (None: the base runs).
        members: which of the group's rows.
        position: position of each query, ``[query]``.
        offset: index of the first query among the metric tokens.
    """

    group: Group | None
    members: np.ndarray
    position: np.ndarray
    offset: int


class _MetricTokens:
    """Collects the tokens that go on in the last layer, an attention call at a time."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.places: list[np.ndarray] = []
        self.queries: list[Query] = []
        self.count = 0

    def add(
        self, group: Group | None, members: np.ndarray, position: np.ndarray, index: np.ndarray
    ) -> np.ndarray:
        """Append ``index [member, position]``; returns their index among the metric tokens."""
        self.tokens.append(index.ravel())
        self.places.append(np.tile(position, len(members)))
        self.queries.append(Query(group, members, position, self.count))
        new = self.count + np.arange(index.size).reshape(index.shape)
        self.count += index.size
        return new


def metric_queries(
    chunk: Chunk, groups: Sequence[Group], everything: Places
) -> tuple[np.ndarray, np.ndarray, list[Query], Places, np.ndarray]:
    """The tokens that go on in the last layer.

    Returns:
        packed index and position of each metric token, the attention calls they need, their
        places, and for the source runs their index ``[prompt, at]``.
    """
    b = chunk.bucket
    kept = _MetricTokens()
    base = np.full_like(everything.base, -1)
    own = np.full((len(b), b.source.shape[1]), -1, dtype=np.int64)
    metric = np.full((len(chunk.rows), b.at.shape[1]), -1, dtype=np.int64)
    lent = [
        np.unique(np.concatenate([s, b.match[i, a][b.match[i, a] >= 0]]))
        for i, (s, a) in enumerate(zip(b.at_source, b.at, strict=True))
    ]
    wanted = [
        np.unique(np.concatenate([a, w[w < f]]))
        for a, w, f in zip(b.at, lent, b.first, strict=True)
    ]
    for position, who in _alike(wanted):
        index = chunk.base_index(who[:, None], position)
        base[who[:, None], position] = kept.add(None, who, position, index)
    for group in chunk.source_groups():
        for position, k in _alike([lent[i][lent[i] >= group.start] for i in group.rows]):
            who = group.rows[k]
            index = chunk.source_at(who[:, None], position)
            own[who[:, None], position] = kept.add(group, k, position, index)
    at = b.at[chunk.prompt] if len(chunk.rows) else metric
    for group in groups:
        for position, k in _alike([a[a >= group.start] for a in at[group.rows]]):
            who = group.rows[k]
            index = everything.row(who[:, None], position)
            columns = np.searchsorted(at[who[0]], position)
            metric[who[:, None], columns] = kept.add(group, k, position, index)

    def borrowed(place: np.ndarray) -> np.ndarray:
        prompt = np.arange(len(b))[:, None]
        shared = base[prompt, np.clip(place, 0, b.length - 1)]
        return np.where(place >= b.first[:, None], own[prompt, np.maximum(place, 0)], shared)

    source = np.where(b.match >= 0, borrowed(b.match), -1)
    here = Places(base, source, everything.offset, metric, at)
    tokens, places = np.concatenate(kept.tokens), np.concatenate(kept.places)
    return tokens, places, kept.queries, here, borrowed(b.at_source)


def _alike(positions: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Members (by index) with the same positions together; those with none are left out."""
    found: dict[tuple[int, ...], list[int]] = {}
    for member, position in enumerate(positions):
        if len(position):
            found.setdefault(tuple(position.tolist()), []).append(member)
    return [(np.array(p), np.array(m)) for p, m in found.items()]
