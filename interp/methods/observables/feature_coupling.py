"""FeatureCoupling: does a head that reads one observable read another along with it?"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.traces import Maps
from interp.methods.observables.couplings import Coupling, fitted
from interp.methods.observables.inputs import Rows, dataset
from interp.methods.observables.vectors import feature_vector, readings
from interp.terms import (
    Check,
    Context,
    FeatureVector,
    HookedModel,
    Method,
    PromptPairs,
    ResultRef,
    UsageError,
)

MOST_POINTS = 2000
"""So many tokens are drawn in the scatter."""


class FeatureCoupling(Method):
    """Coupling of two observables' feature vectors, head by head.

    ``C(y1, y2) = y1·y2/|y1|²`` is by how much x·y2 moves a unit of x·y1, for x in no direction of
    preference; with it the extremes and spread of x·y2 at a given x·y1. With prompts, at one node:
    every token's x·y1 and x·y2, the slope and r² that the data have, and how many tokens lie within
    the extremes that their own length allows. Source: dunefsky2024observable.
    """

    title: ClassVar[str] = "Feature coupling"
    question: ClassVar[str] = "If a head reads one of two observables, does it read the other too?"
    citations: ClassVar[tuple[str, ...]] = ("dunefsky2024observable",)
    needs: ClassVar[tuple[str, ...]] = ("blocks", "weights")
    version: ClassVar[int] = 1

    vectors: ResultRef
    """A run of head_features with both observables (or with the first)."""
    other: ResultRef | None = None
    """A run of head_features with the second observable; the same run if empty."""
    first: Annotated[str, Field(max_length=500)] = ""
    """The first observable; the first of the run if empty."""
    second: Annotated[str, Field(max_length=500)] = ""
    """The second observable; the second of the run if empty."""
    node: Annotated[str, Field(max_length=20)] = ""
    """The head or MLP whose tokens are drawn, as L9H6; that of the largest effect if empty."""

    def measure(self, model: HookedModel, task: PromptPairs | None, context: Context) -> xr.Dataset:
        """``coupling [layer, head]``, ``cosine``; with prompts also tokens and their slope."""
        data = context.result(str(self.vectors)).data
        other = data if self.other is None else context.result(str(self.other)).data
        y1 = feature_vector(data, model, self.node, self.first)
        name = y1.path.split(" < ")[-1]
        y2 = feature_vector(other, model, name, self._second(data, other, y1))
        if (y1.stage, y1.ln, y1.path) != (y2.stage, y2.ln, y2.path):
            raise UsageError(
                f"The vectors stand at {y1.path} ({y1.stage}, norms {y1.ln}) and at {y2.path} "
                f"({y2.stage}, norms {y2.ln}), so they do not read the same x.",
                remedy="Make both with the same ln and behind.",
            )
        rows = self._map(data, other, y1.observable, y2.observable)
        pair = Coupling.of(y1.vec, y2.vec)
        back = Coupling.of(y2.vec, y1.vec)
        both, square = pair.coefficient * back.coefficient, pair.cosine**2
        context.check(Check(
            "product_of_couplings", "C12·C21 against cos²θ", abs(both - square), 1e-9
        ))  # fmt: skip
        facts: dict[str, Any] = {
            "node": name, "site": str(y1.site), "stage": y1.stage, "ln": y1.ln,
            "first": y1.observable, "second": y2.observable,
            "coefficient": pair.coefficient, "cosine_at_node": pair.cosine,
        }  # fmt: skip
        coords: dict[str, Any] = {
            "layer": np.arange(data.sizes["layer"]),
            "measure": [f"x·y, {y1.observable}", f"x·y, {y2.observable}"],
            "bound": ["smallest", "mean", "largest"],
        }
        if task is not None:
            more, points = self._tokens(model, task, y1, y2, pair, context)
            rows = {"coupling": rows["coupling"], **more, **rows}
            coords |= points
        context.advance(1, 1)
        return dataset(rows, coords, **facts)

    def _second(self, data: xr.Dataset, other: xr.Dataset, y1: FeatureVector) -> str:
        names = [str(n) for n in other.coords["observable"].values]
        if self.second:
            return self.second
        rest = [n for n in names if n != y1.observable]
        if not rest:
            raise UsageError(
                f"The run has one observable, {y1.observable!r}, and a coupling is between two.",
                remedy="Run head_features with two, as 'she / he; her / him'.",
            )
        return rest[0]

    @staticmethod
    def _map(data: xr.Dataset, other: xr.Dataset, first: str, second: str) -> Rows:
        a = data["vector"].sel(observable=first).values
        b = other["vector"].sel(observable=second).values
        if a.shape != b.shape:
            raise UsageError(
                "The two runs have vectors of different heads.",
                remedy="Make both with the same nodes behind.",
            )
        pairs = [[Coupling.of(x, y) for x, y in zip(*r, strict=True)]
                 for r in zip(a, b, strict=True)]  # fmt: skip
        dims, what = ("layer", "head"), f"{first} to {second}"
        return {
            "coupling": (
                dims, np.array([[c.coefficient for c in row] for row in pairs]), "1",
                f"coupling coefficient, {what}", 1,
            ),
            "cosine": (
                dims, np.array([[c.cosine for c in row] for row in pairs]), "1",
                f"cosine between both vectors, {what}", 1,
            ),
        }  # fmt: skip

    def _tokens(
        self,
        model: HookedModel,
        task: PromptPairs,
        y1: FeatureVector,
        y2: FeatureVector,
        pair: Coupling,
        context: Context,
    ) -> tuple[Rows, dict[str, Any]]:
        """Both readings of every token of the clean prompts, with their bounds."""
        maps = Maps(model)
        values, _ = readings(maps, task.clean, y1.site, y1.stage, model, context.memory)
        x = np.concatenate(values)
        k, seen = x @ y1.vec, x @ y2.vec
        length = np.linalg.norm(x, axis=1)
        low, high = pair.extremes(k, length)
        slack = 1e-6 * np.maximum(np.abs(low), np.abs(high))
        inside = float(np.mean((seen >= low - slack) & (seen <= high + slack)))
        context.check(Check(
            "within_extremes", "share of tokens within the extremes of their own length",
            inside, 1.0, at_least=True,
        ))  # fmt: skip
        fit = fitted(np.cov(x.T, bias=True), y1.vec, y2.vec)
        some = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
        line = np.linspace(k.min(), k.max(), 65)
        ends = pair.extremes(line, float(np.median(length)))
        rows: Rows = {
            "scatter": (
                ("measure", "cell"), np.stack([k, seen])[:, some], "logit",
                "what each token gives both vectors", 1,
            ),
            "bounds": (
                ("bound", "reading"), np.stack([ends[0], pair.mean(line), ends[1]]), "logit",
                "the second reading at a given first one: mean and extremes at the median length",
                1,
            ),
            "spread": (
                ("reading",), np.sqrt(pair.variance(line, float(np.median(length)))), "logit",
                "standard deviation of the second reading at a given first one", 0,
            ),
            "slope": ((), np.float64(fit.slope), "1", "slope that the tokens have", 1),
            "r2": ((), np.float64(fit.r2), "1", "r² of that slope", 0),
        }  # fmt: skip
        text = task.clean_text
        names = [
            f"prompt {i + 1}, {text[i][p] if text else task.clean[i][p]!s}"
            for i in range(len(task)) for p in range(len(task.clean[i]))
        ]  # fmt: skip
        points = {
            "cell": np.arange(len(some)),
            "cell_name": ("cell", [names[i] for i in some]),
            "reading": line,
        }
        return rows, points
