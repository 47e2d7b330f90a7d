"""Refusing: knobs of attribution patching that do not go together."""

from __future__ import annotations

from typing import Any

from interp.terms import UsageError


def refuse(spec: Any, ruled: bool) -> None:
    """Refuse knobs that contradict each other.

    Args:
        spec: the method.
        ruled: whether backward rules are in force.

    Raises:
        UsageError: with the remedy.
    """
    wrong = [
        (
            ruled and spec.ig_steps > 0,
            "Backward rules and integrated gradients",
            "both replace the gradient",
            "Use ig_steps=0, or rules='none'.",
        ),
        (
            ruled and spec.qk_fix,
            "Backward rules and the QK fix",
            "both treat the softmax",
            "Use qk_fix=False, or rules='none'.",
        ),
        (
            spec.ig_steps > 0 and (spec.qk_fix or spec.grad_drop),
            "Integrated gradients and AtP*'s corrections",
            "both mend the gradient",
            "Use ig_steps=0, or neither qk_fix nor grad_drop.",
        ),
        (
            spec.qk_fix and spec.site not in ("q", "k"),
            "The QK fix and other sites than q, k",
            "it is about queries and keys",
            "Use site='q' or 'k', or qk_fix=False.",
        ),
        (
            spec.grad_drop and spec.qk_fix,
            "GradDrop and the QK fix in one run",
            "blocked gradients reach no pattern of their layer",
            "Run them one after the other.",
        ),
        (
            spec.ig_steps > 0 and spec.ig_path == "node" and spec.site in ("pattern", "feature"),
            f"Site {spec.site!r} and a path of each node",
            "such a path moves whole sites, heads or neurons",
            "Use ig_path='inputs', or ig_steps=0.",
        ),
        (
            spec.site == "feature" and spec.dictionary is None,
            "Site 'feature' and no dictionary",
            "features belong to a dictionary",
            "Give dictionary='zoo:NAME' or a folder with cfg.json and safetensors.",
        ),
        (
            spec.site != "feature" and spec.dictionary is not None,
            f"A dictionary and site {spec.site!r}",
            "a dictionary has features",
            "Use site='feature', or leave the dictionary out.",
        ),
    ]
    for bad, what, why, remedy in wrong:
        if bad:
            raise UsageError(f"{what} do not go together: {why}.", remedy=remedy)
