"""Small float64 transformers of numbers alone, for the engine and for the slow reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.terms import ModelShape

D, E, V, F_ = 12, 3, 17, 20


class PlainNorm:
    """A norm in float64 throughout."""

    def __init__(self, gain: Tensor, bias: Tensor, rms: bool, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.eps = gain, bias, eps
        self.kind = "rms" if rms else "layer"

    def gain(self) -> Tensor:
        return self.weight

    def __call__(self, x: Tensor) -> Tensor:
        c = x if self.kind == "rms" else x - x.mean(-1, keepdim=True)
        return c / (c.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


class PlainBlock:
    """One layer over the weights of the slow reference."""

    def __init__(self, w: dict[str, Any], act: Any, rms: bool, parallel: bool) -> None:
        self.w, self.act, self.parallel, self.gated, self.w_gate = w, act, parallel, False, None
        for name in ("pre_attn", "post_attn", "pre_mlp", "post_mlp"):
            part = w[name]
            setattr(self, name, None if part is None else PlainNorm(*part, rms))
        self.n_heads, self.n_kv_heads, self.d_head = len(w["W_O"]), len(w["W_V"]), E

    def qkv(self, x: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        read = x if self.pre_attn is None else self.pre_attn(x)
        return tuple(
            torch.einsum("nd,hde->nhe", read, self.w[f"W_{k}"]) + self.w[f"b_{k}"] for k in "QKV"
        )

    def pattern(self, q: Tensor, k: Tensor, places: Tensor) -> Tensor:
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, 2)
        scores = torch.einsum("rthe,rshe->rhts", q, k) / E**0.5
        ahead = torch.arange(k.shape[1])[None] > places[:, None]
        return scores.masked_fill(ahead, -torch.inf).softmax(-1)

    def mix(self, pattern: Tensor, v: Tensor) -> Tensor:
        v = v.repeat_interleave(self.n_heads // self.n_kv_heads, 2)
        return torch.einsum("rhts,rshe->rthe", pattern, v)

    def attn_sum(self, z: Tensor) -> Tensor:
        return torch.einsum("nhe,hed->nd", z, self.w["W_O"]) + self.w["b_O"]

    def add_attn(self, x: Tensor) -> Tensor:
        return x if self.post_attn is None else self.post_attn(x)

    def w_in(self, h: Tensor) -> Tensor:
        return h @ self.w["W_in"] + self.w["b_in"]

    def neurons(self, x: Tensor) -> Tensor:
        return self.act(self.w_in(x if self.pre_mlp is None else self.pre_mlp(x)))

    def mlp_sum(self, neurons: Tensor) -> Tensor:
        return neurons @ self.w["W_out"] + self.w["b_out"]

    def add_mlp(self, x: Tensor) -> Tensor:
        return x if self.post_mlp is None else self.post_mlp(x)


class Input:
    """W_in with its weight, as a projection is asked for its dtype."""

    def __init__(self, block: PlainBlock) -> None:
        self.block, self.weight = block, block.w["W_in"]

    def __call__(self, h: Tensor) -> Tensor:
        return h @ self.block.w["W_in"] + self.block.w["b_in"]


ACTS: dict[str, Any] = {"linear": lambda x: x, "relu": torch.relu, "gelu": F.gelu}


def weights(
    layers: int = 3, heads: int = 4, kv: int = 2, *, post: bool = False, pre: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Hard random weights: gains, biases and patterns all matter."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(*shape, generator=g, dtype=torch.float64)

    def norm(there: bool) -> Any:
        return (1 + normal(D, std=0.4), normal(D, std=0.3)) if there else None

    return [
        {
            "W_Q": normal(heads, D, E, std=0.6), "W_K": normal(kv, D, E, std=0.6),
            "W_V": normal(kv, D, E, std=0.4), "W_O": normal(heads, E, D, std=0.4),
            "b_Q": normal(heads, E, std=0.3), "b_K": normal(kv, E, std=0.3),
            "b_V": normal(kv, E, std=0.3), "b_O": normal(D, std=0.3),
            "W_in": normal(D, F_, std=0.3), "b_in": normal(F_, std=0.3),
            "W_out": normal(F_, D, std=0.3), "b_out": normal(D, std=0.3),
            "pre_attn": norm(pre), "post_attn": norm(post), "pre_mlp": norm(pre),
            "post_mlp": norm(post),
        }
        for _ in range(layers)
    ]  # fmt: skip


def plain(
    layers: list[dict[str, Any]], *, act: str = "gelu", rms: bool = False, parallel: bool = False,
    seed: int = 1,
) -> Any:  # fmt: skip
    """What Maps asks of a model, over these weights; ``.final`` and ``.embedding`` beside."""
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(V, D, generator=g, dtype=torch.float64)
    unembed = torch.randn(D, V, generator=g, dtype=torch.float64)
    final = (
        1 + 0.4 * torch.randn(D, generator=g, dtype=torch.float64),
        0.3 * torch.randn(D, generator=g, dtype=torch.float64),
    )
    blocks = [PlainBlock(w, ACTS[act], rms, parallel) for w in layers]
    for block in blocks:
        block.w_in = Input(block)  # type: ignore[method-assign]
    model = SimpleNamespace(
        blocks=SimpleNamespace(
            layers=blocks, dtype=torch.float64, device=torch.device("cpu"), w_embed=table,
            final_norm=PlainNorm(*final, rms), cap=None,
            embed=lambda tokens, position: table[tokens],
        ),
        weights=SimpleNamespace(
            layer=lambda n: SimpleNamespace(**layers[n]), W_U=unembed, b_U=None
        ),
        shape=ModelShape(
            len(layers), blocks[0].n_heads, blocks[0].n_kv_heads, D, E, F_, V, None, parallel
        ),
        final=final, table=table, act=ACTS[act], rms=rms, parallel=parallel, layers=layers,
        weight_hash="plain", tokenizer=None, id="plain",
    )  # fmt: skip
    return model


def twin_of(model: Any) -> dict[str, Any]:
    """Arguments of the slow reference for the same model."""
    return {
        "layers": model.layers, "final": model.final, "rms": model.rms,
        "parallel": model.parallel, "act": model.act,
    }  # fmt: skip


def tokens(rows: int = 2, length: int = 4, seed: int = 3) -> np.ndarray:
    """Token ids ``[row, position]``."""
    return np.random.default_rng(seed).integers(0, V, (rows, length))
