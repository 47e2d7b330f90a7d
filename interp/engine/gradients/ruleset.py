"""RuleSet: which backward rule each kind of part gets, and the sets that papers have named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from interp.terms import UsageError, unknown_name

CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("grad", "linear"),
    "act": ("grad", "identity"),
    "gate": ("grad", "half", "value"),
    "attn": ("grad", "ah", "uniform"),
    "qk_norm": ("grad", "linear"),
    "cap": ("grad", "identity"),
    "mean": ("linear", "frozen"),
}
"""Kind of part -> the rules there are; ``grad`` leaves it alone."""


@dataclass(frozen=True)
class RuleSet:
    """One rule a kind of part.

    Args:
        norm: ``linear`` stops the gradient through the divisor of norms of the residual.
        act: ``identity`` passes x·sg(f(x)/x) through an activation.
        gate: a gated MLP's product: ``half`` to each factor, ``value`` all to the value.
        attn: ``ah`` stops the pattern; ``uniform`` gives q and k a quarter, v a half.
        qk_norm: as ``norm``, for norms of queries and keys.
        cap: ``identity`` for soft caps of scores and logits.
        mean: whether a layer norm's mean follows its input or is a constant.
        name: what to call the set.
    """

    norm: str = "grad"
    act: str = "grad"
    gate: str = "grad"
    attn: str = "grad"
    qk_norm: str = "grad"
    cap: str = "grad"
    mean: str = "linear"
    name: str = "none"

    def __post_init__(self) -> None:
        for kind, known in CHOICES.items():
            if getattr(self, kind) not in known:
                raise unknown_name(f"{kind} rule", getattr(self, kind), known)

    @property
    def active(self) -> dict[str, str]:
        """Kind -> rule, of those that change a gradient."""
        kinds = [k for k in CHOICES if k != "mean"]
        return {k: getattr(self, k) for k in kinds if getattr(self, k) != "grad"}

    @property
    def straightens(self) -> bool:
        """Whether a reference makes the network linear: nothing is left that bends."""
        return (self.norm, self.act, self.attn) == ("linear", "identity", "ah") and (
            self.gate != "grad"
        )

    def to_json(self) -> dict[str, str]:
        """Plain JSON."""
        return dataclasses.asdict(self)


PRESETS: dict[str, RuleSet] = {
    r.name: r
    for r in (
        RuleSet(name="none"),
        RuleSet("linear", "identity", "half", "grad", name="relp"),
        RuleSet("linear", "identity", "half", "ah", name="relp_ah"),
        RuleSet("linear", "grad", "half", "grad", name="relp_no_identity"),
        RuleSet("linear", "identity", "half", "uniform", name="attnlrp"),
        RuleSet("linear", "identity", "value", "ah", name="cplrp"),
        RuleSet("linear", name="frozen_norms"),
        RuleSet("linear", "identity", "value", "ah", name="linear"),
    )
}
"""Name -> rules. ``relp``, ``attnlrp``, ``cplrp`` as published (RelP's default leaves attention
alone; ``relp_ah`` is its table's; ``relp_no_identity`` is what its readme's usage runs)."""


def rule_set(preset: str | RuleSet, **changes: Any) -> RuleSet:
    """A preset by name, or a set as it is, with single rules changed.

    Raises:
        UsageError: an unknown preset or rule.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise unknown_name("set of rules", preset, PRESETS)
        preset = PRESETS[preset]
    if unknown := sorted(set(changes) - set(CHOICES)):
        raise UsageError(
            f"There is no rule for {unknown[0]!r}.", remedy=f"Kinds: {', '.join(CHOICES)}."
        )
    changed = {k: v for k, v in changes.items() if v is not None and v != getattr(preset, k)}
    if not changed:
        return preset
    name = ", ".join([preset.name, *(f"{k} {v}" for k, v in changed.items())])
    return dataclasses.replace(preset, **changed, name=name)
