"""FeatureScores: does a feature vector tell two classes apart, and how many labels is it worth?"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.traces import Maps
from interp.methods.observables.inputs import Readout, Rows, dataset, last_normed, signs
from interp.methods.observables.probes import (
    RANDOM,
    Split,
    auroc,
    intervals,
    logistic,
    mean_difference,
    r_squared,
    ridge,
)
from interp.methods.observables.vectors import feature_vector, readings
from interp.tasks.observables import observables_of
from interp.terms import (
    Check,
    Context,
    FeatureVector,
    HookedModel,
    LabelledInputs,
    Method,
    PromptPairs,
    ResultRef,
    UsageError,
)

CONTENDERS = (
    "feature vector",
    "regression",
    "mean difference",
    "bare observable",
    "random direction",
)
"""``regression`` is logistic for AUROC, ridge for r²."""


class FeatureScores(Method):
    """A feature vector as a classifier, beside probes that learn from labelled prompts.

    ``x·y`` at the vector's own site and stage, put together over the tokens of a text, against the
    labels (AUROC by ranks) and against the observable itself (r²), on documents that no probe has
    seen; intervals by resampling documents. Learning curves: probes from 1, 2, 4 … prompts a class,
    the feature vector from none. Baselines: logistic regression (standardised, penalty by inner
    folds), ridge on o, mean difference, the unembedding direction itself, random directions. Of
    pairs both sides are texts, labelled by the side the observable counts for. Source:
    dunefsky2024observable.
    """

    title: ClassVar[str] = "Feature scores"
    question: ClassVar[str] = "How many labelled examples is a feature vector worth?"
    citations: ClassVar[tuple[str, ...]] = ("dunefsky2024observable",)
    needs: ClassVar[tuple[str, ...]] = ("blocks", "weights")
    version: ClassVar[int] = 1

    vectors: ResultRef
    """A run of head_features on this model."""
    observable: Annotated[str, Field(max_length=500)] = ""
    """Which of its observables; the first if empty."""
    node: Annotated[str, Field(max_length=20)] = ""
    """The head or MLP, as L9H6; that of the largest direct effect if empty."""
    aggregate: Literal["mean", "last", "max"] = "last"
    """What a text's score is: of its last token, or the mean or largest over tokens."""
    train_sizes: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (1, 2, 4, 8, 16, 25, 50, 100), min_length=1, max_length=20
    )
    """Labelled texts a class that probes learn from."""
    draws: Annotated[int, Field(ge=1, le=500)] = 20
    """Random draws of each size."""
    n_boot: Annotated[int, Field(ge=0, le=10_000, json_schema_extra={"advanced": True})] = 500
    """Bootstrap samples for the intervals."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of splits, draws, directions and bootstrap."""

    def measure(
        self, model: HookedModel, task: PromptPairs | LabelledInputs, context: Context
    ) -> xr.Dataset:
        """``auroc``, ``r2 [component]``, ``learning [component, n_train]``."""
        maps = Maps(model)
        data = context.result(str(self.vectors)).data
        vector = feature_vector(data, model, self.node, self.observable)
        readout = Readout.of(maps, _observable(vector, model, task))
        prompts, label, documents = _texts(task, readout)
        values, last = readings(maps, prompts, vector.site, vector.stage, model, context.memory)
        x = np.stack([self._put(v, vector) for v in values])
        o = self._observed(maps, readout, last, task)
        split = Split.of(documents, self.seed)
        _check_split(label, split)
        rng = np.random.default_rng(self.seed)
        random = rng.normal(size=(RANDOM, x.shape[1]))
        learned = self._learned(x, label, o, split, readout, vector, random)
        rows = self._whole(learned, x, label, o, split, random)
        context.advance(1, 1 + len(self.train_sizes))
        rows |= self._curves(x, label, split, learned, random, rng, context)
        self._check(rows, context)
        coords: dict[str, Any] = {
            "component": list(CONTENDERS), "n_train": list(self.train_sizes),
            "bound": ["low", "high"], "prompt": np.arange(len(label)),
            "label": [0, 1],
        }  # fmt: skip
        first = ("auroc", "auroc_ci", "learning", "learning_ci")
        rows = {**{k: rows[k] for k in first}, **rows}
        data = dataset(
            rows, coords, node=vector.path, site=str(vector.site), stage=vector.stage,
            ln=vector.ln, observable=vector.observable, aggregate=self.aggregate,
            n_texts=len(label), n_test=len(split.test),
        )  # fmt: skip
        return data

    def _put(self, values: np.ndarray, vector: FeatureVector) -> np.ndarray:
        """One text's x ``[D]``: what its score is the product of with any direction."""
        if self.aggregate == "mean":
            return values.mean(0)
        if self.aggregate == "last":
            return values[-1]
        return values[int((values @ vector.vec).argmax())]

    @staticmethod
    def _observed(maps: Maps, readout: Readout, last: np.ndarray, task: Any) -> np.ndarray:
        import torch

        x = torch.from_numpy(last).to(maps.like)
        normed = last_normed(maps, x)
        if readout.observable.each:
            n = len(task)
            weight = readout.weights(np.arange(n)).repeat(2, 1)
        else:
            weight = readout.weights(np.zeros(len(last), int))
        z = normed @ readout.columns + readout.bias
        return (z * weight).sum(-1).double().cpu().numpy()

    def _learned(
        self,
        x: np.ndarray,
        label: np.ndarray,
        o: np.ndarray,
        split: Split,
        readout: Readout,
        vector: FeatureVector,
        random: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Directions of every contender, from all training texts."""
        seen, rows = x[split.train], split.train
        u = readout.weights([0]) @ readout.columns.T
        return {
            "feature vector": vector.vec,
            "regression": logistic(seen, label[rows], self.seed),
            "ridge": ridge(seen, o[rows]),
            "mean difference": mean_difference(seen, label[rows]),
            "bare observable": u[0].double().cpu().numpy(),
        }

    def _whole(
        self,
        learned: dict[str, np.ndarray],
        x: np.ndarray,
        label: np.ndarray,
        o: np.ndarray,
        split: Split,
        random: np.ndarray,
    ) -> Rows:
        test = split.test
        y, goal = label[test], o[test]
        value, interval = np.zeros((2, len(CONTENDERS))), np.full((2, 2, len(CONTENDERS)), np.nan)
        for i, name in enumerate(CONTENDERS):
            if name == "random direction":
                scores = x[test] @ random.T
                found = np.array([(auroc(s, y), r_squared(s, goal)) for s in scores.T])
                value[:, i] = np.nanmean(found, 0)
                interval[:, :, i] = np.nanpercentile(found, [2.5, 97.5], axis=0).T
                continue
            score = x[test] @ learned[name]
            fit = x[test] @ learned["ridge" if name == "regression" else name]
            value[:, i] = auroc(score, y), r_squared(fit, goal)
            interval[:, :, i] = intervals(score, fit, y, goal, self.n_boot, self.seed).T
        own = x @ learned["feature vector"]
        dims = ("component",)
        return {
            "auroc": (dims, value[0], "1", f"AUROC on {len(test)} unseen texts", 0),
            "auroc_ci": (("bound", *dims), interval[0], "1", "95 % interval", 0),
            "r2": (dims, value[1], "1", "r² with the observable on the same texts", 0),
            "r2_ci": (("bound", *dims), interval[1], "1", "95 % interval", 0),
            "score": (("prompt",), own, "logit", "the vector's score of each text", 1),
            "o": (("prompt",), o, "logit", "the observable of each text", 1),
            "truth": (("prompt",), label.astype(float), "1", "label of each text", 0),
        }

    def _curves(
        self,
        x: np.ndarray,
        label: np.ndarray,
        split: Split,
        learned: dict[str, np.ndarray],
        random: np.ndarray,
        rng: np.random.Generator,
        context: Context,
    ) -> Rows:
        """AUROC of probes that learned from n texts a class ``[component, n_train]``."""
        test, y = split.test, label[split.test]
        pools = [split.train[label[split.train] == c] for c in (0, 1)]
        mean = np.full((len(CONTENDERS), len(self.train_sizes)), np.nan)
        interval = np.full((2, *mean.shape), np.nan)
        free = ("feature vector", "bare observable")
        own = {name: np.array([auroc(x[test] @ learned[name], y)]) for name in free}
        chance = np.array([auroc(s, y) for s in (x[test] @ random.T).T])
        for j, n in enumerate(self.train_sizes):
            context.advance(1 + j, 1 + len(self.train_sizes))
            fixed = {**own, "random direction": chance}
            drawn: dict[str, list[float]] = {"regression": [], "mean difference": []}
            if n <= min(map(len, pools)):
                for _ in range(self.draws):
                    rows = np.concatenate([rng.choice(p, n, replace=False) for p in pools])
                    for name, direction in (
                        ("regression", logistic(x[rows], label[rows], self.seed)),
                        ("mean difference", mean_difference(x[rows], label[rows])),
                    ):
                        drawn[name].append(auroc(x[test] @ direction, y))
            for name, found in {**drawn, **fixed}.items():
                i = CONTENDERS.index(name)
                if len(found):
                    mean[i, j] = np.mean(found)
                    interval[:, i, j] = np.percentile(found, [2.5, 97.5])
        dims = ("component", "n_train")
        return {
            "learning": (
                dims, mean, "1", "AUROC after so many labelled texts a class (the vector: none)", 0,
            ),
            "learning_ci": (("bound", *dims), interval, "1", "95 % of draws", 0),
            "crossover": ((), np.float64(self._crossover(mean)), "texts a class",
                          "labelled texts a class from which logistic regression is better", 0),
        }  # fmt: skip

    def _crossover(self, mean: np.ndarray) -> float:
        """The first size at which logistic regression beats the vector, NaN where none does."""
        own, probe = mean[CONTENDERS.index("feature vector")], mean[1]
        better = [n for n, a, b in zip(self.train_sizes, own, probe, strict=True) if b > a]
        return float(better[0]) if better else float("nan")

    @staticmethod
    def _check(rows: Rows, context: Context) -> None:
        value = rows["auroc"][1]
        low, high = rows["auroc_ci"][1][:, CONTENDERS.index("feature vector")]
        context.check(Check(
            "control", "AUROC of random directions, distance from chance",
            abs(float(value[CONTENDERS.index("random direction")]) - 0.5), 0.1,
            note="Where random directions tell the classes apart, the classes differ everywhere.",
        ))  # fmt: skip
        context.check(Check(
            "interval", "width of the interval of the vector's AUROC", float(high - low), 0.2,
            note="A wide interval says that there are too few texts to judge.",
        ))  # fmt: skip


def _observable(vector: FeatureVector, model: HookedModel, task: Any) -> Any:
    """The observable that a vector was made for, on this task."""
    return observables_of(vector.observable if vector.observable != "right - wrong" else "answers",
                          model, task)[0]  # fmt: skip


def _texts(task: Any, readout: Readout) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Token ids of every text, its label, and the document it belongs to.

    Raises:
        UsageError: inputs that are no tokens, labels that are not two, or that o cannot tell.
    """
    if isinstance(task, PromptPairs):
        sign = signs(readout.observable, task)
        if not sign.all():
            raise UsageError(
                f"The observable {readout.observable.name!r} counts neither for the right nor the "
                "wrong answers of some pairs, so their sides have no label.",
                remedy="Take a task whose answers are the observable's words.",
            )
        label = np.concatenate([sign > 0, sign < 0]).astype(int)
        documents = np.tile(np.arange(len(task)), 2)
        return [*task.clean, *task.corrupt], label, documents
    ids, label = np.asarray(task.inputs), np.asarray(task.labels)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise UsageError(
            f"Texts are token ids [text, position]; inputs of shape {ids.shape} and type "
            f"{ids.dtype} were given.",
            remedy="Take a task of texts, such as code_brace, or pairs of prompts.",
        )
    if set(label.tolist()) != {0, 1}:
        raise UsageError(
            f"The labels are {sorted(set(label.tolist()))[:6]}; wanted both 0 and 1.",
            remedy="Label each text 1 where the observable should be large, else 0.",
        )
    return list(ids), label, np.arange(len(ids))


def _check_split(label: np.ndarray, split: Split) -> None:
    if any(len(set(label[rows].tolist())) < 2 for rows in (split.train, split.test)):
        raise UsageError(
            f"{len(label)} texts are too few to learn from one half and judge on the other.",
            remedy="Give more texts of both labels.",
        )
