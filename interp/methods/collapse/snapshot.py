"""Snapshot: one network at one moment, as plain arrays; and snapshots as a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.engine.features import LinearHead
from interp.methods.collapse.accumulators import Center, Moments
from interp.methods.collapse.counting import Batches, Classifier, count, sample_rows
from interp.methods.collapse.pairs import Target, target_matrix, unit
from interp.methods.collapse.quantities import QUANTITIES, Measured, Options, labels_nan

MOST_LABELS = 200
"""Up to so many classes Gram matrices and class means are drawn."""

MOST_TOKENS = 40
"""Of a language model so many next tokens are drawn, the most frequent ones."""

MOST_SAMPLES = 600
"""So many samples are drawn beside the class means."""

BOUNDARY = ("nc1", "nc2_h", "nc2_w", "nc2_h_of", "nc2_w_of", "nc3_dual")
"""What is taken at each boundary of a deep linear head; W H, so NC3, is the same at all."""

GEOMETRY: dict[str, tuple[tuple[str, ...], str, str, int]] = {
    "class_size": (("label",), "samples", "samples of the class", 0),
    "class_cdnv": (("label",), "1", "class-distance normalised variance with the others", 0),
    "mean_length": (("label",), "1", "length of the class mean", 0),
    "weight_length": (("label",), "1", "length of the classifier row", 0),
    "gram": (("label", "label_b"), "1", "Gram matrix of the class means, norm 1", 1),
    "gram_weight": (("label", "label_b"), "1", "Gram matrix of the classifier, norm 1", 1),
    "gram_target": (("label", "label_b"), "1", "Gram matrix of the target, norm 1", 1),
    "samples": (("draw", "coordinate"), "1", "samples and class means, leading directions", 1),
    "class_means": (("label", "coordinate"), "1", "class means about their centre", 1),
    "classifier_rows": (("label", "coordinate"), "1", "classifier rows, scaled to the means", 1),
    "global_mean": (("feature",), "1", "mean of the class means", 1),
}
"""Array -> dims, units, title, signed: what is kept of the head's features at the last epoch."""


@dataclass(frozen=True)
class Plan:
    """How a snapshot is taken.

    Args:
        quantities: names of ``QUANTITIES``.
        options: of pair statistics.
        center: what class means are centred on.
        target: of the Gram matrices.
        one_pass: see ``OnePass``.
        geometry: also take what is drawn of the head's features.
        frequent: of the classes with samples only the ``MOST_TOKENS`` most frequent are drawn.
    """

    quantities: tuple[str, ...]
    options: Options = Options()
    center: Center = "class"
    target: Target = "etf"
    one_pass: bool = False
    geometry: bool = True
    frequent: bool = False


@dataclass
class Snapshot:
    """What one network gave.

    Args:
        arrays: name -> values; quantities of any layer ``[layer]``, of the head a number.
        layers: names of the places.
        boundaries: boundaries of the head (1 … M); empty unless it is deep.
        facts: rows, rank, fewest rows of a class, resolution.
    """

    arrays: dict[str, np.ndarray]
    layers: list[str]
    boundaries: int = 0
    facts: dict[str, float] = field(default_factory=dict)


def take(
    batches: Batches,
    layers: Sequence[str],
    head: LinearHead,
    n_labels: int,
    plan: Plan,
    ood: Tensor | None = None,
) -> Snapshot:
    """Measure one network.

    Args:
        batches: features of every place in ``layers`` and of the head's maps after the first
            (named by their ``path:input``), with labels.
        layers: places by depth; where there is a head, the last one feeds it.
        head: the linear head, or an empty one.
        n_labels: K.
        plan: how.
        ood: mean of other inputs' features at the last place, for NC5.
    """
    inner = [f"{name}:input" for name in head.names[1:]]
    chain = [*layers[-1:], *inner] if head.weights else []
    heads = {name: Classifier(head.from_boundary(n + 1), head.bias) for n, name in enumerate(chain)}
    moments = count(batches, [*layers, *inner], n_labels, heads, plan.center, plan.one_pass)
    measured = {
        name: Measured(
            m,
            heads[name].weight if name in heads else None,
            heads[name].bias if name in heads else None,
            ood if name == layers[-1] else None,
            plan.options,
        )
        for name, m in moments.items()
    }
    last = measured[layers[-1]]
    arrays = _quantities(measured, list(layers), chain, plan)
    if plan.geometry:
        arrays |= _geometry(last, batches, layers[-1], plan)
    facts = _facts(last.moments) | {"smallest_nc1": last.value("nc1")}
    return Snapshot(arrays, list(layers), len(chain) if len(chain) > 1 else 0, facts)


def _quantities(
    measured: Mapping[str, Measured], layers: list[str], chain: list[str], plan: Plan
) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name in plan.quantities:
        if QUANTITIES[name].needs == "features":
            out[name] = np.array([measured[layer].value(name) for layer in layers])
        else:
            out[name] = np.array(measured[layers[-1]].value(name))
        if len(chain) > 1 and name in BOUNDARY:
            values = [measured[place].value(name) for place in chain]
            out[f"{name}_boundary"] = np.array(values)
    out["rank"] = np.array([measured[layer].moments.means.rank for layer in layers])
    floor = measured[layers[-1]].moments.resolution
    for name in ("nc1", "nc1_svd", "nc1_quotient", "nc1_boundary"):
        if name in out and floor:
            out[name] = np.where(out[name] < floor, np.nan, out[name])
    return out


def _facts(m: Moments) -> dict[str, float]:
    counts = m.means.counts[m.means.present]
    return {
        "rows": float(m.means.n),
        "classes": float(len(counts)),
        "fewest": float(counts.min()),
        "rank": float(m.means.rank),
        "resolution": m.resolution,
    }


def _geometry(m: Measured, batches: Batches, name: str, plan: Plan) -> dict[str, np.ndarray]:
    means = m.moments.means
    k, counts = len(means.counts), means.counts.cpu()
    shown = torch.arange(k)
    if plan.frequent:
        shown = counts.argsort(descending=True, stable=True)[: min(MOST_TOKENS, len(means.present))]
    out = {
        "class_number": shown.numpy(),
        "class_size": counts[shown].numpy().astype(float),
        "mean_length": means.means.norm(dim=1).cpu()[shown].numpy(),
        "global_mean": means.centre.cpu().numpy(),
    }
    if "cdnv" in plan.quantities and means.rank:
        labels = labels_nan(m.pairs.cdnv_label, means.present, k)[shown]
        out["class_cdnv"] = labels.numpy() if not m.lone else np.full(len(shown), np.nan)
    if m.weight is not None:
        out["weight_length"] = m.weight.norm(dim=1).cpu()[shown].numpy()
    if len(shown) > MOST_LABELS or not means.rank:
        return out
    here = torch.full((k, len(means.centre)), torch.nan, dtype=torch.float64)
    here[means.present.cpu()] = (means.centred if plan.target == "etf" else means.here).cpu()
    here, there = here[shown], counts[shown] > 0
    out["gram"] = _spread(unit(here[there] @ here[there].T), there)
    out["gram_target"] = _spread(target_matrix(int(there.sum()), plan.target), there)
    if m.weight is not None:
        rows = m.weight.cpu()[shown]
        out["gram_weight"] = unit(rows @ rows.T).numpy()
    return out | _coordinates(m, batches, name, shown)


def _coordinates(m: Measured, batches: Batches, name: str, shown: Tensor) -> dict[str, np.ndarray]:
    """Class means, samples and classifier rows along the three leading directions of the means."""
    means = m.moments.means
    k = len(means.counts)
    plane = torch.zeros(len(means.centre), 3, dtype=torch.float64, device=means.centre.device)
    plane[:, : min(3, means.rank)] = means.directions[:, :3]
    at = torch.full((k, 3), torch.nan, dtype=torch.float64)
    at[means.present.cpu()] = (means.centred @ plane).cpu()
    h, y = sample_rows(batches, name, MOST_SAMPLES)
    drawn = torch.isin(y.cpu(), shown).to(y.device)
    h, y = h[drawn], y[drawn]
    out = {
        "class_means": at[shown].numpy(),
        "samples": ((h - means.centre) @ plane).cpu().numpy(),
        "sample_label": y.cpu().numpy(),
    }
    if m.weight is not None:
        rows = unit(m.weight - m.weight.mean(0)) * means.centred.norm()
        out["classifier_rows"] = (rows @ plane).cpu()[shown].numpy()
    return out


def _spread(table: Tensor, there: Tensor) -> np.ndarray:
    """``[P, P]`` at the places of the classes with samples, NaN elsewhere ``[K, K]``."""
    out = torch.full((len(there), len(there)), torch.nan, dtype=torch.float64)
    at = there.nonzero()[:, 0]
    out[at[:, None], at] = table.cpu()
    return out.numpy()


def dataset(
    snapshots: Sequence[Snapshot],
    epochs: Sequence[float] | None = None,
    attrs: Mapping[str, Any] | None = None,
    label_text: Mapping[int, str] | None = None,
    shown: int = -1,
    words: Callable[[list[int]], list[str]] | None = None,
) -> xr.Dataset:
    """Snapshots as named arrays, along ``epoch`` where there are epochs.

    Args:
        snapshots: of the same places, in order.
        epochs: when each was taken; None for a single one.
        attrs: of the dataset.
        label_text: label -> words.
        shown: the snapshot whose class means, lengths and Gram matrices are kept.
        words: tokens -> their texts, where classes are tokens.
    """
    last = snapshots[shown]
    when = f", epoch {epochs[shown]:g}" if epochs is not None and len(epochs) > 1 else ""
    data: dict[str, Any] = {}
    for name in sorted(last.arrays, key=_rank):
        stem = name.removesuffix("_boundary")
        if stem in QUANTITIES or name == "rank":
            data[name] = _curve(name, stem, snapshots, epochs)
        elif name in GEOMETRY:
            dims, units, title, signed = GEOMETRY[name]
            said = {"units": units, "long_name": title + when, "signed": signed}
            data[name] = (dims, last.arrays[name], said)
    out = xr.Dataset(data, attrs=dict(attrs or {}))
    out = out.assign_coords({"layer": range(len(last.layers)), "name": ("layer", last.layers)})
    if last.boundaries:
        out = out.assign_coords(boundary=range(1, last.boundaries + 1))
    if epochs is not None:
        out = out.assign_coords(epoch=list(epochs))
    numbers = last.arrays.get("class_number", np.zeros(0, int)).tolist()
    out = _labelled(out, numbers, label_text or {}, words)
    if "samples" in out:
        drawn = last.arrays["sample_label"]
        if words is not None:
            known = dict(zip(numbers, out.coords["label_token"].values.tolist(), strict=True))
            drawn = np.array([known[n] for n in drawn.tolist()])
        out = out.assign_coords(draw_label=("draw", drawn))
        out["samples"].attrs |= {"flat": 1, "colour": "draw_label", "centres": "class_means"}
    if "classifier_rows" in out:
        out["class_means"].attrs["rays"] = "classifier_rows"
    return out


def _labelled(
    out: xr.Dataset,
    numbers: list[int],
    label_text: Mapping[int, str],
    words: Callable[[list[int]], list[str]] | None,
) -> xr.Dataset:
    """Classes by their words where they have some, else by number, tokens' texts beside."""
    labels: list[Any] = [str(label_text.get(i, i)) for i in numbers] if label_text else numbers
    for dim in ("label", "label_b"):
        if dim not in out.dims:
            continue
        out = out.assign_coords({dim: labels})
        if words is not None:
            texts = [t.replace("\0", "\u2400") for t in words(numbers)]
            out = out.assign_coords({f"{dim}_token": (dim, texts)})
    return out


def _rank(name: str) -> int:
    """The order of the figures: NC1, the picture, the other metrics, the rest of the geometry."""
    first = ("nc1", "class_means", *QUANTITIES)
    return first.index(name) if name in first else len(first) + name.endswith("_boundary")


def _curve(
    name: str, stem: str, snapshots: Sequence[Snapshot], epochs: Sequence[float] | None
) -> Any:
    values = np.stack([s.arrays[name] for s in snapshots]).astype(float)
    dims = ["epoch"]
    if name != stem:
        dims.append("boundary")
    elif name == "rank" or QUANTITIES[stem].needs == "features":
        dims.append("layer")
    if epochs is None:
        values, dims = values[0], dims[1:]
    if name == "rank":
        title, signed, log = "rank of the class means", 0, 0
    else:
        q = QUANTITIES[stem]
        title, signed, log = q.title, int(q.signed), int(q.log)
        title = f"{title}, at each boundary of the head" if name != stem else title
    attrs = {"units": "1", "long_name": title, "signed": signed, "log": log}
    if not np.isfinite(values).all():
        attrs["undefined"] = _why(stem, snapshots[-1])
    return tuple(dims), values, attrs


def _why(name: str, last: Snapshot) -> str:
    if last.facts.get("fewest") == 1.0 and name in ("nc1", "nc1_svd", "nc1_quotient", "cdnv"):
        return "every class has a single sample, so nothing varies within classes"
    if last.facts.get("resolution") and name.startswith("nc1"):
        return "below the resolution of one pass (1e-8)"
    if name in ("nc4", "ncc_accuracy") and last.facts.get("resolution"):
        return "one pass does not know the class means until its end"
    if name in QUANTITIES and QUANTITIES[name].needs == "head":
        return "there is no linear head"
    if name in QUANTITIES and QUANTITIES[name].needs == "ood":
        return "no other inputs were given (knob ood)"
    return "the class means do not differ"
