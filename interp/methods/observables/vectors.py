"""Vectors: feature vectors taken out of a stored result, and the values they read."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from interp.engine.traces import Maps, Trace, trace, trace_bytes
from interp.methods.observables.graph import MLP, Node, read_nodes
from interp.methods.observables.inputs import array
from interp.terms import FeatureVector, HookedModel, Reading, Site, UsageError

STEADY = 0.5
"""A mean vector shorter than this part of its prompts' vectors is no vector of all of them."""


def feature_vector(
    data: xr.Dataset, model: HookedModel, node: str = "", observable: str = ""
) -> FeatureVector:
    """One vector of a ``HeadFeatures`` result.

    Args:
        data: the result's arrays.
        model: the model it is for.
        node: ``L9H6`` or ``MLP5``; empty takes the head that helps the observable most directly,
            or without effects the longest vector.
        observable: its name; empty takes the first.

    Raises:
        UsageError: a result without vectors, of another model, a node or observable that it does
            not have, or a vector that differs from prompt to prompt.
    """
    if "vector" not in data or "observable" not in data.coords:
        raise UsageError(
            "This result holds no feature vectors.", remedy="Give a run of head_features."
        )
    if data.attrs.get("weight_hash") != model.weight_hash:
        raise UsageError(
            "These feature vectors were made from another model's weights.",
            remedy="Run head_features on this model.",
        )
    names = [str(n) for n in data.coords["observable"].values]
    if observable and observable not in names:
        raise UsageError(
            f"The result has no observable {observable!r}.", remedy=f"It has {', '.join(names)}."
        )
    i = names.index(observable) if observable else 0
    chosen = _best(data, i) if not node else _known(data, node, model)
    vec, length = _taken(data, i, chosen)
    if np.linalg.norm(vec) < STEADY * length:
        raise UsageError(
            f"The vector of {chosen.name} differs from prompt to prompt and has no mean direction.",
            remedy="Name the tokens of the observable, as 'she / he', or take another node.",
        )
    behind = str(data.attrs.get("behind", ""))
    path = f"{behind} < {chosen.name}" if behind else chosen.name
    return FeatureVector(
        vec,
        chosen.site(bool(data.attrs.get("parallel", 0))),
        data.attrs["stage"],
        path,
        data.attrs["ln"],
        str(data.attrs.get("tangent", "")) if chosen.head == MLP else "",
        names[i],
        model.weight_hash,
    )


def _best(data: xr.Dataset, i: int) -> Node:
    by = "direct_effect" if "direct_effect" in data else "norm"
    size = data[by].values[i]
    layer, head = np.unravel_index(int(np.nanargmax(size)), size.shape)
    return Node(int(layer), int(head))


def _known(data: xr.Dataset, node: str, model: HookedModel) -> Node:
    nodes = read_nodes(node, model.shape)
    if len(nodes) != 1:
        raise UsageError(f"{node!r} names {len(nodes)} nodes; wanted one, as L9H6.")
    if nodes[0].layer >= data.sizes["layer"] or (nodes[0].head == MLP and "mlp_vector" not in data):
        raise UsageError(
            f"The result has no vector of {node}.",
            remedy="Run head_features with a task for MLPs, and with nodes behind it only.",
        )
    return nodes[0]


def _taken(data: xr.Dataset, i: int, node: Node) -> tuple[np.ndarray, float]:
    """The vector, and the root mean square length of its prompts' vectors."""
    if node.head == MLP:
        return data["mlp_vector"].values[i, node.layer], float(
            data["mlp_length"].values[i, node.layer]
        )
    return data["vector"].values[i, node.layer, node.head], float(
        data["length"].values[i, node.layer, node.head]
    )


def read_stage(maps: Maps, run: Trace, site: Site, stage: str, weight_hash: str) -> Reading:
    """What stands at a site of a run, at a stage beside the norm that reads it."""
    assert site.layer is not None
    seen = run.layers[site.layer]
    name = "pre_mlp" if site.kind == "resid_mid" else "pre_attn"
    x, norm = (seen.mid if name == "pre_mlp" else seen.resid), maps.layer(site.layer).norms[name]
    if norm is not None and stage != "residual":
        scale = seen.scales[name]
        x = norm.affine(x, scale) if stage == "affine" else norm.centred(x) / scale[..., None]
    return Reading(site, stage, array(x), weight_hash)  # type: ignore[arg-type]


def readings(
    maps: Maps,
    prompts: Any,
    site: Site,
    stage: str,
    model: HookedModel,
    memory: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Values ``[position, D]`` of each prompt, and the last residual of each ``[prompt, D]``."""
    found: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(len(prompt), []).append(i)
    values: list[np.ndarray] = [np.zeros(0)] * len(prompts)
    last = np.zeros((len(prompts), maps.shape.d_model))
    for length, rows in sorted(found.items()):
        most = max(1, int(memory // (2 * trace_bytes(maps, length))))
        for k in range(0, len(rows), most):
            some = rows[k : k + most]
            run = trace(maps, np.array([prompts[r] for r in some]))
            read = read_stage(maps, run, site, stage, model.weight_hash).values
            last[some] = array(run.last[:, -1])
            for row, value in zip(some, read, strict=True):
                values[row] = value
    return values, last
