"""Families: where each part of a Hugging Face architecture lives, one row an architecture.

The only place that knows module paths. ``{site}`` paths are relative to a layer unless said
otherwise. Everything a back-end or the functional blocks need to find a part is read from here;
what differs from layer to layer (windows, scales) comes from ``layer_facts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from interp.terms import ModelShape, RefusedError

if TYPE_CHECKING:
    from torch import nn

QkvOrder = Literal["separate", "thirds", "interleaved"]


@dataclass(frozen=True)
class Place:
    """Where a site's value can be caught by a hook.

    Args:
        path: module path, relative to the layer (``""`` is the layer itself) or, with
            ``absolute``, to the whole model.
        side: the module's input or its output.
        axes: how the last axis splits: ``""`` (not at all), ``"head"``, ``"kv_head"``.
        part: for a fused projection ``"q"``, ``"k"`` or ``"v"``, else ``""``.
        absolute: the path starts at the model, not at the layer.
    """

    path: str
    side: Literal["input", "output"] = "output"
    axes: str = ""
    part: str = ""
    absolute: bool = False


@dataclass(frozen=True)
class Family:
    """One architecture's layout. Paths of parts are relative to a layer, the ends to the model.

    Args:
        name: short name, as ``gpt2``.
        architecture: the class named in ``config.json``'s ``architectures``.
        model_type: ``config.json``'s ``model_type``.
        layers: path of the list of layers.
        embed: token embedding.
        position_embed: learned positions, None where there are none.
        final_norm: norm before the unembedding.
        unembed: output projection.
        rotary: the module with ``inv_freq``, None without rotary positions.
        attention: the attention module.
        q: query projection (``separate``), else the fused projection.
        k: key projection, as ``q``.
        v: value projection, as ``q``.
        o: output projection.
        qkv: ``separate``; ``thirds`` (all q, all k, all v); ``interleaved`` (q, k, v by head).
        q_norm: query norm or None.
        k_norm: key norm or None.
        qk_norm_width: ``head`` (each head by itself) or ``all`` (all heads together).
        pre_attn: norm before attention, None where the layer has only post-norms.
        post_attn: norm of the attention's output before it is added, or None.
        pre_mlp: norm before the MLP, or None.
        post_mlp: norm of the MLP's output before it is added, or None.
        mlp: the MLP module.
        gate: gate projection of a gated MLP, or None.
        w_in: input (``up``) projection.
        w_out: output (``down``) projection.
        norm: ``layer`` or ``rms``.
        rms_order: how an RMS norm rounds: ``llama`` (cast, then gain), ``olmo`` (gain, then
            cast) or ``gemma`` (gain ``1 + w``, then cast).
        conv1d: weights are stored ``[in, out]``.
        unscaled: attention scores are not divided by anything.
        fp32_scores: queries and keys are cast to float32 before their product.
        fp32_softmax: the softmax runs in float32 also in float64.
        fp32_rotary: the rotary angles stay float32.
        embed_scaled: token embeddings are multiplied by the square root of d_model.
        default_bos: whether a prompt starts with BOS unless said otherwise.
    """

    name: str
    architecture: str
    model_type: str
    layers: str
    embed: str
    final_norm: str
    attention: str
    q: str
    k: str
    v: str
    o: str
    mlp: str
    w_in: str
    w_out: str
    unembed: str = "lm_head"
    position_embed: str | None = None
    rotary: str | None = None
    qkv: QkvOrder = "separate"
    q_norm: str | None = None
    k_norm: str | None = None
    qk_norm_width: Literal["head", "all"] = "head"
    pre_attn: str | None = None
    post_attn: str | None = None
    pre_mlp: str | None = None
    post_mlp: str | None = None
    gate: str | None = None
    norm: Literal["layer", "rms"] = "rms"
    rms_order: Literal["llama", "olmo", "gemma"] = "llama"
    conv1d: bool = False
    unscaled: bool = False
    fp32_scores: bool = False
    fp32_softmax: bool = False
    fp32_rotary: bool = False
    embed_scaled: bool = False
    default_bos: bool = False

    def place(self, kind: str) -> Place | None:
        """Where a site of this kind is caught (q and k before q/k-norm and rotary); None if not.

        ``pattern`` and the norms' scales are computed, not module outputs: None here.
        """
        return _places(self).get(kind)

    def parallel(self, config: Any) -> bool:
        """Whether attention and MLP read the same residual (no resid_mid)."""
        return bool(getattr(config, "use_parallel_residual", False))


def _places(family: Family) -> dict[str, Place]:
    fused = family.qkv != "separate"
    places = {
        "embed": Place(family.embed, absolute=True),
        "resid_pre": Place("", "input"),
        "resid_post": Place(""),
        "attn_out": Place(family.post_attn or family.attention),
        "mlp_out": Place(family.post_mlp or family.mlp),
        "resid_mid": Place(family.pre_mlp or family.mlp, "input"),
        "z": Place(family.o, "input", "head"),
        "q": Place(family.q, "output", "head", "q" if fused else ""),
        "k": Place(family.k, "output", "kv_head", "k" if fused else ""),
        "v": Place(family.v, "output", "kv_head", "v" if fused else ""),
        "mlp_post": Place(family.w_out, "input"),
        "logits": Place("", absolute=True),
    }
    return places


def _llama_like(name: str, architecture: str, **more: Any) -> Family:
    fields: dict[str, Any] = {
        "model_type": name,
        "layers": "model.layers",
        "embed": "model.embed_tokens",
        "final_norm": "model.norm",
        "rotary": "model.rotary_emb",
        "attention": "self_attn",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "mlp": "mlp",
        "gate": "mlp.gate_proj",
        "w_in": "mlp.up_proj",
        "w_out": "mlp.down_proj",
        "pre_attn": "input_layernorm",
        "pre_mlp": "post_attention_layernorm",
    }
    return Family(name=name, architecture=architecture, **{**fields, **more})


_QK_NORM = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

FAMILIES: dict[str, Family] = {
    f.architecture: f
    for f in (
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            "gpt2",
            layers="transformer.h",
            embed="transformer.wte",
            position_embed="transformer.wpe",
            final_norm="transformer.ln_f",
            attention="attn",
            q="attn.c_attn",
            k="attn.c_attn",
            v="attn.c_attn",
            o="attn.c_proj",
            qkv="thirds",
            pre_attn="ln_1",
            pre_mlp="ln_2",
            mlp="mlp",
            w_in="mlp.c_fc",
            w_out="mlp.c_proj",
            norm="layer",
            conv1d=True,
            default_bos=True,
        ),
        Family(
            "gpt_neo",
            "GPTNeoForCausalLM",
            "gpt_neo",
            layers="transformer.h",
            embed="transformer.wte",
            position_embed="transformer.wpe",
            final_norm="transformer.ln_f",
            attention="attn",
            q="attn.attention.q_proj",
            k="attn.attention.k_proj",
            v="attn.attention.v_proj",
            o="attn.attention.out_proj",
            pre_attn="ln_1",
            pre_mlp="ln_2",
            mlp="mlp",
            w_in="mlp.c_fc",
            w_out="mlp.c_proj",
            norm="layer",
            unscaled=True,
            fp32_scores=True,
            default_bos=True,
        ),
        Family(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            "gpt_neox",
            layers="gpt_neox.layers",
            embed="gpt_neox.embed_in",
            rotary="gpt_neox.rotary_emb",
            final_norm="gpt_neox.final_layer_norm",
            attention="attention",
            q="attention.query_key_value",
            k="attention.query_key_value",
            v="attention.query_key_value",
            o="attention.dense",
            qkv="interleaved",
            pre_attn="input_layernorm",
            pre_mlp="post_attention_layernorm",
            mlp="mlp",
            w_in="mlp.dense_h_to_4h",
            w_out="mlp.dense_4h_to_h",
            norm="layer",
        ),
        _llama_like("llama", "LlamaForCausalLM", default_bos=True),
        _llama_like("mistral", "MistralForCausalLM", default_bos=True),
        _llama_like("qwen2", "Qwen2ForCausalLM"),
        _llama_like("qwen3", "Qwen3ForCausalLM", **_QK_NORM),
        _llama_like(
            "gemma2",
            "Gemma2ForCausalLM",
            pre_attn="input_layernorm",
            post_attn="post_attention_layernorm",
            pre_mlp="pre_feedforward_layernorm",
            post_mlp="post_feedforward_layernorm",
            rms_order="gemma",
            fp32_softmax=True,
            embed_scaled=True,
            default_bos=True,
        ),
        _llama_like(
            "olmo2",
            "Olmo2ForCausalLM",
            pre_attn=None,
            post_attn="post_attention_layernorm",
            pre_mlp=None,
            post_mlp="post_feedforward_layernorm",
            qk_norm_width="all",
            rms_order="olmo",
            fp32_rotary=True,
            **_QK_NORM,
        ),
    )
}
"""Architecture -> layout."""


def family_of(source: nn.Module | Mapping[str, Any]) -> Family:
    """The row of a module, or of a parsed ``config.json``.

    Raises:
        RefusedError: an architecture without a row.
    """
    if isinstance(source, Mapping):
        names = [str(a) for a in source.get("architectures") or ()]
    else:
        names = [cls.__name__ for cls in type(source).__mro__]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    given = names[0] if names else "no architecture"
    raise RefusedError(
        f"The architecture {given!r} is not one that interp knows inside out.",
        remedy=f"Known: {', '.join(FAMILIES)}. Another network can be wrapped with "
        "backend='torch_module' and a site map.",
    )


@dataclass(frozen=True)
class LayerFacts:
    """What one layer's attention does.

    Args:
        window: keys a query sees, itself included; None for all before it.
        scale: factor of the scores.
        cap: soft cap of the scaled scores, or None.
        causal: whether later keys are masked.
    """

    window: int | None
    scale: float
    cap: float | None
    causal: bool = True


def head_width(config: Any) -> int:
    """Width of a head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def layer_facts(family: Family, config: Any, layer: int) -> LayerFacts:
    """Window, scale and cap of one layer, from the model's config object."""
    scale = head_width(config) ** -0.5
    window: int | None = None
    if family.name == "gpt_neo":
        scale = 1.0
        if config.attention_layers[layer] == "local":
            window = int(config.window_size)
    elif family.name == "gpt2":
        scale = scale if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
    elif family.name == "gemma2":
        scale = float(config.query_pre_attn_scalar) ** -0.5
    if family.name == "mistral":  # every layer, whatever its config says of layer types
        window = config.sliding_window
    elif family.name in ("qwen2", "qwen3", "gemma2"):
        sliding = config.layer_types[layer] == "sliding_attention"
        window = config.sliding_window if sliding else None
    return LayerFacts(window, scale, getattr(config, "attn_logit_softcapping", None))


def shape_of(module: nn.Module) -> ModelShape:
    """The sizes of a loaded module of a known family."""
    family = family_of(module)
    config: Any = module.config
    layers: Any = module.get_submodule(family.layers)
    w_out = layers[0].get_submodule(family.w_out).weight
    heads = int(config.num_attention_heads)
    return ModelShape(
        n_layers=len(layers),
        n_heads=heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        d_model=int(config.hidden_size),
        d_head=head_width(config),
        d_mlp=int(w_out.shape[0] if family.conv1d else w_out.shape[1]),
        vocab=int(config.vocab_size),
        n_ctx=int(config.max_position_embeddings),
        parallel=family.parallel(config),
        architecture=family.architecture,
        n_params=sum(p.numel() for p in module.parameters()),
    )
