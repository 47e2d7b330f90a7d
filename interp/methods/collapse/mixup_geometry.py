"""MixupGeometry: where the features of mixed inputs lie, beside the closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from interp.engine.features import LinearHead, Place, model_features
from interp.methods.collapse.collapse import Collapse
from interp.methods.collapse.counting import count
from interp.methods.collapse.mixup import decay_of, different_classes, length
from interp.methods.collapse.quantities import Measured
from interp.methods.collapse.sources import source_of
from interp.terms import Check, Context, HookedModel, LabelledInputs, Method, UsageError

SIDES = ("different classes", "same class", "different, closed form", "same, closed form")


class MixupGeometry(Method):
    """Features of λ·x + (1 − λ)·x′ in the plane of three classifier rows.

    Same-class mixes should stay at their classifier row whatever λ is; under cross-entropy
    different-class mixes form channels along the decision boundary, not the straight line between
    class means (deviation 0, as under squared loss). The closed form's decay is the one that
    gives the same-class amplitude that was measured. Always in eval mode.
    """

    title: ClassVar[str] = "Mixup geometry"
    question: ClassVar[str] = "Where does a network put mixtures of two inputs?"
    citations: ClassVar[tuple[str, ...]] = ("fisher2024pushing",)

    labels: tuple[int, int, int] = (0, 1, 2)
    """Three classes, whose classifier rows span the plane."""
    pairs: Annotated[int, Field(ge=1, le=500)] = 30
    """Pairs of inputs that are mixed, for each two classes."""
    mixes: Annotated[int, Field(ge=3, le=101)] = 11
    """Mixing weights, evenly from 0 to 1."""
    head: str | None = None
    """Path of the final linear map; found by itself if empty."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Which inputs are paired."""

    def measure(self, model: HookedModel, task: LabelledInputs, context: Context) -> xr.Dataset:
        """The plane ``[draw, coordinate]``, curves ``[mix, side]``, calibration."""
        if len(set(self.labels)) != 3:
            raise UsageError(f"labels were given as {self.labels}; wanted three different ones.")
        spec = Collapse(head=self.head)
        source = source_of(spec, model, task, context.memory // 4)
        if not source.head.weights:
            raise UsageError(
                f"Mixup geometry is drawn in the plane of the head's rows; {source.head.reason}.",
                remedy="Name the final linear map (head).",
            )
        place = source.layers[-1]
        moments = count(source.batches, [place], source.n_labels)[place]
        frame = Frame(source.head, Measured(moments), self.labels)
        context.advance(1, 3)
        mixed = self._mixed(task)
        path = place.removesuffix(":input")
        where = Place(place, path=path, side="input" if path != place else "output")
        features = model_features(
            model, LabelledInputs(mixed.inputs, mixed.first), [where], "flatten",
            context.memory // 4,
        )  # fmt: skip
        h = torch.cat([found[place] for found, _ in features.batches()]).double().cpu()
        context.advance(2, 3)
        data = frame.dataset(h, mixed, self.mixes)
        data["accuracy"], data["calibration_error"] = _calibration(source, place)
        context.check(Check(
            "simplex", "classifier rows against a centred simplex frame", frame.error,
            note="The closed form is that of a simplex; far from 0 it is only a sketch.",
        ))  # fmt: skip
        context.advance(3, 3)
        return data

    def _mixed(self, task: LabelledInputs) -> Mixed:
        """Every pair of the three classes (and each with itself) at every weight."""
        rng = np.random.default_rng(self.seed)
        rows = {}
        for label in self.labels:
            rows[label] = np.flatnonzero(task.labels == label)
            if len(rows[label]) < 2:
                raise UsageError(
                    f"Class {label} has {len(rows[label])} inputs; two are wanted to mix.",
                    remedy="Take other labels, or more inputs.",
                )
        weights = np.linspace(0, 1, self.mixes)
        inputs, first, second, mix = [], [], [], []
        for i, j in [*((a, a) for a in self.labels), *combinations(self.labels, 2)]:
            for _ in range(self.pairs):
                if i == j:
                    a, b = rng.choice(rows[i], 2, replace=False)
                else:
                    a, b = rng.choice(rows[i]), rng.choice(rows[j])
                shape = (-1, *[1] * (task.inputs.ndim - 1))
                w = weights.reshape(shape)
                inputs.append(w * task.inputs[a] + (1 - w) * task.inputs[b])
                first += [i] * len(weights)
                second += [j] * len(weights)
                mix += weights.tolist()
        kind = task.inputs.dtype
        return Mixed(
            np.concatenate(inputs).astype(kind), np.array(first), np.array(second), np.array(mix)
        )


class Mixed:
    """Mixed inputs with both labels and the weight of the first.

    Args:
        inputs: ``[draw, …]``; pair after pair, each at every weight from 0 to 1.
        first: label of the first input ``[draw]``.
        second: of the second.
        mix: λ.
    """

    def __init__(
        self, inputs: np.ndarray, first: np.ndarray, second: np.ndarray, mix: np.ndarray
    ) -> None:
        self.inputs, self.first, self.second, self.mix = inputs, first, second, mix

    @property
    def same(self) -> np.ndarray:
        """Whether both inputs are of one class."""
        return self.first == self.second


class Frame:
    """The head's rows, class means and the plane of three of them.

    Args:
        head: the linear head.
        measured: class statistics of the features it reads.
        labels: three classes.

    Raises:
        UsageError: a label the head does not have, or rows that span no plane.
    """

    def __init__(self, head: LinearHead, measured: Measured, labels: Sequence[int]) -> None:
        means = measured.moments.means
        weight = head.from_boundary(1).cpu()
        self.k = len(weight)
        for label in labels:
            if not 0 <= label < self.k:
                raise UsageError(f"There is no class {label}; the head has {self.k}.")
        if self.k < 3:
            raise UsageError("The plane of mixup wants three classes or more.")
        self.labels = list(labels)
        self.raw, self.bias = weight, head.bias
        self.weight = weight - weight.mean(0)
        self.centre = means.centre.cpu()
        self.means = means.means.cpu() - self.centre
        rows = weight[self.labels]
        self.middle = rows.mean(0)
        _, sizes, across = torch.linalg.svd(rows - self.middle, full_matrices=False)
        if float(sizes[1]) <= 1e-9 * float(sizes[0]):
            raise UsageError(f"The classifier rows of {labels} span no plane.")
        self.plane = across[:2].T
        self.s = float(self.weight.square().sum(1).mean())
        present = self.means[self.labels]
        self.a = float(
            ((present * self.weight[self.labels]).sum(1)
             / self.weight[self.labels].square().sum(1)).mean()
        )  # fmt: skip
        gram = self.weight @ self.weight.T
        etf = (torch.eye(self.k, dtype=torch.float64) - 1 / self.k) / math.sqrt(self.k - 1)
        self.error = float((gram / gram.norm() - etf).norm())

    def dataset(self, h: Tensor, mixed: Mixed, mixes: int) -> xr.Dataset:
        """Everything that is drawn, from the features of the mixed inputs ``[draw, D]``."""
        points = h @ self.plane
        scale = float(points.norm(dim=1).quantile(0.95))
        rays = (self.raw[self.labels] - self.middle) @ self.plane
        rays = rays / rays.norm(dim=1).max() * scale
        weights = np.linspace(0, 1, mixes)
        curves = self._curves(h, mixed, weights)
        names = [f"{i} with {j}" for i, j in zip(mixed.first, mixed.second, strict=True)]
        attrs = {
            "units": "1", "signed": 1, "colour": "draw_mix", "symbol": "pair",
            "long_name": "features of mixed inputs in the plane of three classifier rows",
            "rays": "classifier_rays", "segments": "boundaries",
        }  # fmt: skip
        plain = {"units": "1", "signed": 1}
        data: dict[str, Any] = {
            "plane": (("draw", "coordinate"), points.numpy(), attrs),
            "classifier_rays": (("label", "coordinate"), rays.numpy(), {
                **plain, "long_name": "classifier rows in the plane"}),
            "boundaries": (("label", "bound", "coordinate"), self._boundaries(scale), {
                **plain, "long_name": "decision boundaries of the three classes"}),
        }  # fmt: skip
        titles = {
            "coefficient_sum": "α + β, features as α w_i + β w_j, over that of one class",
            "length": "length of mixed features, over that of class means",
            "deviation": "distance from the straight line between class means, relative",
        }
        for name, values in curves.items():
            data[name] = (("mix", "side"), values, {
                "units": "1", "long_name": titles[name], "signed": 0})  # fmt: skip
        return xr.Dataset(data).assign_coords(
            draw_mix=("draw", mixed.mix), pair=("draw", names), mix=weights,
            label=[str(v) for v in self.labels], side=list(SIDES),
        )  # fmt: skip

    def _curves(self, h: Tensor, mixed: Mixed, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Measured and closed form, averaged over pairs ``[mix, side]``."""
        centred = h - self.centre
        first, second = torch.from_numpy(mixed.first), torch.from_numpy(mixed.second)
        mix = torch.from_numpy(mixed.mix)[:, None]
        total = self._coefficients(centred, first, second)
        straight = mix * self.means[first] + (1 - mix) * self.means[second]
        lengths = centred.norm(dim=1) / float(self.means[self.labels].norm(dim=1).mean())
        away = (centred - straight).norm(dim=1) / straight.norm(dim=1)
        same = mixed.same
        out = {n: np.zeros((len(weights), 4)) for n in ("coefficient_sum", "length", "deviation")}
        for column, chosen in ((0, ~same), (1, same)):
            for row, weight in enumerate(weights):
                at = torch.from_numpy(chosen & np.isclose(mixed.mix, weight))
                out["coefficient_sum"][row, column] = float(total[at].mean()) / self.a
                out["length"][row, column] = float(lengths[at].mean())
                out["deviation"][row, column] = float(away[at].mean())
        self._closed(out, weights)
        return out

    def _coefficients(self, h: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """α + β of the least-squares h ≈ α w_i + β w_j; for one class a of h ≈ a w_i."""
        u, v = self.weight[first], self.weight[second]
        uu, vv, uv = (u * u).sum(1), (v * v).sum(1), (u * v).sum(1)
        hu, hv = (h * u).sum(1), (h * v).sum(1)
        flat = uu * vv - uv * uv
        both = (hu * (vv - uv) + hv * (uu - uv)) / flat
        return torch.where(first == second, hu / uu, both)

    def _closed(self, out: dict[str, np.ndarray], weights: np.ndarray) -> None:
        """The closed form's columns; NaN where the measured amplitude admits none."""
        for values in out.values():
            values[:, 2:] = np.nan
        if self.a <= 0:
            return
        decay = decay_of(self.k, self.s, self.a)
        own = length(self.k, self.s, self.a, 0.0)
        for row, weight in enumerate(weights):
            alpha, beta = different_classes(self.k, self.s, decay, float(weight))
            x, y = weight * self.a, (1 - weight) * self.a
            straight = length(self.k, self.s, x, y)
            out["coefficient_sum"][row, 2:] = (alpha + beta) / self.a, 1.0
            out["length"][row, 2:] = length(self.k, self.s, alpha, beta) / own, 1.0
            away = length(self.k, self.s, alpha - x, beta - y)
            out["deviation"][row, 2:] = away / straight, 0.0

    def _boundaries(self, scale: float) -> np.ndarray:
        """Ends of the boundary between each two of the three classes, from where all tie.

        Entry k is the boundary of the two classes other than label k ``[label, end, coordinate]``.
        """
        rows = (self.raw[self.labels] - self.middle) @ self.plane
        bias = torch.zeros(3, dtype=torch.float64)
        if self.bias is not None:
            bias = self.bias.detach().double().cpu()[self.labels]
        tie = torch.linalg.solve(rows[1:] - rows[0], bias[0] - bias[1:])
        out = torch.zeros(3, 2, 2, dtype=torch.float64)
        for k in range(3):
            i, j = (n for n in range(3) if n != k)
            edge = rows[i] - rows[j]
            along = torch.stack([-edge[1], edge[0]])
            if along @ (rows[i] + rows[j] - 2 * rows[k]) < 0:
                along = -along
            out[k, 0], out[k, 1] = tie, tie + along / along.norm() * scale * 1.2
        return out.numpy()


def _calibration(source: Any, place: str, bins: int = 15) -> tuple[Any, Any]:
    """Accuracy and expected calibration error of the head's softmax on the inputs."""
    weight = source.head.from_boundary(1)
    right, sure = [], []
    for found, labels in source.batches():
        logits = found[place].double() @ weight.T
        if source.head.bias is not None:
            logits = logits + source.head.bias.detach().double()
        p, guess = logits.softmax(-1).max(-1)
        right.append((guess == labels).double().cpu())
        sure.append(p.cpu())
    hit, p = torch.cat(right), torch.cat(sure)
    index = (p * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, hit - p)
    attrs = {"units": "1", "signed": 0}
    return (
        ((), float(hit.mean()), {**attrs, "long_name": "accuracy on the inputs"}),
        ((), float(gap.abs().sum() / len(p)), {
            **attrs, "long_name": "expected calibration error, 15 bins"}),
    )  # fmt: skip
