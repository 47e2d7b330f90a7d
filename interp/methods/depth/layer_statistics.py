"""LayerStatistics: what every layer adds, in one pass, and every definition of effective depth."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from interp.engine.depth import corpus_of, walk
from interp.engine.depth.corpus import tokens_at_once
from interp.methods.depth.arrays import attrs, dataset, depth_coords, facts, resampled
from interp.methods.depth.effective import DEFINITIONS, Curves, effective_depths, lens_curves
from interp.methods.depth.outliers import outlier_share
from interp.methods.depth.running import Running
from interp.terms import (
    Context,
    HookedModel,
    Method,
    PromptPairs,
    ResultRef,
    Texts,
)

PART = ("attention", "MLP", "layer")


class LayerStatistics(Method):
    """Norms, relative contributions, cosines, influence, angles and ranks of every layer.

    H_l enters layer l; attention adds a to it, the MLP adds m to U = H + a, and c = a + m.
    Relative contribution ‖a‖/‖H‖, ‖m‖/‖U‖, ‖c‖/‖H‖; cosine (a,H), (m,U), (c,H): below 0 a part
    erases, near 0 it writes new directions. ρ = mean cos(H_l, H_{l+1}), and influence = 1 - ρ
    (ShortGPT's block influence; LIM is -ρ, LLM-Drop's S is ρ). All per token, never over flattened
    tokens; means over tokens. Nothing is stored but sums. Effective depth follows hu2025what,
    by every definition with its interval, since the first crossing hangs on one dip.
    Sources: csordas2025language, men2024shortgpt, dumitru2024layerwise, he2024what,
    gromov2024unreasonable, lu2019understanding, ramsauer2021hopfield, luo2024gamma.
    """

    title: ClassVar[str] = "Layer statistics"
    question: ClassVar[str] = "What does each layer add to the residual stream?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = (
        "csordas2025language", "hu2025what", "men2024shortgpt", "dumitru2024layerwise",
        "he2024what", "gromov2024unreasonable", "lu2019understanding", "ramsauer2021hopfield",
        "luo2024gamma",
    )  # fmt: skip

    lens_result: ResultRef | None = None
    """A logit lens run of this model and task, for the definitions of effective depth by it."""
    kl_direction: Literal["lens_final", "final_lens"] = "lens_final"
    """Which of the lens's two divergences counts."""
    weighting: Annotated[
        Literal["token", "prompt"], Field(json_schema_extra={"advanced": True})
    ] = "token"
    """Whether every token counts alike, or every prompt."""
    max_gap: Annotated[int, Field(ge=1, le=1000, json_schema_extra={"advanced": True})] = 8
    """Angles between residuals up to so many layers apart."""
    rank: Annotated[Literal["stable", "numerical"], Field(json_schema_extra={"advanced": True})] = (
        "stable"
    )
    """Rank of attention patterns: ‖A‖²_F/‖A‖²₂, or singular values above rounding."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Count position 0 too, where a beginning of sequence stands."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Samples of the bootstrap over prompts; 0 for none."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the bootstrap."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """All of it by ``[part, layer]``, ``[layer]``, ``[boundary]`` and ``[layer, head]``."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        L = model.shape.n_layers
        curves = self._lens(model, task, context)
        running = Running(L, model.shape.n_heads, corpus.n_prompts, self.max_gap, self.rank)
        pieces = list(corpus.pieces(tokens_at_once(model, context.memory)))
        for done, batch in enumerate(pieces):
            counted = torch.from_numpy(np.broadcast_to(batch.counted, batch.tokens.shape).copy())
            with torch.no_grad():
                for step in walk(model.blocks, batch.tokens):
                    running.add(step, batch.rows, counted.to(model.blocks.device))
            context.advance(done + 1, len(pieces))
        found = running.means(self.weighting)
        zd = outlier_share(model)
        return self._dataset(model, corpus, found, zd, curves, running)

    def _lens(self, model: HookedModel, task: Any, context: Context) -> Curves | None:
        if self.lens_result is None:
            return None
        result = context.result(self.lens_result)
        return lens_curves(result, model, task, self.kl_direction)

    def _dataset(
        self,
        model: HookedModel,
        corpus: Any,
        found: dict[str, np.ndarray],
        zd: np.ndarray,
        curves: Curves | None,
        running: Running,
    ) -> xr.Dataset:
        by_part, layer = ("part", "layer"), ("layer",)
        definition = ("definition",)
        each = running.each()
        lens = None if curves is None else curves.mean(None)
        depths = effective_depths(each.mean(None), lens)
        interval = resampled(
            corpus.n_prompts, self.n_boot, self.seed,
            lambda rows: effective_depths(
                each.mean(rows), None if curves is None else curves.mean(rows)),
        )  # fmt: skip
        L = model.shape.n_layers
        arrays: dict[str, Any] = {
            "relative": (by_part, found["relative"], attrs("relative contribution")),
            "cosine": (by_part, found["cosine"], attrs("cosine with the residual", signed=1)),
            "influence": (by_part, 1 - found["similarity"], attrs("influence, 1 - ρ")),
            "norm": (by_part, found["norm"], attrs("length of what is added")),
            "effective_depth": (definition, depths, attrs("effective depth", "layer")),
            "effective_share": (definition, (depths + 1) / L, attrs("effective depth, (ED + 1)/L")),
            "resid_norm": (("boundary",), found["resid_norm"], attrs("length of the residual")),
            "variance": (("boundary",), found["variance"], attrs("variance of the residual")),
            "curvature": (layer, found["curvature"],
                          attrs("cosine of consecutive contributions", signed=1)),
            "angular": (("boundary", "gap"), found["angular"],
                        attrs("angle between residuals so many layers apart", "π")),
            "support": (layer + ("head",), found["support"],
                        attrs("tokens a head looks at, exp(entropy)", "token")),
            "attention_rank": (layer + ("head",), found["attention_rank"],
                               attrs(f"{self.rank} rank of the pattern, diagonal zeroed")),
            "zd": (layer, zd, attrs("share of weights with z > 1")),
        }  # fmt: skip
        if interval is not None:
            arrays["effective_depth_ci"] = (
                ("bound", "definition"),
                interval,
                attrs("95 % bootstrap interval", "layer"),
            )
        coords = {
            "part": list(PART), "definition": list(DEFINITIONS), "bound": ["low", "high"],
            "gap": np.arange(1, found["angular"].shape[1] + 1),
            **depth_coords(L, "layer", "boundary"), "head": np.arange(model.shape.n_heads),
        }  # fmt: skip
        reason = "" if curves is not None else "no lens_result was given"
        missing = int((~np.isfinite(depths)).sum())
        return dataset(arrays, coords, facts(
            model, corpus, weighting=self.weighting, n_undefined=missing,
            undefined_reason=reason or "no crossing",
        ))  # fmt: skip
