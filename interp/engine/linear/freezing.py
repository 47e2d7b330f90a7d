"""Freezing: functional calls replaced by linear ones at the input, on any unmodified module.

Each non-linear unit takes its decision at the input (slope, divisor, pattern) and is linear from
then on; values do not change by a bit (``sg(f) + (form - sg(form))``). Convolutions, linear maps,
ReLU, max-pooling are left alone: autograd gives their decision. Every additive constant is entered
in a ``Book``. Extends the function rules of ``engine/gradients`` (michelini2019tour).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interp.engine.gradients import forms
from interp.engine.gradients.functions import (
    ACTS,
    FunctionRules,
    affine_of,
    axes_of,
    divisor_of,
    grouped,
    pattern_of,
)
from interp.engine.gradients.ruleset import RuleSet
from interp.engine.linear import names
from interp.engine.linear.sources import Book
from interp.terms import UsageError, unknown_name

CLOSED = {"silu": ACTS[F.silu], "gelu": ACTS[F.gelu]}


class Freezing(FunctionRules):
    """The mode under which a module's forward pass is linear in its input.

    Args:
        rules: ``norm``, ``act``, ``gate``, ``attn`` each frozen or left (``grad``).
        book: where sources are entered.
        without: functions (``softplus``) or kinds of source (``offset``) that are left out, to
            show that the completeness check notices.
        tokens: ids whose embedding is the input, or None.
    """

    def __init__(
        self,
        rules: RuleSet,
        book: Book,
        without: Collection[str] = (),
        tokens: Tensor | None = None,
    ) -> None:
        super().__init__(rules)
        self.book, self.without, self.tokens = book, frozenset(without), tokens
        self.entry: Tensor | None = None
        self.path: list[str] = [""]
        self.strange: list[tuple[str, str]] = []
        self.covered: dict[str, int] = {}
        self._gates: dict[int, Tensor] = {}
        self._seen_embedding = False
        self.off = 0
        self._rules = self._table()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a call that the input reaches."""
        kwargs = dict(kwargs or {})
        if self.off:
            return func(*args, **kwargs)
        name = str(getattr(func, "__name__", func))
        if name == "embedding" and self.tokens is not None:
            return self._embedded(func, args, kwargs)
        if not names.live(args) and not names.live(tuple(kwargs.values())):
            return func(*args, **kwargs)
        plain = name[:-1] if name.endswith("_") and not name.startswith("__") else name
        rule = self._rules.get(plain)
        if rule is None:
            if plain not in names.LINEAR and plain not in names.PIECEWISE:
                self.strange.append((self.here, plain))
            return func(*args, **kwargs)
        self.covered[plain] = self.covered.get(plain, 0) + 1
        return rule(plain, names.outside(func, name), args, kwargs)

    @property
    def here(self) -> str:
        """Path of the module that is running."""
        return self.path[-1]

    def _table(self) -> dict[str, Callable[..., Any]]:
        """Function -> what replaces it, under these rules."""
        rules = self.rules
        known: tuple[tuple[bool, Collection[str], Callable[..., Any]], ...] = (
            (rules.act != "grad", names.SECANT, self._unit),
            (rules.norm != "grad", names.NORMS, self._normed),
            (rules.attn != "grad", names.ATTENTION, self._attended),
            (True, ("batch_norm",), self._batch_normed),
            (True, names.BIASED, self._mapped),
            (True, names.SUMS, self._summed),
            (True, names.JOINED, self._joined),
            (True, names.PRODUCTS, self._product),
            (rules.gate != "grad", ("glu",), self._glu),
            (True, ("dropout", "alpha_dropout", "feature_dropout"), self._dropped),
            (True, ("where", "masked_fill", "maximum", "minimum", "pad"), self._chosen),
        )
        return {n: r for on, group, r in known if on for n in group if n not in self.without}

    def _where(self, what: str) -> str:
        return f"{self.here} {what}".strip()

    def _add(self, out: Tensor, constant: Tensor, what: str, kind: str) -> Tensor:
        if kind in self.without:
            return out
        return self.book.added(out, constant, self._where(what), kind)

    # -- units ------------------------------------------------------------------------------------

    def _unit(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """x·sg((f(x) - f(0))/x) + f(0), or x·sg(closed form)."""
        kwargs.pop("inplace", None)
        x, rest = args[0], names.without_inplace(name, args[1:])
        value = func(x, *rest, **kwargs)
        with torch.no_grad():
            at = x.detach()
            if name in CLOSED:
                slope, zero = CLOSED[name](at, *rest, **kwargs), None
            else:
                zero = func(torch.zeros_like(at), *rest, **kwargs)
                here = at == 0
                secant = (value.detach() - zero) / torch.where(here, 1.0, at)
                if bool(here.any()):
                    secant = torch.where(here, _slopes_at_zero(func, at, rest, kwargs), secant)
                slope = secant
        out = forms.stopped(value, x * slope)
        if zero is not None and bool((zero != 0).any()):
            out = self._add(out, zero, f"{name}(0)", "offset")
        self._gates[id(out)] = out
        return out

    def _normed(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """(x - mean)/sg(σ)·gain + bias; with ``mean="frozen"`` the mean is a source."""
        x, rest = args[0], args[1:]
        if name == "instance_norm" and names.bound(func, rest, kwargs).get("use_input_stats") is (
            False
        ):
            return self._batch_normed(name, func, args, kwargs)
        value = func(x, *rest, **kwargs)
        with torch.no_grad():
            scale = divisor_of(func, x.detach(), rest, kwargs)
        gain, bias = affine_of(func, x, rest, kwargs)
        weight = 1.0 / scale if gain is None else gain / scale
        centred, mean = x, None
        if func is not F.rms_norm:
            axes = axes_of(func, x, rest, kwargs)
            flat = grouped(func, x, rest, kwargs)
            mean = flat.mean(axes, keepdim=True).expand_as(flat).reshape(x.shape)
            centred = x - mean if self.rules.mean != "frozen" else x
        out = forms.stopped(value, centred * weight)
        if mean is not None and self.rules.mean == "frozen":
            out = self._add(out, -(mean * weight).detach(), "mean", "mean")
        if bias is not None:
            out = self._add(out, bias.expand_as(out), "bias", "bias")
        return out

    def _batch_normed(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """k·x + (β - k·mean); the constant joins the bias of the map whose output this is."""
        known = names.bound(func, args[1:], kwargs)
        x, mean, var = args[0], known.get("running_mean"), known.get("running_var")
        if known.get("training") or known.get("use_input_stats") or mean is None or var is None:
            raise UsageError(
                f"{self.here or 'The network'} normalises by the statistics of its batch.",
                remedy="Put it into eval mode, with running statistics.",
            )
        shape = (1, -1, *(1,) * (x.dim() - 2))
        gain, bias = known.get("weight"), known.get("bias")
        k = (var + (known.get("eps") or 1e-5)).rsqrt()
        k = k if gain is None else k * gain
        shift = -k * mean if bias is None else bias - k * mean
        out = forms.stopped(func(*args, **kwargs), x * k.view(shape))
        if "bias" in self.without or "running_mean" in self.without:
            return out
        number = self.book.maker(x)
        if number is None:
            return self._add(out, shift.view(shape).expand_as(out), "mean and bias", "bias")
        self.book.rename(number, f"{self.book.sources[number].name} + {self.here}")
        made = out + self.book.term(number, shift.view(shape).expand_as(out), out)
        self.book.remember(made, number)
        return made

    def stand_in(self, honest: Callable[..., Any], how: str) -> Callable[..., Any]:
        """What a module's ``forward`` is for a while: ``secant`` or ``stop``.

        Raises:
            UsageError: another rule.
        """
        if how == "stop":
            return lambda *args, **kwargs: _detached(honest(*args, **kwargs))
        if how != "secant":
            raise unknown_name("rule of a module", how, ("secant", "stop"))

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            with _Off(self):
                return self._unit("module", honest, (x, *args), kwargs)

        return forward

    # -- attention --------------------------------------------------------------------------------

    def _attended(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The pattern is a decision; values pass through it linearly."""
        if name == "log_softmax":
            out = func(*args, **kwargs)
            top = (args[0] - out).detach()
            return self._add(forms.stopped(out, args[0]), -top, "log of the sum", "offset")
        if name == "multi_head_attention_forward":
            return self._many_heads(func, args, kwargs)
        if name != "scaled_dot_product_attention":
            return func(*args, **kwargs).detach()
        q, k, v, *rest = args if len(args) > 2 else (*args, *_taken(kwargs, args))
        value = func(q, k, v, *rest, **kwargs)
        with torch.no_grad():
            pattern = pattern_of(q, k, v, rest, kwargs)
        groups = pattern.shape[-3] // v.shape[-3] if v.dim() > 2 else 1
        wide = v.repeat_interleave(groups, -3) if groups > 1 else v
        return forms.stopped(value, pattern @ wide)

    def _many_heads(self, func: Any, args: Any, kwargs: Any) -> Any:
        """``F.multi_head_attention_forward`` as in-projection, pattern, out-projection."""
        from interp.engine.linear.heads import value_path

        known = names.bound(func, args, kwargs)
        return value_path(self, func, known)

    # -- maps and sums ----------------------------------------------------------------------------

    def _mapped(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A linear map with a bias."""
        out = func(*args, **kwargs)
        if name in ("addmm", "baddbmm", "addbmm"):
            known = dict(zip(("input", "mat1", "mat2"), args, strict=False)) | kwargs
            bias = known["input"]
            if bias.requires_grad:
                return out
            return self._add(out, (known.get("beta", 1) * bias).expand_as(out), "bias", "bias")
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        if not isinstance(bias, Tensor):
            return out
        if name != "linear":
            bias = bias.view(-1, *(1,) * (args[1].dim() - 2))
        return self._add(out, bias.expand_as(out), "bias", "bias")

    def _summed(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A sum with a constant, whatever its sign and order."""
        out = func(*args, **kwargs)
        a, b = args[0], args[1] if len(args) > 1 else kwargs["other"]
        alpha = kwargs.get("alpha", 1)
        if names.live((a,)) and names.live((b,)):
            return out
        constant = b if names.live((a,)) else a
        sign = 1.0
        if name in ("sub", "subtract", "__sub__", "__isub__"):
            sign = -1.0 if constant is b else 1.0
        elif name in ("__rsub__", "rsub"):
            sign = 1.0 if constant is b else -1.0
        sign *= alpha if constant is b else 1.0
        value = torch.as_tensor(constant, dtype=out.dtype, device=out.device)
        if not bool((value != 0).any()):
            return out
        return self._add(out, (sign * value).expand_as(out), "constant", "constant")

    def _joined(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Concatenation: constant pieces are sources."""
        pieces = list(args[0] if args else kwargs.pop("tensors"))
        if "constant" not in self.without:
            pieces = [
                p if p.requires_grad or not p.numel() else self._add(p, p, "constant", "constant")
                for p in pieces
            ]
        return func(pieces, *args[1:], **kwargs)

    def _chosen(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A choice between x and a constant; what the constant fills in is a source."""
        out = func(*args, **kwargs)
        if name in ("maximum", "minimum") and names.live((args[0],)) and names.live((args[1],)):
            return out
        with torch.no_grad():
            zeros = [a.detach() * 0 if names.live((a,)) else a for a in args]
            fixed = func(*zeros, **kwargs)
        if name in ("maximum", "minimum"):
            constant = next(a for a in args[:2] if not names.live((a,)))
            fixed = torch.where(out.detach() == constant, constant, 0.0).expand_as(out)
        if not torch.isfinite(fixed).all() or not bool((fixed != 0).any()):
            return out
        return self._add(out, fixed, "constant", "constant")

    # -- products ---------------------------------------------------------------------------------

    def _product(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A gate's product is given to its value or halved; any other is left as it is."""
        both = [a for a in names.flat(args) if isinstance(a, Tensor) and a.requires_grad]
        if len(both) < 2:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        gate = next((a for a in args[:2] if id(a) in self._gates), None)
        if gate is None or name not in ("mul", "multiply", "__mul__", "__rmul__", "__imul__"):
            self.strange.append((self.here, f"product of two ({name})"))
            return out
        if self.rules.gate == "grad":
            return out
        value = args[1] if gate is args[0] else args[0]
        return forms.stopped(out, self._shared(gate, value))

    def _shared(self, gate: Tensor, value: Tensor) -> Tensor:
        form = gate.detach() * value
        return form if self.rules.gate == "value" else (form + gate * value.detach()) / 2

    def _glu(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """a·σ(b) of the two halves."""
        dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
        value, b = args[0].chunk(2, dim)
        gate = self._unit("sigmoid", torch.sigmoid, (b,), {})
        return forms.stopped(func(*args, **kwargs), self._shared(gate, value))

    def _dropped(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        known = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        if known.get("training", True) and known.get("p", 0.5) > 0:
            raise UsageError(
                f"{self.here or 'The network'} drops units at random.",
                remedy="Put it into eval mode.",
            )
        out = func(*args, **kwargs)
        if id(known["input"]) in self._gates:
            self._gates[id(out)] = out
        return out

    # -- tokens -----------------------------------------------------------------------------------

    def _embedded(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The embedding of the prompt's own ids is the input."""
        out = func(*args, **kwargs)
        ids = next((a for a in args if isinstance(a, Tensor) and not a.is_floating_point()), None)
        assert self.tokens is not None
        if (
            self._seen_embedding or ids is None or ids.numel() != self.tokens.numel()
            or not torch.equal(ids.reshape(-1), self.tokens.reshape(-1))
        ):  # fmt: skip
            return out
        self._seen_embedding = True
        self.entry = entry = out.detach().requires_grad_()
        return entry.clone()


class _Off:
    """No rule inside: a module's own operations are its unit's business."""

    def __init__(self, mode: Freezing) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.mode.off += 1

    def __exit__(self, *_: Any) -> None:
        self.mode.off -= 1


def _detached(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.detach()
    return type(out)(_detached(o) for o in out) if isinstance(out, (tuple, list)) else out


def _slopes_at_zero(func: Any, at: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """The derivative of a function of one entry at 0, ``[*at]``."""
    with torch.enable_grad():
        x = torch.zeros_like(at).requires_grad_()
        return torch.autograd.grad(func(x, *rest, **kwargs).sum(), x)[0]


def _taken(kwargs: dict[str, Any], args: Any) -> list[Any]:
    """Query, key, value where some were given by name."""
    return [kwargs.pop(n) for n in ("query", "key", "value")[len(args) :]]
