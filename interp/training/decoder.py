"""The GPT-2 of ``gpt2.py`` with MLPs of any width, or none, and attention over a mask of one's own.

An attention-only checkpoint is an ordinary one whose MLPs read nothing: their input weights are 0,
so that they add 0, and their output weights pass on whatever is put there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.training.gpt2 import GPT2, Block, Shape

SILENT = 4
"""Neurons that an attention-only checkpoint shows."""


class Layer(Block):
    """One layer; without neurons its MLP is left out.

    Args:
        shape: sizes of the model.
        neurons: of the MLP; 0 for attention only.
    """

    def __init__(self, shape: Shape, neurons: int) -> None:
        super().__init__(shape)
        self.neurons, width = neurons, shape.width
        self.up, self.down = (
            nn.Linear(width, neurons or SILENT),
            nn.Linear(neurons or SILENT, width),
        )
        if not neurons:
            with torch.no_grad():
                self.up.weight.zero_()
                self.down.weight.copy_(torch.eye(width, SILENT))
            for part in (self.up, self.down, self.ln_2):
                part.requires_grad_(False)

    def forward(self, x_BTD: Tensor, mask_TT: Tensor | None = None) -> Tensor:
        """The residual stream after this layer, ``[batch, position, d_model]``.

        Args:
            x_BTD: before it.
            mask_TT: True where a query may look at a key; None for causal.
        """
        q, k, v = self.heads_of(x_BTD)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT, is_causal=mask_TT is None)
        x_BTD = x_BTD + self.out(z.transpose(1, 2).reshape(x_BTD.shape))
        if not self.neurons:
            return x_BTD
        hidden = F.gelu(self.up(self.ln_2(x_BTD)), approximate="tanh")
        return x_BTD + self.down(hidden)


class Decoder(GPT2):
    """A GPT-2 to train.

    Args:
        shape: sizes.
        neurons: of each MLP; None for 4 × width, 0 for attention only.
        embed: spread of the embeddings at the start.
        matrix: spread of the projections at the start, times 1/√width; those that write into the
            residual stream are smaller by 1/√(2 layers).
    """

    def __init__(
        self, shape: Shape, neurons: int | None = None, embed: float = 0.02, matrix: float = 1.0
    ) -> None:
        super().__init__(shape)
        self.neurons = 4 * shape.width if neurons is None else neurons
        self.blocks = nn.ModuleList(Layer(shape, self.neurons) for _ in range(shape.layers))
        for part in (self.wte, self.wpe):
            nn.init.normal_(part.weight, std=embed)
        for name, weight in self.blocks.named_parameters():
            if "ln_" in name or not weight.requires_grad:
                continue
            if name.endswith("bias"):
                nn.init.zeros_(weight)
                continue
            deep = name.endswith(("out.weight", "down.weight"))
            scale = (2 * shape.layers) ** -0.5 if deep else 1.0
            nn.init.normal_(weight, std=matrix * scale / weight.shape[1] ** 0.5)
        with torch.no_grad():
            for block in self.blocks:
                if not self.neurons:
                    block.up.bias.zero_(), block.down.bias.zero_()  # type: ignore[union-attr]

    def hidden(
        self, tokens_BT: Tensor, mask_TT: Tensor | None = None, place_T: Tensor | None = None
    ) -> Tensor:
        """The residual stream behind the last layer, ``[batch, position, d_model]``.

        Args:
            tokens_BT: token ids.
            mask_TT: see ``Layer.forward``.
            place_T: the position each token is told to have; None for 0, 1, 2, …
        """
        place = torch.arange(tokens_BT.shape[1]) if place_T is None else place_T
        x = self.wte(tokens_BT) + self.wpe.weight[place]
        for block in self.blocks:
            x = block(x, mask_TT)
        return x

    def unembed(self, x_BD: Tensor) -> Tensor:
        """Logits of residual streams ``[…, d_model]``."""
        return F.linear(self.ln_f(x_BD), self.wte.weight)

    def config(self, **more: Any) -> dict[str, Any]:
        """The checkpoint's ``config.json``; ``more`` replaces or adds fields."""
        return {**self.shape.config(), "n_inner": self.neurons or SILENT, **more}
