"""CircuitEvaluation: how much of a task the best-scored edges do alone, at every size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import Cell, Sweep, all_edges, metric_named, read_values, sweep
from interp.engine.statistics import bootstrap_interval, ratio_of_means, resampling_weights
from interp.methods.circuits.scores import check_scores, scores_of, sites_of
from interp.methods.circuits.selecting import SELECT, random_edges
from interp.terms import (
    Check,
    Circuit,
    Context,
    Edit,
    HookedModel,
    Method,
    ModelShape,
    PromptPairs,
    ResultRef,
    Site,
    UsageError,
)
from interp.terms.circuits import Edge

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of circuits, as shares of all edges (mueller2025mib)."""

RANKINGS = ("signed", "size", "random")


class CircuitEvaluation(Method):
    """Faithfulness of circuits made of the edges with the largest scores.

    The model runs on the clean prompts; readers see present writes on the edges of the circuit C
    and replaced ones elsewhere. ``f(C) = mean (m(C) - m(∅)) / mean (m(all) - m(∅))``: 1 where C
    alone does what the model does, 0 where it does what nothing does. Edges are ranked by score
    and by its size; random edges stand beside. ``CPR = ∫ f dk`` of the signed ranking (high is
    good), ``CMD = ∫ |1 - f| dk`` of sizes (0 is best), trapezoids over the share k of edges.
    ``without`` is f of what is left when C is taken out: 0 where C is complete. Sources:
    mueller2025mib, hanna2024have, marks2025sparse, wang2023interpretability.
    """

    title: ClassVar[str] = "Circuit evaluation"
    question: ClassVar[str] = "How few edges do the task alone, and what is left without them?"
    citations: ClassVar[tuple[str, ...]] = (
        "mueller2025mib",
        "hanna2024have",
        "marks2025sparse",
        "wang2023interpretability",
    )
    needs: ClassVar[tuple[str, ...]] = ("blocks", "z", "q", "k", "v", "attn_out", "mlp_out")
    version: ClassVar[int] = 1

    scores: ResultRef
    """A run that scored edges: path patching of single edges."""
    select: Literal["top", "greedy"] = "top"
    """The edges of largest score, or from the logits back the best that leads into the circuit."""
    fractions: tuple[float, ...] = FRACTIONS
    """Sizes, as shares of all edges."""
    with_: Literal["source", "zero", "mean"] = "source"
    """What stands on other edges: the corrupt run's write, nothing, or the task's mean."""
    metric: Literal["logit_diff", "prob", "logprob", "prob_diff", "span_logprob"] = "logit_diff"
    """What is read off the logits."""
    at: str = Field("last", json_schema_extra={"advanced": True}, max_length=60)
    """Where the metric is read: last, an index, or a slot of the task."""
    examined: Annotated[float, Field(gt=0, le=1, json_schema_extra={"advanced": True})] = 0.05
    """Size of the circuit whose edges are taken out one by one and in sets."""
    top: Annotated[int, Field(ge=0, le=500, json_schema_extra={"advanced": True})] = 20
    """So many of its largest edges are taken out one by one."""
    subsets: Annotated[int, Field(ge=0, le=200, json_schema_extra={"advanced": True})] = 10
    """So many random sets are taken out of it and of the whole model."""
    draws: Annotated[int, Field(ge=1, le=50, json_schema_extra={"advanced": True})] = 3
    """Random circuits of each size."""
    n_boot: Annotated[int, Field(ge=0, le=20_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the intervals."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of random circuits, sets and the bootstrap."""

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``faithfulness``, ``without`` and ``n_edges [ranking, fraction]``, CPR, CMD."""
        found = context.result(self.scores)
        check_scores(found, model)
        scores = scores_of(found.data)
        if not all(0 < k <= 1 for k in self.fractions) or list(self.fractions) != sorted(
            set(self.fractions)
        ):
            raise UsageError(
                f"Fractions {self.fractions} were given.",
                remedy="Give shares of all edges between 0 and 1, smallest first.",
            )
        every = all_edges(model.shape)
        work = _Work(self, model, task, every, scores)
        measured = sweep(
            model,
            task,
            work.cells(),
            context,
            metric=self.metric,
            direction="noising",
            at=int(self.at) if self.at.lstrip("-").isdigit() else self.at,
        )
        self._check(measured, work, context)
        return work.dataset(measured)

    def _check(self, measured: Sweep, work: _Work, context: Context) -> None:
        """Replacing every edge by the corrupt run's gives the corrupt run."""
        if self.with_ != "source":
            return
        nothing = measured.patched[work.place[frozenset()]]
        size = max(float(np.abs(measured.source - measured.base).mean()), 1e-12)
        dtype = str(getattr(work.model, "dtype", "float32")).removeprefix("torch.")
        context.check(
            Check(
                "every_edge",
                "replacing every edge gives the corrupt run",
                float(np.abs(nothing - measured.source).max()) / size,
                {"float64": 1e-9, "float32": 1e-4}.get(dtype, 0.1) * work.model.shape.n_layers,
                note=f"{len(work.every)} edges; over the mean gap of the metric.",
            )
        )


class _Work:
    """The circuits of an evaluation, each measured once.

    Args:
        spec: the method.
        model: for its shape.
        task: the prompts.
        every: all edges.
        scores: of edges; those without one are never chosen.
    """

    def __init__(
        self,
        spec: CircuitEvaluation,
        model: HookedModel,
        task: PromptPairs,
        every: list[Edge],
        scores: dict[Edge, float],
    ) -> None:
        self.spec, self.model, self.task, self.every, self.scores = spec, model, task, every, scores
        self.whole = frozenset(every)
        self.place: dict[frozenset[Edge], int] = {}
        for kept in (self.whole, frozenset[Edge]()):
            self._need(kept)
        shape, choose = model.shape, SELECT[spec.select]
        self.curves: dict[str, list[list[frozenset[Edge]]]] = {r: [] for r in RANKINGS}
        for k in spec.fractions:
            n = math.floor(k * len(every) + 1e-9)
            for ranking in ("signed", "size"):
                self.curves[ranking].append([choose(scores, n, ranking, shape).edges])
            seeds = range(spec.seed, spec.seed + spec.draws)
            self.curves["random"].append([random_edges(every, n, shape, s).edges for s in seeds])
        for curve in self.curves.values():
            for edges in (e for some in curve for e in some):
                self._need(edges)
                self._need(self.whole - edges)
        n = math.floor(spec.examined * len(every) + 1e-9)
        self.examined = choose(scores, n, "size", shape).edges
        order = sorted(self.examined, key=lambda e: (-abs(scores[e]), str(e)))
        self.singles = order[: spec.top]
        draw = np.random.default_rng(spec.seed)
        self.subsets = [
            frozenset(e for e in order if draw.random() < 0.5)
            for _ in range(spec.subsets if order else 0)
        ]
        self._need(self.examined)
        for edge in self.singles:
            self._need(self.examined - {edge})
        for some in self.subsets:
            self._need(self.examined - some)
            self._need(self.whole - some)

    def _need(self, kept: frozenset[Edge]) -> None:
        self.place.setdefault(kept, len(self.place))

    def cells(self) -> list[Cell]:
        """For each set of edges that stays, the edit of all others."""
        values = self._means() if self.spec.with_ == "mean" else {}
        cells = []
        for kept in self.place:
            gone = [e for e in self.every if e not in kept]
            edits = [Edit(u, values.get(u, self.spec.with_), reader=v) for u, v in gone]
            cells.append(Cell(tuple(edits)))
        return cells

    def _means(self) -> dict[Site, Any]:
        """Writer -> its mean over the corrupt runs, by position."""
        if not self.task.aligned():
            raise UsageError(
                "with_='mean' needs prompts of one length; these differ.",
                remedy="Use with_='source' or 'zero'.",
            )
        wholes = sorted({u.whole for u, _ in self.every}, key=str)
        found = read_values(self.model, self.task, wholes, direction="noising", at="last")
        mean = {
            s: np.stack([v.detach().double().cpu().numpy() for v in vs]).mean(0, keepdims=True)
            for s, vs in found.items()
        }
        return {
            u: mean[u.whole] if u.head is None else mean[u.whole][:, :, u.head]
            for u in {u for u, _ in self.every}
        }

    # -- arrays ---------------------------------------------------------------------------------

    def dataset(self, measured: Sweep) -> xr.Dataset:
        """The arrays; NaN with the reason where the gap vanishes."""
        nothing = measured.patched[self.place[frozenset()]]
        self.raw = (measured.patched - nothing).T
        self.gap = measured.patched[self.place[self.whole]] - nothing
        mean = float(self.gap.mean())
        floor = max(10 * measured.noise, 1e-6 * float(np.abs(measured.base).mean()))
        self.reason = (
            "" if abs(mean) > floor else f"the mean gap {mean:.3g} is not above {floor:.3g}"
        )
        spec, metric = self.spec, metric_named(self.spec.metric)
        lines = {r: self._curve(self.curves[r]) for r in RANKINGS}
        grid = ("ranking_by", "fraction")
        out: dict[str, Any] = {
            "faithfulness": (grid, self._stack(lines, 0), "1", "faithfulness f", 1),
            "faithfulness_ci": (
                ("bound", *grid),
                np.moveaxis(self._stack(lines, 1), 1, 0),
                "1",
                "95 % bootstrap interval",
                1,
            ),
            "without": (grid, self._stack(lines, 2), "1", "f of the model without the circuit", 1),
            "n_edges": (grid, self._stack(lines, 3), "edges", "edges after pruning", 0),
            "metric_model": (("prompt",), measured.base, metric.units, "metric, whole model", 1),
            "metric_nothing": (("prompt",), nothing, metric.units, "metric, no edge kept", 1),
        }
        for name, ranking, what in (
            ("cpr", "signed", "area under f (CPR), high is good"),
            ("cmd", "size", "area between f and 1 (CMD), 0 is best"),
        ):
            curve = lines[ranking][0]
            area = trapezoid(curve if name == "cpr" else np.abs(1 - curve), spec.fractions)
            out[name] = ((), area, "1", what, 1)
        out |= self._edges()
        out |= self._sets()
        coords: dict[str, Any] = {
            "ranking_by": list(RANKINGS),
            "fraction": list(spec.fractions),
            "bound": ["low", "high"],
            "prompt": np.arange(len(self.task)),
            **self._axes(),
        }
        data = xr.Dataset(
            {
                k: (d, v, {"units": u, "long_name": t, "signed": s})
                for k, (d, v, u, t, s) in out.items()
            },
            coords=coords,
        )
        data.attrs.update(
            {
                "scores_run": str(spec.scores),
                "select": spec.select,
                "with_": spec.with_,
                "metric": spec.metric,
                "edges": len(self.every),
                "examined_edges": len(self.examined),
                "mean_gap": mean,
                "undefined_reason": self.reason,
            }
        )
        return data

    def _share(self, kept: Sequence[frozenset[Edge]]) -> np.ndarray:
        """f of each set ``[set]``."""
        raw = self.raw[:, [self.place[k] for k in kept]]
        share, _ = ratio_of_means(raw, self.gap)
        return np.full_like(share, np.nan) if self.reason else share

    def _curve(self, sets: list[list[frozenset[Edge]]]) -> tuple[np.ndarray, ...]:
        """f, its interval, f without the circuit and edges kept, along the sizes."""
        n = len(self.task)
        share = np.array([self._share(some).mean() for some in sets])
        rest = np.array([self._share([self.whole - e for e in some]).mean() for some in sets])
        interval = np.full((2, len(sets)), np.nan)
        if self.spec.n_boot and n > 1 and not self.reason:
            weights = resampling_weights(n, self.task.template, self.spec.n_boot, self.spec.seed)
            raw = np.stack([self.raw[:, [self.place[e] for e in some]].mean(1) for some in sets], 1)
            interval = bootstrap_interval(raw, self.gap, weights)
        count = np.array([np.mean([len(e) for e in some]) for some in sets])
        return share, interval, rest, count

    @staticmethod
    def _stack(lines: dict[str, tuple[np.ndarray, ...]], part: int) -> np.ndarray:
        return np.stack([lines[r][part] for r in RANKINGS])

    def _axes(self) -> dict[str, Any]:
        writers = list(dict.fromkeys(u for u, _ in self.every))
        readers = list(dict.fromkeys(v for _, v in self.every))
        self.writers, self.readers = writers, readers
        out: dict[str, Any] = {}
        for axis, sites in (("src", writers), ("dst", readers)):
            out[axis] = [label(s, self.model.shape) for s in sites]
            out[f"{axis}_layer"] = (axis, [-1 if s.layer is None else s.layer for s in sites])
            out[f"{axis}_head"] = (axis, [-1 if s.head is None else s.head for s in sites])
            out[f"{axis}_input"] = (axis, [s.kind for s in sites])
        return out

    def _edges(self) -> dict[str, Any]:
        """When each edge enters the circuit, and what the examined one loses without it."""
        self._axes()
        row, column = ({s: i for i, s in enumerate(x)} for x in (self.writers, self.readers))
        enters = np.full((len(row), len(column)), np.nan)
        for k, some in reversed(list(zip(self.spec.fractions, self.curves["size"], strict=True))):
            for u, v in some[0]:
                enters[row[u], column[v]] = -math.log10(k) + 0.0
        loss = np.full_like(enters, np.nan)
        if self.singles:
            whole = self._share([self.examined])[0]
            left = self._share([self.examined - {e} for e in self.singles])
            for (u, v), share in zip(self.singles, left, strict=True):
                loss[row[u], column[v]] = whole - share
        share = f"{self.spec.examined:g}"
        return {
            "enters": (
                ("src", "dst"),
                enters,
                "powers of ten",
                "how early the edge enters (−log10 of the smallest share that has it)",
                0,
            ),
            "minimality": (("src", "dst"), loss, "1", f"f lost without the edge, at {share}", 1),
        }

    def _sets(self) -> dict[str, Any]:
        """``|f(C without K) - f(all without K)|`` for random sets K of the examined circuit."""
        if not self.subsets:
            return {}
        less = self._share([self.examined - k for k in self.subsets])
        rest = self._share([self.whole - k for k in self.subsets])
        words = "difference of circuit and model without the same edges"
        return {"incompleteness": (("draw",), np.abs(less - rest), "1", words, 0)}


def label(site: Site, shape: ModelShape) -> str:
    """``embed``, ``L0H1``, ``L3H1.q``, ``L3KV0.k`` where key/value heads are shared, ``MLP2``."""
    if site.kind in ("embed", "logits"):
        return site.kind
    if site.kind == "mlp_out":
        return f"MLP{site.layer}"
    shared = site.kind in ("k", "v") and shape.n_kv_heads < shape.n_heads
    tail = "" if site.kind == "z" else f".{site.kind}"
    return f"L{site.layer}{'KV' if shared else 'H'}{site.head}{tail}"


def trapezoid(values: np.ndarray, at: Sequence[float]) -> float:
    """Area under a curve by trapezoids, from the first point on."""
    return float(np.trapezoid(values, np.asarray(at)))


def circuit_at(data: xr.Dataset, fraction: float, shape: Any) -> Circuit:
    """The circuit of a size (by size of score) out of an evaluation's arrays."""
    enters = data["enters"].transpose("src", "dst").values
    src, dst = (sites_of(data, axis) for axis in ("src", "dst"))
    kept = np.argwhere(enters >= -math.log10(fraction) - 1e-9)
    return Circuit(shape, frozenset((src[i], dst[j]) for i, j in kept))
