"""Reading and editing one site of an untouched transformers module, the long way round.

Imports nothing of interp. Each family's layout is written out here once more, and what no hook
reaches (patterns, divisors) is computed from what one does reach.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]

LLAMA = {
    "layers": "model.layers",
    "embed": "model.embed_tokens",
    "final": "model.norm",
    "attn": "self_attn",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp": "mlp",
    "out": "mlp.down_proj",
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "mid": "post_attention_layernorm",
}
NORMED = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
LAYOUT: dict[str, dict[str, str]] = {
    "gpt2": {
        "layers": "transformer.h",
        "embed": "transformer.wte",
        "final": "transformer.ln_f",
        "attn": "attn",
        "q": "attn.c_attn",
        "k": "attn.c_attn",
        "v": "attn.c_attn",
        "o": "attn.c_proj",
        "mlp": "mlp",
        "out": "mlp.c_proj",
        "ln1": "ln_1",
        "ln2": "ln_2",
        "mid": "ln_2",
    },
    "gpt_neo": {
        "layers": "transformer.h",
        "embed": "transformer.wte",
        "final": "transformer.ln_f",
        "attn": "attn",
        "q": "attn.attention.q_proj",
        "k": "attn.attention.k_proj",
        "v": "attn.attention.v_proj",
        "o": "attn.attention.out_proj",
        "mlp": "mlp",
        "out": "mlp.c_proj",
        "ln1": "ln_1",
        "ln2": "ln_2",
        "mid": "ln_2",
    },
    "gpt_neox": {
        "layers": "gpt_neox.layers",
        "embed": "gpt_neox.embed_in",
        "final": "gpt_neox.final_layer_norm",
        "attn": "attention",
        "q": "attention.query_key_value",
        "k": "attention.query_key_value",
        "v": "attention.query_key_value",
        "o": "attention.dense",
        "mlp": "mlp",
        "out": "mlp.dense_4h_to_h",
        "ln1": "input_layernorm",
        "ln2": "post_attention_layernorm",
        "mid": "post_attention_layernorm",
    },
    **dict.fromkeys(("llama", "mistral", "qwen2"), LLAMA),
    "qwen3": {**LLAMA, **NORMED},
    "gemma2": {
        **LLAMA,
        "attn": "post_attention_layernorm",
        "mlp": "post_feedforward_layernorm",
        "ln1_post": "post_attention_layernorm",
        "ln2": "pre_feedforward_layernorm",
        "ln2_post": "post_feedforward_layernorm",
        "mid": "pre_feedforward_layernorm",
    },
    "olmo2": {
        **LLAMA,
        **NORMED,
        "attn": "post_attention_layernorm",
        "mlp": "post_feedforward_layernorm",
        "ln1_post": "post_attention_layernorm",
        "ln2_post": "post_feedforward_layernorm",
        "mid": "mlp",
        "ln1": "",
        "ln2": "",
    },
}
"""Family -> where things are; ``attn`` and ``mlp`` give what is added to the residual."""


def heads(model: Any, family: str, kind: str) -> int:
    """Heads of q, k or v."""
    config = model.config
    if kind in ("k", "v", "k_norm_scale") and family not in ("gpt2", "gpt_neo", "gpt_neox"):
        return config.num_key_value_heads
    return config.num_attention_heads


class Tapped:
    """One forward in which a site's value passes through ``change``; its new value is kept."""

    def __init__(self, model: Any, family: str, kind: str, layer: int, change: Change) -> None:
        self.model, self.family, self.kind, self.change = model, family, kind, change
        self.at = LAYOUT[family]
        self.block = model.get_submodule(self.at["layers"])[layer]
        self.value: Tensor | None = None
        self.busy = False
        self.stack = ExitStack()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits."""
        with self.stack:
            getattr(
                self,
                "tap_"
                + {
                    "q": "qkv",
                    "k": "qkv",
                    "v": "qkv",
                    "z": "z",
                    "pattern": "pattern",
                }.get(self.kind, "scale" if self.kind.endswith("scale") else "plain"),
            )()
            return self.model(input_ids=tokens, use_cache=False).logits

    def see(self, value: Tensor) -> Tensor:
        """The site's value in its own shape, changed."""
        self.value = self.change(value)
        return self.value

    def before(self, module: Any, f: Change) -> None:
        """Pass a module's input through ``f``."""

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (f(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": f(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        self.stack.callback(handle.remove)

    def after(self, module: Any, f: Change) -> None:
        """Pass a module's output through ``f``."""

        def hook(_: Any, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (f(output[0]), *output[1:])
            return f(output)

        self.stack.callback(module.register_forward_hook(hook).remove)

    def part(self, name: str) -> Any:
        """A part of the layer."""
        return self.block.get_submodule(self.at[name])

    def tap_plain(self) -> None:
        """Residual, sublayers, neurons, embedding."""
        if self.kind == "embed":
            self.after(self.model.get_submodule(self.at["embed"]), self.see)
        elif self.kind == "resid_pre":
            self.before(self.block, self.see)
        elif self.kind == "resid_post":
            self.after(self.block, self.see)
        elif self.kind == "mlp_post":
            self.before(self.part("out"), self.see)
        elif self.kind == "resid_mid":
            self.through_the_skip()
        else:
            self.after(self.part({"attn_out": "attn", "mlp_out": "mlp"}[self.kind]), self.see)

    def through_the_skip(self) -> None:
        """resid_mid: what attention adds is chosen so that the sum is the wanted value."""
        kept: dict[str, Tensor] = {}

        def entering(x: Tensor) -> Tensor:
            kept["pre"] = x
            return x

        def added(out: Tensor) -> Tensor:
            return self.see(kept["pre"] + out) - kept["pre"]

        self.before(self.block, entering)
        self.after(self.part("attn"), added)

    def tap_qkv(self) -> None:
        """Projections, split by heads; fused ones are split first."""
        n, which = heads(self.model, self.family, self.kind), "qkv".index(self.kind)

        def f(out: Tensor) -> Tensor:
            b, t, _ = out.shape
            if self.family == "gpt2":
                parts = list(out.split(out.shape[-1] // 3, dim=-1))
                parts[which] = self.see(parts[which].reshape(b, t, n, -1)).reshape(b, t, -1)
                return torch.cat(parts, dim=-1)
            if self.family == "gpt_neox":
                parts = list(out.reshape(b, t, n, -1).chunk(3, dim=-1))
                parts[which] = self.see(parts[which])
                return torch.cat(parts, dim=-1).reshape(b, t, -1)
            return self.see(out.reshape(b, t, n, -1)).reshape(b, t, -1)

        self.after(self.part(self.kind), f)

    def tap_z(self) -> None:
        """The output projection's input."""
        n = heads(self.model, self.family, "q")
        self.before(self.part("o"), lambda x: self.see(x.unflatten(-1, (n, -1))).flatten(-2))

    def tap_pattern(self) -> None:
        """z is made again from the changed pattern.

        No hook reaches the pattern, but z = pattern · v: with v one at one key and zero at the
        others, z shows a column of it.
        """
        columns: list[Tensor] = []
        n, k = heads(self.model, self.family, "q"), heads(self.model, self.family, "v")
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor) -> Tensor:
            kept["v"] = self._v(x)
            return x

        def make(x: Tensor) -> Tensor:
            if self.busy:
                return x
            pattern = torch.stack(columns, dim=-1)
            pattern = self.see(pattern)
            v = kept["v"].repeat_interleave(n // k, dim=2)
            return torch.einsum("bths,bshd->bthd", pattern, v).flatten(-2)

        self._columns(columns)
        self.after(self.part("v"), keep)
        self.before(self.part("o"), make)

    def _v(self, out: Tensor) -> Tensor:
        b, t, _ = out.shape
        n = heads(self.model, self.family, "v")
        if self.family == "gpt2":
            return out.chunk(3, dim=-1)[2].reshape(b, t, n, -1)
        if self.family == "gpt_neox":
            return out.reshape(b, t, n, -1).chunk(3, dim=-1)[2]
        return out.reshape(b, t, n, -1)

    def _columns(self, columns: list[Tensor]) -> None:
        """Run the layer's attention once a key with v = 1 there and 0 elsewhere, before all."""
        n, k = heads(self.model, self.family, "q"), heads(self.model, self.family, "v")
        attention = self.block.get_submodule(LAYOUT[self.family]["q"].rsplit(".", 1)[0])

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.busy = True
            x = args[0] if args else kwargs["hidden_states"]
            for s in range(x.shape[1]):
                columns.append(self._column(module, args, kwargs, s, n, k))
            self.busy = False

        handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
        self.stack.callback(handle.remove)

    def _column(self, module: Any, args: Any, kwargs: Any, key: int, n: int, k: int) -> Tensor:
        seen: list[Tensor] = []

        def unit(out: Tensor) -> Tensor:
            b, t, _ = out.shape
            v = torch.zeros_like(self._v(out))
            v[:, key] = 1
            if self.family == "gpt2":
                q, k_, _ = out.chunk(3, dim=-1)
                return torch.cat([q, k_, v.reshape(b, t, -1)], dim=-1)
            if self.family == "gpt_neox":
                q, k_, _ = out.reshape(b, t, n, -1).chunk(3, dim=-1)
                return torch.cat([q, k_, v], dim=-1).reshape(b, t, -1)
            return v.reshape(b, t, -1)

        def look(_: Any, a: tuple[Any, ...]) -> None:
            seen.append(a[0].unflatten(-1, (n, -1))[..., 0])

        handles = [
            self.part("v").register_forward_hook(lambda _, __, out: unit(out)),
            self.part("o").register_forward_pre_hook(look),
        ]
        hooks = module._forward_pre_hooks.copy()
        module._forward_pre_hooks.clear()
        try:
            module(*args, **kwargs)
        finally:
            module._forward_pre_hooks.update(hooks)
            for handle in handles:
                handle.remove()
        return seen[0]

    def tap_scale(self) -> None:
        """The norm's output by hand: gain · c(x)/σ' + bias."""
        if self.kind == "ln_final_scale":
            norm = self.model.get_submodule(self.at["final"])
        else:
            norm = self.part(self.kind.removesuffix("_scale"))
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        centre = isinstance(norm, torch.nn.LayerNorm)
        gain = norm.weight + 1 if self.family == "gemma2" else norm.weight
        whole = self.family == "olmo2" and self.kind in ("q_norm_scale", "k_norm_scale")
        n = heads(self.model, self.family, self.kind)

        def hook(_: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0]
            x = x - x.mean(-1, keepdim=True) if centre else x
            sigma = ((x * x).mean(-1) + eps).sqrt()
            if whole:
                by_head = self.see(torch.stack([sigma] * n, dim=-1))
                width = x.shape[-1] // n
                y = x / by_head.repeat_interleave(width, dim=-1)
            else:
                y = x / self.see(sigma)[..., None]
            y = y * gain
            return y + norm.bias if centre else y

        self.stack.callback(norm.register_forward_hook(hook).remove)
