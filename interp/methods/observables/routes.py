"""Routes: paths with their positions summed, split by the token they start from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from interp.engine.pulls import Pulled
from interp.engine.traces import Maps, Trace
from interp.methods.observables.graph import Node, Prefix
from interp.methods.observables.inputs import array
from interp.methods.observables.reading import Standing, at_logits, through


def routes_of(paths: Sequence[Prefix], most: int) -> list[tuple[Node, ...]]:
    """The nodes of the best paths, each list once, best first."""
    return list(dict.fromkeys(p.nodes for p in paths))[:most]


def name_of(route: tuple[Node, ...]) -> str:
    """``L3H0 < MLP2 < embed``."""
    return " < ".join([*(n.name for n in route), "embed"])


def by_source(
    maps: Maps,
    run: Trace,
    other: Trace | None,
    u: torch.Tensor,
    route: tuple[Node, ...],
    treatment: str,
) -> np.ndarray:
    """What one route gives o from each source token ``[prompt, position]``, patterns chained."""
    at: Standing = at_logits(maps, run, u, treatment)
    for node in route:
        at = through(maps, node, at, treatment)
    stand = run.embed if other is None else run.embed - other.embed
    out = torch.zeros(stand.shape[:2], dtype=stand.dtype, device=stand.device)
    out[:, at.places] = (at.y * stand[:, at.places]).sum(-1)
    return array(out)


def heads_in_all(maps: Maps, run: Trace, other: Trace | None, pulled: Pulled) -> np.ndarray:
    """What each head's write gives o by all paths behind it ``[prompt, layer, head]``."""
    out = []
    for n, seen in enumerate(run.layers):
        z = seen.z if other is None else seen.z - other.layers[n].z
        read = torch.einsum("hed,rtd->rthe", maps.layer(n).w_o, pulled.writes[n])
        out.append((z * read).sum((1, 3)))
    return array(torch.stack(out, 1))


def flow(paths: Sequence[Prefix], shape_names: list[str]) -> np.ndarray:
    """Values of paths summed over the edges they go along ``[src, dst]``; mean over prompts."""
    place = {name: i for i, name in enumerate(shape_names)}
    out = np.zeros((len(place), len(place)))
    for path in paths:
        names = ["logits", *(n.name for n in path.nodes), "embed"]
        for dst, src in zip(names, names[1:], strict=False):
            out[place[src], place[dst]] += path.value.mean()
    return out


def names_in(paths: Sequence[Prefix], parallel: bool) -> list[str]:
    """The nodes that paths pass, in the order they write, embed first and logits last."""
    nodes = {n for p in paths for n in p.nodes}
    ordered = sorted(nodes, key=lambda n: (n.order(parallel), n.head))
    return ["embed", *(n.name for n in ordered), "logits"]
