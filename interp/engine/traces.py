"""Traces: what one run leaves behind in every layer, and each layer's maps, ready to be transposed.

Legend: R prompts of one length, T query and S key positions, H heads, K key/value heads, G = H / K,
E head width, D model width. Half precision is raised to float32. Through ``model.blocks`` alone, so
every family and both back-ends of transformers are served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.terms import CapabilityError, HookedModel

NORMS = ("pre_attn", "post_attn", "pre_mlp", "post_mlp")
"""The norms a layer may have."""


def raised(x: Tensor) -> Tensor:
    """Detached, and at least float32."""
    x = x.detach()
    return x if x.dtype.itemsize >= 4 else x.float()


@dataclass(frozen=True, eq=False)
class NormMap:
    """A norm: ``y = gain · c(x) / σ(x) + bias``, c taking the mean off where it ``centres``.

    Args:
        gain: ``[D]``, ones where it has none.
        bias: ``[D]``, zeros where it has none.
        centres: layer norm (True) or root mean square (False).
        eps: added to the variance or mean square.
    """

    gain: Tensor
    bias: Tensor
    centres: bool
    eps: float

    @classmethod
    def of(cls, norm: Any, like: Tensor) -> NormMap | None:
        """The parts of a block's norm, or None where there is none."""
        if norm is None:
            return None
        gain = torch.ones_like(like) if norm.gain() is None else raised(norm.gain())
        bias = torch.zeros_like(like) if norm.bias is None else raised(norm.bias)
        return cls(gain, bias, norm.kind == "layer", float(norm.eps))

    def centred(self, x: Tensor) -> Tensor:
        """c(x): its mean over the last axis taken off, where the norm does so."""
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def scale(self, x: Tensor) -> Tensor:
        """σ(x) ``[…]``."""
        return (self.centred(x).square().mean(-1) + self.eps).sqrt()

    def affine(self, x: Tensor, scale: Tensor) -> Tensor:
        """The norm's value with a given divisor."""
        return self.centred(x) / scale[..., None] * self.gain + self.bias


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """One layer's linear maps by head, and its norms.

    Args:
        w_v: ``[K, D, E]``; w_o: ``[H, E, D]``.
        w_o: see ``w_v``.
        b_v: ``[K, E]``; b_o: ``[D]``; zeros where there are none.
        b_o: see ``b_v``.
        norms: name of ``NORMS`` -> its parts or None.
        block: the layer, for its MLP.
    """

    w_v: Tensor
    w_o: Tensor
    b_v: Tensor
    b_o: Tensor
    norms: dict[str, NormMap | None]
    block: Any

    @property
    def groups(self) -> int:
        """Query heads a key/value head serves."""
        return len(self.w_o) // len(self.w_v)

    def mlp(self, h: Tensor) -> Tensor:
        """The MLP's sum (bias in, before any post-norm) for what its neurons read, ``[…, D]``."""
        block = self.block
        flat = h.flatten(0, -2).to(block.w_in.weight.dtype)
        if block.w_gate is None:
            neurons = block.act(block.w_in(flat))
        else:
            neurons = block.act(block.w_gate(flat)) * block.w_in(flat)
        return block.mlp_sum(neurons).view(h.shape)

    def mlp_pull(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of ``y · mlp(h)`` at h ``[…, D]``, and its value ``[…]``."""
        with torch.enable_grad():
            leaf = h.detach().clone().requires_grad_()
            value = (self.mlp(leaf) * y).sum(-1)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return raised(slope), raised(value)


class Maps:
    """A model's maps, layer by layer.

    Raises:
        CapabilityError: weights in float16, whose products overflow; or no layers to drive.
    """

    def __init__(self, model: HookedModel) -> None:
        blocks: Any = model.blocks
        if blocks.dtype == torch.float16:
            raise CapabilityError(
                "Feature vectors are products of many weights, and in float16 those overflow.",
                remedy="Open the model with dtype='float32' (or 'bfloat16').",
            )
        self.blocks, self.weights, self.shape = blocks, model.weights, model.shape
        self.like = raised(blocks.w_embed[0])
        self.final = NormMap.of(blocks.final_norm, self.like)
        self.cap: float | None = getattr(blocks, "cap", None)
        self._layers: dict[int, LayerMaps] = {}

    def layer(self, layer: int) -> LayerMaps:
        """The maps of one layer (made once)."""
        if layer not in self._layers:
            weights: Any = self.weights.layer(layer)  # type: ignore[attr-defined]
            block = self.blocks.layers[layer]
            w_v, w_o = raised(weights.W_V), raised(weights.W_O)
            b_v, b_o = weights.b_V, weights.b_O
            self._layers[layer] = LayerMaps(
                w_v,
                w_o,
                torch.zeros_like(w_v[:, 0]) if b_v is None else raised(b_v),
                torch.zeros_like(self.like) if b_o is None else raised(b_o),
                {name: NormMap.of(getattr(block, name), self.like) for name in NORMS},
                block,
            )
        return self._layers[layer]

    def unembedding(self, tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Columns of W_U ``[D, token]`` and of its bias ``[token]``."""
        index = torch.tensor(tokens, device=self.like.device)
        columns = raised(self.weights.W_U[:, index])
        bias = self.weights.b_U  # type: ignore[attr-defined]
        return columns, torch.zeros_like(columns[0]) if bias is None else raised(bias[index])


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """One layer of a run.

    Args:
        resid: resid_pre ``[R, T, D]``.
        mid: what the MLP reads ``[R, T, D]``.
        pattern: ``[R, H, T, S]``.
        attn_sum: sum over heads and b_O, before any post-norm ``[R, T, D]``.
        mlp_sum: likewise of the MLP.
        z: ``[R, T, H, E]``.
        scales: norm -> its divisor ``[R, T]``.
    """

    resid: Tensor
    mid: Tensor
    pattern: Tensor
    attn_sum: Tensor
    mlp_sum: Tensor
    z: Tensor
    scales: dict[str, Tensor]

    def read_by(self, norm: str) -> Tensor:
        """What a norm read in this run."""
        return {
            "pre_attn": self.resid,
            "post_attn": self.attn_sum,
            "pre_mlp": self.mid,
            "post_mlp": self.mlp_sum,
        }[norm]


@dataclass(frozen=True, eq=False)
class Trace:
    """A run of prompts of one length.

    Args:
        tokens: ``[R, T]``.
        embed: resid_pre of layer 0 ``[R, T, D]``.
        layers: one each.
        last: residual before the final norm ``[R, T, D]``.
        scale: divisor of the final norm ``[R, T]``.
    """

    tokens: np.ndarray
    embed: Tensor
    layers: tuple[LayerTrace, ...]
    last: Tensor
    scale: Tensor

    @property
    def rows(self) -> int:
        """Prompts."""
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Positions."""
        return self.tokens.shape[1]


@torch.no_grad()
def trace(maps: Maps, tokens: np.ndarray) -> Trace:
    """Run prompts of one length ``[prompt, position]`` and keep what a way back needs."""
    blocks = maps.blocks
    ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(blocks.device)
    R, T = ids.shape
    places = torch.arange(T, device=ids.device)
    position = places.repeat(R)
    x = blocks.embed(ids.flatten(), position)
    first, layers = x, []

    def rows(value: Tensor) -> Tensor:
        return raised(value).unflatten(0, (R, T))

    for n, block in enumerate(blocks.layers):
        q, k, v = (t.unflatten(0, (R, T)) for t in block.qkv(x, position))
        pattern = block.pattern(q, k, places)
        z = block.mix(pattern, v).flatten(0, 1)
        summed = block.attn_sum(z)
        attn = block.add_attn(summed)
        mid = x if block.parallel else x + attn
        mlp_sum = block.mlp_sum(block.neurons(mid))
        after = mid + block.add_mlp(mlp_sum) + (attn if block.parallel else 0)
        reads = {"pre_attn": x, "post_attn": summed, "pre_mlp": mid, "post_mlp": mlp_sum}
        parts = maps.layer(n).norms
        scales = {
            name: norm.scale(rows(reads[name])) for name, norm in parts.items() if norm is not None
        }
        layers.append(LayerTrace(
            rows(x), rows(mid), raised(pattern), rows(summed), rows(mlp_sum), rows(z), scales
        ))  # fmt: skip
        x = after
    last = rows(x)
    scale = last.new_ones(R, T) if maps.final is None else maps.final.scale(last)
    return Trace(tokens, rows(first), tuple(layers), last, scale)


def trace_bytes(maps: Maps, length: int) -> int:
    """Bytes that one prompt of this length leaves behind, with room to work."""
    shape = maps.shape
    width = max(4, maps.like.element_size())
    each = length * (9 * shape.d_model + 2 * shape.n_heads * length + shape.d_mlp)
    return 2 * width * shape.n_layers * each
