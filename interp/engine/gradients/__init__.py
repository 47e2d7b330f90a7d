"""Gradients of a metric at any site, under ordinary or modified backward rules."""

from interp.engine.gradients.active import Active, Reference, record, rules, run_blocks
from interp.engine.gradients.passes import KINDS, LayerPass
from interp.engine.gradients.ruleset import PRESETS, RuleSet, rule_set

__all__ = [
    "KINDS",
    "PRESETS",
    "Active",
    "LayerPass",
    "Reference",
    "RuleSet",
    "record",
    "rule_set",
    "rules",
    "run_blocks",
]
