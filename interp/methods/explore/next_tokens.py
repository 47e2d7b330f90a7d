"""NextTokens: what the model expects at every position."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import run_probabilities
from interp.methods.explore.sides import dataset, sides_of, top_tokens
from interp.terms import Context, HookedModel, Method, PromptPairs, Texts


class NextTokens(Method):
    """The likeliest next tokens at every position, and the surprise of the token that came."""

    title: ClassVar[str] = "Next tokens"
    question: ClassVar[str] = "What does the model expect at each position?"

    top_k: Annotated[int, Field(ge=1, le=100)] = 10
    """So many tokens at each position."""
    prompts: tuple[int, ...] | None = Field((0,), max_length=64)
    """Prompts to show, counted from 0; all if empty."""

    def measure(
        self, model: HookedModel, task: PromptPairs | Texts, context: Context
    ) -> xr.Dataset:
        """``probability`` and ``token_id [side, prompt, position, top]``, ``surprise`` in nats."""
        sides = sides_of(task, self.prompts)
        ids, chances, surprise = [], [], []
        for tokens in sides.values():
            p = run_probabilities(model, tokens)
            top, chance = top_tokens(p, self.top_k)
            ids.append(top)
            chances.append(chance)
            came = np.take_along_axis(p[:, :-1], tokens[:, 1:, None], -1)[..., 0]
            with np.errstate(divide="ignore"):
                nats = -np.log(came)
            surprise.append(np.concatenate([np.full((len(tokens), 1), np.nan), nats], 1))
        rows = range(len(task)) if self.prompts is None else self.prompts
        dims = ("side", "prompt", "position", "top")
        return dataset(
            {
                "probability": (dims, np.stack(chances), "1", "probability of the next token", 0),
                "token_id": (dims, np.stack(ids), "token", "next token", 0),
                "surprise": (
                    dims[:3],
                    np.stack(surprise),
                    "nat",
                    "surprise of the token that came",
                    0,
                ),
            },
            {"side": list(sides), "prompt": list(rows)},
        )
