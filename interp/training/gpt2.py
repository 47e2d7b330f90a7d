"""The GPT-2 architecture as a plain module to train, and its weights under Hugging Face's names.

The forward pass is written with fused kernels and unembeds only the positions asked for, which
makes training on two cores minutes instead of a quarter of an hour; the shipped checkpoint is an
ordinary one, and its logits under transformers equal this module's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Args:
        vocab: words.
        context: longest prompt.
        layers: blocks.
        heads: heads a block.
        width: residual stream.
        drop: in training, the share of heads whose output is left out, drawn for each prompt.
            It spreads a task over heads, as larger models do, and leaves no trace in the
            checkpoint.
    """

    vocab: int
    context: int = 64
    layers: int = 4
    heads: int = 4
    width: int = 128
    drop: float = 0.0

    def config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab,
            "n_positions": self.context,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "use_cache": True,
            "scale_attn_weights": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "dtype": "float32",
        }


def dropped(z_BHTE: Tensor, drop: float) -> Tensor:
    """Head outputs without a share ``drop`` of each prompt's heads, the others scaled up."""
    kept = torch.rand(z_BHTE.shape[0], z_BHTE.shape[1], 1, 1) >= drop
    return z_BHTE * (kept.float() / (1 - drop))


def pattern_of(q_BHTE: Tensor, k_BHSE: Tensor) -> Tensor:
    """Causal attention ``[batch, head, query, key]``."""
    score = q_BHTE @ k_BHSE.transpose(-1, -2) / q_BHTE.shape[-1] ** 0.5
    ahead = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
    return score.masked_fill(ahead, float("-inf")).softmax(-1)


class Block(nn.Module):
    """One layer: attention and MLP, each on a normed copy of the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.drop = shape.heads, shape.drop
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def heads_of(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[batch, head, position, d_head]``."""
        batch, length, width = x_BTD.shape
        parts = self.qkv(self.ln_1(x_BTD)).split(width, dim=-1)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in parts)
        return q, k, v

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The residual stream after this layer, ``[batch, position, d_model]``."""
        batch, length, width = x_BTD.shape
        q, k, v = self.heads_of(x_BTD)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.training and self.drop:
            z = dropped(z, self.drop)
        x_BTD = x_BTD + self.out(z.transpose(1, 2).reshape(batch, length, width))
        hidden = F.gelu(self.up(self.ln_2(x_BTD)), approximate="tanh")
        return x_BTD + self.down(hidden)


class GPT2(nn.Module):
    """A decoder with learned positions and a tied unembedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "ln_" not in name:
                deep = name.endswith(("out.weight", "down.weight"))
                scale = (2 * shape.layers) ** -0.5 if deep else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    @property
    def projections(self) -> list[nn.Module]:
        """Each layer's output projection, whose input is the heads' outputs."""
        blocks: Any = self.blocks
        return [block.out for block in blocks]

    def forward(self, tokens_BT: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits, at every position or only where the mask ``keep`` ``[batch, position]`` is set.

        Returns:
            ``[batch, position, vocab]``, or ``[kept, vocab]``.
        """
        x = self.wte(tokens_BT) + self.wpe.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        if keep is not None:
            x = x[keep]
        return F.linear(self.ln_f(x), self.wte.weight)

    def patterns(self, tokens_BT: Tensor) -> list[Tensor]:
        """Attention of every layer, ``[batch, head, query, key]``."""
        found = []
        with torch.no_grad():
            x = self.wte(tokens_BT) + self.wpe.weight[: tokens_BT.shape[1]]
            blocks: Any = self.blocks
            for block in blocks:
                q, k, _ = block.heads_of(x)
                found.append(pattern_of(q, k))
                x = block(x)
        return found

    def checkpoint(self) -> dict[str, Tensor]:
        """Weights under the names and orientation of a Hugging Face GPT-2 checkpoint."""
        return {name: tensor.detach().float().contiguous() for name, tensor in self._named()}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield "transformer.wte.weight", self.wte.weight
        yield "transformer.wpe.weight", self.wpe.weight
        for i, block in enumerate(self.blocks):
            for ours, theirs in (
                ("ln_1", "ln_1"),
                ("ln_2", "ln_2"),
                ("qkv", "attn.c_attn"),
                ("out", "attn.c_proj"),
                ("up", "mlp.c_fc"),
                ("down", "mlp.c_proj"),
            ):
                module = getattr(block, ours)
                weight = module.weight if "ln" in ours else module.weight.T
                yield f"transformer.h.{i}.{theirs}.weight", weight
                yield f"transformer.h.{i}.{theirs}.bias", module.bias
        yield "transformer.ln_f.weight", self.ln_f.weight
        yield "transformer.ln_f.bias", self.ln_f.bias
