"""The slow reference of attribution: rules as hand-written backward passes on a raw module.

Works on an untouched transformers module with plain hooks; imports nothing of interp. Each rule is
a torch.autograd.Function whose backward is the paper's redistribution, written out: jafari2025relp,
achtibat2024attnlrp, ali2022xai. Activations are divided (f(x)/x), not in closed form.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.twins.patching import PARTS, logit_diff, read, tapped

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2")


class NormStep(torch.autograd.Function):
    """The norm's own value; backwards the divisor is a constant."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, gain: Tensor, scale: Tensor, centred: bool
    ) -> Tensor:
        ctx.save_for_backward(gain, scale)
        ctx.centred = centred
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        gain, scale = ctx.saved_tensors
        share = g * gain / scale
        if ctx.centred:
            share = share - share.mean(-1, keepdim=True)
        return share, None, None, None, None


class Ratio(torch.autograd.Function):
    """f(x), backwards g · f(x)/x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return g * y / x, None


class Gate(torch.autograd.Function):
    """a · u, backwards half to each, or all to u."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor, rule: str) -> Tensor:
        ctx.save_for_backward(a, u)
        ctx.rule = rule
        return a * u

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        a, u = ctx.saved_tensors
        if ctx.rule == "half":
            return g * u / 2, g * a / 2, None
        return (torch.zeros_like(a) if ctx.rule == "value" else g * u), g * a, None


class Share(torch.autograd.Function):
    """x, backwards a share of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.share, None


def _norms(model: Any) -> list[tuple[str, Any]]:
    return [
        (n, m)
        for n, m in model.named_modules()
        if "Norm" in type(m).__name__ and not n.endswith(("q_norm", "k_norm"))
    ]


def _norm_forward(module: Any, honest: Any) -> Any:
    centred = type(module) is torch.nn.LayerNorm
    plus_one = "Gemma" in type(module).__name__
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None)

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = honest(x)
            moment = x.var(-1, unbiased=False) if centred else x.square().mean(-1)
            scale = (moment + eps).sqrt()[..., None]
            gain = 1 + module.weight if plus_one else module.weight
        return NormStep.apply(x, y, gain, scale, centred)

    return forward


def _attention(rule: str) -> Any:
    def forward(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if rule == "uniform":
            query, key = Share.apply(query, 0.25), Share.apply(key, 0.25)
            value = Share.apply(value, 0.5)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3)
        scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask
        pattern = scores.softmax(-1)
        if rule == "ah":
            pattern = pattern.detach()
        return (pattern @ value).transpose(1, 2).contiguous(), None

    return forward


@contextmanager
def ruled(model: Any, family: str, *, norm: bool, act: bool, gate: str, attn: str):
    """The module under rules, by replaced forwards; as it was afterwards."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    replaced: list[Any] = []

    def replace(module: Any, forward: Any) -> None:
        module.forward = forward
        replaced.append(module)

    before = model.config._attn_implementation
    try:
        if norm:
            for _, module in _norms(model):
                replace(module, _norm_forward(module, module.forward))
        for block in model.get_submodule(PARTS[family]["layers"]):
            mlp = block.mlp
            unit = next(getattr(mlp, n) for n in ("act", "act_fn") if hasattr(mlp, n))
            if act and not (family in GATED and gate == "value"):
                honest = unit.forward

                def squash(x: Tensor, honest: Any = honest) -> Tensor:
                    with torch.no_grad():
                        y = honest(x)
                    return Ratio.apply(x, y)

                replace(unit, squash)
            if family in GATED:
                replace(
                    mlp,
                    lambda x, m=mlp, f=unit: m.down_proj(
                        Gate.apply(f(m.gate_proj(x)), m.up_proj(x), gate)
                    ),
                )
        name = f"twin_{attn}"
        AttentionInterface.register(name, _attention(attn))
        AttentionMaskInterface.register(name, eager_mask)
        model.set_attn_implementation(name)
        yield
    finally:
        for module in reversed(replaced):
            del module.forward
        model.set_attn_implementation(before)


def estimates(
    model: Any,
    family: str,
    base: Tensor,
    source: Tensor,
    kind: str,
    layer: int,
    right: list[Any],
    wrong: list[Any],
    rules: dict[str, Any] | None = None,
) -> Tensor:
    """``(a_source - a_base) ⊙ ρ_base`` of one site, ``[prompt, position, width]``."""
    lent = read(model, family, kind, layer, source)
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        value = value.detach().requires_grad_() if not value.requires_grad else value
        value.retain_grad()
        kept.append(value)
        return value

    with ExitStack() as stack:
        if rules is not None:
            stack.enter_context(ruled(model, family, **rules))
        stack.enter_context(tapped(model, family, kind, layer, keep))
        metric = logit_diff(model(base).logits, right, wrong)
        metric.sum().backward()
        model.zero_grad()
    gradient = kept[0].grad
    assert gradient is not None
    return (lent - kept[0].detach()) * gradient


def softmax_query(q: Tensor, k: Tensor, g: Tensor, new: Tensor, i: int, scale: float) -> Tensor:
    """One query replaced and its whole row computed again; ``q, k [T,E]``, ``g [T,T]``."""

    def row(query: Tensor) -> Tensor:
        return torch.softmax((k[: i + 1] @ query) * scale, 0)

    return ((row(new) - row(q[i])) * g[i, : i + 1]).sum()


def softmax_key(q: Tensor, k: Tensor, g: Tensor, new: Tensor, j: int, scale: float) -> Tensor:
    """One key replaced and every row that sees it computed again."""
    total = torch.zeros((), dtype=q.dtype)
    for i in range(j, len(q)):
        keys = k[: i + 1].clone()
        before = torch.softmax(keys @ q[i] * scale, 0)
        keys[j] = new
        after = torch.softmax(keys @ q[i] * scale, 0)
        total = total + ((after - before) * g[i, : i + 1]).sum()
    return total
