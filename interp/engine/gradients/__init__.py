"""Gradients of a metric at any site, under ordinary or modified backward rules."""

from interp.engine.gradients.active import Active, Reference, record, rules, run_blocks
from interp.engine.gradients.facts import (
    conservation,
    first_prompts,
    frozen_effect,
    small_patch_slope,
)
from interp.engine.gradients.modules import integrate_modules
from interp.engine.gradients.nodes import attribute, check_gradient
from interp.engine.gradients.own import own_estimates
from interp.engine.gradients.passes import KINDS, LayerPass
from interp.engine.gradients.paths import integrate, quadrature
from interp.engine.gradients.relevance import relevance
from interp.engine.gradients.ruleset import PRESETS, RuleSet, rule_set
from interp.engine.gradients.wishes import Attribution

__all__ = [
    "KINDS",
    "PRESETS",
    "Active",
    "Attribution",
    "LayerPass",
    "Reference",
    "RuleSet",
    "attribute",
    "check_gradient",
    "conservation",
    "first_prompts",
    "frozen_effect",
    "integrate",
    "integrate_modules",
    "own_estimates",
    "quadrature",
    "record",
    "relevance",
    "rule_set",
    "rules",
    "run_blocks",
    "small_patch_slope",
]
