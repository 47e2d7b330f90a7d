"""Hard random models: nothing in them is nearly linear, uniform, zero or constant.

A freshly initialised model hides mistakes: attention is uniform, biases are zero, gains one, caps
never bite. Here every part matters: logits spread over more than one, attention is peaked, biases
and gains are random, key/value heads are fewer than heads, windows are shorter than a prompt,
soft caps and QK-norms bite. Built from a seed alone, so nothing is shipped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from interp.models.families import FAMILIES, Family, family_of
from interp.terms import unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
"""Sizes that every family shares."""

_ROPE = {"rope_type": "default", "rope_theta": 100.0}
_GROUPED = {"num_key_value_heads": 2, "intermediate_size": 80, "rope_parameters": _ROPE}

FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": {"activation_function": "gelu_new", "n_inner": 120},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 2]],
        "window_size": 5,
        "intermediate_size": 120,
    },
    "gpt_neox": {
        "intermediate_size": 120,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
    },
    "llama": {**_GROUPED, "tie_word_embeddings": False},
    "mistral": {**_GROUPED, "sliding_window": 5, "head_dim": 16},
    "qwen2": {**_GROUPED, "use_sliding_window": False},
    "qwen3": {**_GROUPED, "head_dim": 16},
    "gemma2": {
        **_GROUPED,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 4.0,
    },
    "olmo2": {**_GROUPED},
}
"""What a family adds to ``SIZES``."""

NO_TOKENS: dict[str, None] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def hard_config(family: str, **overrides: Any) -> Any:
    """The config object of a hard model; ``overrides`` replace fields of the config.

    Raises:
        UsageError: an unknown family.
    """
    import transformers

    rows = {f.name: f for f in FAMILIES.values()}
    if family not in rows:
        raise unknown_name("model family", family, rows)
    row = rows[family]
    fields = {**NO_TOKENS, **SIZES, **FIELDS[family], **overrides}
    if family == "gpt_neo" and "attention_types" not in overrides:
        layers = int(fields["num_hidden_layers"])
        pairs = [[["global", "local"], layers // 2]]
        fields["attention_types"] = [p for p in pairs if p[1]] + [[["global"], 1]] * (layers % 2)
    config_class = getattr(transformers, row.architecture).config_class
    return config_class(**fields, architectures=[row.architecture])


def hard_model(family: str, *, seed: int = 0, **overrides: Any) -> nn.Module:
    """A hard random module of a family, float32, in eval mode.

    Args:
        family: a name of ``families.FAMILIES``, as ``gpt2``.
        seed: everything follows from it.
        overrides: fields of the config.
    """
    import torch
    import transformers

    config = hard_config(family, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(
            transformers, family_of({"architectures": config.architectures}).architecture
        )(config)
    module = module.float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _harden(module, family_of(module), generator)
    return module


def _harden(module: nn.Module, family: Family, generator: torch.Generator) -> None:
    """Overwrite every parameter with values under which every part matters."""
    import torch

    def normal(target: Tensor, std: float, mean: float = 0.0) -> None:
        target.copy_(mean + std * torch.randn(target.shape, generator=generator))

    config: Any = module.config
    sharp = _query_std(family, config)
    tied = bool(config.tie_word_embeddings)
    for name, parameter in sorted(module.named_parameters()):
        if parameter.ndim == 1:
            _vector(name, parameter, family, normal)
            continue
        fan_in = parameter.shape[0 if family.conv1d and ".h." in name else -1]
        std = 1.0 / math.sqrt(fan_in)
        if name.startswith((family.embed, family.unembed)):
            std = (2.0 if tied or family.unembed in name else 1.0) / math.sqrt(config.hidden_size)
        elif family.position_embed and name.startswith(family.position_embed):
            std = 1.5 / math.sqrt(config.hidden_size)
        elif any(name.endswith(f"{p}.weight") for p in (family.q, family.k)):
            std *= sharp
        normal(parameter, std)
        if family.qkv != "separate" and name.endswith(f"{family.v}.weight"):
            _soften_values(parameter, family, config, sharp)


def _vector(name: str, parameter: Tensor, family: Family, normal: Any) -> None:
    """Biases 0.3 in spread; gains about one (QK-norms about 1.6), stored as ``w`` or ``1 + w``."""
    if name.endswith("bias"):
        normal(parameter, 0.3)
    elif family.q_norm and name.endswith((f"{family.q_norm}.weight", f"{family.k_norm}.weight")):
        normal(parameter, 0.5, 1.6)
    else:
        normal(parameter, 0.4, 0.0 if family.rms_order == "gemma" else 1.0)


def _query_std(family: Family, config: Any) -> float:
    """Factor of the query and key weights that makes raw scores spread by about 2.5."""
    from interp.models.families import head_width, layer_facts

    facts = layer_facts(family, config, 0)
    wanted = 4.0 if facts.cap is not None else 2.5
    return math.sqrt(wanted / (facts.scale * math.sqrt(head_width(config))))


def _soften_values(weight: Tensor, family: Family, config: Any, sharp: float) -> None:
    """Take the query's factor off the value part of a fused projection."""
    if family.qkv == "thirds":
        weight[:, 2 * config.hidden_size :] /= sharp
    else:
        width = config.hidden_size // config.num_attention_heads
        weight.view(config.num_attention_heads, 3, width, -1)[:, 2] /= sharp
