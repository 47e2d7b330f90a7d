"""LinearMap: how well each layer of one model can be read off each layer of another."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from scipy import stats
from torch import Tensor

from interp.engine.depth import corpus_of
from interp.engine.depth.corpus import tokens_at_once
from interp.methods.compare.ridge import LAMBDAS, Moments, fitted
from interp.methods.compare.rows import Plan, check_alike, ordinary, planned, read_rows
from interp.models.untrained import untrained_like
from interp.terms import (
    Check,
    Context,
    HookedModel,
    Method,
    ModelRef,
    PromptPairs,
    RefusedError,
    Texts,
)

ROWS = 4096
"""Rows that are added to the sums at a time."""
PER_DIMENSION = 10
WIDEST = 1024
LAYOUTS = ("as it is", "against its row mean", "against its column mean")


class LinearMap(Method):
    """Ridge maps from every boundary of this model (rows) to every boundary of another (columns).

    Both see the same tokens; position 0 and tokens of exceptional length are left out, and prompts
    are split into those that fit, choose λ and test.
    ``r2 = 1 - Σ‖y - ŷ‖²/Σ‖y - ȳ‖²`` on test prompts; ``relative_error`` = mean ‖y - ŷ‖/‖y‖ is the
    paper's, flattered by a shared mean. The same maps run into the other architecture with
    untrained weights: what a map shows beyond that is about training. The diagonal in relative
    depth is Spearman's correlation of |depth_a - depth_b| with 1 - r2, embeddings left out. A map
    normalised both by rows and columns shows a diagonal between unrelated models too, so it is
    never ranked. Source: csordas2025language.
    """

    title: ClassVar[str] = "Linear maps between models"
    question: ClassVar[str] = "Does a deeper model do the same in more steps?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = ("csordas2025language",)

    other: ModelRef | None = None
    """The model that is read off this one; this one itself if empty."""
    what: Literal["residual", "contribution"] = "residual"
    """The residual at every boundary, or what every layer adds."""
    tokens_per_prompt: Annotated[int, Field(ge=1, le=100_000)] = 16
    """Most tokens of a prompt that are rows."""
    control_seeds: Annotated[int, Field(ge=1, le=20)] = 3
    """How many untrained copies of the other model stand beside."""
    n_test: Annotated[float, Field(gt=0, lt=0.9, json_schema_extra={"advanced": True})] = 0.3
    """Share of the prompts that is held out, half to choose λ, half to test."""
    massive_ratio: Annotated[float, Field(gt=1, json_schema_extra={"advanced": True})] = 20.0
    """A token longer than so many times the median, in either model, is left out."""
    projection: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 0
    """Random directions of each target; 0 takes all, and 256 of one wider than 1024."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Permutations of depth that the diagonal is held against; 0 for none."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the split, the tokens, the projection and the untrained copies."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``r2 [layer_a, layer_b]``, ``r2_control [seed, …]``, the diagonal and its controls."""
        other = model if self.other is None else context.model(self.other)
        check_alike(model, other)
        corpus, _ = corpus_of(model, task), corpus_of(other, task)
        plan = planned(corpus, self.tokens_per_prompt, self.n_test, self.seed)
        x = self._rows(model, corpus, plan, context)
        y = x if other is model else self._rows(other, corpus, plan, context)
        keep = ordinary(x, self.massive_ratio) & ordinary(y, self.massive_ratio)
        splits = torch.from_numpy(plan.splits)
        n_train = int((keep & (splits == 0)).sum())
        if n_train < PER_DIMENSION * x.shape[-1]:
            raise RefusedError(
                f"{n_train} tokens are left to fit maps of width {x.shape[-1]}; wanted "
                f"{PER_DIMENSION * x.shape[-1]} or more.",
                remedy="Give more prompts, or a larger tokens_per_prompt: with fewer rows a map "
                "fits anything.",
            )
        total = float((1 + self.control_seeds) * len(x))
        maps = [self._map(x, self._thin(y), keep, splits, context, "map", 0, total)]
        for k in range(self.control_seeds):
            fresh = untrained_like(other, self.seed + k + 1)
            rows = self._thin(self._rows(fresh, corpus, plan, context))
            good = keep & ordinary(rows, self.massive_ratio)
            maps.append(self._map(x, rows, good, splits, context, f"control-{k}",
                                  (1 + k) * len(x), total))  # fmt: skip
            del fresh, rows
        return self._dataset(model, other, corpus, maps, keep, n_train, context)

    # -- maps -----------------------------------------------------------------------------------

    def _rows(self, model: HookedModel, corpus: Any, plan: Plan, context: Context) -> Tensor:
        limit = tokens_at_once(model, context.memory)
        return read_rows(model, corpus, plan, self.what, limit, context.memory)

    def _thin(self, y: Tensor) -> Tensor:
        """Wide targets seen through fixed random directions."""
        width = self.projection or (256 if y.shape[-1] > WIDEST else 0)
        if not width or width >= y.shape[-1]:
            return y
        dice = torch.Generator().manual_seed(self.seed)
        thin = torch.randn(y.shape[-1], width, generator=dice, dtype=torch.float64)
        return y @ (thin / width**0.5).to(y)

    def _map(
        self,
        x: Tensor,
        y: Tensor,
        keep: Tensor,
        splits: Tensor,
        context: Context,
        label: str,
        done: float,
        total: float,
    ) -> dict[str, np.ndarray]:
        """Every source onto all targets, resumable by source."""
        flat = y.permute(1, 0, 2).flatten(1)
        targets, out = len(y), []
        which = [torch.nonzero(keep & (splits == s)).flatten() for s in range(3)]
        for s, source in enumerate(x):
            found = context.load_chunk(f"{label}-{s}")
            if found is None:
                sums = []
                for rows in which:
                    moments = Moments(source.shape[1], flat.shape[1])
                    for part in rows.split(ROWS):
                        moments.add(source[part], flat[part])
                    sums.append(moments)
                train, validation, test = sums
                fit = fitted(train, validation, test, targets)
                found = {"r2": fit.r2, "strength": fit.strength,
                         "error": _relative(fit, source, flat, which[2], targets)}  # fmt: skip
                context.save_chunk(f"{label}-{s}", found)
            out.append(found)
            context.advance(done + s + 1, total)
        return {k: np.stack([f[k] for f in out]) for k in ("r2", "strength", "error")}

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(
        self,
        model: HookedModel,
        other: HookedModel,
        corpus: Any,
        maps: list[dict[str, np.ndarray]],
        keep: Tensor,
        n_train: int,
        context: Context,
    ) -> xr.Dataset:
        r2, controls = maps[0]["r2"], np.stack([m["r2"] for m in maps[1:]])
        depth_a, depth_b = (_depths(m.shape.n_layers, self.what) for m in (model, other))
        own = Diagonal(r2, depth_a, depth_b, self.what)
        theirs = [Diagonal(c, depth_a, depth_b, self.what) for c in controls]
        p = own.p_value(self.n_boot, self.seed)
        highest = max(d.spearman for d in theirs)
        diagonal = own.spearman > highest and own.amplitude > max(d.amplitude for d in theirs)
        dims = ("layer_a", "layer_b")
        arrays: dict[str, Any] = {
            "r2": (dims, r2, _attrs("R² on test prompts", high=1.0, low=0.0)),
            "r2_gain": (dims, r2 - controls.mean(0), _attrs("R² less the untrained control's",
                                                            signed=1)),
            "log_left": (("ranking", *dims), np.stack(own.layouts()), _attrs(
                "log of the unexplained share", "nat", 1)),
            "relative_error": (dims, maps[0]["error"], _attrs("mean ‖y - ŷ‖/‖y‖")),
            "r2_control": (("seed", *dims), controls, _attrs("R² into an untrained copy")),
            "diagonal": (("ranking",), own.spearmans, _attrs(
                "Spearman's correlation of distance in depth and what is left", signed=1)),
            "diagonal_control": (("seed", "ranking"), np.stack([d.spearmans for d in theirs]),
                                 _attrs("the same for untrained copies", signed=1)),
            "best_target": (("layer_a",), depth_b[np.nanargmax(r2, 1)], _attrs(
                "relative depth of the best target")),
            "best_source": (("layer_b",), depth_a[np.nanargmax(r2, 0)], _attrs(
                "relative depth of the best source")),
            "strength": (dims, maps[0]["strength"], _attrs("chosen λ")),
        }  # fmt: skip
        context.check(Check(
            "rows_per_dimension", "training rows for each dimension of the source",
            n_train / model.shape.d_model, PER_DIMENSION, at_least=True,
            note="With fewer rows a map fits anything.",
        ))  # fmt: skip
        return xr.Dataset(arrays, {
            "layer_a": np.arange(len(depth_a)), "depth_a": ("layer_a", depth_a),
            "layer_b": np.arange(len(depth_b)), "depth_b": ("layer_b", depth_b),
            "seed": np.arange(len(controls)), "ranking": list(LAYOUTS),
        }, {
            "model_a": model.id, "model_b": other.id, "what": self.what, "n_train": n_train,
            "n_prompts": corpus.n_prompts, "n_rows": int(keep.sum()),
            "n_left_out": int((~keep).sum()), "ridge": list(LAMBDAS),
            "dtype": str(model.blocks.dtype).removeprefix("torch."),
            "bos": "position 0 is left out", "amplitude": own.amplitude,
            "amplitude_control": [d.amplitude for d in theirs],
            "doubly_normalised_amplitude": own.doubly,
            "doubly_normalised_amplitude_control": [d.doubly for d in theirs],
            "p_permuted": p,
            "verdict": "diagonal" if diagonal and p < 0.05 else "no diagonal",
        })  # fmt: skip


class Diagonal:
    """Whether a map is best where relative depths agree.

    Args:
        r2: ``[layer_a, layer_b]``.
        depth_a: relative depths; depth_b: likewise.
        depth_b: see ``depth_a``.
        what: with ``residual`` the embeddings are left out.
    """

    def __init__(self, r2: np.ndarray, depth_a: np.ndarray, depth_b: np.ndarray, what: str) -> None:
        first = 1 if what == "residual" else 0
        self.left = np.log(np.clip(1 - r2, 1e-12, None))
        self.inner = self.left[first:, first:]
        self.away = np.abs(depth_a[first:, None] - depth_b[None, first:])
        self.spearmans = np.array([_rank(self.away, v) for v in _normalised(self.inner)])
        self.spearman = float(np.nanmax(self.spearmans[1:]))
        self.amplitude = float(_normalised(self.inner)[1].std())
        both = self.inner - self.inner.mean(0) - self.inner.mean(1)[:, None] + self.inner.mean()
        self.doubly = float(both.std())

    def layouts(self) -> list[np.ndarray]:
        """The whole map as ``LAYOUTS`` say."""
        return _normalised(self.left)

    def p_value(self, draws: int, seed: int) -> float:
        """Share of random orders of the other model's layers with a diagonal as strong."""
        if not draws:
            return float("nan")
        dice = np.random.default_rng(seed)
        which = int(np.nanargmax(self.spearmans[1:])) + 1
        values = _normalised(self.inner)[which]
        hits = sum(
            _rank(self.away, values[:, dice.permutation(values.shape[1])]) >= self.spearman - 1e-12
            for _ in range(draws)
        )
        return float((hits + 1) / (draws + 1))


def _normalised(left: np.ndarray) -> list[np.ndarray]:
    return [left, left - left.mean(1, keepdims=True), left - left.mean(0, keepdims=True)]


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    if a.size < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    found: Any = stats.spearmanr(a.ravel(), b.ravel())
    return float(found.statistic)


def _depths(layers: int, what: str) -> np.ndarray:
    return np.arange(layers + (what == "residual")) / layers


def _relative(fit: Any, x: Tensor, flat: Tensor, rows: Tensor, targets: int) -> np.ndarray:
    """mean ‖y - ŷ‖/‖y‖ on test rows, ``[target]``."""
    total = torch.zeros(targets, dtype=torch.float64)
    for part in rows.split(ROWS):
        y = flat[part].double()
        away = y - fit.y - (x[part].double() - fit.x) @ fit.weight
        size, left = (v.unflatten(1, (targets, -1)).norm(dim=-1) for v in (y, away))
        total += (left / size.clamp_min(1e-300)).sum(0)
    return (total / len(rows)).numpy()


def _attrs(long_name: str, units: str = "1", signed: int = 0, **more: Any) -> dict[str, Any]:
    return {"units": units, "long_name": long_name, "signed": signed, **more}
