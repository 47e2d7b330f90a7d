"""The Llama architecture as a plain module to train: RMSNorm, rotary, grouped queries, SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.training.gpt2 import dropped, pattern_of

THETA = 10_000.0
EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Args:
        vocab: words.
        context: longest prompt.
        layers: blocks.
        heads: query heads a block.
        kv_heads: key/value heads a block.
        width: residual stream.
        neurons: gated neurons a block.
        drop: in training, the share of heads left out, drawn for each prompt.
    """

    vocab: int
    context: int = 64
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    width: int = 128
    neurons: int = 320
    drop: float = 0.0

    def config(self) -> dict[str, Any]:
        """The checkpoint's ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "hidden_size": self.width,
            "intermediate_size": self.neurons,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.width // self.heads,
            "hidden_act": "silu",
            "rms_norm_eps": EPS,
            "initializer_range": 0.02,
            "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "dtype": "float32",
        }


def rotations(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[position, d_head]`` of the rotary embedding, halves repeated."""
    rates = THETA ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotated(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Each pair (i, i + d_head/2) turned by its position's angle."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE


class Block(nn.Module):
    """One layer: grouped-query attention and a gated MLP, each on a normed copy."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, head = shape.width, shape.width // shape.heads
        self.ln_1 = nn.RMSNorm(width, eps=EPS)
        self.ln_2 = nn.RMSNorm(width, eps=EPS)
        self.q = nn.Linear(width, shape.heads * head, bias=False)
        self.k = nn.Linear(width, shape.kv_heads * head, bias=False)
        self.v = nn.Linear(width, shape.kv_heads * head, bias=False)
        self.out = nn.Linear(shape.heads * head, width, bias=False)
        self.gate = nn.Linear(width, shape.neurons, bias=False)
        self.up = nn.Linear(width, shape.neurons, bias=False)
        self.down = nn.Linear(shape.neurons, width, bias=False)

    def heads_of(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[batch, head, position, d_head]``, groups repeated."""
        batch, length, _ = x_BTD.shape
        normed = self.ln_1(x_BTD)
        q, k, v = (
            m(normed).view(batch, length, -1, self.shape.width // self.shape.heads).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        cos, sin = rotations(length, q.shape[-1])
        group = self.shape.heads // self.shape.kv_heads
        k, v = rotated(k, cos, sin).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return rotated(q, cos, sin), k, v

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The residual stream after this layer, ``[batch, position, d_model]``."""
        batch, length, _ = x_BTD.shape
        q, k, v = self.heads_of(x_BTD)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.training and self.shape.drop:
            z = dropped(z, self.shape.drop)
        x_BTD = x_BTD + self.out(z.transpose(1, 2).reshape(batch, length, -1))
        normed = self.ln_2(x_BTD)
        return x_BTD + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    """A decoder with rotary positions and a tied unembedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.RMSNorm(shape.width, eps=EPS)
        for name, parameter in self.named_parameters():
            if "ln_" not in name:
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
        x = self.embed(tokens_BT)
        for block in self.blocks:
            x = block(x)
        if keep is not None:
            x = x[keep]
        return F.linear(self.ln_f(x), self.embed.weight)

    def patterns(self, tokens_BT: Tensor) -> list[Tensor]:
        """Attention of every layer, ``[batch, head, query, key]``."""
        found = []
        with torch.no_grad():
            x = self.embed(tokens_BT)
            blocks: Any = self.blocks
            for block in blocks:
                q, k, _ = block.heads_of(x)
                found.append(pattern_of(q, k))
                x = block(x)
        return found

    def checkpoint(self) -> dict[str, Tensor]:
        """Weights under the names of a Hugging Face Llama checkpoint."""
        return {name: tensor.detach().float().contiguous() for name, tensor in self._named()}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield "model.embed_tokens.weight", self.embed.weight
        for i, block in enumerate(self.blocks):
            for ours, theirs in (
                ("ln_1", "input_layernorm"),
                ("q", "self_attn.q_proj"),
                ("k", "self_attn.k_proj"),
                ("v", "self_attn.v_proj"),
                ("out", "self_attn.o_proj"),
                ("ln_2", "post_attention_layernorm"),
                ("gate", "mlp.gate_proj"),
                ("up", "mlp.up_proj"),
                ("down", "mlp.down_proj"),
            ):
                yield f"model.layers.{i}.{theirs}.weight", getattr(block, ours).weight
        yield "model.norm.weight", self.ln_f.weight
