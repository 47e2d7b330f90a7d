"""Function rules: the same rules on any module's functional calls, the module left as it is.

A TorchFunctionMode sees ``F.gelu``, ``nn.GELU``, ``torch.tanh``, ``F.layer_norm`` … alike. Units
that are affine or piecewise linear (convolutions, ReLU, max-pooling, batch norm in eval mode) need
no rule: autograd already gives their decision at the input. Products of a gate are not functions
of their own, so the rule ``gate`` is for the known families' layers only.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp.engine.gradients import forms
from interp.engine.gradients.ruleset import RuleSet
from interp.terms import CapabilityError, InterpError, UsageError

Rule = Callable[..., Tensor]


ACTS: dict[Any, Callable[..., Tensor]] = {
    F.silu: lambda x, **_: torch.sigmoid(x),
    F.gelu: lambda x, approximate="none", **_: (
        forms._phi_tanh(x) if approximate == "tanh" else forms._phi(x)
    ),
}
"""Activation -> f(x)/x in closed form."""

DIVIDED = (
    torch.tanh,
    Tensor.tanh,
    F.tanh,
    torch.sigmoid,
    Tensor.sigmoid,
    F.sigmoid,
    F.softplus,
    F.elu,
    F.mish,
    F.hardswish,
    F.softsign,
    F.selu,
    F.celu,
    F.logsigmoid,
)
"""Activations whose rule is the secant through f(0)."""

NORMS = (F.layer_norm, F.rms_norm, F.instance_norm, F.group_norm)
PATTERNS = (F.softmax, torch.softmax, Tensor.softmax, F.scaled_dot_product_attention)
HIDDEN = (F.multi_head_attention_forward,)
"""Functions that hide a softmax from the mode."""


class FunctionRules(TorchFunctionMode):
    """Replaces functional calls by their rules.

    Args:
        rules: which rule each kind of function gets.

    ``calls`` counts what was replaced; ``only`` (a set of call numbers) switches the others off;
    with ``recording`` each call's decision is kept in ``kept``, and with ``lending`` it is taken
    from there (the frozen network).
    """

    def __init__(self, rules: RuleSet) -> None:
        super().__init__()
        self.rules = rules
        self.calls: list[tuple[str, str]] = []
        self.only: set[int] | None = None
        self.kept: dict[int, Any] = {}
        self.recording = self.lending = False

    def start(self) -> None:
        """Count calls from the first again (before a forward pass)."""
        self.calls = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a call whose function has a rule."""
        kwargs = kwargs or {}
        kind = self._kind(func)
        if kind is None:
            return func(*args, **kwargs)
        number = len(self.calls)
        self.calls.append((kind, getattr(func, "__name__", str(func))))
        if self.only is not None and number not in self.only:
            return func(*args, **kwargs)
        if kwargs.pop("inplace", False):
            raise CapabilityError(
                f"Call {number} ({func.__name__}) works in place, which no rule can replace.",
                remedy="Build the module with inplace=False.",
            )
        rule = {"act": self._act, "norm": self._norm, "attn": self._attn}[kind]
        return rule(number, func, args, kwargs)

    def _kind(self, func: Any) -> str | None:
        if func in HIDDEN and self.rules.attn != "grad":
            raise CapabilityError(
                "F.multi_head_attention_forward hides its softmax, so no rule reaches it.",
                remedy="Write attention as scaled_dot_product_attention, or use attn='grad'.",
            )
        if self.rules.act != "grad" and (func in ACTS or func in DIVIDED):
            return "act"
        if self.rules.norm != "grad" and func in NORMS:
            return "norm"
        if self.rules.attn != "grad" and func in PATTERNS:
            return "attn"
        return None

    def _decision(self, number: int, make: Callable[[], Any]) -> Any:
        """What this call decides at the input, or decided in the reference run."""
        if self.lending:
            if number not in self.kept:
                raise UsageError("The reference run made other calls than this one.")
            return self.kept[number]
        with torch.no_grad():
            found = make()
        if self.recording:
            self.kept[number] = found
        return found

    def _out(self, value: Callable[[], Tensor], form: Tensor) -> Tensor:
        return form if self.lending else forms.stopped(value(), form)

    def _act(self, number: int, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, rest = args[0], args[1:]

        def decide() -> tuple[Tensor, Tensor]:
            at = x.detach()
            if func in ACTS:
                return ACTS[func](at, *rest, **kwargs), at.new_zeros(())
            zero = func(at.new_zeros(()), *rest, **kwargs)
            here = at == 0
            secant = (func(at, *rest, **kwargs) - zero) / torch.where(here, 1.0, at)
            return torch.where(here, _slope_at_zero(func, at, rest, kwargs), secant), zero

        slope, offset = self._decision(number, decide)
        return self._out(lambda: func(*args, **kwargs), x * slope + offset)

    def _norm(self, number: int, func: Any, args: Any, kwargs: Any) -> Tensor:
        """y = gain·(x − mean)/σ + bias: gain/σ per entry is read off the function itself."""
        x = args[0]

        def decide() -> Tensor:
            return divisor_of(func, x.detach(), args[1:], kwargs)

        scale = self._decision(number, decide)
        axes = axes_of(func, x, args[1:], kwargs)
        centred = x
        if func is not F.rms_norm:
            shape = x.shape
            flat = grouped(func, x, args[1:], kwargs)
            mean = flat.mean(axes, keepdim=True)
            mean = mean.detach() if self.rules.mean == "frozen" else mean
            centred = (flat - mean).reshape(shape)
        gain, bias = affine_of(func, x, args[1:], kwargs)
        y = centred / scale
        y = y if gain is None else y * gain
        y = y if bias is None else y + bias
        return self._out(lambda: func(*args, **kwargs), y)

    def _attn(self, number: int, func: Any, args: Any, kwargs: Any) -> Tensor:
        if func is not F.scaled_dot_product_attention:
            if self.rules.attn == "uniform":
                x = forms.damped(args[0], 0.5)
                return func(x, *args[1:], **kwargs)
            out = self._decision(number, lambda: func(*args, **kwargs))
            return out.detach()
        q, k, v, *rest = args
        if self.rules.attn == "uniform":
            q, k, v = forms.damped(q, 0.25), forms.damped(k, 0.25), forms.damped(v, 0.5)
            return func(q, k, v, *rest, **kwargs)
        pattern = self._decision(number, lambda: pattern_of(q, k, v, rest, kwargs))
        groups = pattern.shape[-3] // v.shape[-3] if v.dim() > 2 else 1
        wide = v.repeat_interleave(groups, -3) if groups > 1 else v
        return self._out(lambda: func(*args, **kwargs), pattern @ wide)


def _slope_at_zero(func: Any, like: Tensor, rest: Any, kwargs: Any) -> Tensor:
    with torch.enable_grad():
        x = like.new_zeros((), requires_grad=True)
        return torch.autograd.grad(func(x, *rest, **kwargs), x)[0]


def pattern_of(q: Tensor, k: Tensor, v: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """The attention pattern, by letting attention average an identity."""
    eye = torch.eye(k.shape[-2], dtype=v.dtype, device=v.device)
    eye = eye.expand(*v.shape[:-2], -1, -1)
    return F.scaled_dot_product_attention(q.detach(), k.detach(), eye, *rest, **kwargs)


_NAMES = {
    F.layer_norm: ("normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("normalized_shape", "weight", "eps"),
    F.group_norm: ("num_groups", "weight", "bias", "eps"),
    F.instance_norm: (
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "use_input_stats",
        "momentum",
        "eps",
    ),
}


def _bound(func: Any, rest: Any, kwargs: Any) -> dict[str, Any]:
    return {**dict(zip(_NAMES[func], rest, strict=False)), **kwargs}


def grouped(func: Any, x: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """The groups of a group norm as an axis, ``[batch, group, numbers]``; others as they are."""
    if func is F.group_norm:
        return x.reshape(x.shape[0], _bound(func, rest, kwargs)["num_groups"], -1)
    return x


def axes_of(func: Any, x: Tensor, rest: Any, kwargs: Any) -> tuple[int, ...]:
    """The axes over which a norm takes its mean and spread."""
    if func is F.group_norm:
        return (2,)
    if func is F.instance_norm:
        return tuple(range(2, x.dim()))
    return tuple(range(-len(_bound(func, rest, kwargs)["normalized_shape"]), 0))


def affine_of(func: Any, x: Tensor, rest: Any, kwargs: Any) -> tuple[Any, Any]:
    """Gain and bias of a norm, shaped to broadcast over its input; None where it has none."""
    found = _bound(func, rest, kwargs)
    pair = (found.get("weight"), found.get("bias"))
    if func in (F.layer_norm, F.rms_norm):
        return pair
    shape = (1, -1, *[1] * (x.dim() - 2))
    return tuple(None if p is None else p.view(shape) for p in pair)  # type: ignore[return-value]


def divisor_of(func: Any, x: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """The divisor of each entry, shaped to broadcast over x."""
    found = _bound(func, rest, kwargs)
    if (
        func is F.instance_norm
        and found.get("running_mean") is not None
        and not found.get("use_input_stats", True)
    ):
        raise CapabilityError(
            "An instance norm with running statistics is affine; it needs no rule.",
            remedy="Use rules with norm='grad'.",
        )
    axes = axes_of(func, x, rest, kwargs)
    eps = found.get("eps")
    eps = torch.finfo(x.dtype).eps if eps is None and func is F.rms_norm else (eps or 1e-5)
    flat = grouped(func, x, rest, kwargs)
    if func is F.rms_norm:
        return (flat.square().mean(axes, keepdim=True) + eps).sqrt()
    scale = (flat.var(axes, unbiased=False, keepdim=True) + eps).sqrt()
    return scale.expand_as(flat).reshape(x.shape) if func is F.group_norm else scale


@contextlib.contextmanager
def module_rules(
    model: Any, rules: RuleSet, reference: Any, verify: bool, probe: Any
) -> Iterator[dict[str, Any]]:
    """The rules on a plain module or an adapter of one; see ``active.rules``."""
    module = model if isinstance(model, nn.Module) else model.module()
    inputs = probe if reference is None else reference
    inputs = getattr(model, "example", None) if inputs is None else inputs
    mode = FunctionRules(rules)
    facts: dict[str, Any] = {}
    if reference is not None:
        mode.recording = True
        with mode, torch.no_grad():
            module(inputs)
        mode.recording, mode.lending = False, True
        count = dict(Counter(kind for kind, _ in mode.calls))
        facts = {"replaced": count, "present": count, "bit_equal": False, "reference": True}
    elif verify:
        if inputs is None:
            raise UsageError(
                "Rules on a plain module are proved on an input, and none was given.",
                remedy="Pass probe=, one batch as the module takes it.",
            )
        facts = _proved(mode, module, inputs, rules)
    with _restarting(module, mode), mode:
        yield facts


@contextlib.contextmanager
def _restarting(module: nn.Module, mode: FunctionRules) -> Iterator[None]:
    """Calls are counted from the first at every forward of the module."""
    handle = module.register_forward_pre_hook(lambda *_: mode.start())
    try:
        yield
    finally:
        handle.remove()


def _pulled(module: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of a weighted sum of it at the input or the parameters."""
    with torch.enable_grad():
        leaf = inputs
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            leaf = inputs.detach().clone().requires_grad_()
            at: list[Tensor] = [leaf]
        else:
            at = [p for p in module.parameters() if p.requires_grad]
        out = module(leaf)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
        weights = weights[
            torch.randperm(out.numel(), generator=torch.Generator().manual_seed(3)).to(out.device)
        ]
        found = torch.autograd.grad((out.flatten() * weights).sum(), at, allow_unused=True)
    flat = [
        (torch.zeros_like(a) if g is None else g).flatten() for a, g in zip(at, found, strict=True)
    ]
    return out.detach(), torch.cat(flat)


def _proved(mode: FunctionRules, module: nn.Module, inputs: Any, rules: RuleSet) -> dict[str, Any]:
    """Each call alone changes the gradient; all together leave the values.

    Raises:
        InterpError: a call whose rule changes nothing; a rule without any call.
    """
    value, gradient = _pulled(module, inputs)
    with mode:
        mode.start()
        same, _ = _pulled(module, inputs)
    if not torch.equal(value, same):
        raise InterpError(
            "The rules change the module's values; a backward rule must not.",
            remedy="A call whose result is ignored (in place) cannot be replaced.",
        )
    calls = list(mode.calls)
    kinds = list(rules.active)
    if len(kinds) == 1 and not calls:
        raise InterpError(
            f"The rule {kinds[0]!r} was asked for and no call of this module takes it.",
            remedy="Leave the rules out: this module's gradient is the ordinary one.",
        )
    floor = 100 * max(torch.finfo(value.dtype).eps, 1e-8)
    changed: dict[str, float] = {}
    for number, (kind, name) in enumerate(calls):
        mode.only = {number}
        with mode:
            mode.start()
            _, other = _pulled(module, inputs)
        moved = float((other - gradient).norm() / gradient.norm().clamp_min(1e-300))
        if not moved > floor:
            raise InterpError(
                f"The rule {kind!r} was asked for and changes nothing at call {number} ({name}).",
                remedy="Leave this rule out.",
            )
        changed[kind] = min(changed.get(kind, float("inf")), moved)
    mode.only = None
    count = dict(Counter(kind for kind, _ in calls))
    return {"replaced": count, "present": count, "changed": changed, "least": dict(changed)}
