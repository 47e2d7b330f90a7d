"""Others: architectures that are no decoder of ours and can be read all the same, one row each.

Encoders, encoders with a decoder, mixtures of experts and state-space models have parts that no
site of ours names, and layers that the engine cannot drive. What they do have (a residual stream,
heads, neurons) is written down here as a site map, and ``backend="torch_module"`` reads and edits
it, a whole forward pass an edit. Everything else is refused with the row's reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["encoder", "encoder_decoder", "experts", "state_space"]

WHY: dict[str, str] = {
    "encoder": "is an encoder that predicts no next token",
    "encoder_decoder": "is an encoder with a decoder, of which the encoder's layers are read",
    "experts": "routes tokens to experts, which no site of ours holds",
    "state_space": "keeps a recurrent state where attention would stand",
}
"""Kind -> why it is no family of ours; continues a sentence that begins with its name."""

HEADS = "batch position (head d_head)"
KV_HEADS = "batch position (kv_head d_head)"


@dataclass(frozen=True)
class Other:
    """One architecture that is read by a site map.

    Args:
        architecture: the class named in ``config.json``'s ``architectures``.
        model_type: ``config.json``'s ``model_type``.
        kind: what sets it apart.
        sites: site kind -> where it stands (``site_map.py``), sizes left out.
        heads: config fields with the heads and key/value heads, if there are any.
        context: config field with the longest prompt, or empty.
    """

    architecture: str
    model_type: str
    kind: Kind
    sites: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[str, str] = ("num_attention_heads", "num_key_value_heads")
    context: str = "max_position_embeddings"

    @property
    def why(self) -> str:
        """Why it is no family of ours; continues a sentence that begins with its name."""
        return WHY[self.kind]

    def site_map(self, config: Any) -> dict[str, Any]:
        """The row as a site map, with the sizes of one configuration."""
        found = dict(self.sites)
        sizes: dict[str, str] = dict(zip(("n_heads", "n_kv_heads"), self.heads, strict=True))
        if self.context:
            sizes["n_ctx"] = self.context
        for name, key in sizes.items():
            if (value := getattr(config, key, None)) is not None:
                found[name] = int(value)
        return found


def _bert_like(layers: str, embed: str) -> dict[str, Any]:
    """Post-norm layers: what is added is normalised with the residual, so no sublayer adds."""
    at = f"{layers}.{{layer}}"
    heads = {
        k: {"path": f"{at}.attention.self.{name}", "axes": HEADS}
        for k, name in (("q", "query"), ("k", "key"), ("v", "value"))
    }
    return {
        "embed": embed,
        "resid_pre": f"{at}:input",
        **heads,
        "z": {"path": f"{at}.attention.output.dense:input", "axes": HEADS},
        "resid_mid": f"{at}.intermediate:input",
        "mlp_post": f"{at}.output.dense:input",
        "resid_post": at,
    }


def _experts() -> dict[str, Any]:
    at = "model.layers.{layer}"
    heads = {
        k: {"path": f"{at}.self_attn.{k}_proj", "axes": HEADS if k == "q" else KV_HEADS}
        for k in "qkv"
    }
    return {
        "embed": "model.embed_tokens",
        "resid_pre": f"{at}:input",
        **heads,
        "z": {"path": f"{at}.self_attn.o_proj:input", "axes": HEADS},
        "attn_out": f"{at}.self_attn",
        "resid_mid": f"{at}.post_attention_layernorm:input",
        "mlp_out": f"{at}.mlp",
        "resid_post": at,
    }


_STATE = {
    "embed": "backbone.embeddings",
    "resid_pre": "backbone.layers.{layer}:input",
    "resid_post": "backbone.layers.{layer}",
}

_DISTIL = "distilbert.transformer.layer.{layer}"

OTHERS: dict[str, Other] = {
    o.architecture: o
    for o in (
        Other(
            "BertForMaskedLM",
            "bert",
            "encoder",
            _bert_like("bert.encoder.layer", "bert.embeddings.word_embeddings"),
        ),
        Other(
            "BertModel",
            "bert",
            "encoder",
            _bert_like("encoder.layer", "embeddings.word_embeddings"),
        ),
        Other(
            "RobertaForMaskedLM",
            "roberta",
            "encoder",
            _bert_like("roberta.encoder.layer", "roberta.embeddings.word_embeddings"),
        ),
        Other(
            "DistilBertForMaskedLM",
            "distilbert",
            "encoder",
            {
                "embed": "distilbert.embeddings.word_embeddings",
                "resid_pre": f"{_DISTIL}:input",
                **{k: {"path": f"{_DISTIL}.attention.{k}_lin", "axes": HEADS} for k in "qkv"},
                "z": {"path": f"{_DISTIL}.attention.out_lin:input", "axes": HEADS},
                "mlp_post": f"{_DISTIL}.ffn.lin2:input",
                "resid_post": _DISTIL,
            },
            heads=("n_heads", "n_heads"),
        ),
        Other(
            "T5ForConditionalGeneration",
            "t5",
            "encoder_decoder",
            {
                "resid_pre": "encoder.block.{layer}:input",
                "z": {"path": "encoder.block.{layer}.layer.0.SelfAttention.o:input", "axes": HEADS},
                "mlp_post": "encoder.block.{layer}.layer.1.DenseReluDense.wo:input",
                "resid_post": "encoder.block.{layer}",
            },
            heads=("num_heads", "num_heads"),
            context="",
        ),
        Other(
            "BartForConditionalGeneration",
            "bart",
            "encoder_decoder",
            {
                "resid_pre": "model.encoder.layers.{layer}:input",
                "z": {
                    "path": "model.encoder.layers.{layer}.self_attn.out_proj:input",
                    "axes": HEADS,
                },
                "mlp_post": "model.encoder.layers.{layer}.fc2:input",
                "resid_post": "model.encoder.layers.{layer}",
            },
            heads=("encoder_attention_heads", "encoder_attention_heads"),
        ),
        Other("MixtralForCausalLM", "mixtral", "experts", _experts()),
        Other("Qwen3MoeForCausalLM", "qwen3_moe", "experts", _experts()),
        Other("OlmoeForCausalLM", "olmoe", "experts", _experts()),
        Other("MambaForCausalLM", "mamba", "state_space", _STATE, context=""),
        Other("Mamba2ForCausalLM", "mamba2", "state_space", _STATE, context=""),
    )
}
"""Architecture -> what is read of it."""


def other_of(name: str) -> Other | None:
    """The row of an architecture's name, or None."""
    return OTHERS.get(name)
