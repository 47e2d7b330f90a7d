"""HeadPage: one head on one pair — where it looks, what it would write, what that says."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import head_writing, run_reads
from interp.methods.explore.sides import check_layer, dataset, sides_of, top_tokens
from interp.terms import Context, HookedModel, Method, PromptPairs, Site, Texts


class HeadPage(Method):
    """A head's pattern and the tokens that its output promotes from each source position.

    ``write[key] = v[key] W_O`` is what the head adds if it looks at ``key`` alone; seen through the
    final norm with the scale of the last position it promotes tokens (elhage2021framework, the OV
    circuit; direct logit attribution with the final scale held fixed). ``direct`` is the same for
    what the head really adds at the last position: its pattern's average of the writes.
    """

    title: ClassVar[str] = "Head"
    question: ClassVar[str] = "Where does this head look, and what does it say from there?"
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

    def measure(
        self, model: HookedModel, task: PromptPairs | Texts, context: Context
    ) -> xr.Dataset:
        """``pattern``, promoted tokens by source, and the direct logit attribution."""
        check_layer(model, self.layer, self.head)
        sides = sides_of(task, (self.prompt,))
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
            },
            {"side": list(sides)},
            layer=self.layer,
            head=self.head,
            kv_head=group,
            scale="final norm of the last position, held fixed",
        )
