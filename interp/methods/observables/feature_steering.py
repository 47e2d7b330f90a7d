"""FeatureSteering: what the model does when a feature vector is added to its residual stream."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.traces import Maps
from interp.methods.observables.inputs import Readout, Rows, check_pairs, dataset, signs
from interp.methods.observables.steering import ROWS, Steered, Steering, most_answered, spread_of
from interp.methods.observables.vectors import feature_vector
from interp.tasks import load_task
from interp.tasks.observables import observables_of
from interp.terms import (
    Check,
    Context,
    HookedModel,
    InterpError,
    Method,
    PromptPairs,
    ResultRef,
    UsageError,
)

LINES = ("feature vector", "feature vector, QK fixed", "predicted slope", "random direction")
DRAWS = 4
"""Random directions whose mean stands beside the vector."""


class FeatureSteering(Method):
    """Dose and response of a feature vector added to the residual stream at its own site.

    ``x + α m v̂``: v̂ the vector's direction, m the median length of the residual there, α the dose.
    Beside it the same with patterns fixed, the slope that all paths together predict, and random
    directions of the same length; how far ±α differ from opposites; what the model then writes; and
    the KL divergence on prompts that have nothing to do with it. Source: dunefsky2024observable.
    """

    title: ClassVar[str] = "Feature steering"
    question: ClassVar[str] = "Does adding this direction move the observable, and what else?"
    citations: ClassVar[tuple[str, ...]] = ("dunefsky2024observable",)
    needs: ClassVar[tuple[str, ...]] = ("blocks", "weights", "pattern", "resid_pre")
    version: ClassVar[int] = 1

    vectors: ResultRef
    """A run of head_features on this model."""
    observable: Annotated[str, Field(max_length=500)] = ""
    """Which of its observables; the first if empty."""
    node: Annotated[str, Field(max_length=20)] = ""
    """The head or MLP, as L9H6; the one that all paths say is answered most if empty."""
    alpha: tuple[Annotated[float, Field(ge=-100, le=100)], ...] = Field(
        (-2.0, -1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0, 2.0), min_length=1, max_length=41
    )
    """Doses, in median lengths of the residual stream."""
    where: Literal["last", "all"] = "all"
    """At which positions it is added."""
    tokens: Annotated[int, Field(ge=1, le=100)] = 4
    """So many tokens are written after each prompt."""
    neutral: Annotated[str, Field(max_length=300)] = "agreement:n=16"
    """A task on which it should do nothing; empty leaves that out."""
    n_boot: Annotated[int, Field(ge=0, le=10_000, json_schema_extra={"advanced": True})] = 500
    """Bootstrap samples for the intervals."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of random directions and bootstrap."""

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``effect [component, alpha]``, ``written``, ``kl``, ``asymmetry``, slopes by prompt."""
        check_pairs(task, self.title, aligned=False)
        maps = Maps(model)
        data = context.result(str(self.vectors)).data
        vector = feature_vector(data, model, self.node, self.observable)
        name = "answers" if vector.observable == "right - wrong" else vector.observable
        readout = Readout.of(maps, observables_of(name, model, task)[0])
        if not self.node:
            rows = next(iter(task.buckets().values()))[:ROWS]
            tokens = np.array([task.clean[r] for r in rows])
            heads = data["vector"].sel(observable=vector.observable).values
            best = most_answered(maps, tokens, rows, readout, heads, self.where)
            vector = feature_vector(data, model, best.name, self.observable)
        doses = tuple(sorted(set(self.alpha)))
        if not any(doses):
            raise UsageError("Every dose is 0.", remedy="Give some that are not.")
        rng = np.random.default_rng(self.seed)
        random = rng.normal(size=(DRAWS, len(vector.vec)))
        random -= random.mean(1, keepdims=True)
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        steer = Steering(model, maps, task, readout, vector, self.where, context)
        own = steer.doses(vector.unit, doses, self.tokens, show=True)
        fixed = steer.doses(vector.unit, doses, 0, fixed=True)
        drawn = [steer.doses(r, doses, self.tokens) for r in random]
        predicted = steer.slopes(vector.unit)[:, None] * np.array(doses)
        kl = self._neutral(model, maps, vector, random, doses, steer)
        self._check(context, own, drawn, predicted, doses)
        return self._dataset(own, fixed, drawn, predicted, kl, doses, steer, task, readout)

    def _neutral(
        self, model: HookedModel, maps: Maps, vector: Any, random: np.ndarray,
        doses: tuple[float, ...], steer: Steering,
    ) -> np.ndarray | None:  # fmt: skip
        """Mean KL of the next token on prompts of another kind ``[2, dose]``."""
        if not self.neutral:
            return None
        try:
            other = load_task(self.neutral, model)
        except InterpError:
            if self.neutral != type(self).model_fields["neutral"].default:
                raise
            return None
        if not isinstance(other, PromptPairs):
            raise UsageError(f"{self.neutral!r} is no task of prompts.")
        plain = Steering(
            model, maps, other, steer.readout, vector, self.where, steer.context, steer.length
        )
        return np.stack([plain.divergence(d, doses) for d in (vector.unit, random[0])])

    @staticmethod
    def _check(
        context: Context, own: Steered, drawn: list[Steered], predicted: np.ndarray,
        doses: tuple[float, ...],
    ) -> None:  # fmt: skip
        small = int(np.argmin([abs(a) if a else np.inf for a in doses]))
        told, seen = predicted[:, small].mean(), own.change[:, small].mean()
        context.check(Check(
            "slope", f"effect over predicted effect at α = {doses[small]:g}",
            float(seen / told) if told else float("nan"),
            note="Near 1 where the dose is small and patterns do not answer.",
        ))  # fmt: skip
        if 0.0 in doses:
            zero = doses.index(0.0)
            context.check(Check(
                "nothing", "change of the observable at α = 0",
                float(np.abs(own.change[:, zero]).max()), 1e-6,
            ))  # fmt: skip
        far = int(np.argmax(np.abs(doses)))
        size = max(abs(float(d.change[:, far].mean())) for d in drawn)
        context.check(Check(
            "beats_random", f"effect over that of random directions at α = {doses[far]:g}",
            abs(float(own.change[:, far].mean())) / max(size, 1e-12), 1.0, at_least=True,
            note="Against the largest of several random directions of the same length.",
        ))  # fmt: skip

    def _dataset(
        self, own: Steered, fixed: Steered, drawn: list[Steered], predicted: np.ndarray,
        kl: np.ndarray | None, doses: tuple[float, ...], steer: Steering, task: PromptPairs,
        readout: Readout,
    ) -> xr.Dataset:  # fmt: skip
        random = np.mean([d.change for d in drawn], 0)
        each = np.stack([own.change, fixed.change, predicted, random])
        low, high = spread_of(each, self.n_boot, self.seed)
        written = np.stack([own.written, np.mean([d.written for d in drawn], 0)])
        flipped = np.stack([own.flipped, np.mean([d.flipped for d in drawn], 0)])
        alphas = [a for a in doses if a > 0 and -a in doses]
        pairs = [(doses.index(a), doses.index(-a)) for a in alphas]
        rows: Rows = {
            "effect": (
                ("component", "alpha"), each.mean(1), "logit",
                "change of the observable by dose", 1,
            ),
            "effect_se": (
                ("component", "alpha"), each.std(1, ddof=1) / np.sqrt(each.shape[1])
                if each.shape[1] > 1 else each.mean(1) * np.nan, "logit", "standard error", 0,
            ),
            "effect_ci": (("bound", "component", "alpha"), np.stack([low, high]), "logit",
                          "95 % bootstrap interval", 1),
            "written": (
                ("steered", "alpha"), written, "1",
                f"prompts after which a plus word is written within {self.tokens} tokens, less "
                "those with a minus word", 1,
            ),
            "preferred": (
                ("steered", "alpha"), flipped, "1", "prompts on which the observable is above 0",
                0,
            ),
            "prompt_effect": (
                ("component", "prompt", "alpha"), each, "logit", "change in each prompt", 1,
            ),
        }  # fmt: skip
        if pairs:
            up, down = (
                np.array([each[0, :, i].mean() for i in side]) for side in zip(*pairs, strict=True)
            )
            rows["asymmetry"] = (
                ("dose",), (up + down) / np.maximum(np.abs(up) + np.abs(down), 1e-300), "1",
                "how far the effects of +α and -α are from opposites", 1,
            )  # fmt: skip
        if kl is not None:
            rows["kl"] = (
                ("steered", "alpha"), kl, "nat", "KL divergence of the next token on other prompts",
                0,
            )  # fmt: skip
        coords = {
            "component": list(LINES), "alpha": list(doses), "bound": ["low", "high"],
            "steered": ["feature vector", "random direction"], "dose": alphas,
            "prompt": np.arange(len(task)),
        }  # fmt: skip
        vector = steer.vector
        return dataset(
            rows, coords, node=vector.path, site=str(vector.site), observable=vector.observable,
            median_length=float(steer.length), where=self.where, n_prompts=len(task),
            examples=steer.examples, plus_side=float(np.mean(signs(readout.observable, task) > 0)),
        )  # fmt: skip
