"""Passes: one forward through a model's layers with sites taken on the way, and one backward.

Every layer is a piece of its own: its input is a leaf, so that the backward goes layer by layer,
holds the gradients of one layer at a time, and can compute a layer anew where the graph of all of
them does not fit (``keep_graph=False``; stored is O(layers · tokens · width)). One implementation
for every family and both back-ends, since ``model.blocks`` is exact to the model.

Legend: R prompts of one length T, N = R·T packed tokens, H heads, K key/value heads, E head width,
D model width, F neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.metrics import Metric, Targets
from interp.terms import Block

KINDS = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "mlp_post",
)
"""Kinds of sites a pass can take."""

Take = Callable[[str, Tensor], Tensor]
Visit = Callable[[int, dict[str, tuple[Tensor, Tensor]]], None]
Join = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Lent = list[tuple[Tensor, Tensor]]

ENDING = ("z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
"""Kinds that stand behind a layer's keys and values."""


@dataclass(frozen=True, eq=False)
class Reach:
    """The part of the prompts that a pass runs, where the rest is known or cannot matter.

    Args:
        first: first position it runs; keys and values before it are lent.
        lent: keys and values ``[R, first, K, E]`` of each layer, as attention reads them.
        ends: metric positions ``[R, at]``; behind the last layer's keys and values they alone go
            on, since nothing else there leads to the metric. None for all.
        lend: keys and values of so many first positions are kept for another pass.
    """

    first: int = 0
    lent: Lent | None = None
    ends: np.ndarray | None = None
    lend: int = 0


WHOLE = Reach()


def layer_of(
    block: Any,
    x_ND: Tensor,
    position_N: Tensor,
    position_T: Tensor,
    rows: int,
    take: Take,
    *,
    join: Join = lambda k, v: (k, v),
    ends: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Next residual of one layer; every site's value passes through ``take(kind, value)``.

    Args:
        block: the layer.
        x_ND: residual of the packed prompts.
        position_N: position of each; position_T: of one prompt's.
        position_T: see ``position_N``.
        rows: prompts.
        take: sees each site.
        join: keys and values of these positions to those that attention reads.
        ends: packed index and positions ``[R, at]`` of the tokens that alone go on behind the
            keys and values.
    """
    x_ND = take("resid_pre", x_ND)
    q, k, v = block.project(x_ND)
    q, k, v = take("q", q), take("k", k), take("v", v)
    q, k = block.turned(q, k, position_N)
    if ends is not None:
        x_ND, q, position_T = x_ND[ends[0]], q[ends[0]], ends[1]
    q, k, v = (t.unflatten(0, (rows, -1)) for t in (q, k, v))
    z_NHE = take("z", block.attend(q, *join(k, v), position_T).flatten(0, 1))
    attn_ND = take("attn_out", block.add_attn(block.attn_sum(z_NHE)))
    read_ND = x_ND if block.parallel else take("resid_mid", x_ND + attn_ND)
    neurons_NF = take("mlp_post", block.neurons(read_ND))
    mlp_ND = take("mlp_out", block.add_mlp(block.mlp_sum(neurons_NF)))
    out = mlp_ND + attn_ND + x_ND if block.parallel else read_ND + mlp_ND
    return take("resid_post", out)


class LayerPass:
    """One run of prompts of one length.

    Args:
        blocks: the model.
        tokens: ids ``[prompt, position]``.
        kinds: sites to take, in every layer where they are.
        grad: keep what a backward needs.
        keep_graph: keep the graph of all layers; else each is computed anew on the way back.
        also: further tensors (biases) whose gradients are wanted, by layer; -1 for behind the
            last one.
        reach: the part of the prompts that is run (default all).
    """

    def __init__(
        self,
        blocks: Any,
        tokens: np.ndarray,
        kinds: Iterable[str],
        *,
        grad: bool = False,
        keep_graph: bool = True,
        also: dict[int, dict[str, Tensor]] | None = None,
        reach: Reach = WHOLE,
    ) -> None:
        self.blocks, self.kinds, self.reach = blocks, frozenset(kinds), reach
        self.grad, self.keep_graph, self.also = grad, keep_graph, also or {}
        tokens = tokens[:, reach.first :]
        self.rows, self.length = tokens.shape
        index = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(blocks.device)
        self.tokens_N = index.flatten()
        stop = reach.first + self.length
        self.position_T = torch.arange(reach.first, stop, device=blocks.device)
        self.position_N = self.position_T.repeat(self.rows)
        self.kept: Lent = []
        self.ends: tuple[Tensor, Tensor] | None = None
        if reach.ends is not None:
            at = torch.from_numpy(reach.ends).to(blocks.device)
            row = torch.arange(self.rows, device=blocks.device)[:, None]
            self.ends = (row * self.length + at - reach.first).flatten(), at
        self.inputs: list[Tensor] = []
        self.taken: list[dict[str, Tensor]] = []
        self.outputs: list[Tensor] = []
        self.resid_ND: Tensor | None = None

    def forward(self, embed_ND: Tensor | None = None) -> LayerPass:
        """Run all layers; ``embed_ND`` stands in for resid_pre of layer 0."""
        blocks = self.blocks
        with torch.no_grad():
            x = blocks.embed(self.tokens_N, self.position_N) if embed_ND is None else embed_ND
            self.embedding = blocks.token_embed(self.tokens_N) if "embed" in self.kinds else None
        for layer in range(len(blocks.layers)):
            x = self._piece(layer, x)
        self.resid_ND = x
        return self

    def _piece(self, layer: int, x: Tensor) -> Tensor:
        with torch.enable_grad() if self.grad and self.keep_graph else torch.no_grad():
            x = x.detach()
            if self.grad and self.keep_graph:
                x.requires_grad_()
            values, out = self._run(layer, x)
        if self.grad:
            self.inputs.append(x)
        if self.grad and not self.keep_graph:
            return out.detach()
        self.taken.append(values)
        self.outputs.append(out if self.grad else x.new_empty(0))
        return out.detach()

    def _run(self, layer: int, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        values: dict[str, Tensor] = {}
        free = not torch.is_grad_enabled()
        block: Block = self.blocks.layers[layer]
        last = layer == len(self.blocks.layers) - 1

        def take(kind: str, value: Tensor) -> Tensor:
            if kind in self.kinds:
                # without a graph the layer may work on its tensors in place
                values[kind] = value.clone() if free and kind in ("q", "k", "mlp_post") else value
            return value

        def join(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            if self.reach.lend:
                self.kept.append((k[:, : self.reach.lend].clone(), v[:, : self.reach.lend].clone()))
            if self.reach.lent is None:
                return k, v
            k_lent, v_lent = self.reach.lent[layer]
            return torch.cat([k_lent, k], 1), torch.cat([v_lent, v], 1)

        out = layer_of(
            block,
            x,
            self.position_N,
            self.position_T,
            self.rows,
            take,
            join=join,
            ends=self.ends if last else None,
        )
        return values, out

    def whole(self, kind: str, layer: int, values: Tensor) -> Tensor:
        """Values ``[R, position it runs, …]`` on all positions, 0 where nothing was run."""
        first, at = self.reach.first, self.reach.ends
        last = layer == len(self.blocks.layers) - 1
        if not first and (at is None or not last or kind not in ENDING):
            return values
        shape = (values.shape[0], first + self.length, *values.shape[2:])
        out = values.new_zeros(shape)
        if at is not None and last and kind in ENDING:
            rows = torch.arange(len(out), device=out.device)[:, None]
            out[rows, torch.from_numpy(at).to(out.device)] = values
        else:
            out[:, first:] = values
        return out

    def values(self, layer: int) -> dict[str, Tensor]:
        """Taken values of a layer, ``[prompt, position, *site dims]``; -1 has the embedding."""
        if layer < 0:
            return {} if self.embedding is None else {"embed": self._rows(self.embedding)}
        return {k: self._rows(v.detach()) for k, v in self.taken[layer].items()}

    def _rows(self, x_N: Tensor) -> Tensor:
        return x_N.unflatten(0, (self.rows, -1))

    # -- the metric -----------------------------------------------------------------------------

    def logits(
        self, at: np.ndarray, columns: Tensor | None, resid_ND: Tensor | None = None
    ) -> Tensor:
        """Logits ``[prompt, at, vocab or column]`` of a last residual (default this run's)."""
        resid_ND = self.resid_ND if resid_ND is None else resid_ND
        assert resid_ND is not None
        places = torch.from_numpy(at - self.reach.first).to(resid_ND.device)
        rows = torch.arange(self.rows, device=resid_ND.device)[:, None]
        if getattr(self.blocks.final_norm, "lent", None) is not None:
            # a reference lends its divisors to whole runs
            whole = self.blocks.unembed(resid_ND, columns)
            return self._rows(whole if whole.dtype == torch.float64 else whole.float())[
                rows, places
            ]
        chosen = self._rows(resid_ND)
        chosen = chosen if self.ends is not None else chosen[rows, places]
        logits = self.blocks.unembed(chosen.flatten(0, 1), columns)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.unflatten(0, at.shape)

    def score(self, metric: Metric, targets: Targets, at: np.ndarray) -> Tensor:
        """The metric of each prompt ``[prompt]``."""
        assert self.resid_ND is not None
        with torch.no_grad():
            return self._metric(metric, targets, at, self.resid_ND)

    def _metric(self, metric: Metric, targets: Targets, at: np.ndarray, resid: Tensor) -> Tensor:
        which = torch.arange(self.rows, device=resid.device)
        return metric.score(self.logits(at, targets.columns, resid), targets, which)

    def pull(
        self, metric: Metric, targets: Targets, at: np.ndarray
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The metric ``[prompt]``, its gradient at the last residual, and that of ``also[-1]``."""
        assert self.resid_ND is not None
        more = self.also.get(-1, {})
        with torch.enable_grad():
            last = self.resid_ND.detach().requires_grad_()
            scores = self._metric(metric, targets, at, last)
            found = torch.autograd.grad(scores.sum(), [last, *more.values()], allow_unused=True)
        extra = {n: _known(g, v) for (n, v), g in zip(more.items(), found[1:], strict=True)}
        return scores.detach(), _known(found[0], last), extra

    # -- backward -------------------------------------------------------------------------------

    def backward(
        self,
        g_ND: Tensor,
        visit: Visit,
        *,
        start: int | None = None,
        again: bool = False,
        extra: Callable[[int, dict[str, Tensor]], None] = lambda layer, grads: None,
    ) -> list[Tensor]:
        """Pull a gradient from the last residual back to the embedding.

        Args:
            g_ND: gradient at the residual behind layer ``start``.
            visit: called with each layer and its taken ``kind -> (value, gradient)``, then with
                -1 and the embedding's.
            start: first layer on the way back (default the last).
            again: whether another backward follows.
            extra: called with gradients of ``also``.

        Returns:
            the gradient at resid_post of each layer that was passed, by layer.
        """
        top = len(self.blocks.layers) - 1 if start is None else start
        passed: list[Tensor] = [g_ND.new_empty(0)] * len(self.blocks.layers)
        for layer in range(top, -1, -1):
            passed[layer] = g_ND
            x, values, out = self._recalled(layer)
            more = self.also.get(layer, {})
            wanted = {"": x, **values, **{f"also {n}": b for n, b in more.items()}}
            live = {n: t for n, t in wanted.items() if t.requires_grad}
            found = torch.autograd.grad(
                out,
                list(live.values()),
                g_ND,
                allow_unused=True,
                retain_graph=again and self.keep_graph,
            )
            grads = dict(zip(live, found, strict=True))
            visit(
                layer,
                {
                    k: (self._rows(v.detach()), self._rows(_known(grads.get(k), v)))
                    for k, v in values.items()
                },
            )
            extra(layer, {n: _known(grads.get(f"also {n}"), b) for n, b in more.items()})
            g_ND = _known(grads[""], x)
            if not again:
                self._forget(layer)
        if self.embedding is not None:
            visit(-1, {"embed": (self._rows(self.embedding), self._rows(g_ND))})
        return passed

    def _recalled(self, layer: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Input, taken values and output of a layer, with their graph."""
        if self.keep_graph:
            return self.inputs[layer], self.taken[layer], self.outputs[layer]
        with torch.enable_grad():
            x = self.inputs[layer].detach().requires_grad_()
            values, out = self._run(layer, x)
        return x, values, out

    def _forget(self, layer: int) -> None:
        if self.keep_graph:
            self.taken[layer], self.outputs[layer] = {}, self.outputs[layer].new_empty(0)


def _known(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
