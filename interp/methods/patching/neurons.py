"""Neurons: which ones are measured exactly, named by a person or found by their attribution."""

from __future__ import annotations

import re

import numpy as np

from interp.engine.gradients import attribute
from interp.terms import Context, HookedModel, PromptPairs, Site, UsageError


def named_neurons(text: str, model: HookedModel) -> list[Site]:
    """Neurons from names such as ``L2N17``.

    Raises:
        UsageError: a word that names none.
    """
    shape = model.shape
    out = []
    for word in (w.strip() for w in text.split(",") if w.strip()):
        match = re.fullmatch(r"L(\d+)N(\d+)", word, re.IGNORECASE)
        if match is None or int(match[1]) >= shape.n_layers or int(match[2]) >= shape.d_mlp:
            raise UsageError(
                f"{word!r} is no neuron of this model.",
                remedy=f"Write L2N17: layers below {shape.n_layers}, neurons below {shape.d_mlp}.",
            )
        out.append(Site("mlp_post", layer=int(match[1]), neuron=int(match[2])))
    return list(dict.fromkeys(out))


def likely_neurons(
    model: HookedModel,
    task: PromptPairs,
    context: Context,
    top: int,
    *,
    layers: np.ndarray,
    metric: str,
    direction: str,
    at: int | str,
) -> tuple[list[Site], np.ndarray]:
    """The neurons whose first-order estimate of the effect is largest, and these estimates.

    The estimate ``(a_source - a_base) · gradient`` of every neuron takes two forward passes and one
    backward (kramar2024atp); summed over positions, averaged over prompts.
    """
    found = attribute(model, task, ["mlp_post"], context, metric=metric, direction=direction, at=at)
    estimate = np.nansum(found.values["mlp_post"], axis=2).mean(0)[layers]
    order = np.argsort(-np.abs(estimate).ravel(), kind="stable")[:top]
    places = [np.unravel_index(k, estimate.shape) for k in order]
    sites = [Site("mlp_post", layer=int(layers[n]), neuron=int(u)) for n, u in places]
    return sites, estimate.ravel()[order]
