"""Edges: who writes into whose copy of the residual. Checks and index arithmetic, no tensors.

A *writer* is the embedding, a head or an MLP; a *reader* the input of a head's queries, keys or
values, of an MLP, or of the logits. An edge changes the reader's own copy of the residual by the
writer's new write minus its present one; everything else of the run stays
(wang2023interpretability, goldowsky2023localizing). Several edges into one reader add up; heads of
one layer are rebuilt together, so that a post-norm sees their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interp.terms import Edit, ModelShape, Site, UsageError

if TYPE_CHECKING:
    from interp.engine.plans import Row

EDGE = "edge"
WRITERS = ("embed", "z", "mlp_out")
READERS = ("q", "k", "v", "mlp_out", "logits")


class Route(NamedTuple):
    """Which edge a row's part is.

    Args:
        writer: kind of the writer; writer_layer: its layer (-1 for the embedding).
        reader: kind of the reader; reader_head: its head, -1 for an MLP or the logits.
        follows: the reader reads what it reads in the row's partner.
    """

    writer: str
    writer_layer: int
    reader: str
    reader_head: int
    follows: bool = False


def reaches(writer: Site, reader: Site, parallel: bool) -> bool:
    """Whether the writer has written when the reader reads."""
    if reader.kind == "logits" or writer.kind == "embed":
        return True
    assert writer.layer is not None and reader.layer is not None
    if reader.kind == "mlp_out" and writer.kind == "z" and not parallel:
        return writer.layer <= reader.layer
    return writer.layer < reader.layer


def all_edges(shape: ModelShape) -> list[tuple[Site, Site]]:
    """Every (writer, reader) of a model, readers in the order they read."""
    writers = [Site("embed")]
    readers: list[Site] = []
    for layer in range(shape.n_layers):
        for kind, n in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            readers += [Site(kind, layer=layer, head=h) for h in range(n)]
        readers.append(Site("mlp_out", layer=layer))
        writers += [Site("z", layer=layer, head=h) for h in range(shape.n_heads)]
        writers.append(Site("mlp_out", layer=layer))
    readers.append(Site("logits"))
    return [(u, v) for v in readers for u in writers if reaches(u, v, shape.parallel)]


def check_edges(edits: Sequence[Edit], shape: ModelShape) -> None:
    """Refuse edges of one cell that the model does not have.

    Raises:
        UsageError: not a writer or reader, a head that is not there, a reader before its writer,
            the embedding edited both as a node and along an edge.
    """
    embeds = {e.reader is None for e in edits if e.site.kind == "embed"}
    if len(embeds) == 2:
        raise UsageError(
            "One cell edits the embedding as a node and along an edge.",
            remedy="Edit it along its edges alone, or as a node alone.",
        )
    for edit in edits:
        reader, writer = edit.reader, edit.site
        if reader is None:
            continue
        if writer.kind not in WRITERS or (writer.kind == "z" and writer.head is None):
            raise UsageError(
                f"{writer} writes along no edge.",
                remedy="Writers are embed, z with a layer and a head, and mlp_out with a layer.",
            )
        if reader.kind not in READERS or (reader.kind in "qkv" and reader.head is None):
            raise UsageError(
                f"{reader} reads along no edge.",
                remedy="Readers are q, k, v with a layer and a head, mlp_out with a layer (that "
                "MLP's input), and logits.",
            )
        for site in (writer, reader):
            _check_bounds(site, shape)
        if not reaches(writer, reader, shape.parallel):
            raise UsageError(
                f"{reader} reads before {writer} has written: there is no such edge.",
                remedy="Take a reader behind the writer.",
            )


def _check_bounds(site: Site, shape: ModelShape) -> None:
    heads = shape.n_kv_heads if site.kind in ("k", "v") else shape.n_heads
    if site.spec.per_layer and not (site.layer is not None and 0 <= site.layer < shape.n_layers):
        raise UsageError(f"{site} was given; the model has {shape.n_layers} layers, from 0.")
    if site.head is not None and not 0 <= site.head < heads:
        kind = "key/value heads" if site.kind in ("k", "v") else "heads"
        raise UsageError(f"{site} was given; a layer has {heads} {kind}, counted from 0.")


def route_of(edit: Edit, follows: bool) -> Route:
    """The route of an edit with a reader."""
    reader = edit.reader
    assert reader is not None
    return Route(
        edit.site.kind,
        -1 if edit.site.layer is None else edit.site.layer,
        reader.kind,
        -1 if reader.head is None else reader.head,
        follows,
    )


@dataclass(frozen=True, eq=False)
class Reading:
    """Tokens whose copy one kind of reader of a layer reads.

    Args:
        token: index of each copy; row, position: of its token; head: of the reader, or -1.
        partner: row in whose place the reader reads, or -1 where the edges' writes are added.
    """

    token: np.ndarray
    row: np.ndarray
    position: np.ndarray
    head: np.ndarray
    partner: np.ndarray


@dataclass(frozen=True, eq=False)
class Writing:
    """What one kind of writer of a layer changes in copies.

    Args:
        token: copy that each entry goes into; row, position: of its token; head: of the writer.
        value, array, add: as of ``TokenEdits``.
    """

    token: np.ndarray
    row: np.ndarray
    position: np.ndarray
    head: np.ndarray
    value: np.ndarray
    array: np.ndarray
    add: np.ndarray


class EdgeTable:
    """The edges of a chunk, by writer and by reader.

    Args:
        rows: the chunk's rows.
        partner: index of each row's partner in the chunk, -1 without one.
    """

    def __init__(self, rows: list[Row], partner: np.ndarray) -> None:
        parts = [(r, p) for r, row in enumerate(rows) for p in row.parts if p[1] == EDGE]
        self.readings: dict[tuple[int, str], Reading] = {}
        self.writings: dict[tuple[int, str], Writing] = {}
        self.copies = 0
        if parts:
            self._lay(parts, partner)

    def _lay(self, parts: list[tuple[int, tuple[Any, ...]]], partner: np.ndarray) -> None:
        size = np.array([len(p[4]) for _, p in parts])

        def spread(values: Iterable[Any]) -> np.ndarray:
            return np.repeat(np.array(list(values)), size)

        routes: list[Route] = [p[8] for _, p in parts]
        row, layer = spread(r for r, _ in parts), spread(p[0] for _, p in parts)
        position = np.concatenate([p[4] for _, p in parts])
        kind = spread(READERS.index(r.reader) for r in routes)
        head = spread(r.reader_head for r in routes)
        key = np.stack([row, position, layer, kind, head])
        base = key.max(1) + 2
        code = np.ravel_multi_index(tuple(key + 1), tuple(base.tolist()))
        _, first, token = np.unique(code, return_index=True, return_inverse=True)
        self.copies = len(first)
        follows = spread(r.follows for r in routes)
        for n, k in {(int(a), int(b)) for a, b in zip(layer[first], kind[first], strict=True)}:
            which = np.flatnonzero((layer[first] == n) & (kind[first] == k))
            at = first[which]
            who = np.where(follows[at], partner[row[at]], -1)
            self.readings[n, READERS[k]] = Reading(which, row[at], position[at], head[at], who)
        origin = spread(r.writer_layer for r in routes)
        writer = spread(WRITERS.index(r.writer) for r in routes)
        each = [spread(p[i] for _, p in parts) for i in (2, 5, 6, 7)]
        for n, k in {(int(a), int(b)) for a, b in zip(origin, writer, strict=True)}:
            at = np.flatnonzero((origin == n) & (writer == k) & ~follows)
            if len(at):
                fields = (token[at], row[at], position[at], *(e[at] for e in each))
                self.writings[n, WRITERS[k]] = Writing(*fields)
