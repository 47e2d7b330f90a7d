"""A Hugging Face transformer of a known family: what the transformer back-ends share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.models.adapter import Adapter, first_tensor
from interp.models.attention import CHILD
from interp.models.blocks import ModelBlocks
from interp.models.capabilities import transformer_capabilities
from interp.models.families import shape_of
from interp.models.layouts import Divisor, Layout
from interp.models.taps import Tap
from interp.models.weights import ModelWeights
from interp.terms import Capability, Site, unknown_name

if TYPE_CHECKING:
    from interp.models.loading import Loaded

SCALES = {
    "ln1_scale": "pre_attn",
    "ln1_post_scale": "post_attn",
    "ln2_scale": "pre_mlp",
    "ln2_post_scale": "post_mlp",
    "q_norm_scale": "q_norm",
    "k_norm_scale": "k_norm",
}
"""Norm-scale kind -> the family's field with the norm's path."""


class TransformerModel(Adapter):
    """A Hugging Face transformer of a known family; what the transformer back-ends share."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.id, self.weight_hash = loaded.id, loaded.weight_hash
        self.tokenizer, self.family = loaded.tokenizer, loaded.family
        self.config = loaded.config
        self.shape = shape_of(loaded.module)
        self._module = loaded.module
        self._blocks = ModelBlocks(loaded.module)
        self._weights = ModelWeights(loaded.module)
        self._abilities = transformer_capabilities(self.family, self.config, self.backend)

    def module(self) -> nn.Module:
        """The Hugging Face module."""
        return self._module

    def capabilities(self) -> tuple[Capability, ...]:
        """Every site kind and feature, each 'no' with its reason."""
        return self._abilities

    def _stops(self) -> tuple[int, ...]:
        if self.tokenizer is None:
            return ()
        end = getattr(self.loaded.hf_tokenizer, "eos_token_id", None)
        return () if end is None else (int(end),)

    def _heads_of(self, kind: str) -> int:
        return self.shape.n_kv_heads if kind in ("k", "v", "k_norm_scale") else self.shape.n_heads

    def _layer(self, number: int | None) -> nn.Module:
        """A layer of the Hugging Face module."""
        return self._module.get_submodule(self.family.layers)[number]  # type: ignore[index]

    def _part(self, layer: int | None, path: str) -> nn.Module:
        """A part of a layer by the family's path, wrapped or not."""
        return self._layer(layer).get_submodule(path)

    def divisor_of(self, kind: str, norm: nn.Module) -> Divisor:
        """How the divisor of one of the family's norms is computed."""
        per_head = kind in ("q_norm_scale", "k_norm_scale")
        return Divisor(
            centred=self.family.norm == "layer",
            eps=norm_eps(norm, self.config),
            heads=self._heads_of(kind) if per_head else 0,
            shared=per_head and self.family.qk_norm_width == "all",
        )

    def _tap(self, site: Site) -> Tap:
        """On the Hugging Face module as it is; a wrapper that rearranges it says otherwise."""
        kind, family = site.kind, self.family
        if kind == "module":
            parts = dict(self._module.named_modules())
            if site.path not in parts:
                raise unknown_name("part of the module", str(site.path), parts)
            return Tap(parts[site.path])
        if kind == "ln_final_scale":
            norm = self._module.get_submodule(family.final_norm)
            return Tap(norm, divisor=self.divisor_of(kind, norm))
        if kind in SCALES:
            norm = self._part(site.layer, getattr(family, SCALES[kind]))
            return Tap(norm, divisor=self.divisor_of(kind, norm), order=-1)
        if kind == "pattern":
            path = (
                "attn.attention.attn_dropout"
                if family.name == "gpt_neo"
                else (f"{family.attention}.{CHILD}")
            )
            return Tap(self._part(site.layer, path), layout=Layout("heads_first"))
        place = family.place(kind)
        assert place is not None, f"{family.name} has {kind} among its capabilities"
        layout = Layout("heads", self._heads_of(kind)) if place.axes else Layout()
        if place.part:
            layout = Layout(
                "thirds" if family.qkv == "thirds" else "interleaved",  # type: ignore[arg-type]
                self._heads_of(kind),
                "qkv".index(place.part),
            )
        module = (
            self._module.get_submodule(place.path)
            if place.absolute
            else self._part(site.layer, place.path)
        )
        return Tap(module, place.side, layout, in_place=kind == "resid_mid")

    def head(self, hidden: Tensor, vocab: Tensor | None) -> Tensor:
        """Logits of normed hidden states, at the columns asked for (the soft cap applied)."""
        unembed = self._module.get_submodule(self.family.unembed)
        if vocab is None:
            logits = unembed(hidden)
        else:
            bias = getattr(unembed, "bias", None)
            logits = F.linear(
                hidden,
                unembed.weight[vocab],  # type: ignore[index]
                None if bias is None else bias[vocab],  # type: ignore[index]
            )
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _call(self, inputs: Tensor, positions: Tensor | None, vocab: Tensor | None) -> Tensor:
        if positions is None and vocab is None:
            return first_tensor(self._module(input_ids=inputs, use_cache=False))
        base: Any = self._module.base_model
        hidden = base(input_ids=inputs, use_cache=False).last_hidden_state
        if positions is not None:
            hidden = hidden[:, positions]
        return self.head(hidden, vocab)


def norm_eps(norm: nn.Module, config: Any) -> float:
    """The number a norm adds to the mean square."""
    for owner, name in (
        (norm, "eps"),
        (norm, "variance_epsilon"),
        (config, "rms_norm_eps"),
        (config, "layer_norm_epsilon"),
        (config, "layer_norm_eps"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, float):
            return value
    raise AssertionError(f"{type(norm).__name__} has no eps")
