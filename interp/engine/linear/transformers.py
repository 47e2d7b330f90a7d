"""Transformers: a prompt's frozen-pattern interpreter, on every family that the engine drives.

Patterns, norm divisors and gates are held at the prompt's own; then the chosen logits at one
position are linear in the residual stream at the chosen site. F of a prompt has as many rows as
logits are asked for; nothing of the size of all logits at all positions is formed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from interp.engine.gradients.active import blocks_of, rules
from interp.engine.gradients.facts import biases_of
from interp.engine.gradients.parts import NormPart
from interp.engine.gradients.passes import layer_of
from interp.engine.gradients.ruleset import RuleSet
from interp.engine.linear.frozen import Frozen
from interp.engine.linear.sources import Source
from interp.terms import HookedModel

WORDS = {
    "w_v": "b_V", "w_o": "b_O", "w_in": "b_in", "w_gate": "b_gate", "w_out": "b_out",
    "pre_attn": "norm before attention", "post_attn": "norm after attention",
    "pre_mlp": "norm before MLP", "post_mlp": "norm after MLP", "final_norm": "final norm",
    "unembed": "b_U", "w_qkv": "b_QKV",
}  # fmt: skip
"""Parts of a layer -> what their bias is called."""


@contextlib.contextmanager
def straightened(model: HookedModel, chosen: RuleSet, verify: bool = False) -> Iterator[Any]:
    """The model's blocks under these rules; norms answer as their own values say.

    Some families' norms compute in float32 inside a float64 model; there the frozen norm is
    x·sg(f(x)/x), entry by entry, so that value and linear form are one.
    """
    blocks = blocks_of(model)
    with rules(model, chosen, verify=verify) as active, _double_backward():
        for part in norms_of(blocks):
            part.by_ratio = part.honest.kind == "rms" and blocks.dtype == torch.float64
        yield active


@contextlib.contextmanager
def _double_backward() -> Iterator[None]:
    """Attention by plain products, whose vjp can be differentiated again (for F·u)."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def norms_of(blocks: Any) -> list[NormPart]:
    """Every norm of the residual that is replaced, layer by layer, the final one last."""
    owners = [
        (b, n) for b in blocks.layers for n in ("pre_attn", "post_attn", "pre_mlp", "post_mlp")
    ]
    found = [getattr(o, n, None) for o, n in [*owners, (blocks, "final_norm")]]
    return [f for f in found if isinstance(f, NormPart)]


def freeze_prompt(
    model: HookedModel,
    tokens: Sequence[int],
    columns: Sequence[int],
    *,
    layer: int | None = None,
    at: int = -1,
    memory: int = 2**30,
) -> Frozen:
    """One prompt's chosen logits at a position, as a linear map of its residual stream.

    Call it inside ``straightened(...)``.

    Args:
        model: driven layer by layer.
        tokens: the prompt.
        columns: which logits.
        layer: the input is ``resid_pre`` of this layer; None for the token embedding.
        at: position whose logits are read.
        memory: bytes that rows of F may take.
    """
    blocks = blocks_of(model)
    first = 0 if layer is None else layer
    owners = [
        (n, name, b) for n, group in biases_of(blocks, first).items() for name, b in group.items()
    ]
    flags = {id(b): (b, b.requires_grad) for *_, b in owners}
    walk = _Walk(blocks, tokens)
    try:
        for bias, _ in flags.values():
            bias.requires_grad_(True)
        taps = _taps(blocks, first)
        with torch.enable_grad():
            x, extra = walk.entry(layer)
            y = walk.logits(x[0] + 0.0 if extra is None else x[0] + extra[0], first, columns, at)
    finally:
        for bias, flag in flags.values():
            bias.requires_grad_(flag)
        for part in norms_of(blocks):
            part.tap = None
    return _frozen(x, y, extra, owners, taps, blocks, memory)


def _taps(blocks: Any, first: int) -> list[tuple[str, Tensor]]:
    """A number that scales each frozen mean, where means are frozen."""
    out = []
    for part in norms_of(blocks):
        if part.mean != "frozen" or part.honest.kind != "layer":
            continue
        part.tap = torch.zeros((), dtype=blocks.dtype, device=blocks.device, requires_grad=True)
        out.append((f"{part.where} mean", part.tap))
    return out


def _frozen(
    x: Tensor, y: Tensor, extra: tuple[Tensor, Tensor] | None, owners: Any, taps: Any, blocks: Any,
    memory: int,
) -> Frozen:  # fmt: skip
    sources: list[Source] = []
    constants: list[Tensor | None] = []
    if extra is not None:
        sources.append(Source("position embedding", "position", extra[1]))
        constants.append(None)
    depth = len(blocks.layers)
    owners = sorted(owners, key=lambda o: o[0] if o[0] >= 0 else depth)
    seen: set[int] = set()
    for n, name, bias in owners:
        if id(bias) in seen:
            continue
        seen.add(id(bias))
        what = WORDS.get(name) or name
        sources.append(Source(what if n < 0 else f"layer {n} {what}", "bias", bias))
        constants.append(bias.detach())
    for name, tap in taps:
        sources.append(Source(name, "mean", tap))
        constants.append(torch.ones_like(tap))
    return Frozen(x, y, sources, constants, memory)


class _Walk:
    """One prompt through the layers."""

    def __init__(self, blocks: Any, tokens: Sequence[int]) -> None:
        self.blocks = blocks
        self.ids = torch.as_tensor(np.asarray(tokens, np.int64), device=blocks.device)
        self.position = torch.arange(len(self.ids), device=blocks.device)

    def entry(self, layer: int | None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The leaf ``[1, position, d_model]``; the position embedding and its scale, if any."""
        with torch.no_grad():
            whole = self.blocks.embed(self.ids, self.position)
            if layer is None:
                token = self.blocks.token_embed(self.ids)
                rest = whole - token
                start = token
            else:
                start, rest = whole, torch.zeros_like(whole)
                for block in self.blocks.layers[:layer]:
                    start = self._layer(block, start)
        leaf = start.detach()[None].clone().requires_grad_()
        if layer is not None or not bool((rest != 0).any()):
            return leaf, None
        scale = torch.zeros(1, dtype=whole.dtype, device=whole.device, requires_grad=True)
        return leaf, (rest * (1 + scale), scale)

    def _layer(self, block: Any, x: Tensor) -> Tensor:
        return layer_of(block, x, self.position, self.position, 1, lambda kind, value: value)

    def logits(self, x: Tensor, first: int, columns: Sequence[int], at: int) -> Tensor:
        """``[1, column]``."""
        for block in self.blocks.layers[first:]:
            x = self._layer(block, x)
        chosen = torch.as_tensor(np.asarray(columns, np.int64), device=x.device)
        return self.blocks.unembed(x[at][None], chosen)


def prompt_logits(model: HookedModel, tokens: Sequence[int], at: int = -1) -> Tensor:
    """All logits ``[vocab]`` of a prompt at one position, without rules' gradients."""
    blocks = blocks_of(model)
    walk = _Walk(blocks, tokens)
    with torch.no_grad():
        x = blocks.embed(walk.ids, walk.position)
        for block in blocks.layers:
            x = walk._layer(block, x)
        return blocks.unembed(x[at][None])[0]


def block_map(model: HookedModel, tokens: Sequence[int], layer: int, at: int = -1) -> Frozen:
    """``resid_pre[l] -> resid_post[l]`` at one position, the other positions held.

    Call it inside ``straightened(...)``.
    """
    blocks = blocks_of(model)
    walk = _Walk(blocks, tokens)
    with torch.no_grad():
        x = blocks.embed(walk.ids, walk.position)
        for block in blocks.layers[:layer]:
            x = walk._layer(block, x)
    leaf = x[at][None].clone().requires_grad_()
    place = at % len(x)
    with torch.enable_grad():
        whole = torch.cat([x[:place], leaf, x[place + 1 :]])
        y = walk._layer(blocks.layers[layer], whole)[place][None]
    return Frozen(leaf, y, ())
