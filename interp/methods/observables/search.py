"""Search: the paths that carry most of an observable, by beam or all of them.

A prefix carries ``y`` at one node and position; its value is ``y · x`` there, x what stands in the
residual (``total``) or how clean and corrupt differ (``contrast``, all else held at clean). Norms
frozen, ``value = Σ children + biases + remainders``. All prefixes of a depth and all prompts are
extended by one product a layer: a head's children are ``A[h,t,s] · (v[s] · W_O[h] y)``, v the
values without biases.

Legend: B prefixes, R prompts, T/S positions, H heads, K key/value heads, G = H / K, E, D widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from interp.engine.pulls import layer_norm_pull, norm_push, start, value_bias
from interp.engine.traces import LayerMaps, LayerTrace, Maps, Trace
from interp.methods.observables.graph import MLP, Node, Prefix

PIECE = 256
"""Prefixes extended at a time."""


@dataclass(eq=False)
class Found:
    """What a search found.

    Args:
        ended: paths that reach the embedding, best first.
        prefixes: prefixes that were extended, best first.
        root: the prefix at the logits.
        constants: what biases and remainders give, over the prefixes that were extended ``[R]``.
        dropped: value of the prefixes that were not followed ``[R]``; n_dropped: how many.
        n_dropped: see ``dropped``.
        left: value of the paths to the embedding that are not in ``ended`` ``[R]``.
        evaluations: children × prompts that were scored.
    """

    ended: list[Prefix]
    prefixes: list[Prefix]
    root: Prefix
    constants: np.ndarray
    dropped: np.ndarray
    n_dropped: int
    left: np.ndarray
    evaluations: int


@dataclass(eq=False)
class _Layer:
    """One layer's maps, run and pushed values."""

    maps: LayerMaps
    seen: LayerTrace
    values: Tensor  # [R, S, K, E], without biases
    middle: Tensor  # what stands where the MLP reads, [R, T, D]


@dataclass(eq=False)
class _Children:
    """Scored children of a piece of prefixes; ``scores [child]`` are prompt means."""

    scores: np.ndarray
    values: np.ndarray  # [child, R]
    make: list[Callable[[np.ndarray], list[Prefix]]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class Search:
    """Paths of one observable on one run.

    Args:
        maps: the model.
        run: the clean run; positions mean the same in every prompt.
        u: what is read behind the final norm ``[R, D]``.
        treatment: of norms.
        other: the corrupt run, for ``contrast``; None for ``total``.
        signed: rank by the value itself rather than its size.
    """

    def __init__(
        self,
        maps: Maps,
        run: Trace,
        u: Tensor,
        *,
        treatment: str = "frozen",
        other: Trace | None = None,
        signed: bool = False,
    ) -> None:
        self.maps, self.run, self.u, self.treatment = maps, run, u, treatment
        self.other, self.signed = other, signed
        self.parallel = maps.shape.parallel
        self.stand = run.embed if other is None else run.embed - other.embed
        self.layers = [self._layer(n) for n in range(len(run.layers))]
        self.evaluations = 0

    def _layer(self, n: int) -> _Layer:
        maps, seen = self.maps.layer(n), self.run.layers[n]
        resid, middle = seen.resid, seen.mid
        if self.other is not None:
            resid, middle = resid - self.other.layers[n].resid, middle - self.other.layers[n].mid
        scale = seen.scales.get("pre_attn")
        read = norm_push(maps.norms["pre_attn"], resid, self.treatment, seen.resid, scale)
        return _Layer(maps, seen, torch.einsum("rsd,kde->rske", read, maps.w_v), middle)

    def root(self) -> Prefix:
        """The prefix at the logits."""
        y = start(self.maps, self.run, self.u, self.treatment)
        stands = self.run.last if self.other is None else self.run.last - self.other.last
        value = (y * stands[:, -1]).sum(-1)
        return Prefix((), 2 * len(self.layers), self.run.length - 1, y, _array(value))

    # -- one piece of prefixes ------------------------------------------------------------------

    def extend(self, piece: list[Prefix]) -> tuple[list[Prefix], _Children, np.ndarray]:
        """Paths that end here, scored children, and what biases and remainders give ``[R]``."""
        y_BRD = torch.stack([p.y for p in piece])
        places = torch.tensor([p.position for p in piece], device=y_BRD.device)
        stands = self.stand[:, places].transpose(0, 1)
        ended = [
            Prefix(p.steps, -1, p.position, p.y, value, True)
            for p, value in zip(piece, _array((y_BRD * stands).sum(-1)), strict=True)
        ]
        rest = np.zeros(self.run.rows)
        found = _Children(np.zeros(0), np.zeros((0, self.run.rows)))
        values = []
        for n in range(len(self.layers) - 1, -1, -1):
            for head in (MLP, 0):
                order = Node(n, head).order(self.parallel)
                rows = [b for b, p in enumerate(piece) if p.order > order]
                if not rows:
                    continue
                score = self._mlp if head == MLP else self._heads
                value, bias, make = score(n, piece, rows, y_BRD[rows], places[rows])
                values.append(value)
                found.make.append(make)
                found.sizes.append(len(value))
                rest += bias
        if values:
            found.values = np.concatenate(values)
            found.scores = found.values.mean(1)
        self.evaluations += found.values.size
        return ended, found, rest

    def _heads(
        self, n: int, piece: list[Prefix], rows: list[int], y: Tensor, places: Tensor
    ) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], list[Prefix]]]:
        layer = self.layers[n]
        maps, seen = layer.maps, layer.seen
        inner = layer_norm_pull(maps, "post_attn", y, self.treatment, _at(seen, places))
        q_BRHE = torch.einsum("hed,brd->brhe", maps.w_o, inner)
        split = q_BRHE.unflatten(2, (-1, maps.groups))
        pattern_BRHS = seen.pattern[:, :, places].permute(2, 0, 1, 3)
        dots = torch.einsum("rske,brkge->brkgs", layer.values, split).flatten(2, 3)
        value_BHSR = (pattern_BRHS * dots).permute(0, 2, 3, 1)
        B, H, S, R = value_BHSR.shape
        bias = np.zeros(R)
        if self.other is None:
            held = torch.einsum("ke,brkge->brkg", value_bias(maps), split).flatten(2)
            total = (held * pattern_BRHS.sum(-1)).sum((0, 2)) + (inner @ maps.b_o).sum(0)
            post = maps.norms["post_attn"]
            bias = _array(total if post is None else total + (y @ post.bias).sum(0))

        def make(chosen: np.ndarray) -> list[Prefix]:
            index = torch.from_numpy(chosen).to(q_BRHE.device)
            b, h, s = index // (H * S), (index // S) % H, index % S
            weight = pattern_BRHS[b, :, h, s]
            z = q_BRHE[b, :, h] * weight[..., None]
            read = torch.einsum("cde,cre->crd", maps.w_v[h // maps.groups], z)
            pulled = layer_norm_pull(maps, "pre_attn", read, self.treatment, _at(seen, s))
            values = _array(value_BHSR[b, h, s])
            return [
                Prefix((*piece[rows[i]].steps, (Node(n, j), k)), 2 * n, k, pulled[c], values[c])
                for c, (i, j, k) in enumerate(zip(b.tolist(), h.tolist(), s.tolist(), strict=True))
            ]

        ahead = torch.arange(S, device=places.device)[None] > places[:, None]
        known = _array(value_BHSR.masked_fill(ahead[:, None, :, None], torch.nan))
        return known.reshape(-1, R), bias, make

    def _mlp(
        self, n: int, piece: list[Prefix], rows: list[int], y: Tensor, places: Tensor
    ) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], list[Prefix]]]:
        layer = self.layers[n]
        maps, seen = layer.maps, _at(layer.seen, places)
        inner = layer_norm_pull(maps, "post_mlp", y, self.treatment, seen)
        norm = maps.norms["pre_mlp"]
        h = seen.mid if norm is None else norm.affine(seen.mid, seen.scales["pre_mlp"])
        slope, value = maps.mlp_pull(h, inner)
        pulled = layer_norm_pull(maps, "pre_mlp", slope, self.treatment, seen)
        values = _array((pulled * layer.middle[:, places].transpose(0, 1)).sum(-1))
        bias = np.zeros(values.shape[1])
        if self.other is None:
            total = (value - (slope * h).sum(-1)).sum(0)
            for part, at in ((maps.norms["post_mlp"], y), (norm, slope)):
                total = total if part is None else total + (at @ part.bias).sum(0)
            bias = _array(total)

        def make(chosen: np.ndarray) -> list[Prefix]:
            node = Node(n, MLP)
            return [
                Prefix(
                    (*piece[rows[i]].steps, (node, piece[rows[i]].position)),
                    node.order(self.parallel),
                    piece[rows[i]].position,
                    pulled[i],
                    values[i],
                )
                for i in chosen.tolist()
            ]

        return values, bias, make

    # -- searches -------------------------------------------------------------------------------

    def beam(
        self, width: int, depth: int, say: Callable[[int], None] = lambda depth: None
    ) -> Found:
        """The best paths of up to ``depth`` nodes, ``width`` prefixes kept at each."""
        root = self.root()
        front, kept, ended = [root], [], []
        constants, dropped, n_dropped = np.zeros(self.run.rows), np.zeros(self.run.rows), 0
        for level in range(depth + 1):
            ends, children, rest = self._level(front)
            ended += ends
            constants += rest
            live = np.flatnonzero(np.isfinite(children.scores))
            room = width if level < depth else 0
            order = live[np.argsort(self._key(children.scores[live]), kind="stable")]
            chosen = np.sort(order[:room])
            dropped += children.values[order[room:]].sum(0)
            n_dropped += len(order) - len(chosen)
            front = _made(children, chosen)
            kept += front
            say(level)
            if not front:
                break
        return self._found(ended, kept, root, constants, dropped, n_dropped, width)

    def exhaustive(
        self, most: int | None = None, say: Callable[[int], None] = lambda count: None
    ) -> Found:
        """Every path to the embedding; the ``most`` best are kept (all by default)."""
        root = self.root()
        stack, ended, constants = [root], [], np.zeros(self.run.rows)
        while stack:
            piece, stack = stack[-PIECE:], stack[:-PIECE]
            ends, children, rest = self.extend(piece)
            ended += ends
            constants += rest
            stack += _made(children, np.flatnonzero(np.isfinite(children.scores)))
            say(len(ended))
        return self._found(
            ended, [], root, constants, np.zeros(self.run.rows), 0, most or len(ended)
        )

    def _level(self, front: list[Prefix]) -> tuple[list[Prefix], _Children, np.ndarray]:
        ended: list[Prefix] = []
        rest = np.zeros(self.run.rows)
        parts: list[_Children] = []
        for i in range(0, len(front), PIECE):
            ends, children, bias = self.extend(front[i : i + PIECE])
            ended += ends
            rest += bias
            parts.append(children)
        whole = _Children(
            np.concatenate([p.scores for p in parts]),
            np.concatenate([p.values for p in parts]),
            [m for p in parts for m in p.make],
            [s for p in parts for s in p.sizes],
        )
        return ended, whole, rest

    def _key(self, scores: np.ndarray) -> np.ndarray:
        return -scores if self.signed else -np.abs(scores)

    def _found(
        self,
        ended: list[Prefix],
        kept: list[Prefix],
        root: Prefix,
        constants: np.ndarray,
        dropped: np.ndarray,
        n_dropped: int,
        width: int,
    ) -> Found:
        def best(paths: list[Prefix]) -> list[Prefix]:
            scores = np.array([p.value.mean() for p in paths])
            return [paths[i] for i in np.argsort(self._key(scores), kind="stable")]

        ended = best(ended)
        left = sum((p.value for p in ended[width:]), np.zeros(self.run.rows))
        return Found(
            ended[:width], best(kept), root, constants, dropped, n_dropped, left, self.evaluations
        )


def _made(children: _Children, chosen: np.ndarray) -> list[Prefix]:
    """The chosen children (ascending numbers) as prefixes."""
    out, first = [], 0
    for make, size in zip(children.make, children.sizes, strict=True):
        mine = chosen[(chosen >= first) & (chosen < first + size)] - first
        if len(mine):
            out += make(mine)
        first += size
    return out


def _at(seen: LayerTrace, places: Tensor) -> LayerTrace:
    """A layer's run at these positions, ``[B, R, …]``."""

    def pick(value: Tensor) -> Tensor:
        return value[:, places].transpose(0, 1)

    return LayerTrace(
        pick(seen.resid),
        pick(seen.mid),
        seen.pattern,
        pick(seen.attn_sum),
        pick(seen.mlp_sum),
        seen.z,
        {name: pick(scale) for name, scale in seen.scales.items()},
    )


def _array(value: Tensor) -> np.ndarray:
    return value.double().cpu().numpy()
