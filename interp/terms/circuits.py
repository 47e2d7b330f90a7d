"""Circuit: some edges of a model, from writers to readers, and the nodes they lead through."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from interp.terms.errors import UsageError
from interp.terms.models import ModelShape
from interp.terms.sites import Site

Edge = tuple[Site, Site]


@dataclass(frozen=True)
class Circuit:
    """Chosen edges of a model of one shape.

    Args:
        shape: of the model.
        edges: (writer, reader) pairs: writers are ``embed``, heads (``z``) and MLPs; readers the
            q, k, v inputs of heads (k and v by key/value head), MLP inputs and the logits.
    """

    shape: ModelShape
    edges: frozenset[Edge]

    def __len__(self) -> int:
        return len(self.edges)

    def behind(self, reader: Site) -> list[Site]:
        """The writers whose input a reader is: a group's heads for its keys and values."""
        return _behind(reader, self.shape.n_heads // max(1, self.shape.n_kv_heads))

    def pruned(self) -> Circuit:
        """Without nodes that are off every path from the embedding to the logits, to a fixpoint."""
        edges = self.edges
        while True:
            fed = {node for _, v in edges for node in self.behind(v)} | {Site("embed")}
            feeding = {u for u, _ in edges} | {Site("logits")}
            alive = fed & feeding
            kept = frozenset(
                (u, v) for u, v in edges if u in alive and any(n in alive for n in self.behind(v))
            )
            if kept == edges:
                return Circuit(self.shape, edges)
            edges = kept

    @property
    def nodes(self) -> frozenset[Site]:
        """Writers on the chosen edges, and the logits."""
        readers = {n for _, v in self.edges for n in self.behind(v)}
        writers = {u for u, _ in self.edges}
        return frozenset(writers | (readers & (writers | {Site("logits")})))

    def to_json(
        self, every: Iterable[Edge], scores: Mapping[Edge, float] | None = None
    ) -> dict[str, Any]:
        """The layout of MIB (mueller2025mib): ``cfg``, ``nodes``, ``edges`` by name.

        Shared keys and values are written for each query head of their group, with equal parts of
        the score.

        Args:
            every: all edges of the model.
            scores: of edges; 0 where an edge has none.
        """
        s, group = self.shape, self.shape.n_heads // self.shape.n_kv_heads
        named: dict[str, dict[str, Any]] = {}
        for u, v in every:
            copies = group if v.kind in ("k", "v") else 1
            score = float((scores or {}).get((u, v), 0.0)) / copies
            for node in self.behind(v):
                name = f"{node_name(u)}->{_reader_name(node, v)}"
                named[name] = {"score": score, "in_graph": (u, v) in self.edges}
        heads = [Site("z", layer=n, head=h) for n in range(s.n_layers) for h in range(s.n_heads)]
        mlps = [Site("mlp_out", layer=n) for n in range(s.n_layers)]
        nodes, mine = [Site("embed"), *heads, *mlps, Site("logits")], self.nodes
        return {
            "cfg": {
                "n_layers": s.n_layers,
                "n_heads": s.n_heads,
                "parallel_attn_mlp": s.parallel,
                "d_model": s.d_model,
            },
            "nodes": {node_name(n): {"in_graph": n in mine} for n in nodes},
            "edges": named,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], shape: ModelShape) -> Circuit:
        """The inverse of ``to_json``.

        Raises:
            UsageError: another model's circuit, or names that are no edges.
        """
        cfg = data.get("cfg") or {}
        own = {"n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_model": shape.d_model}
        wrong = [k for k, v in own.items() if cfg.get(k) != v]
        if wrong:
            raise UsageError(
                f"This circuit's {wrong[0]} is {cfg.get(wrong[0])}; the model has {own[wrong[0]]}.",
                remedy="Use the model the circuit was made for.",
            )
        chosen = [name for name, e in (data.get("edges") or {}).items() if e.get("in_graph")]
        return cls(shape, frozenset(_edge_of(name, shape) for name in chosen))


@lru_cache(maxsize=100_000)
def _behind(reader: Site, group: int) -> list[Site]:
    if reader.kind in ("logits", "mlp_out"):
        return [reader]
    assert reader.head is not None
    first, count = (reader.head, 1) if reader.kind == "q" else (reader.head * group, group)
    return [Site("z", layer=reader.layer, head=h) for h in range(first, first + count)]


@lru_cache(maxsize=100_000)
def node_name(site: Site) -> str:
    """``input``, ``a3.h5``, ``m7`` or ``logits``."""
    if site.kind in ("embed", "logits"):
        return "input" if site.kind == "embed" else "logits"
    return f"a{site.layer}.h{site.head}" if site.kind == "z" else f"m{site.layer}"


def _reader_name(node: Site, reader: Site) -> str:
    tail = f"<{reader.kind}>" if reader.kind in ("q", "k", "v") else ""
    return node_name(node) + tail


def _edge_of(name: str, shape: ModelShape) -> Edge:
    left, arrow, right = name.partition("->")
    match = re.fullmatch(r"(.*?)(?:<([qkv])>)?", right)
    if not arrow or match is None:
        raise UsageError(f"{name!r} is no edge.", remedy="Edges are named as m2->a5.h1<q>.")
    node, part = _node_of(match[1]), match[2]
    if part is None or node.kind != "z":
        return _node_of(left), node
    group = shape.n_heads // shape.n_kv_heads
    head = node.head if part == "q" or node.head is None else node.head // group
    return _node_of(left), Site(part, layer=node.layer, head=head)


def _node_of(name: str) -> Site:
    if name in ("input", "logits"):
        return Site("embed" if name == "input" else "logits")
    head = re.fullmatch(r"a(\d+)\.h(\d+)", name)
    if head:
        return Site("z", layer=int(head[1]), head=int(head[2]))
    mlp = re.fullmatch(r"m(\d+)", name)
    if mlp is None:
        raise UsageError(f"{name!r} is no node.", remedy="Nodes are input, a3.h5, m7 and logits.")
    return Site("mlp_out", layer=int(mlp[1]))
