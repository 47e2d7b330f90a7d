"""A network without norms, written by hand, in the pieces that the engine drives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from interp.terms import ModelShape
from tests.models.plain import Tiny


class TinyBlock:
    """One layer of ``Tiny``; without an MLP it adds zero."""

    gated = False

    def __init__(self, block: Any, parallel: bool) -> None:
        self.attn, self.mlp, self.parallel = block.attn, block.mlp, parallel
        self.n_heads = self.n_kv_heads = block.attn.heads
        self.d_head = block.attn.d_head
        self.d_mlp = 1 if block.mlp is None else block.mlp.inn.out_features

    def project(self, resid_ND: Tensor) -> tuple[Tensor, ...]:
        heads = (self.n_heads, self.d_head)
        return tuple(
            f(resid_ND).unflatten(-1, heads) for f in (self.attn.q, self.attn.k, self.attn.v)
        )

    def turned(self, q: Tensor, k: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def qkv(self, resid_ND: Tensor, position_N: Tensor) -> tuple[Tensor, ...]:
        return self.project(resid_ND)

    def kv(self, resid_ND: Tensor, position_N: Tensor) -> tuple[Tensor, ...]:
        return self.project(resid_ND)[1:]

    def queries(self, resid_ND: Tensor, position_N: Tensor) -> Tensor:
        return self.project(resid_ND)[0]

    def pattern(self, q_RTHE: Tensor, k_RSKE: Tensor, position_T: Tensor) -> Tensor:
        scores = torch.einsum("rthe,rshe->rhts", q_RTHE, k_RSKE) / self.d_head**0.5
        where = position_T if position_T.ndim == 2 else position_T[None]
        ahead = torch.arange(k_RSKE.shape[1])[None, None] > where[:, :, None]
        return scores.masked_fill(ahead[:, None], -torch.inf).softmax(-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, position_T: Tensor) -> Tensor:
        return torch.einsum("rhts,rshe->rthe", self.pattern(q, k, position_T), v)

    def attn_sum(self, z_NHE: Tensor) -> Tensor:
        return self.attn.o(z_NHE.flatten(1))

    def head_write(self, z_NE: Tensor, head: int) -> Tensor:
        part = slice(head * self.d_head, (head + 1) * self.d_head)
        return z_NE @ self.attn.o.weight[:, part].T

    def add_attn(self, sum_ND: Tensor) -> Tensor:
        return sum_ND

    def neurons(self, resid_ND: Tensor) -> Tensor:
        if self.mlp is None:
            return resid_ND.new_zeros(len(resid_ND), 1)
        return torch.relu(self.mlp.inn(resid_ND))

    def mlp_sum(self, neurons_NF: Tensor) -> Tensor:
        if self.mlp is None:
            return neurons_NF.new_zeros(len(neurons_NF), self.attn.o.out_features)
        return self.mlp.out(neurons_NF)

    def add_mlp(self, sum_ND: Tensor) -> Tensor:
        return sum_ND


class TinyBlocks:
    """``Tiny`` as the engine drives it."""

    def __init__(self, net: Tiny, parallel: bool) -> None:
        self.net = net
        self.layers = [TinyBlock(b, parallel) for b in net.blocks]
        self.device = net.embed.weight.device
        self.dtype = net.embed.weight.dtype

    def token_embed(self, tokens_N: Tensor) -> Tensor:
        return self.net.embed(tokens_N)

    def embed(self, tokens_N: Tensor, position_N: Tensor) -> Tensor:
        return self.net.embed(tokens_N) + self.net.pos_embed(position_N)

    def unembed(self, resid_ND: Tensor, vocab: Tensor | None = None) -> Tensor:
        logits = self.net.unembed(resid_ND)
        return logits if vocab is None else logits[:, vocab]


def tiny_model(net: Tiny, *, parallel: bool = False) -> Any:
    """What a sweep needs of a model."""
    attn, mlp = net.blocks[0].attn, net.blocks[0].mlp
    shape = ModelShape(
        n_layers=len(net.blocks),
        n_heads=attn.heads,
        n_kv_heads=attn.heads,
        d_model=net.embed.embedding_dim,
        d_head=attn.d_head,
        d_mlp=1 if mlp is None else mlp.inn.out_features,
        vocab=net.unembed.out_features,
        n_ctx=None,
        parallel=parallel,
    )
    blocks = TinyBlocks(net, parallel)
    return SimpleNamespace(blocks=blocks, shape=shape, id="tiny", sites=(), dtype=blocks.dtype)


def empty(**sizes: Any) -> Tiny:
    """A float64 ``Tiny`` with every weight zero."""
    net = Tiny(**sizes).double().eval()
    for weight in net.parameters():
        weight.requires_grad_(False).zero_()
    return net
