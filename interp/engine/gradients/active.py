"""rules: modified backward rules on a model, for a while, proved to be active.

    with rules(model, "relp") as active:
        ...   # gradients through model.blocks follow the rules; values do not change

On entry a probe is run: every part that should be replaced was called, values are equal to the
bit, each part's own gradient and, kind by kind, the gradient of the whole model change. A rule
that was asked for and changes nothing is an error that names it. The model is as it was
afterwards, also after an exception; rules inside rules of one model are refused.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.gradients.functions import module_rules
from interp.engine.gradients.parts import Part, Swap
from interp.engine.gradients.passes import layer_of
from interp.engine.gradients.ruleset import RuleSet, rule_set
from interp.terms import CapabilityError, InterpError, UsageError

PROBE = (2, 6)
"""Prompts and tokens of the probe."""

IDLE = 1e-4
"""A gradient that moves by less, relative to its size, was not changed by a rule."""

_busy: set[int] = set()


@dataclass(frozen=True)
class Active:
    """Rules that are in force.

    Args:
        rules: which.
        replaced: kind -> how many parts were replaced and reached; present: how many there are.
        changed: kind -> by how much the gradient at the embedding changed with this kind alone,
            relative to its size.
        least: kind -> the same for the part it changes least, on its own input.
        bit_equal: values are those without rules, to the bit (nothing is claimed with a
            reference, which changes them).
        reference: whether scales and patterns come from a reference run.
    """

    rules: RuleSet
    replaced: dict[str, int] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    bit_equal: bool = True
    reference: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the provenance."""
        return {
            "rules": self.rules.to_json(),
            "replaced": self.replaced,
            "present": self.present,
            "changed": self.changed,
            "least_changed_part": self.least,
            "bit_equal": int(self.bit_equal),
            "reference": int(self.reference),
        }


@dataclass(frozen=True, eq=False)
class Reference:
    """Scales, factors and patterns of one run, by the place they were measured at.

    Args:
        rules: the rules whose parts measured them.
        lent: place -> what it lends.
        shape: prompts and positions of the run.
    """

    rules: RuleSet
    lent: dict[str, Any]
    shape: tuple[int, int]


def blocks_of(model: Any) -> Any:
    """A model's layers, or None where the engine cannot drive it."""
    try:
        return getattr(model, "blocks", None)
    except CapabilityError:
        return None


@contextlib.contextmanager
def rules(
    model: Any,
    preset: str | RuleSet,
    reference: Any = None,
    *,
    verify: bool = True,
    probe: Any = None,
    **changes: Any,
) -> Iterator[Active]:
    """Put backward rules in force on a model (see this file's head).

    Args:
        model: a HookedModel; or any ``nn.Module``, whose functional calls are replaced.
        preset: a key of ``PRESETS`` or a ``RuleSet``.
        reference: token ids ``[prompt, position]`` of a run (or a ``Reference``) that lends its
            scales, activation factors and patterns: the frozen network. Only that run's prompts
            can be run inside, in the same order.
        verify: prove on a probe that the rules are active.
        probe: inputs of a plain module; a transformer's are made here.
        **changes: single rules of the set changed (``attn="ah"``).

    Yields:
        what is active, with the figures of the proof.

    Raises:
        UsageError: rules inside rules; a plain module without a probe; an unknown rule.
        InterpError: a rule that was asked for and changes nothing.
    """
    chosen = rule_set(preset, **changes)
    blocks = blocks_of(model)
    target = blocks if blocks is not None else model
    if id(target) in _busy:
        raise UsageError(
            "Rules are active on this model already, and rules do not nest.",
            remedy="Leave the first `with rules(...)` before entering another.",
        )
    _busy.add(id(target))
    try:
        if blocks is None:
            with module_rules(model, chosen, reference, verify, probe) as facts:
                yield Active(chosen, **facts)
            return
        lent = reference
        if reference is not None and not isinstance(reference, Reference):
            lent = _recorded(blocks, chosen, np.asarray(reference))
        swap = Swap(blocks, chosen)
        try:
            swap.install()
            yield _entered(blocks, swap, chosen, lent, verify, model)
        finally:
            swap.restore()
    finally:
        _busy.discard(id(target))


def record(model: Any, preset: str | RuleSet, tokens: Any) -> Reference:
    """What a run of these prompts lends to ``rules(..., reference=...)``."""
    blocks = blocks_of(model)
    if blocks is None:
        raise CapabilityError("A reference run needs layers that the engine can drive.")
    return _recorded(blocks, rule_set(preset), np.asarray(tokens))


def _recorded(blocks: Any, chosen: RuleSet, tokens: np.ndarray) -> Reference:
    swap = Swap(blocks, chosen)
    try:
        swap.install()
        for part in swap.parts:
            part.recording = True
        with torch.no_grad():
            run_blocks(blocks, tokens)
        lent = {p.where: p.lent for p in swap.parts}
    finally:
        swap.restore()
    return Reference(chosen, lent, (tokens.shape[0], tokens.shape[1]))


def run_blocks(
    blocks: Any, tokens: np.ndarray, columns: Tensor | None = None, resid_ND: Tensor | None = None
) -> Tensor:
    """Logits ``[prompt, vocab]`` at the last position, all layers in one graph."""
    ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(blocks.device)
    rows, length = ids.shape
    places = torch.arange(length, device=ids.device)
    position = places.repeat(rows)
    x = blocks.embed(ids.flatten(), position) if resid_ND is None else resid_ND
    for block in blocks.layers:
        x = layer_of(block, x, position, places, rows, lambda kind, value: value)
    # the whole residual passes the final norm, as a reference run's does
    return blocks.unembed(x, columns).unflatten(0, (rows, length))[:, -1]


def _entered(
    blocks: Any,
    swap: Swap,
    chosen: RuleSet,
    reference: Reference | None,
    verify: bool,
    model: Any,
) -> Active:
    if reference is not None:
        for part in swap.parts:
            if part.where not in reference.lent:
                raise UsageError(
                    f"The reference run lends nothing to {part.where}.",
                    remedy="Record it with the same rules.",
                )
            part.lent = reference.lent[part.where]
        present = Counter(p.kind for p in swap.parts if p.kind != "relu")
        return Active(chosen, dict(present), dict(present), bit_equal=False, reference=True)
    if not verify:
        present = Counter(p.kind for p in swap.parts if p.kind != "relu")
        return Active(chosen, {}, dict(present))
    return _Proof(blocks, swap, chosen, model).active()


class _Proof:
    """The probe's runs with parts off and on."""

    def __init__(self, blocks: Any, swap: Swap, chosen: RuleSet, model: Any) -> None:
        self.blocks, self.swap, self.chosen = blocks, swap, chosen
        shape = getattr(model, "shape", None)
        vocab = int(getattr(shape, "vocab", 0) or blocks.w_embed.shape[0])
        length = min(PROBE[1], int(getattr(shape, "n_ctx", None) or PROBE[1]))
        draw = np.random.default_rng(7)
        self.tokens = draw.integers(0, vocab, (PROBE[0], max(2, length)))
        self.columns = torch.from_numpy(draw.integers(0, vocab, 4)).to(blocks.device)
        self.weights = torch.from_numpy(draw.normal(size=4)).to(blocks.device, blocks.dtype)
        eps = torch.finfo(blocks.dtype).eps
        self.floor = max(IDLE, 4 * eps if eps > 1e-4 else 0.0)

    def active(self) -> Active:
        """The figures of the proof.

        Raises:
            InterpError: naming the rule, and the part, that does nothing.
        """
        parts = [p for p in self.swap.parts if p.kind != "relu"]
        present = Counter(p.kind for p in parts)
        self._all_there(present)
        if not parts:
            return Active(self.chosen, {}, {})
        for part in parts:
            part.watching, part.calls = True, 0
        with self.swap.alone(set()):
            value, gradient = self._pulled()
        for part in parts:
            part.watching = False
            if not part.calls:
                raise InterpError(
                    f"The rule {part.kind!r} was put on {part.where}, which this "
                    "model never reaches."
                )
        least: dict[str, float] = {}
        for part in parts:
            least[part.kind] = min(least.get(part.kind, np.inf), self._own_change(part))
        changed = {}
        for kind in present:
            with self.swap.alone({kind}):
                same, other = self._pulled()
            self._bit_equal(value, same, kind)
            changed[kind] = _apart(other, gradient)
            if not changed[kind] > self.floor:
                raise _idle(kind, "the model as a whole", changed[kind])
        self._bit_equal(value, self._pulled()[0], "all rules together")
        for part in parts:
            part.seen = ()
        return Active(self.chosen, dict(present), dict(present), changed, least)

    def _all_there(self, present: Counter[str]) -> None:
        """Each kind has the parts that the architecture says."""
        layers = self.blocks.layers
        wanted = Counter[str]()
        if self.chosen.attn != "grad":
            wanted["attn"] = len(layers)
        if self.chosen.gate != "grad":
            wanted["gate"] = sum(bool(b.gated) for b in layers)
        kinds = list(self.chosen.active)
        if len(kinds) == 1 and not present[kinds[0]]:
            raise InterpError(
                f"The rule {kinds[0]!r} was asked for and this model has no part it is for.",
                remedy="Use rules='none'.",
            )
        for kind, count in wanted.items():
            if present[kind] != count:
                raise InterpError(
                    f"The rule {kind!r} stands on {present[kind]} parts and the model has {count}."
                )

    def _pulled(self) -> tuple[Tensor, Tensor]:
        """Logits of the probe and the gradient of a random sum of them at the embedding."""
        with torch.enable_grad():
            ids = torch.from_numpy(self.tokens).to(self.blocks.device).flatten()
            places = torch.arange(self.tokens.shape[1], device=ids.device).repeat(PROBE[0])
            with torch.no_grad():
                start = self.blocks.embed(ids, places)
            start = start.detach().requires_grad_()
            logits = run_blocks(self.blocks, self.tokens, self.columns, start)
            total = (logits * self.weights.to(logits.dtype)).sum()
            gradient = torch.autograd.grad(total, start)[0]
        return logits.detach(), gradient

    @staticmethod
    def _bit_equal(before: Tensor, after: Tensor, kind: str) -> None:
        if not torch.equal(before, after):
            apart = float((before - after).abs().max())
            raise InterpError(
                f"The rule {kind!r} changes the model's values by {apart:.3g}; a "
                "backward rule must leave them as they are."
            )

    def _own_change(self, part: Part) -> float:
        """How far a part's own gradient moves, relative to its size."""
        found = []
        for on in (False, True):
            leaves = [
                s.clone().requires_grad_() if isinstance(s, Tensor) and s.is_floating_point() else s
                for s in part.seen
            ]
            inputs = [s for s in leaves if isinstance(s, Tensor) and s.is_floating_point()]
            with torch.enable_grad():
                out = (part.ruled if on else part.plain)(*leaves)
                weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
                total = (
                    out.flatten()
                    * weights[
                        torch.randperm(out.numel(), generator=torch.Generator().manual_seed(3)).to(
                            out.device
                        )
                    ]
                ).sum()
            grads = torch.autograd.grad(total, inputs, allow_unused=True)
            found.append(
                torch.cat(
                    [
                        (torch.zeros_like(i) if g is None else g).flatten().double()
                        for i, g in zip(inputs, grads, strict=True)
                    ]
                )
            )
        change = _apart(found[1], found[0])
        if not change > self.floor:
            raise _idle(part.kind, part.where, change)
        return change


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm().clamp_min(1e-300))


def _idle(kind: str, where: str, change: float) -> InterpError:
    return InterpError(
        f"The rule {kind!r} was asked for and changes nothing at {where} (gradient moved by "
        f"{change:.1e} of its size).",
        remedy="Leave this rule out, or use rules='none'.",
    )
