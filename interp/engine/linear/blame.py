"""Blame: which module of a network does not freeze, where the whole is not complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.engine.linear.modules import freeze
from interp.terms import InterpError

MOST = 200
"""Modules looked at, at most."""


@dataclass(frozen=True)
class Culprit:
    """A module that is not linear when frozen.

    Args:
        path: where it stands; empty for the whole network.
        what: its class.
        gap: ``|f - F·x - Σ r_s|`` of the module alone, relative to its largest output.
        calls: functions in it that no rule covers.
    """

    path: str
    what: str
    gap: float
    calls: tuple[str, ...]

    def __str__(self) -> str:
        called = f", which calls {', '.join(self.calls)}" if self.calls else ""
        where = f"{self.path} ({self.what})" if self.path else f"the network itself ({self.what})"
        return f"{where} misses by {self.gap:.2g}{called}"


def culprits(module: nn.Module, inputs: Any, tolerance: float, **how: Any) -> list[Culprit]:
    """The smallest modules that fail by themselves on the input they get, in the network's order.

    Args:
        module: the network.
        inputs: a batch of one.
        tolerance: relative gap from which a module fails.
        **how: rules, as for ``freeze``.
    """
    seen = _inputs_of(module, inputs)
    failing: list[Culprit] = []
    for path in sorted(seen, key=lambda p: -p.count(".") - bool(p)):
        if any(c.path.startswith(f"{path}." if path else "") for c in failing):
            continue
        part = module.get_submodule(path)
        found = _gap(part, seen[path], path, how)
        if found is not None and not found.gap <= tolerance:
            failing.append(found)
    order = list(seen)
    return sorted(failing, key=lambda c: order.index(c.path))


def _gap(part: nn.Module, x: Tensor, path: str, how: dict[str, Any]) -> Culprit | None:
    """None where the module has no output that depends on its input."""
    try:
        frozen = freeze(part, x, **how)
    except InterpError:
        return None
    size = float(frozen.value.abs().max().clamp_min(1e-30))
    gap = float(frozen.completeness().max()) / size
    calls = tuple(dict.fromkeys(name for _, name in frozen.complaints))
    return Culprit(path, type(part).__name__, gap, calls)


def _inputs_of(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """What each module with a single tensor of numbers as its input was given."""
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(path: str) -> Any:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
            given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            lone = len(given) == 1 and len(args) == 1 and given[0].is_floating_point()
            if lone and path not in seen and len(seen) < MOST:
                seen[path] = given[0].detach().clone()

        return hook

    try:
        for path, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(watch(path), with_kwargs=True))
        with torch.no_grad():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen
