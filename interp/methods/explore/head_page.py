"""HeadPage: one head on one pair — where it looks, what it would write, what that says."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import ScoreTerms, head_writing, run_reads, score_terms
from interp.methods.explore.sides import check_layer, dataset, sides_of, top_tokens
from interp.terms import Check, Context, HookedModel, Method, PromptPairs, Site, Texts, UsageError

PATTERN_BOUND = {"float64": 1e-5, "float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""How far the softmax of the scores may be from the module's pattern, by dtype."""


class HeadPage(Method):
    """A head's pattern, the writes that make its scores, and the tokens that its output promotes.

    A score before the soft cap is a sum over the writers at the query's position (its key held) and
    over those at the key's (its query held), norms' divisors held at the run's own
    (elhage2021framework, the QK circuit).
    ``write[key] = v[key] W_O`` is what the head adds if it looks at ``key`` alone; seen through the
    final norm with the scale of the last position it promotes tokens (elhage2021framework, the OV
    circuit; direct logit attribution with the final scale held fixed). ``direct`` is the same for
    what the head really adds at the last position: its pattern's average of the writes.
    """

    title: ClassVar[str] = "Head"
    question: ClassVar[str] = "Where does this head look, why, and what does it say from there?"
    citations: ClassVar[tuple[str, ...]] = ("elhage2021framework",)
    needs: ClassVar[tuple[str, ...]] = ("pattern", "v", "z", "ln_final_scale", "blocks")

    layer: Annotated[int, Field(ge=0)] = 0
    """Layer of the head."""
    head: Annotated[int, Field(ge=0)] = 0
    """Query head."""
    prompt: Annotated[int, Field(ge=0)] = 0
    """Prompt, counted from 0."""
    top_k: Annotated[int, Field(ge=1, le=50)] = 8
    """So many promoted tokens at each source."""
    query: int = -1
    """Position whose scores are taken apart; negative counts from the end."""

    def measure(
        self, model: HookedModel, task: PromptPairs | Texts, context: Context
    ) -> xr.Dataset:
        """``pattern``, terms of the scores, promoted tokens by source, direct logits."""
        check_layer(model, self.layer, self.head)
        sides = sides_of(task, (self.prompt,))
        terms = self._terms(model, sides, context)
        shape = model.shape
        group = self.head // (shape.n_heads // shape.n_kv_heads)
        sites = [
            Site("pattern", layer=self.layer, head=self.head),
            Site("v", layer=self.layer, head=group),
            Site("z", layer=self.layer, head=self.head),
            Site("ln_final_scale"),
        ]
        pattern, ids, logits, said = [], [], [], []
        for tokens in sides.values():
            reads = run_reads(model, tokens, sites)
            p, v, z, scale = (reads[s][0] for s in sites)
            promoted = head_writing(
                model, self.layer, self.head, np.concatenate([v, z[-1:]]), float(scale[-1])
            )
            pattern.append(p)
            top, value = top_tokens(promoted[:-1], self.top_k)
            ids.append(top)
            logits.append(value)
            said.append(top_tokens(promoted[-1], self.top_k))
        dims = ("side", "key", "top")
        return dataset(
            {
                "pattern": (
                    ("side", "query", "key"),
                    np.stack(pattern).astype(np.float32),
                    "1",
                    "attention pattern",
                    0,
                ),
                "promoted_id": (dims, np.stack(ids), "token", "promoted token", 0),
                "promoted_logit": (
                    dims,
                    np.stack(logits),
                    "logit",
                    "logit promoted if it looks here alone",
                    1,
                ),
                "direct_id": (
                    ("side", "top"),
                    np.stack([s[0] for s in said]),
                    "token",
                    "token promoted at the last position",
                    0,
                ),
                "direct_logit": (
                    ("side", "top"),
                    np.stack([s[1] for s in said]),
                    "logit",
                    "direct logit at the last position",
                    1,
                ),
                **_term_arrays(terms, self.query),
            },
            {"side": list(sides), "component": list(terms[0].writers)},
            layer=self.layer,
            head=self.head,
            kv_head=group,
            scale="final norm of the last position, held fixed",
        )

    def _terms(
        self, model: HookedModel, sides: dict[str, np.ndarray], context: Context
    ) -> list[ScoreTerms]:
        """Terms of the scores on each side, checked against the pattern they make."""
        terms = [
            score_terms(model, tokens[0], self.layer, self.head, self._query(tokens))
            for tokens in sides.values()
        ]
        site = Site("pattern", layer=self.layer, head=self.head)
        block: Any = model.blocks.layers[self.layer]
        cap = block.facts.cap
        apart = 0.0
        for found, tokens in zip(terms, sides.values(), strict=True):
            pattern = run_reads(model, tokens, [site])[site][0, self._query(tokens)]
            score = np.where(np.isnan(found.score), -np.inf, found.score)
            score = score if cap is None else np.tanh(score / cap) * cap
            mine = np.exp(score - score.max())
            apart = max(apart, float(np.abs(mine / mine.sum() - pattern).max()))
        context.check(
            Check(
                "pattern_of_scores",
                "softmax of the scores against the pattern",
                apart,
                PATTERN_BOUND.get(str(model.blocks.dtype).removeprefix("torch."), 1e-4),
                note="Largest difference of an entry of this row; the terms add up to the scores.",
            )
        )
        return terms

    def _query(self, tokens: np.ndarray) -> int:
        length = tokens.shape[1]
        if not -length <= self.query < length:
            raise UsageError(
                f"Position {self.query} was asked for; this prompt has {length} tokens.",
                remedy=f"Give one from 0 to {length - 1}, or from the end: -1 is the last.",
            )
        return self.query % length


def _term_arrays(terms: list[ScoreTerms], query: int) -> dict[str, Any]:
    """Scores and their terms by side, as ``name -> (dims, values, units, long name, signed)``."""
    grid = ("side", "component", "key")
    words = f"attention score of position {query}, before the soft cap"
    here, there = "score by what was written where it looks from", "score by what was written there"
    return {
        "score": (("side", "key"), np.stack([t.score for t in terms]), "1", words, 1),
        "query_terms": (grid, np.stack([t.query for t in terms]), "1", here, 1),
        "key_terms": (grid, np.stack([t.key for t in terms]), "1", there, 1),
    }
