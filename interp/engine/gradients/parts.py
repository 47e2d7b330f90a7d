"""Parts: what a rule replaces in a model's layers, each able to be switched, counted and watched.

A part stands where a norm, an activation, a gate's product or the attention of a layer stood. Off,
it is that very thing. On, its value is the same to the bit and its derivative is the rule's. With
values lent by a reference run it computes with those instead (the frozen network).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from interp.engine.gradients import forms
from interp.engine.gradients.ruleset import RuleSet
from interp.models import kernels
from interp.terms import UsageError

SHARES = {"uniform": (0.25, 0.25, 0.5)}
"""Shares of the gradient that q, k and v keep under a rule."""


class Part:
    """One replaced place.

    Args:
        kind: a key of ``RuleSet``.
        where: name of the place, as ``layer 3 pre_attn``.
        honest: what stood there.
    """

    def __init__(self, kind: str, where: str, honest: Callable[..., Any]) -> None:
        self.kind, self.where, self.honest = kind, where, honest
        self.on, self.watching, self.recording = True, False, False
        self.calls = 0
        self.seen: tuple[Any, ...] = ()
        self.lent: Any = None

    def __call__(self, *inputs: Any) -> Any:
        """The part's value; what it saw is kept where somebody watches."""
        self.calls += 1
        if self.watching:
            self.seen = tuple(i.detach().clone() if isinstance(i, Tensor) else i for i in inputs)
        if self.recording:
            with torch.no_grad():
                self.lent = self.measured(*inputs)
        if self.recording or not self.on:
            return self.plain(*inputs)
        if self.lent is not None:
            return self.frozen(*inputs)
        if not any(isinstance(i, Tensor) and i.requires_grad for i in inputs):
            return self.plain(*inputs)
        return self.ruled(*inputs)

    def plain(self, *inputs: Any) -> Any:
        """As without rules."""
        return self.honest(*inputs)

    def ruled(self, *inputs: Any) -> Any:
        """The same value, with the rule's derivative."""
        raise AssertionError("a part has a rule")

    def measured(self, *inputs: Any) -> Any:
        """What a reference run lends."""
        raise AssertionError("a part says what it lends")

    def frozen(self, *inputs: Any) -> Any:
        """The value with what the reference run lent."""
        raise AssertionError("a part can be frozen")

    def fits(self, lent: Tensor, like: Tensor) -> Tensor:
        """What was lent, if it has this run's rows and positions.

        Raises:
            UsageError: another number of tokens.
        """
        if len(lent) != len(like):
            raise UsageError(
                f"The reference run has {len(lent)} rows and this one {len(like)} ({self.where}).",
                remedy="Run the prompts of the reference, all of them, in the same order.",
            )
        return lent


class NormPart(Part):
    """A norm whose divisor does not answer."""

    def __init__(self, kind: str, where: str, honest: Any, mean: str) -> None:
        super().__init__(kind, where, honest)
        self.mean = mean
        self.by_ratio = False
        self.tap: Tensor | None = None

    def _form(self, x: Tensor, scale: Tensor) -> Tensor:
        norm: Any = self.honest
        return forms.straight_norm(
            x,
            scale,
            norm.gain(),
            norm.bias,
            centred=norm.kind == "layer",
            mean=self.mean,
            tap=self.tap,
        )

    def ruled(self, x: Tensor) -> Tensor:
        """See ``Part``; ``by_ratio`` takes x·sg(f(x)/x), for norms that round in between."""
        value, form = self.honest(x), self._form(x, self.measured(x))
        if self.by_ratio:
            at = x.detach()
            slope = torch.where(at == 0, torch.zeros_like(at), value.detach() / at)
            form = x * slope
        return forms.stopped(value, form)

    def measured(self, x: Tensor) -> Tensor:
        """The divisor."""
        return self.honest.scale(x.detach())

    def frozen(self, x: Tensor) -> Tensor:
        """With the reference run's divisor."""
        return self._form(x, self.fits(self.lent, x))


class ActPart(Part):
    """An activation that passes x·sg(f(x)/x)."""

    def ruled(self, x: Tensor) -> Tensor:
        """See ``Part``."""
        return forms.stopped(self.honest(x), x * self.measured(x))

    def measured(self, x: Tensor) -> Tensor:
        """f(x)/x."""
        return forms.factor(self.honest, x)

    def frozen(self, x: Tensor) -> Tensor:
        """With the reference run's factor."""
        return x * self.fits(self.lent, x)


class GatePart(Part):
    """The product of a gated MLP."""

    def __init__(self, where: str, rule: str) -> None:
        super().__init__("gate", where, torch.mul)
        self.rule = rule

    def ruled(self, a: Tensor, u: Tensor) -> Tensor:
        """See ``Part``."""
        return forms.product(a, u, self.rule)

    def measured(self, a: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Both factors."""
        return a.detach().clone(), u.detach().clone()

    def frozen(self, a: Tensor, u: Tensor) -> Tensor:
        """Linear in both factors, each beside the reference run's other one."""
        a_ref, u_ref = (self.fits(t, u) for t in self.lent)
        return a_ref * u if self.rule == "value" else (a * u_ref + a_ref * u) / 2


class AttendPart(Part):
    """A layer's attention: pattern stopped, or shares of the gradient."""

    def __init__(self, where: str, block: Any, rule: str) -> None:
        super().__init__("attn", where, block.attend)
        self.block, self.rule = block, rule

    def ruled(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        """See ``Part``."""
        if self.rule == "ah":
            return self.honest(q.detach(), k.detach(), v, position)
        q, k, v = (forms.damped(x, s) for x, s in zip((q, k, v), SHARES[self.rule], strict=True))
        return self.honest(q, k, v, position)

    def measured(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor | None:
        """The pattern, where the rule stops it."""
        return self.block.pattern(q, k, position) if self.rule == "ah" else None

    def frozen(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        """With the reference run's pattern."""
        return self.block.mix(self.fits(self.lent, v), v)


class _Tanh(TorchFunctionMode):
    """Inside, tanh passes x·sg(tanh(x)/x)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.tanh and args[0].requires_grad:
            x, at = args[0], args[0].detach()
            slope = torch.where(at == 0, 1.0, torch.tanh(at) / torch.where(at == 0, 1.0, at))
            return forms.stopped(out, x * slope)
        return out


class CapPart(Part):
    """Something with a soft cap in it (attention scores, logits)."""

    def ruled(self, *inputs: Any) -> Any:
        """See ``Part``."""
        with _Tanh():
            return self.honest(*inputs)

    def measured(self, *inputs: Any) -> None:
        """Caps are not frozen: a reference lends patterns where those are."""

    def frozen(self, *inputs: Any) -> Any:
        """As it is."""
        return self.honest(*inputs)


def _neurons(block: Any, product: GatePart) -> Callable[[Tensor], Tensor]:
    """``Block.neurons`` of a gated MLP with its product by way of a part."""

    def neurons(resid_ND: Tensor) -> Tensor:
        x = resid_ND if block.pre_mlp is None else block.pre_mlp(resid_ND)
        return product(block.act(block.w_gate(x)), block.w_in(x))

    return neurons


class Swap:
    """Attributes of live objects replaced for a while.

    Args:
        blocks: the model's blocks, whose layers get parts.
        rules: which.
    """

    def __init__(self, blocks: Any, rules: RuleSet) -> None:
        self.blocks, self.rules = blocks, rules
        self.parts: list[Part] = []
        self._old: list[tuple[Any, str, bool, Any]] = []

    def _set(self, owner: Any, name: str, value: Any) -> None:
        own = name in vars(owner)
        self._old.append((owner, name, own, vars(owner).get(name)))
        setattr(owner, name, value)
        if isinstance(value, Part):
            self.parts.append(value)

    def install(self) -> None:
        """Put the parts in place; undone by ``restore``, also where this fails half-way."""
        for index, block in enumerate(self.blocks.layers):
            self._install(f"layer {index}", block)
        if self.rules.norm != "grad" and self.blocks.final_norm is not None:
            self._norm("norm", self.blocks, "final_norm", "the final norm")
        if self.rules.cap != "grad" and self.blocks.cap is not None:
            self._set(
                self.blocks, "unembed", CapPart("cap", "the cap of the logits", self.blocks.unembed)
            )

    def _norm(self, kind: str, owner: Any, name: str, where: str) -> None:
        norm = getattr(owner, name)
        if norm is not None:
            self._set(owner, name, NormPart(kind, where, norm, self.rules.mean))

    def _install(self, layer: str, block: Any) -> None:
        rules = self.rules
        if rules.norm != "grad":
            for name in ("pre_attn", "post_attn", "pre_mlp", "post_mlp"):
                self._norm("norm", block, name, f"{layer} {name}")
        if rules.qk_norm != "grad":
            for name in ("q_norm", "k_norm"):
                self._norm("qk_norm", block, name, f"{layer} {name}")
        stopped_gate = block.gated and rules.gate == "value"
        if rules.act != "grad" and not stopped_gate:
            self._act(layer, block)
        if rules.gate != "grad" and block.gated:
            part = GatePart(f"{layer} gate", rules.gate)
            self._set(block, "neurons", _neurons(block, part))
            self.parts.append(part)
        if rules.cap != "grad" and block.facts.cap is not None:
            self._set(block, "attend", CapPart("cap", f"{layer} cap of the scores", block.attend))
        if rules.attn != "grad":
            self._set(block, "attend", AttendPart(f"{layer} attention", block, rules.attn))

    def _act(self, layer: str, block: Any) -> None:
        """ReLU's identity rule is its ordinary gradient: nothing to replace, but to freeze."""
        if not forms.vanishes_at_zero(block.act, block.w_in.weight.detach()):
            raise UsageError(
                f"The activation of {layer} is not 0 at 0, so the identity rule f(x)/x is no "
                "rule for it.",
                remedy="Use rules with act='grad'.",
            )
        kind = "relu" if block.act is kernels.relu else "act"
        self._set(block, "act", ActPart(kind, f"{layer} activation", block.act))

    def restore(self) -> None:
        """Everything as it was."""
        while self._old:
            owner, name, own, value = self._old.pop()
            if own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)

    @contextlib.contextmanager
    def alone(self, kinds: set[str]) -> Iterator[None]:
        """Only the parts of these kinds are on."""
        before = [p.on for p in self.parts]
        try:
            for part in self.parts:
                part.on = part.kind in kinds
            yield
        finally:
            for part, on in zip(self.parts, before, strict=True):
                part.on = on
