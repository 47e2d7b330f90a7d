"""AttentionPatterns: where each head looks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import run_reads
from interp.methods.explore.sides import check_layer, dataset, sides_of
from interp.terms import Context, HookedModel, Method, PromptPairs, Site, Texts


class AttentionPatterns(Method):
    """Attention pattern of every head, ``[side, prompt, layer, head, query, key]``; rows sum to 1.

    Source: vaswani2017attention, eq. 1 (the softmax of the scaled scores, as the model masks it).
    """

    title: ClassVar[str] = "Attention patterns"
    question: ClassVar[str] = "Where does each head look?"
    citations: ClassVar[tuple[str, ...]] = ("vaswani2017attention",)
    needs: ClassVar[tuple[str, ...]] = ("pattern",)

    layers: tuple[int, ...] | None = None
    """Layers to show; all if empty."""
    prompts: tuple[int, ...] | None = Field((0,), max_length=64)
    """Prompts to show, counted from 0; all if empty."""

    def measure(
        self, model: HookedModel, task: PromptPairs | Texts, context: Context
    ) -> xr.Dataset:
        """Dataset with ``pattern``."""
        layers = tuple(range(model.shape.n_layers)) if self.layers is None else self.layers
        for layer in layers:
            check_layer(model, layer)
        found = []
        sides = sides_of(task, self.prompts)
        for tokens in sides.values():
            reads = run_reads(model, tokens, [Site("pattern", layer=n) for n in layers])
            found.append(np.stack([reads[Site("pattern", layer=n)] for n in layers], 2))
        # [side, prompt, query, layer, head, key]
        pattern = np.moveaxis(np.stack(found), 2, 4)
        rows = range(len(task)) if self.prompts is None else self.prompts
        return dataset(
            {
                "pattern": (
                    ("side", "prompt", "layer", "head", "query", "key"),
                    pattern.astype(np.float32),
                    "1",
                    "attention pattern",
                    0,
                )
            },
            {"side": list(sides), "prompt": list(rows), "layer": list(layers)},
        )
