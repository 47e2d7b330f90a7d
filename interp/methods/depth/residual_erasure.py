"""ResidualErasure: from which layer on a token's residual is no longer needed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.depth import Batch, Corpus, corpus_of, erase
from interp.engine.depth.corpus import kept_limit, tokens_at_once
from interp.methods.depth.arrays import attrs, dataset, depth_coords, facts
from interp.methods.depth.contributions import residual_means
from interp.terms import Check, Context, HookedModel, Method, PromptPairs, Texts, UsageError

Mode = Literal["single", "later", "before"]


class ResidualErasure(Method):
    """H_l[t] is replaced by the corpus mean μ_l, and the rest of the model runs again.

    ``effect[l, t] = max ‖P - P̄‖₂`` over the positions that predict the answer (all positions where
    no answer is marked), at most √2; averaged over prompts. **later** measures behind t alone,
    **before** erases positions 1 … t-1 together. μ_l leaves position 0 out. Layers before l and
    positions before t are not run again: their keys and values are the clean run's, exactly.
    Source: csordas2025language.
    """

    title: ClassVar[str] = "Residual erasure"
    question: ClassVar[str] = "Until which layer is each token still needed?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = ("csordas2025language",)

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("single",)
    """single: one position; later: seen behind it; before: all positions before it."""
    positions: tuple[int, ...] = ()
    """Positions that are erased (default all behind the first); negative from the end."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Erase and average position 0 too, where a beginning of sequence stands."""
    keep_prompts: Annotated[bool, Field(json_schema_extra={"advanced": True})] = True
    """Keep every prompt's map."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``effect [mode, boundary, position]``, and by slot where the task has slots."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        limit = kept_limit(context, tokens_at_once(model, context.memory))
        L = model.shape.n_layers
        means = residual_means(model, corpus, limit)
        modes: list[str] = list(dict.fromkeys(self.modes))
        kept = np.full((len(modes), corpus.n_prompts, L, corpus.longest), np.nan, np.float32)
        pieces = list(corpus.pieces(max(1, limit // (L + 1))))
        total, done, floor = float(len(pieces) * len(modes)), 0, 0.0
        for number, batch in enumerate(pieces):
            targets = self._targets(batch)
            for m, mode in enumerate(modes):
                found = context.load_chunk(f"erasure-{number}-{mode}")
                if found is None:

                    def on_target(share: float, done: int = done) -> None:
                        context.advance(done + share, total)

                    seen = erase(
                        model.blocks, batch.tokens, means, targets, mode, on_target=on_target
                    )
                    found = {"away": _at_answers(seen.away, batch), "null": np.array(seen.null)}
                    context.save_chunk(f"erasure-{number}-{mode}", found)
                floor = max(floor, float(found["null"]))
                rows = np.ix_(np.array([m]), batch.rows, np.arange(L), np.asarray(targets))
                kept[rows] = np.moveaxis(found["away"], 2, 0)[None]
                done += 1
                context.advance(done, total)
        return self._dataset(model, task, corpus, modes, kept, floor, context)

    def _targets(self, batch: Batch) -> list[int]:
        T, first = batch.length, int(np.argmax(batch.counted))
        if not self.positions:
            return list(range(first, T))
        given = sorted({p + T if p < 0 else p for p in self.positions})
        if not all(first <= p < T for p in given):
            raise UsageError(
                f"Positions {list(self.positions)} were given; a prompt has positions {first} to "
                f"{T - 1}.",
                remedy="Leave position 0 out, or count it (keep_first).",
            )
        return given

    def _dataset(
        self,
        model: HookedModel,
        task: Texts | PromptPairs,
        corpus: Corpus,
        modes: list[str],
        kept: np.ndarray,
        floor: float,
        context: Context,
    ) -> xr.Dataset:
        L, n = model.shape.n_layers, corpus.n_prompts
        more: dict[str, Any] = {"noise_floor": floor, "low": 0.0, "high": float(np.sqrt(2))}
        arrays: dict[str, Any] = {}
        coords: dict[str, Any] = {
            "mode": modes, **depth_coords(L, "boundary"), "prompt": np.arange(n),
            "position": np.arange(corpus.longest),
        }  # fmt: skip
        coords["boundary"], coords["depth"] = np.arange(L), ("boundary", np.arange(L) / L)
        slots = getattr(task, "slots", {})
        if slots:
            by_slot = np.stack([_at(kept, places) for places in slots.values()], -1)
            mean, error = _over(by_slot)
            arrays["slot_effect"] = (
                ("mode", "boundary", "slot"),
                mean,
                attrs("change of the answer's probabilities when a slot is erased", **more),
            )
            arrays["slot_effect_se"] = (
                ("mode", "boundary", "slot"),
                error,
                attrs("standard error"),
            )
            coords["slot"] = list(slots)
        mean, error = _over(kept)
        arrays["effect"] = (
            ("mode", "boundary", "position"),
            mean,
            attrs("change of the answer's probabilities when a residual is erased", **more),
        )
        arrays["effect_se"] = (("mode", "boundary", "position"), error, attrs("standard error"))
        if self.keep_prompts:
            arrays["prompt_effect"] = (
                ("mode", "prompt", "boundary", "position"),
                kept,
                attrs("change of the answer's probabilities when a residual is erased", **more),
            )
        context.check(Check(
            "null_row", "change in a row that erases nothing, in the same batch", floor, 1e-2,
            note="What rounding alone does; cells below three times this are faded.",
        ))  # fmt: skip
        return dataset(arrays, coords, facts(
            model, corpus, answers="marked" if corpus.marked else "every position",
            n_undefined=int((~np.isfinite(mean)).sum()), noise_floor=floor,
        ))  # fmt: skip


def _at_answers(away: np.ndarray, batch: Batch) -> np.ndarray:
    """max over the positions that count, ``[boundary, target, B]``; NaN where none is seen."""
    where = batch.answers if batch.answers.any() else np.ones_like(batch.answers)
    values = np.where(where & np.isfinite(away), away, -np.inf).max(-1)
    return np.where(np.isfinite(values), values, np.nan)


def _at(kept: np.ndarray, places: Any) -> np.ndarray:
    """Values at each prompt's own position of a slot, ``[mode, prompt, boundary]``."""
    out = np.full(kept.shape[:3], np.nan)
    for i, place in enumerate(places):
        at: list[Any] = [place] if np.isscalar(place) else list(place)
        out[:, i] = kept[:, i][..., at].mean(-1)
    return out


def _over(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over prompts (axis 1) and its standard error, NaN left out."""
    known = np.isfinite(values)
    n = known.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(1, dtype=float) / n
        away = np.where(known, values - mean[:, None], 0.0)
        error = np.sqrt((away**2).sum(1) / (n - 1) / n)
    return np.where(n > 0, mean, np.nan), np.where(n > 1, error, np.nan)
