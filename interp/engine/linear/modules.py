"""Modules: any ``nn.Module`` frozen at a batch of inputs, left as it was afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interp.engine.gradients.ruleset import RuleSet, rule_set
from interp.engine.linear.freezing import Freezing
from interp.engine.linear.frozen import Frozen
from interp.engine.linear.names import ATTENTION
from interp.engine.linear.sources import Book
from interp.models.elementary import ELEMENTARY
from interp.terms import InterpError, UsageError, unknown_name


@dataclass(frozen=True)
class Ends:
    """Where the linear map begins and ends.

    Args:
        start: path of a module whose output is the input of the map, or empty for the network's
            own input (a prompt's token embedding where it reads ids).
        stop: path of a module whose output is the map's output, or empty for the network's.
        pick: what of the output is kept, as ``out -> out``; None for all.
    """

    start: str = ""
    stop: str = ""
    pick: Callable[[Tensor], Tensor] | None = None


def freeze(
    module: nn.Module,
    inputs: Any,
    *,
    rules: str | RuleSet = "linear",
    ends: Ends | None = None,
    without: Collection[str] = (),
    declared: dict[str, str] | None = None,
    memory: int = 2**30,
    **changes: Any,
) -> Frozen:
    """The network at a batch of inputs, as a linear map.

    Args:
        module: any module in eval mode, unmodified.
        inputs: ``[batch, …]``: numbers, or token ids (the input is then their embedding).
        rules: a set of rules; see ``engine/gradients``.
        ends: where the map begins and ends.
        without: rules left out, for negative controls.
        declared: path of a module -> ``secant`` (x·sg(f(x)/x)) or ``stop`` (a decision), for
            modules written out of elementary operations.
        memory: bytes that rows of F may take.
        **changes: single rules changed.

    Raises:
        UsageError: training mode, a module that is not there, an output without the input.
        InterpError: a module whose values change when frozen (it ignores what it calls).
    """
    chosen, ends = rule_set(rules, **changes), ends or Ends()
    _refuse_training(module)
    with _attention(chosen, without), torch.enable_grad():
        honest = _honest(module, ends.stop, inputs)
        value, mode, x, y = _run(module, inputs, chosen, ends, without, declared or {})
    gap = float((honest.double() - value.double()).abs().max())
    if not gap <= 1e3 * torch.finfo(value.dtype).eps * float(honest.abs().max()):
        raise InterpError(
            f"Frozen, the network gives other values ({gap:.2g}): a call that works in place and "
            "whose result is not used cannot be replaced.",
            remedy="Write x = f(x) instead of f(x, inplace=True) on its own.",
        )
    made = Frozen(x, y, mode.book.sources, memory=memory, complaints=tuple(mode.strange))
    if mode.book.mixed and len(x) > 1:
        raise _MixedBatchError
    return made


class _MixedBatchError(UsageError):
    """The batch does not stand in front everywhere: inputs must come one by one."""

    def __init__(self) -> None:
        super().__init__(
            "This network puts its batch elsewhere than in front, so inputs cannot be told apart.",
            remedy="Give them one by one (freeze_rows does).",
        )


def freeze_rows(module: nn.Module, inputs: Tensor, tolerance: float, **how: Any) -> list[Frozen]:
    """``freeze`` of all inputs together, or one by one where a batch cannot be told apart.

    Args:
        module: see ``freeze``.
        inputs: ``[batch, …]``.
        tolerance: completeness, relative to |f|, that a batch must keep to be believed.
        **how: as for ``freeze``.
    """
    try:
        whole = freeze(module, inputs, **how)
    except _MixedBatchError:
        whole = None
    if whole is not None and (len(inputs) == 1 or _told_apart(whole, tolerance)):
        return [whole]
    return [freeze(module, inputs[i : i + 1], **how) for i in range(len(inputs))]


def _told_apart(frozen: Frozen, tolerance: float) -> bool:
    """Whether each input's sources are its own: row by row, or no worse than all together."""
    flat = frozen.value.abs().reshape(frozen.rows, -1)
    size = (flat.amax(1) * flat.shape[1] ** 0.5).clamp_min(1e-30)
    mine = frozen.row_gap(torch.Generator().manual_seed(0)) / size
    whole = frozen.completeness() / flat.amax(1).clamp_min(1e-30)
    return bool((mine <= tolerance).all()) or not bool((whole <= tolerance).all())


def _refuse_training(module: nn.Module) -> None:
    for path, part in module.named_modules():
        if part.training:
            raise UsageError(
                f"{path or type(module).__name__} is in training mode, so its values are random "
                "or those of a batch.",
                remedy="Call module.eval() first.",
            )


def _first(out: Any) -> Tensor:
    """The tensor of a module's output."""
    if isinstance(out, Tensor):
        return out
    if hasattr(out, "logits"):
        return out.logits
    if isinstance(out, dict):
        return next(v for v in out.values() if isinstance(v, Tensor))
    return next(v for v in out if isinstance(v, Tensor))


def _honest(module: nn.Module, stop: str, inputs: Any) -> Tensor:
    """The value at the end of the map without rules, by the same kernels as with them."""
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        inputs = inputs.detach().clone().requires_grad_().clone()
    return _stopped_at(module, stop, inputs).detach()


def _attention(rules: RuleSet, without: Collection[str]) -> contextlib.AbstractContextManager[Any]:
    """Attention that is left as it is must be differentiable twice, for F·u."""
    if rules.attn != "grad" and not set(without) & ATTENTION:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def _part(module: nn.Module, path: str) -> nn.Module:
    known = dict(module.named_modules())
    if path not in known:
        raise unknown_name("part of the module", path, [k for k in known if k])
    return known[path]


def _stopped_at(module: nn.Module, stop: str, inputs: Any) -> Tensor:
    """The value at the end of the map, without rules."""
    if not stop:
        return _first(module(inputs))
    seen: list[Tensor] = []
    handle = _part(module, stop).register_forward_hook(lambda m, a, o: seen.append(_first(o)))
    try:
        module(inputs)
    finally:
        handle.remove()
    return seen[-1]


def _run(
    module: nn.Module,
    inputs: Any,
    rules: RuleSet,
    ends: Ends,
    without: Collection[str],
    declared: dict[str, str],
) -> tuple[Tensor, Freezing, Tensor, Tensor]:
    """The whole value at the end, the mode, the map's input and output."""
    numbers = isinstance(inputs, Tensor) and inputs.is_floating_point()
    like = inputs if numbers else next(module.parameters())
    mode = Freezing(rules, Book(len(inputs), like.detach()), without, _ids(inputs, ends))
    entry = inputs
    if numbers and not ends.start:
        mode.entry = start = inputs.detach().clone().requires_grad_()
        entry = start.clone()
    caught: list[tuple[Tensor, int]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_constant_parameters(module))
        stack.enter_context(_paths(module, mode, without))
        if ends.start:
            stack.enter_context(_opened(module, ends.start, mode))
        if ends.stop:
            part = _part(module, ends.stop)
            book = mode.book
            handle = part.register_forward_hook(
                lambda m, a, o: caught.append((_first(o), len(book.sources)))
            )
            stack.callback(handle.remove)
        stack.enter_context(_swapped(module, declared, mode))
        stack.enter_context(torch.enable_grad())
        with mode:
            out = _first(module(entry))
    y = out
    if ends.stop:
        y, known = caught[-1]
        del mode.book.sources[known:]
    if mode.entry is None:
        raise UsageError(
            "The network never embeds the ids it is given, so there is no input to be linear in.",
            remedy="Give input_site as a module, for instance its first layer.",
        )
    return y.detach(), mode, mode.entry, y if ends.pick is None else ends.pick(y)


def _ids(inputs: Any, ends: Ends) -> Tensor | None:
    if ends.start or (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        return None
    return torch.as_tensor(inputs)


@contextlib.contextmanager
def _constant_parameters(module: nn.Module) -> Iterator[None]:
    """Inside, a tensor that requires a gradient is one that the input reaches."""
    flags = [(p, p.requires_grad) for p in module.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


@contextlib.contextmanager
def _paths(module: nn.Module, mode: Freezing, without: Collection[str]) -> Iterator[None]:
    """The mode knows which part is running."""
    handles = []

    def entering(path: str) -> Callable[..., None]:
        return lambda *_: mode.path.append(path)

    def leaving(*_: Any) -> None:
        mode.path.pop()

    try:
        for path, part in module.named_modules():
            if path:
                named = (
                    path
                    if not path.rpartition(".")[2].isdigit()
                    else (f"{type(part).__name__} {path}")
                )
                handles.append(part.register_forward_pre_hook(entering(named)))
                handles.append(part.register_forward_hook(leaving))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _opened(module: nn.Module, path: str, mode: Freezing) -> Iterator[None]:
    """The output of a part is the input of the map."""

    def hook(part: nn.Module, args: Any, out: Any) -> Any:
        entry = _first(out).detach().clone().requires_grad_()
        mode.entry = entry
        seen = entry.clone()
        return seen if isinstance(out, Tensor) else type(out)((seen, *out[1:]))

    handle = _part(module, path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _swapped(module: nn.Module, declared: dict[str, str], mode: Freezing) -> Iterator[None]:
    """Modules written out of elementary operations compute by their rule, for a while."""
    known = {p: m for p, m in module.named_modules() if p}
    wanted = {
        p: ELEMENTARY[type(m).__name__] for p, m in known.items() if type(m).__name__ in ELEMENTARY
        and type(m).__name__ not in mode.without
    }  # fmt: skip
    for path in declared:
        if path not in known:
            raise unknown_name("part of the module", path, known)
    rules = mode.rules
    swapped: list[nn.Module] = []
    try:
        for path, rule in {**wanted, **declared}.items():
            part = known[path]
            if path not in declared and getattr(rules, rule.kind) == "grad":  # type: ignore[union-attr]
                continue
            how = declared.get(path) or wanted[path].how
            part.forward = mode.stand_in(part.forward, how)  # type: ignore[method-assign]
            swapped.append(part)
        yield
    finally:
        for part in swapped:
            del part.forward
        left = [type(p).__name__ for p in swapped if "forward" in vars(p)]
        assert not left, f"forward was not put back on {left}"
