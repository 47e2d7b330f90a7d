"""Selecting: which edges make a circuit of a given size, by their scores."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np

from interp.terms import Circuit, ModelShape, Site
from interp.terms.circuits import Edge

Scores = Mapping[Edge, float]


def rank(scores: Scores, ranking: str) -> dict[Edge, float]:
    """What edges are ordered by: their size, or the score itself (``signed``)."""
    return {e: abs(s) if ranking == "size" else s for e, s in scores.items() if np.isfinite(s)}


def top_edges(scores: Scores, n: int, ranking: str, shape: ModelShape) -> Circuit:
    """The n edges of largest score, without what is off every path (mueller2025mib)."""
    by = rank(scores, ranking)
    order = sorted(by, key=lambda e: (-by[e], str(e)))
    return Circuit(shape, frozenset(order[:n])).pruned()


def greedy_edges(scores: Scores, n: int, ranking: str, shape: ModelShape) -> Circuit:
    """n edges from the logits back: the best that leads into what is chosen (hanna2024have)."""
    by = rank(scores, ranking)
    into: dict[Site, list[Edge]] = {}
    whole = Circuit(shape, frozenset())
    for edge in by:
        for node in whole.behind(edge[1]):
            into.setdefault(node, []).append(edge)
    heap: list[tuple[float, str, Edge]] = []
    waiting: set[Edge] = set()

    def offer(node: Site) -> None:
        for edge in into.get(node, ()):
            if edge not in waiting:
                waiting.add(edge)
                heapq.heappush(heap, (-by[edge], str(edge), edge))

    offer(Site("logits"))
    chosen: set[Edge] = set()
    reached = {Site("logits")}
    while heap and len(chosen) < n:
        _, _, edge = heapq.heappop(heap)
        chosen.add(edge)
        if edge[0] not in reached:
            reached.add(edge[0])
            offer(edge[0])
    return Circuit(shape, frozenset(chosen)).pruned()


def random_edges(every: list[Edge], n: int, shape: ModelShape, seed: int) -> Circuit:
    """n edges drawn by chance, without what is off every path."""
    order = np.random.default_rng(seed).permutation(len(every))
    return Circuit(shape, frozenset(every[i] for i in order[:n])).pruned()


SELECT = {"top": top_edges, "greedy": greedy_edges}
"""How a circuit is put together."""
