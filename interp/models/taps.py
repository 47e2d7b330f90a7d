"""Taps: how a site's value is caught at a module, read, edited and put back. Plain torch hooks.

Every adapter that runs modules itself (TransformerBridge, any ``nn.Module``) goes through
``Session``; hooks live only inside ``with``, so none remains, also after an exception. The value
of a site is always ``[batch, position, *site dims]``; a ``Layout`` says how that stands in the
tensor that flows through the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interp.models.layouts import Divisor, Layout
from interp.terms import CapabilityError, Edit, InterpError, Site, UsageError


@dataclass(frozen=True)
class Tap:
    """Where a site is caught.

    Args:
        module: the hooked module.
        side: its input or its output.
        layout: how the value stands in that tensor.
        divisor: for norm-scale sites; the tap is then on the norm itself.
        in_place: the tensor is also the skip connection (resid_mid), so an edit writes into it.
        order: among the hooks of one module, smaller runs first.
    """

    module: nn.Module
    side: Literal["input", "output"] = "output"
    layout: Layout = Layout()
    divisor: Divisor | None = None
    in_place: bool = False
    order: int = 0


def index_of(site: Site, shape: Sequence[int]) -> tuple[list[Any], list[int]]:
    """Index of a site's selection in a value, and the axes that single choices drop.

    Every choice is a slice or one list, so the axes keep their order.

    Raises:
        UsageError: an index outside the value, or a slot name where a number is needed.
    """
    index: list[Any] = [slice(None)] * len(shape)
    dropped: list[int] = []

    def choose(axis: int, what: str, value: int) -> None:
        size = shape[axis]
        if not -size <= value < size:
            raise UsageError(
                f"{site} asks for {what} {value} and there are {size}.",
                remedy=f"Give one from 0 to {size - 1}.",
            )
        value %= size
        index[axis] = slice(value, value + 1)
        dropped.append(axis)

    position = site.position
    if isinstance(position, str):
        raise UsageError(
            f"{site} names the slot {position!r}; a model knows positions, not slots.",
            remedy="Give position numbers, or let a method resolve the task's slots.",
        )
    if isinstance(position, int):
        choose(1, "position", position)
    elif position is not None:
        for p in position:
            choose(1, "position", p)
            dropped.pop()
        index[1] = [p % shape[1] for p in position]
    for axis, what in ((2, "head"), (2, "neuron"), (2, "feature"), (3, "key")):
        value = getattr(site, what)
        if value is not None:
            choose(axis, what, value)
    return index, dropped


def select(value: Tensor, site: Site) -> Tensor:
    """The part of a value that a site names; single choices drop their axis."""
    if site == site.whole:
        return value
    index, dropped = index_of(site, value.shape)
    part = value[tuple(index)]
    for axis in sorted(dropped, reverse=True):
        part = part.squeeze(axis)
    return part


def put(value: Tensor, site: Site, part: Tensor) -> Tensor:
    """A copy of ``value`` with the part that a site names replaced; ``part`` is broadcast.

    Raises:
        UsageError: ``part`` does not broadcast to the selection.
    """
    index, dropped = index_of(site, value.shape)
    target = select(value, site).shape
    try:
        part = part.expand(target)
    except RuntimeError:
        raise UsageError(
            f"The value for {site} has shape {tuple(part.shape)}, which does not broadcast to "
            f"{tuple(target)}.",
            remedy="Shapes are [batch, position, …], without the axes a site fixes.",
        ) from None
    for axis in sorted(dropped):
        part = part.unsqueeze(axis)
    out = value.clone()
    out[tuple(index)] = part.to(value.dtype)
    return out


def edited(value: Tensor, edit: Edit) -> tuple[Tensor, Tensor]:
    """A value after one edit, and the largest absolute change (a scalar tensor).

    Raises:
        UsageError: a word that only the engine can resolve, a zero divisor, a wrong shape.
    """
    site = edit.site
    part = select(value, site)
    given = edit.with_
    if isinstance(given, str):
        if given != "zero":
            raise UsageError(
                f"The edit of {site} says {given!r}, which needs another run.",
                remedy="model.run takes arrays or 'zero'; methods resolve the other words.",
            )
        if site.kind.endswith("_scale") and edit.mode == "replace":
            raise UsageError(f"{site} divides, so it cannot be replaced by zero.")
        given = torch.zeros((), dtype=value.dtype, device=value.device)
    new = torch.as_tensor(given, device=value.device, dtype=value.dtype)
    out = put(value, site, part + new if edit.mode == "add" else new)
    change = select(out, site).detach() - part.detach()
    return out, change.abs().amax() if change.numel() else change.new_zeros(())


@dataclass
class Watch:
    """What is wanted at one whole site."""

    tap: Tap
    site: Site
    bias: Tensor | None = None
    edits: list[tuple[int, Edit]] = field(default_factory=list)
    reads: list[Site] = field(default_factory=list)
    calls: int = 0


class Session:
    """One forward pass under hooks.

    Args:
        tap_of: whole site -> tap.
        edits: in order; several at one site are applied one after the other.
        read: sites wanted; the value after the edits.
        grad: put each read on the path to the output, so that it can be differentiated.
    """

    def __init__(
        self,
        tap_of: Callable[[Site], Tap],
        edits: Iterable[Edit] = (),
        read: Iterable[Site] = (),
        grad: bool = False,
    ) -> None:
        self.grad = grad
        self.reads: dict[Site, Tensor] = {}
        self._change: dict[int, Tensor] = {}
        self._watches: dict[Site, Watch] = {}
        self._handles: list[Any] = []
        for number, edit in enumerate(edits):
            if edit.reader is not None:
                raise CapabilityError(
                    f"The edit of {edit.site} is for the reader {edit.reader} alone.",
                    remedy="Edges are run by the engine's sweeps, not by model.run.",
                )
            self._watch(edit.site, tap_of).edits.append((number, edit))
        for site in read:
            self._watch(site, tap_of).reads.append(site)

    def _watch(self, site: Site, tap_of: Callable[[Site], Tap]) -> Watch:
        whole = site.whole
        if whole not in self._watches:
            tap = tap_of(whole)
            self._watches[whole] = Watch(tap, whole, getattr(tap.module, "bias", None))
        return self._watches[whole]

    @property
    def watches(self) -> tuple[Watch, ...]:
        """What is wanted, one entry a whole site."""
        return tuple(self._watches.values())

    @property
    def fired(self) -> tuple[float, ...]:
        """For each edit the largest absolute change it made."""
        return tuple(float(self._change[n]) for n in sorted(self._change))

    def __enter__(self) -> Session:
        try:
            for watch in sorted(self._watches.values(), key=lambda w: w.tap.order):
                self._handles.append(self._hook(watch))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._remove()
        if kind is None:
            self.finish()

    def finish(self) -> None:
        """Refuse a pass in which a site was not reached, or more than once.

        Raises:
            InterpError: with the site.
        """
        for watch in self._watches.values():
            if watch.calls != 1:
                raise InterpError(
                    f"{watch.site} was reached {watch.calls} times in one forward pass; "
                    "wanted once.",
                    remedy="The model does not run this part, or runs it repeatedly.",
                )

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, watch: Watch) -> Any:
        tap = watch.tap
        if tap.divisor is not None:
            return tap.module.register_forward_hook(self._on_norm(watch), with_kwargs=True)
        if tap.side == "input":
            return tap.module.register_forward_pre_hook(self._on_input(watch), with_kwargs=True)
        return tap.module.register_forward_hook(self._on_output(watch))

    def portable(self) -> Session:
        """The same wishes without the modules, for a pass that runs in another process."""
        out = Session(lambda site: self._watches[site].tap, grad=False)
        out._watches = {
            site: replace(
                w,
                tap=replace(w.tap, module=None),  # type: ignore[arg-type]
                bias=None if w.bias is None else w.bias.detach(),
            )
            for site, w in self._watches.items()
        }
        return out

    def take(self, other: Session) -> None:
        """Take over what a portable session came back with."""
        self.reads, self._change = other.reads, other._change
        for site, watch in other._watches.items():
            self._watches[site].calls = watch.calls

    def visit(self, watch: Watch, value: Tensor) -> Tensor | None:
        """Apply the edits and take the reads at one site; None where nothing changes."""
        watch.calls += 1
        new: Tensor | None = None
        for number, edit in watch.edits:
            value, self._change[number] = edited(value, edit)
            new = value
        for site in watch.reads:
            part = select(value, site)
            if self.grad and part.is_floating_point():
                part = part.clone() if part.requires_grad else part.clone().requires_grad_()
                value = new = put(value, site, part)
            elif part.numel() < value.numel():
                part = part.clone()  # a view would keep the whole tensor alive
            self.reads[site] = part
        return new

    def pass_through(self, watch: Watch, raw: Any, given: Tensor | None = None) -> Any:
        """What flows on from a tap: ``raw`` itself where nothing changes.

        Args:
            watch: what is wanted there.
            raw: the tensor (or a tuple that starts with it) that flows through.
            given: for a norm, its input.
        """
        tensor = raw[0] if isinstance(raw, (tuple, list)) else raw
        tap = watch.tap
        if tap.divisor is not None:
            assert given is not None
            old = tap.divisor.measure(given)
            new = self.visit(watch, old)
            if new is None:
                return raw
            return tap.divisor.apply(tensor, watch.bias, old, new)
        new = self.visit(watch, tap.layout.decode(tensor))
        if new is None:
            return raw
        new = tap.layout.encode(new, tensor)
        if tap.in_place:
            tensor.copy_(new)
            return raw
        return (new, *raw[1:]) if isinstance(raw, (tuple, list)) else new

    def _on_input(self, watch: Watch) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            raw, key = find_tensor(args, kwargs)
            new = self.pass_through(watch, raw)
            if new is raw:
                return None
            if isinstance(key, int):
                return (*args[:key], new, *args[key + 1 :]), kwargs
            return args, {**kwargs, key: new}

        return hook

    def _on_output(self, watch: Watch) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            new = self.pass_through(watch, output)
            return None if new is output else new

        return hook

    def _on_norm(self, watch: Watch) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            new = self.pass_through(watch, output, find_tensor(args, kwargs)[0])
            return None if new is output else new

        return hook


def find_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, int | str]:
    """The tensor a module was called with, and where it stands among the arguments."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return value, i
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return kwargs["hidden_states"], "hidden_states"
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return value, key
    raise InterpError("A hooked module was called without a tensor, so its input cannot be read.")
