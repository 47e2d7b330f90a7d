"""Capabilities: which sites and features a model has, and for each 'no' the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.terms import KINDS, Capability

if TYPE_CHECKING:
    from interp.models.families import Family
    from interp.models.graph import Graph
    from interp.models.site_map import SiteMap

FEATURES = ("blocks", "weights", "grad", "generate", "graph")
"""What a model may offer beside sites."""

NORMS = {
    "ln1_scale": ("pre_attn", "no norm before attention"),
    "ln1_post_scale": ("post_attn", "no norm after attention"),
    "ln2_scale": ("pre_mlp", "no norm before the MLP"),
    "ln2_post_scale": ("post_mlp", "no norm after the MLP"),
    "q_norm_scale": ("q_norm", "no norm of the queries"),
    "k_norm_scale": ("k_norm", "no norm of the keys"),
}

GENERAL = {
    "feature": "features belong to a dictionary; give one to the method that reads them.",
    "input": "its inputs are tokens, which cannot be edited by degrees; use embed.",
    "module": "modules by path are a site of the torch_module back-end.",
    "graph": "a transformer has products and norms, not only linear, add and gate nodes.",
}


def transformer_capabilities(family: Family, config: Any, backend: str) -> tuple[Capability, ...]:
    """The table of a transformer of a known family.

    Args:
        family: the architecture's row.
        config: the model's config (parallel residuals are decided there).
        backend: name of the back-end.
    """
    reasons = dict(GENERAL)
    if backend == "torch_module":
        reasons.pop("module")
    for kind, (name, reason) in NORMS.items():
        if getattr(family, name) is None:
            reasons[kind] = f"{family.architecture} has {reason}."
    if family.parallel(config):
        reasons["resid_mid"] = (
            f"attention and MLP of {family.architecture} read the same residual, so there is no "
            "residual between them."
        )
    return tuple(
        Capability(name, name not in reasons, reasons.get(name, "")) for name in (*KINDS, *FEATURES)
    )


def module_capabilities(
    sites: SiteMap, takes_tokens: bool, speaks: bool, graph: Graph | str
) -> tuple[Capability, ...]:
    """The table of a plain module.

    Args:
        sites: its site map (empty without one).
        takes_tokens: its inputs are token ids.
        speaks: it gives logits at every position of a token prompt.
        graph: its graph, or why there is none.
    """
    unmapped = (
        "the site map does not say where it stands."
        if sites.spots
        else "a plain module has no such site; a site map can name it."
    )
    reasons = {k: unmapped for k in KINDS if k not in sites.spots}
    reasons["feature"] = GENERAL["feature"]
    reasons.pop("logits")
    reasons.pop("module")
    if takes_tokens:
        reasons["input"] = GENERAL["input"]
    else:
        reasons.pop("input")
    reasons["blocks"] = (
        "the engine drives layers of the known families; here each edit costs a whole pass."
    )
    reasons["weights"] = "views by head are made for the known families; read module() instead."
    if not speaks:
        reasons["generate"] = "it does not give logits at every position of a token prompt."
    if isinstance(graph, str):
        reasons["graph"] = graph
    return tuple(
        Capability(name, name not in reasons, reasons.get(name, "")) for name in (*KINDS, *FEATURES)
    )
