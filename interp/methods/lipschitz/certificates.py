"""Bound or estimate: what every number of this family says of itself, and what inputs it takes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor

from interp.engine.affine import Network, network_of
from interp.terms import CapabilityError, Check, HookedModel, LabelledInputs, TaskError, UsageError

Certificate = Literal["upper", "exact", "lower", "estimate"]
SLACK = 1e-9
"""Relative room given to every certified number for float64's rounding (not outward rounded)."""

WORDS = {
    "upper": "certified upper bound",
    "exact": "exact value",
    "lower": "lower bound, found by sampling: nothing above it is excluded",
    "estimate": "estimate at data, certifies nothing",
}


def attrs(
    what: str, certificate: Certificate, *, norm: str, scope: str, units: str = "1", signed: int = 0
) -> dict[str, Any]:
    """The attrs of one array.

    Args:
        what: what it is, for a title; the certificate is added in words.
        certificate: ``upper`` and ``exact`` are certified, ``lower`` and ``estimate`` are not.
        norm: which norm, as ``Linf`` or ``L2``.
        scope: ``global``, ``box`` or ``point``.
        units: of the numbers.
        signed: 1 where the sign means something.
    """
    sure = certificate in ("upper", "exact")
    return {
        "units": units, "long_name": f"{what} ({WORDS[certificate]})", "signed": signed,
        "certificate": certificate, "certified": int(sure), "norm": norm, "scope": scope,
        "arithmetic": "float64, 1e-9 relative slack, not outward rounded" if sure else "float64",
    }  # fmt: skip


def ordered(lower: np.ndarray, upper: np.ndarray) -> Check:
    """The check that every bound is at least what was found; it fails as soon as one is not."""
    lower, upper = np.broadcast_arrays(lower, upper)
    known = np.isfinite(lower) & np.isfinite(upper)
    gap = lower[known] - upper[known]
    worst = float((gap / np.maximum(np.abs(upper[known]), 1e-300)).max()) if known.any() else 0.0
    return Check(
        "upper_at_least_lower", "largest excess of a found value over its bound",
        max(worst, 0.0), 1e-9, note="A bound below a value that was found is no bound.",
    )  # fmt: skip


def network_for(model: HookedModel, inputs: Any) -> Network:
    """The model's graph in float64, checked against the model itself on one input."""
    return network_of(model, inputs)


def faithful(network: Network, model: HookedModel, inputs: np.ndarray) -> Check:
    """The network of parts computes what the model computes."""
    own = network.values(network.tensor(inputs))[network.output].cpu().numpy()
    theirs = model.run(inputs).logits.detach().double().cpu().numpy()
    size = max(float(np.abs(theirs).max()), 1e-300)
    single = "float64" not in str(model.run(inputs).logits.dtype)
    return Check(
        "graph_is_the_model", "largest deviation of the graph from the model, relative",
        float(np.abs(own - theirs).max()) / size,
        1e-2 if _half(model) else 1e-4 if single else 1e-9,
        note="Bounds are of the graph: linear, add and gate nodes in float64.",
    )  # fmt: skip


def _half(model: HookedModel) -> bool:
    kinds = {str(p.dtype) for p in model.module().parameters()}
    return bool(kinds & {"torch.bfloat16", "torch.float16"})


def centres(task: LabelledInputs, domain: tuple[float, float] | None) -> np.ndarray:
    """The inputs as float64, finite and inside the domain.

    Raises:
        TaskError: rows that are not, each with its reason.
        UsageError: a domain whose ends are in the wrong order.
    """
    x = np.asarray(task.inputs, dtype=np.float64)
    rows = [(i + 1, "it holds NaN or infinity") for i in range(len(x)) if not _finite(x[i])]
    if domain is not None:
        low, high = domain
        if not low < high:
            raise UsageError(f"domain was given as {low:g} to {high:g}; wanted low, high.")
        rows += [
            (i + 1, f"it lies outside the domain {low:g} to {high:g}")
            for i in range(len(x)) if _finite(x[i]) and (x[i].min() < low or x[i].max() > high)
        ]  # fmt: skip
    if rows:
        shown = "; ".join(f"row {n}: {why}" for n, why in rows[:5])
        raise TaskError(
            f"{len(rows)} of {len(x)} inputs cannot stand in the middle of a box: {shown}.",
            rows=rows, remedy="Leave them out, or choose another domain.",
        )  # fmt: skip
    return x


def example_of(model: HookedModel) -> np.ndarray:
    """An input of the model as float64, where it carries one.

    Raises:
        CapabilityError: a model without an example, or one that reads tokens.
    """
    example = getattr(model, "example", None)
    if example is None or not example.is_floating_point():
        raise CapabilityError(
            f"{model.id} carries no example of a numeric input.",
            remedy="Load it with load_model(module, example=…), or give labelled inputs.",
        )
    return example.detach().double().cpu().numpy()


def _finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all())


def with_slack(values: Tensor) -> np.ndarray:
    """Certified numbers leave with their slack."""
    return (values * (1 + SLACK)).cpu().numpy()
