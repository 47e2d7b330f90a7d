"""DepthGradients: integrated gradients of the answer's probability over layers and tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.depth import corpus_of
from interp.engine.depth.corpus import kept_limit, tokens_at_once
from interp.engine.depth.integrating import Path, integrated
from interp.methods.depth.arrays import attrs, dataset, depth_coords, facts
from interp.methods.depth.contributions import means_of, residual_means
from interp.terms import Check, Context, HookedModel, Method, PromptPairs, TaskError, Texts

Target = Literal["residual", "attention", "MLP"]
TOLERANCE, MOST_STEPS = 1e-3, 512


class DepthGradients(Method):
    """Integrated gradients of f = Σ answer probabilities over what a layer hands on.

    X is the residual behind layer l, or what its attention or MLP adds; b its mean over the
    prompt's positions (the paper), over the corpus, or 0.
    ``ig[l, t] = Σ_d (X - b)·(1/n) Σ_k ∂f/∂X`` at ``b + r_k(X - b)``, ``r_k = (k + ½)/n``.
    Completeness: Σ_t ig = f(X) - f(b), whose residual is shown; steps double until it is below
    1e-3. Only layers behind l run. Source: csordas2025language, sundararajan2017axiomatic.
    """

    title: ClassVar[str] = "Integrated gradients over depth"
    question: ClassVar[str] = "At which layers and tokens does the answer depend on the residual?"
    needs: ClassVar[tuple[str, ...]] = ("blocks", "grad")
    citations: ClassVar[tuple[str, ...]] = ("csordas2025language", "sundararajan2017axiomatic")

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("residual",)
    """What is moved: the residual behind a layer, what attention adds, what the MLP adds."""
    baseline: Literal["positions", "corpus", "zero"] = "positions"
    """Where the path begins: the mean over the prompt's positions, over the corpus, or 0."""
    ig_steps: Annotated[int, Field(ge=2, le=MOST_STEPS)] = 32
    """Steps of the midpoint rule to begin with."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Count position 0 in the corpus mean too, where a beginning of sequence stands."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``ig [target, layer, position]``, by prompt, and the residual of completeness."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        if not corpus.marked:
            raise TaskError(
                "No token of these texts is marked as the answer.",
                remedy="Give texts with an answer_mask, or pairs with right answers.",
            )
        L = model.shape.n_layers
        fits = tokens_at_once(model, context.memory, held=12 * L)
        limit = kept_limit(context, max(1, fits // 4))
        targets: list[str] = list(dict.fromkeys(self.targets))
        starts = self._corpus_means(model, corpus, limit)
        ig = np.full((len(targets), corpus.n_prompts, L, corpus.longest), np.nan)
        left = np.full((len(targets), corpus.n_prompts, L), np.nan)
        moved = np.full_like(left, np.nan)
        steps = np.zeros((len(targets), L), int)
        pieces = list(corpus.pieces(max(1, limit // 4)))
        total, done = float(len(pieces) * L * len(targets)), 0
        for number, batch in enumerate(pieces):
            path = Path(model.blocks, batch, limit)
            for k, target in enumerate(targets):
                for layer in range(L):
                    key = f"ig-{number}-{target}-{layer}"
                    found = context.load_chunk(key)
                    if found is None:
                        found = self._one(path, target, layer, starts)
                        context.save_chunk(key, found)
                    ig[k, batch.rows, layer, : batch.length] = found["ig"]
                    left[k, batch.rows, layer] = found["left"]
                    moved[k, batch.rows, layer] = found["moved"]
                    steps[k, layer] = max(steps[k, layer], int(found["steps"]))
                    done += 1
                    context.advance(done, total)
        worst = float(np.abs(left).max())
        context.check(Check(
            "completeness", "largest |Σ ig - (f(X) - f(b))|, in probability", worst, TOLERANCE,
            note=f"Steps were doubled up to {int(steps.max())}.",
        ))  # fmt: skip
        return self._dataset(model, corpus, targets, ig, left, moved, steps)

    def _corpus_means(self, model: HookedModel, corpus: Any, limit: int) -> dict[str, Any]:
        if self.baseline != "corpus":
            return {}
        attn, mlp = means_of(model, corpus, limit)
        return {"residual": residual_means(model, corpus, limit)[1:], "attention": attn, "MLP": mlp}

    def _one(
        self, path: Path, target: str, layer: int, starts: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """One layer, with as many steps as completeness asks for."""
        n = self.ig_steps
        while True:
            start = starts[target][layer] if starts else None
            found = integrated(path, target, layer, n, self.baseline, start)
            if np.abs(found["left"]).max() < TOLERANCE or 2 * n > MOST_STEPS:
                return {**found, "steps": np.array(n)}
            n *= 2

    def _dataset(
        self,
        model: HookedModel,
        corpus: Any,
        targets: list[str],
        ig: np.ndarray,
        left: np.ndarray,
        moved: np.ndarray,
        steps: np.ndarray,
    ) -> xr.Dataset:
        L = model.shape.n_layers
        known = np.isfinite(ig)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, ig, 0.0).sum(1) / known.sum(1)
        what = "integrated gradient of the answer's probability"
        arrays: dict[str, Any] = {
            "ig": (("target", "layer", "position"), mean, attrs(what, signed=1)),
            "share": (("target", "layer"), moved.mean(1),
                      attrs("f(X) - f(b): the answer's probability that the path carries",
                            signed=1)),
            "completeness": (("target", "layer"), np.abs(left).max(1),
                             attrs("largest residual of completeness")),
            "steps": (("target", "layer"), steps, attrs("steps taken")),
            "prompt_ig": (("target", "prompt", "layer", "position"), ig.astype(np.float32),
                          attrs(what, signed=1)),
        }  # fmt: skip
        coords = {
            "target": targets, **depth_coords(L, "layer"), "prompt": np.arange(corpus.n_prompts),
            "position": np.arange(corpus.longest),
        }  # fmt: skip
        return dataset(
            arrays,
            coords,
            facts(
                model, corpus, baseline=self.baseline, n_undefined=int((~np.isfinite(mean)).sum())
            ),
        )
