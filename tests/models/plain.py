"""Networks written by hand, as a person has them: for the tests of the torch_module back-end.

``Tiny`` is a transformer without norms; ``induction`` and ``clock_pizza`` fill it with published
weights; ``picture_net`` is a network of images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

SITES: dict[str, Any] = {
    "embed": "embed",
    "resid_pre": "blocks.{layer}:input",
    "resid_post": "blocks.{layer}",
    "q": {"path": "blocks.{layer}.attn.q", "axes": "batch position (head d_head)"},
    "k": {"path": "blocks.{layer}.attn.k", "axes": "batch position (head d_head)"},
    "v": {"path": "blocks.{layer}.attn.v", "axes": "batch position (head d_head)"},
    "pattern": {"path": "blocks.{layer}.attn.pattern", "axes": "batch head query key"},
    "z": {"path": "blocks.{layer}.attn.o:input", "axes": "batch position (head d_head)"},
    "attn_out": "blocks.{layer}.attn",
}
"""Site map of ``Tiny`` without MLPs (n_heads is to be added)."""

MLP_SITES: dict[str, Any] = {
    "resid_mid": "blocks.{layer}.mlp:input",
    "mlp_post": "blocks.{layer}.mlp.out:input",
    "mlp_out": "blocks.{layer}.mlp",
}
"""What an MLP adds to it."""


class Attention(nn.Module):
    """Heads without a norm; ``mix``·softmax + (1 − mix)·1 as the pattern."""

    def __init__(self, d_model: int, heads: int, d_head: int, causal: bool, mix: float) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(d_model, heads * d_head) for _ in range(3))
        self.o = nn.Linear(heads * d_head, d_model)
        self.pattern = nn.Identity()
        self.heads, self.d_head, self.causal, self.mix = heads, d_head, causal, mix

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, position, d_model]`` -> the same shape."""
        q, k, v = (
            f(x).unflatten(-1, (self.heads, self.d_head)).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(2, 3) / self.d_head**0.5
        if self.causal:
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        pattern = self.pattern(self.mix * scores.softmax(-1) + (1 - self.mix))
        return self.o((pattern @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """ReLU in the middle."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.inn, self.out = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, position, d_model]`` -> the same shape."""
        return self.out(torch.relu(self.inn(x)))


class Block(nn.Module):
    """x + attention, then + MLP where there is one."""

    def __init__(self, attn: Attention, mlp: Mlp | None) -> None:
        super().__init__()
        self.attn, self.mlp = attn, mlp

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, position, d_model]`` -> the same shape."""
        x = x + self.attn(x)
        return x if self.mlp is None else x + self.mlp(x)


class Tiny(nn.Module):
    """Token and position embedding, blocks, unembedding; no norm anywhere."""

    def __init__(
        self,
        *,
        vocab: int,
        length: int,
        layers: int,
        d_model: int,
        heads: int,
        d_head: int,
        d_mlp: int = 0,
        causal: bool = True,
        mix: float = 1.0,
    ) -> None:
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(vocab, d_model), nn.Embedding(length, d_model)
        self.blocks = nn.ModuleList(
            Block(
                Attention(d_model, heads, d_head, causal, mix),
                Mlp(d_model, d_mlp) if d_mlp else None,
            )
            for _ in range(layers)
        )
        self.unembed = nn.Linear(d_model, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids ``[batch, position]`` -> logits ``[batch, position, vocab]``."""
        x = self.embed(tokens) + self.pos_embed(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


def _fill(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """``weight`` is ``[out, in]``."""
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_() if bias is None else linear.bias.copy_(bias)


def induction(folder: Path) -> Tiny:
    """The two-layer attention-only induction model (weights ``[head, d_model, d_head]``)."""
    w = load_file(folder / "model.safetensors")
    net = Tiny(vocab=26, length=8, layers=2, d_model=64, heads=1, d_head=64)
    with torch.no_grad():
        net.embed.weight.copy_(w["embed.W_E"])
        net.pos_embed.weight.copy_(w["pos_embed.W_pos"])
    for i, block in enumerate(net.blocks):
        for name in "qkv":
            at = f"blocks.{i}.attn."
            _fill(
                getattr(block.attn, name),
                w[f"{at}W_{name.upper()}"][0].T,
                w[f"{at}b_{name.upper()}"][0],
            )
        _fill(block.attn.o, w[f"{at}W_O"][0].T, w[f"{at}b_O"])
    _fill(net.unembed, w["unembed.W_U"].T, w["unembed.b_U"])
    return net.eval()


def clock_pizza(folder: Path, run: str) -> Tiny:
    """One of the two mod-59 addition models (``W_E`` is d × vocab, heads ``[head, d_head, d]``)."""
    w = torch.load(folder / f"model_{run}.pt", weights_only=True, map_location="cpu")
    config = json.loads((folder / f"config_{run}.json").read_text())
    net = Tiny(
        vocab=59,
        length=2,
        layers=1,
        d_model=128,
        heads=4,
        d_head=32,
        d_mlp=512,
        causal=False,
        mix=float(config["attn_coeff"]),
    )
    attn, mlp = net.blocks[0].attn, net.blocks[0].mlp
    with torch.no_grad():
        net.embed.weight.copy_(w["embed.W_E"].T)
        net.pos_embed.weight.copy_(w["pos_embed.W_pos"])
    for name in "qkv":
        _fill(getattr(attn, name), w[f"blocks.0.attn.W_{name.upper()}"].flatten(0, 1), None)
    _fill(attn.o, w["blocks.0.attn.W_O"], None)
    _fill(mlp.inn, w["blocks.0.mlp.W_in"], w["blocks.0.mlp.b_in"])
    _fill(mlp.out, w["blocks.0.mlp.W_out"], w["blocks.0.mlp.b_out"])
    _fill(net.unembed, w["unembed.W_U"].T, None)
    return net.eval()


def picture_net() -> nn.Sequential:
    """A small network of 8 × 8 pictures with three channels, five classes."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )
