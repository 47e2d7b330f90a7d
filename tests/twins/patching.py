"""The slow reference of activation patching: one whole forward a cell, plain torch hooks.

Works on an untouched transformers module; imports nothing of interp. Follows vig2020causal and
heimersheim2024use: run the source, keep one activation, run the base with it put in place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PARTS: dict[str, dict[str, str]] = {
    "gpt2": {
        "layers": "transformer.h",
        "attn": "attn",
        "o": "attn.c_proj",
        "mlp": "mlp",
        "out": "mlp.c_proj",
        "mid": "ln_2",
        "embed": "transformer.wte",
    },
    "gpt_neo": {
        "layers": "transformer.h",
        "attn": "attn",
        "o": "attn.attention.out_proj",
        "mlp": "mlp",
        "out": "mlp.c_proj",
        "mid": "ln_2",
        "embed": "transformer.wte",
    },
    "gpt_neox": {
        "layers": "gpt_neox.layers",
        "attn": "attention",
        "o": "attention.dense",
        "mlp": "mlp",
        "out": "mlp.dense_4h_to_h",
        "mid": "",
        "embed": "gpt_neox.embed_in",
    },
    **{
        name: {
            "layers": "model.layers",
            "attn": "self_attn",
            "o": "self_attn.o_proj",
            "mlp": "mlp",
            "out": "mlp.down_proj",
            "mid": "post_attention_layernorm",
            "embed": "model.embed_tokens",
        }
        for name in ("llama", "mistral", "qwen2", "qwen3")
    },
    "gemma2": {
        "layers": "model.layers",
        "attn": "post_attention_layernorm",
        "o": "self_attn.o_proj",
        "mlp": "post_feedforward_layernorm",
        "out": "mlp.down_proj",
        "mid": "pre_feedforward_layernorm",
        "embed": "model.embed_tokens",
    },
    "olmo2": {
        "layers": "model.layers",
        "attn": "post_attention_layernorm",
        "o": "self_attn.o_proj",
        "mlp": "post_feedforward_layernorm",
        "out": "mlp.down_proj",
        "mid": "mlp",
        "embed": "model.embed_tokens",
    },
}
"""Family -> where things are. ``attn`` and ``mlp`` give what is added to the residual."""

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "gpt2": ("attn.c_attn",),
    "gpt_neox": ("attention.query_key_value",),
    "gpt_neo": tuple(f"attn.attention.{x}_proj" for x in "qkv"),
    **{
        name: tuple(f"self_attn.{x}_proj" for x in "qkv")
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2")
    },
}
"""Family -> query, key and value projections, or the fused one."""

INPUTS = ("resid_pre", "z", "mlp_post")


def _module(model: Any, family: str, kind: str, layer: int) -> tuple[Any, bool]:
    """The module to hook and whether the value is its input."""
    parts = PARTS[family]
    if kind == "embed":
        return model.get_submodule(parts["embed"]), False
    block = model.get_submodule(parts["layers"])[layer]
    where = {"attn_out": "attn", "mlp_out": "mlp", "z": "o", "mlp_post": "out"}
    if kind in ("resid_pre", "resid_post"):
        return block, kind in INPUTS
    return block.get_submodule(parts[where[kind]]), kind in INPUTS


def _first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def tapped(model: Any, family: str, kind: str, layer: int, change: Callable[[Tensor], Tensor]):
    """Pass the value of a site through ``change`` in every forward inside."""
    module, is_input = _module(model, family, kind, layer)
    if is_input:

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_: Any, __: Any, output: Any) -> Any:
            new = change(_first(output))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def read(model: Any, family: str, kind: str, layer: int, tokens: Tensor) -> Tensor:
    """Value of a site in one run, ``[prompt, position, width]``."""
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.detach().clone())
        return value

    if kind == "resid_mid":
        return read(model, family, "resid_pre", layer, tokens) + read(
            model, family, "attn_out", layer, tokens
        )
    with torch.no_grad(), tapped(model, family, kind, layer, keep):
        model(tokens)
    return kept[0]


def patched_logits(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor | None,
    kind: str,
    layer: int,
    *,
    position: int | None = None,
    head: int | None = None,
    n_heads: int = 0,
    value: Tensor | None = None,
    unit: int | None = None,
) -> Tensor:
    """Logits ``[prompt, position, vocab]`` of the base run with one value put in place.

    ``value`` overrides the source run's; ``unit`` picks one neuron.
    """
    if kind == "resid_mid":
        # resid_mid = resid_pre + attn_out: replacing it is replacing attn_out by the rest
        lent = read(model, family, kind, layer, source) if value is None else value
        before = read(model, family, "resid_pre", layer, base)
        return patched_logits(
            model, family, base, None, "attn_out", layer, position=position, value=lent - before
        )
    lent = read(model, family, kind, layer, source) if value is None else value

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        where = slice(None) if position is None else slice(position, position + 1)
        part = slice(None)
        if head is not None:
            width = x.shape[-1] // n_heads
            part = slice(head * width, (head + 1) * width)
        if unit is not None:
            part = slice(unit, unit + 1)
        x[:, where, part] = lent[:, where, part]
        return x

    with torch.no_grad(), tapped(model, family, kind, layer, put):
        return model(base).logits


def _projection(block: Any, family: str, kind: str, n_heads: int) -> tuple[Any, Any]:
    """The projection of q, k or v and a view of its part, ``[prompt, position, head, width]``.

    Before norms of q and k and before rotary: at one position these act alike on both runs.
    """
    names = PROJECTIONS[family]
    which = "qkv".index(kind)
    module = block.get_submodule(names[which if len(names) > 1 else 0])
    if family == "gpt2":
        return module, lambda x: x.unflatten(-1, (3, n_heads, -1))[..., which, :, :]
    if family == "gpt_neox":
        return module, lambda x: x.unflatten(-1, (n_heads, 3, -1))[..., which, :]
    return module, lambda x: x.unflatten(-1, (n_heads, -1))


def patched_qkv_logits(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor,
    kind: str,
    layer: int,
    head: int,
    *,
    n_heads: int,
    position: int | None = None,
) -> Tensor:
    """Logits of the base run with one head's queries, keys or values from the source run."""
    block = model.get_submodule(PARTS[family]["layers"])[layer]
    module, part = _projection(block, family, kind, n_heads)
    kept: list[Tensor] = []
    where = slice(None) if position is None else slice(position, position + 1)

    def put(_: Any, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        if not kept:
            kept.append(output)
        part(output)[:, where, head] = part(kept[0])[:, where, head]
        return output

    with torch.no_grad():
        handle = module.register_forward_hook(put)
        try:
            model(source)
            return model(base).logits
        finally:
            handle.remove()


def patched_pattern_logits(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor,
    layer: int,
    head: int,
    query: int,
    *,
    n_heads: int,
    key: int | None = None,
    row: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """Logits of the base run with one row (or entry) of a head's pattern from the source run.

    ``row [prompt, key]`` is put there instead if it is given; with ``add`` it is added. The model
    must be loaded with eager attention, which gives its patterns out; the change of the pattern
    times the base run's values is added to the head's output.
    """
    block = model.get_submodule(PARTS[family]["layers"])[layer]
    attention = block.get_submodule(
        {"gpt2": "attn", "gpt_neo": "attn.attention", "gpt_neox": "attention"}.get(
            family, "self_attn"
        )
    )
    rows: list[Tensor] = []
    values: list[Tensor] = []
    config = model.config
    groups = getattr(config, "num_key_value_heads", None) or n_heads
    module, part = _projection(block, family, "v", groups)
    handles = [
        attention.register_forward_hook(lambda _, __, out: rows.append(out[1].detach())),
        module.register_forward_hook(lambda _, __, out: values.append(part(out).detach())),
    ]
    with torch.no_grad():
        model(source)
        model(base)
    for handle in handles:
        handle.remove()
    new = rows[0][:, head, query] if row is None else row
    change = (new if add else new - rows[1][:, head, query]).to(values[1])
    if key is not None:
        change = torch.zeros_like(change).index_copy(1, torch.tensor([key]), change[:, [key]])
    v = values[1][:, :, head * groups // n_heads]
    z = read(model, family, "z", layer, base)
    width = z.shape[-1] // n_heads
    z[:, query, head * width : (head + 1) * width] += torch.einsum("bs,bse->be", change, v)
    return patched_logits(model, family, base, None, "z", layer, position=query, value=z)


def logit_diff(logits: Tensor, right: list[list[int]], wrong: list[list[int]]) -> Tensor:
    """Mean right logit minus mean wrong logit at the last position, ``[prompt]``."""
    out = []
    for row, good, bad in zip(logits[:, -1], right, wrong, strict=True):
        out.append(sum(row[t] for t in good) / len(good) - sum(row[t] for t in bad) / len(bad))
    return torch.stack(out)
