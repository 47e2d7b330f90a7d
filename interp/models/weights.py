"""Weights: per-head and per-neuron views in TransformerLens's names and orientation.

A layer's tensors (``layer(3).W_Q``) are views of the module's own parameters wherever the layout
permits, so a change of a parameter is seen and gradients flow. The stacked forms (``W_Q``
``[layer, head, d_model, d_head]``) are made when asked for. Key/value heads are never padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp.models.blocks import LayerBlock, ModelBlocks, Projection
from interp.models.kernels import Norm


def _gain(norm: Norm | None) -> Tensor | None:
    return None if norm is None else norm.gain()


def _shift(norm: Norm | None) -> Tensor | None:
    return None if norm is None else norm.bias


def _forward(projection: Projection) -> Tensor:
    """The weight as ``[in, out]``, a view."""
    return projection.weight if projection.conv1d else projection.weight.T


class LayerWeights:
    """One layer: ``W_Q [head, d_model, d_head]``, ``W_in [d_model, neuron]``.

    Biases and norms that the architecture lacks are None. ``ln1_w`` and its like are the gains
    the normalised vector is multiplied by (Gemma's ``1 + w`` is made when asked for).
    """

    def __init__(self, block: LayerBlock) -> None:
        self._block = block

    def _part(self, which: int) -> Projection:
        """The q (0), k (1) or v (2) projection, cut out of a fused one."""
        block = self._block
        if block.order == "separate":
            return (block.w_q, block.w_k, block.w_v)[which]
        width = block.n_heads * block.d_head
        if block.order == "thirds":
            return block.w_q.outputs(slice(which * width, (which + 1) * width))
        raise AssertionError("an interleaved projection is cut head by head")

    def _read(self, which: int) -> Tensor:
        block = self._block
        if block.order == "interleaved":
            weight = block.w_q.weight.view(block.n_heads, 3, block.d_head, -1)
            return weight[:, which].transpose(1, 2)
        return _forward(self._part(which)).unflatten(1, (-1, block.d_head)).transpose(0, 1)

    def _read_bias(self, which: int) -> Tensor | None:
        block = self._block
        if block.w_q.bias is None and block.order != "separate":
            return None
        if block.order == "interleaved":
            return block.w_q.bias.view(block.n_heads, 3, block.d_head)[:, which]  # type: ignore[union-attr]
        bias = self._part(which).bias
        return None if bias is None else bias.view(-1, block.d_head)

    @property
    def W_Q(self) -> Tensor:
        """``[head, d_model, d_head]``."""
        return self._read(0)

    @property
    def W_K(self) -> Tensor:
        """``[kv_head, d_model, d_head]``."""
        return self._read(1)

    @property
    def W_V(self) -> Tensor:
        """``[kv_head, d_model, d_head]``."""
        return self._read(2)

    @property
    def W_O(self) -> Tensor:
        """``[head, d_head, d_model]``."""
        return _forward(self._block.w_o).unflatten(0, (-1, self._block.d_head))

    @property
    def b_Q(self) -> Tensor | None:
        """``[head, d_head]``."""
        return self._read_bias(0)

    @property
    def b_K(self) -> Tensor | None:
        """``[kv_head, d_head]``."""
        return self._read_bias(1)

    @property
    def b_V(self) -> Tensor | None:
        """``[kv_head, d_head]``."""
        return self._read_bias(2)

    @property
    def b_O(self) -> Tensor | None:
        """``[d_model]``."""
        return self._block.w_o.bias

    @property
    def W_in(self) -> Tensor:
        """``[d_model, neuron]`` (the ``up`` projection of a gated MLP)."""
        return _forward(self._block.w_in)

    @property
    def b_in(self) -> Tensor | None:
        """``[neuron]``."""
        return self._block.w_in.bias

    @property
    def W_gate(self) -> Tensor | None:
        """``[d_model, neuron]``, None without a gate."""
        return None if self._block.w_gate is None else _forward(self._block.w_gate)

    @property
    def b_gate(self) -> Tensor | None:
        """``[neuron]``."""
        return None if self._block.w_gate is None else self._block.w_gate.bias

    @property
    def W_out(self) -> Tensor:
        """``[neuron, d_model]``."""
        return _forward(self._block.w_out)

    @property
    def b_out(self) -> Tensor | None:
        """``[d_model]``."""
        return self._block.w_out.bias

    def __getattr__(self, name: str) -> Tensor | None:
        norms = {
            "ln1": "pre_attn",
            "ln1_post": "post_attn",
            "ln2": "pre_mlp",
            "ln2_post": "post_mlp",
            "q_norm": "q_norm",
            "k_norm": "k_norm",
        }
        place, _, letter = name.rpartition("_")
        if place in norms and letter in ("w", "b"):
            norm = getattr(self._block, norms[place])
            return _gain(norm) if letter == "w" else _shift(norm)
        raise AttributeError(f"a layer has no weight {name!r}")


LAYER_NAMES = (
    "W_Q",
    "W_K",
    "W_V",
    "W_O",
    "b_Q",
    "b_K",
    "b_V",
    "b_O",
    "W_in",
    "W_gate",
    "W_out",
    "b_in",
    "b_gate",
    "b_out",
    "ln1_w",
    "ln1_b",
    "ln1_post_w",
    "ln1_post_b",
    "ln2_w",
    "ln2_b",
    "ln2_post_w",
    "ln2_post_b",
    "q_norm_w",
    "k_norm_w",
)
"""What a layer may have; stacked over layers under the same name by ``ModelWeights``."""


class ModelWeights:
    """The whole model's weights (``terms.Weights``), by reference to its parameters.

    ``W_E [vocab, d_model]``, ``W_pos [position, d_model]`` or None, ``W_U [d_model, vocab]``,
    ``b_U``, ``ln_final_w``, ``ln_final_b``, ``embed_scale`` (what token embeddings are multiplied
    by), ``layer(l)``, and every name of ``LAYER_NAMES`` stacked over layers (None where the
    architecture has no such weight).

    Args:
        module: an untouched Hugging Face module of a known family.
    """

    def __init__(self, module: nn.Module) -> None:
        self._blocks = ModelBlocks(module)
        self._layers = tuple(LayerWeights(block) for block in self._blocks.layers)

    def layer(self, layer: int) -> LayerWeights:
        """One layer's views."""
        return self._layers[layer]

    @property
    def W_E(self) -> Tensor:
        """Token embedding ``[vocab, d_model]`` as stored, before any scale."""
        return self._blocks.w_embed

    @property
    def embed_scale(self) -> float:
        """What token embeddings are multiplied by."""
        scale = self._blocks.embed_scale
        return 1.0 if scale is None else float(scale.to(self._blocks.dtype))

    @property
    def W_pos(self) -> Tensor | None:
        """Position embedding ``[position, d_model]``, None with rotary positions."""
        return self._blocks.w_position

    @property
    def W_U(self) -> Tensor:
        """Unembedding ``[d_model, vocab]``."""
        return self._blocks.w_unembed.weight.T

    @property
    def b_U(self) -> Tensor | None:
        """Bias of the logits ``[vocab]``, or None."""
        return self._blocks.w_unembed.bias

    @property
    def ln_final_w(self) -> Tensor | None:
        """Gain of the final norm ``[d_model]``."""
        return _gain(self._blocks.final_norm)

    @property
    def final_centres(self) -> bool:
        """Whether the final norm subtracts the mean (LayerNorm) before it divides."""
        norm = self._blocks.final_norm
        return norm is not None and norm.kind == "layer"

    @property
    def ln_final_b(self) -> Tensor | None:
        """Shift of the final norm ``[d_model]``, or None."""
        return _shift(self._blocks.final_norm)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in LAYER_NAMES:
            raise AttributeError(f"the model has no weights {name!r}")
        parts = [getattr(layer, name) for layer in self._layers]
        if not parts or parts[0] is None:
            return None
        return parts[0][None] if len(parts) == 1 else torch.stack(parts)
