"""LayerImportance: rankings of layers held against what leaving them out really costs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from scipy import stats

from interp.engine.depth import Corpus, corpus_of, wide
from interp.engine.depth.corpus import kept_limit, tokens_at_once
from interp.engine.depth.programs import Part, Program, added, staged
from interp.methods.depth.arrays import attrs, dataset, facts, resampled
from interp.methods.depth.judging import Judged, judge
from interp.methods.depth.outliers import outlier_share
from interp.methods.depth.running import cosine
from interp.terms import Context, HookedModel, Method, PromptPairs, Texts

SCORES = ("influence", "outliers")
TITLES = {"influence": "1 - ρ", "outliers": "-ZD"}


class LayerImportance(Method):
    """Which layers, attentions or MLPs can go: by score, and by the loss without them.

    Scores, higher = keep: ``influence`` 1 - ρ (ShortGPT's block influence; LIM and LLM-Drop's S
    order alike), ``outliers`` -ZD (share of weights with z > 1; few means important). Measured is
    the loss without each part, and with the n lowest parts gone, chosen once or again after each
    drop. Spearman's correlation of score and measured loss stands beside, since rankings by cosine
    have contradicted sensitivity. Parts go at all positions. Sources: men2024shortgpt,
    dumitru2024layerwise, he2024what.
    """

    title: ClassVar[str] = "Layer importance"
    question: ClassVar[str] = "Do the usual rankings find the layers that can go?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = (
        "men2024shortgpt", "dumitru2024layerwise", "he2024what",
    )  # fmt: skip

    part: Literal["layer", "attention", "MLP", "joint"] = "layer"
    """What is ranked; joint ranks attentions and MLPs together."""
    n_drop: Annotated[int, Field(ge=0, le=1000)] = 4
    """Up to so many parts are left out together."""
    order: Literal["once", "iterative"] = "once"
    """Rank once, or again after each part that went (by influence)."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Count position 0 in ρ too, where a beginning of sequence stands."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Samples of the bootstrap over prompts; 0 for none."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the bootstrap."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``delta_loss [component]``, ``importance [score, component]``, ``spearman [score]``."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        L = model.shape.n_layers
        limit = kept_limit(context, tokens_at_once(model, context.memory))
        parts: list[Part] = [
            (layer, what)
            for layer in range(L)
            for what in (("attention", "MLP") if self.part == "joint" else (self.part,))
        ]
        scores = np.stack(
            [self._influence(model, corpus, parts, (), limit), self._outliers(model, parts)]
        )
        drops = min(self.n_drop, len(parts))
        orders = [self._order(model, corpus, parts, s, scores, drops, limit) for s in range(2)]
        dropped: list[tuple[Part, ...]] = [(), *((p,) for p in parts)]
        dropped += [tuple(order[:n]) for order in orders for n in range(1, drops + 1)]
        context.advance(0.1, 1.0)
        judged = judge(
            model, corpus, [without(model, gone) for gone in dropped], limit, context,
            share=lambda done: context.advance(0.1 + 0.9 * done, 1.0),
        )  # fmt: skip
        return self._dataset(model, corpus, parts, scores, orders, judged, drops)

    # -- scores ---------------------------------------------------------------------------------

    def _influence(
        self,
        model: HookedModel,
        corpus: Corpus,
        parts: list[Part],
        gone: tuple[Part, ...],
        limit: int,
    ) -> np.ndarray:
        """1 - ρ of every part in the model without those that are gone (NaN)."""
        total = {p: 0.0 for p in parts}
        count = {p: 0.0 for p in parts}
        program = without(model, gone, halves=self.part != "layer")
        for batch in corpus.pieces(limit):
            first = int(batch.counted.argmax())
            with torch.no_grad():
                for stage, before, behind in staged(model.blocks, batch.tokens, program):
                    for part in parts:
                        if part not in stage:
                            continue
                        if len(stage) > 1:  # a parallel block: its part alone joins the residual
                            behind = before + added(model.blocks, part, before)
                        rho = cosine(wide(before)[:, first:], wide(behind)[:, first:])
                        known = torch.isfinite(rho)
                        total[part] += float(rho[known].sum())
                        count[part] += float(known.sum())
        return np.array([1 - total[p] / count[p] if count[p] else np.nan for p in parts])

    def _outliers(self, model: HookedModel, parts: list[Part]) -> np.ndarray:
        shares = {what: outlier_share(model, what) for _, what in parts}
        return np.array([-shares[what][layer] for layer, what in parts])

    def _order(
        self,
        model: HookedModel,
        corpus: Corpus,
        parts: list[Part],
        score: int,
        scores: np.ndarray,
        drops: int,
        limit: int,
    ) -> list[Part]:
        """The parts that go, lowest score first."""
        if self.order == "once" or score:
            rank = np.argsort(np.nan_to_num(scores[score], nan=np.inf), kind="stable")
            return [parts[i] for i in rank[:drops]]
        gone: list[Part] = []
        for _ in range(drops):
            now = self._influence(model, corpus, parts, tuple(gone), limit)
            now[[parts.index(p) for p in gone]] = np.inf
            gone.append(parts[int(np.nanargmin(now))])
        return gone

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(
        self,
        model: HookedModel,
        corpus: Corpus,
        parts: list[Part],
        scores: np.ndarray,
        orders: list[list[Part]],
        judged: Judged,
        drops: int,
    ) -> xr.Dataset:
        n = len(parts)

        def deltas(rows: Any) -> np.ndarray:
            loss = judged.mean_loss(rows)
            return loss[1:] - loss[0]

        delta = deltas(slice(None))
        rho = _spearman(scores, delta[:n])
        interval = resampled(corpus.n_prompts, self.n_boot, self.seed, deltas)
        spread = resampled(
            corpus.n_prompts, self.n_boot, self.seed, lambda r: _spearman(scores, deltas(r)[:n])
        )
        names = [f"L{layer} {what}" if what != "layer" else f"L{layer}" for layer, what in parts]
        curve = (
            np.concatenate([np.zeros((2, 1)), delta[n:].reshape(2, drops)], 1)
            if drops
            else np.zeros((2, 1))
        )
        pairs = np.stack([_ranks(np.broadcast_to(delta[:n], scores.shape)), _ranks(scores)], 1)
        arrays: dict[str, Any] = {
            "delta_loss": (("component",), delta[:n], attrs("loss without it, less the model's",
                                                            "nat", 1)),
            "scatter": (("component", "measure", "score"), pairs.transpose(2, 1, 0),
                        attrs("rank by measured loss and by score (0 can go first)", "rank")),
            "spearman": (("score",), rho, attrs("Spearman's correlation of score and loss",
                                                signed=1)),
            "importance": (("score", "component"), scores, attrs("score (higher: keep)", signed=1)),
            "dropped_loss": (("score", "drop"), curve, attrs(
                f"change of the loss without the lowest parts, ranked {self.order}", "nat", 1)),
        }  # fmt: skip
        if interval is not None and spread is not None:
            arrays["delta_loss_ci"] = (
                ("bound", "component"),
                interval[:, :n],
                attrs("95 % bootstrap interval", "nat", 1),
            )
            arrays["spearman_ci"] = (
                ("bound", "score"),
                spread,
                attrs("95 % bootstrap interval", signed=1),
            )
        coords: dict[str, Any] = {
            "component": np.arange(n), "component_name": ("component", names),
            "score": list(SCORES), "measure": ["by measured loss", "by score"],
            "bound": ["low", "high"], "drop": np.arange(drops + 1),
        }  # fmt: skip
        order = [", ".join(names[parts.index(p)] for p in o) for o in orders]
        return dataset(arrays, coords, facts(
            model, corpus, loss=float(judged.mean_loss()[0]), dropped_by_influence=order[0],
            dropped_by_outliers=order[1], n_undefined=int((~np.isfinite(scores)).sum()),
        ))  # fmt: skip


def without(model: HookedModel, gone: tuple[Part, ...], halves: bool = False) -> Program:
    """The model without some parts; ``halves`` writes every layer as its two parts."""
    out: list[Any] = []
    for layer, block in enumerate(model.blocks.layers):
        if (layer, "layer") in gone:
            continue
        left = [(layer, w) for w in ("attention", "MLP") if (layer, w) not in gone]
        if len(left) == 2 and not halves:
            out.append(((layer, "layer"),))
        elif block.parallel:
            out += [tuple(left)] if left else []
        else:
            out += [(part,) for part in left]
    return tuple(out)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis from 0, ties shared; NaN stays."""
    return stats.rankdata(values, axis=-1, nan_policy="omit") - 1


def _spearman(scores: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Rank correlation of each score with the measured loss; NaN where either is constant."""
    out = []
    for row in scores:
        known = np.isfinite(row) & np.isfinite(delta)
        flat = known.sum() < 3 or np.ptp(row[known]) == 0 or np.ptp(delta[known]) == 0
        found: Any = None if flat else stats.spearmanr(row[known], delta[known])
        out.append(np.nan if found is None else found.statistic)
    return np.array(out)
