"""VerifyCell: one cell of a grid by one plain forward pass, and what the model then says."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import (
    Cell,
    answers,
    feature_cells,
    feature_values,
    likeliest,
    metric_named,
    score_answers,
)
from interp.engine.statistics import ratio_of_means
from interp.methods.explore.sides import dataset
from interp.models.dictionaries import check_fits
from interp.terms import (
    Context,
    DictionaryRef,
    Edit,
    HookedModel,
    Method,
    PromptPairs,
    Site,
    UsageError,
)


class VerifyCell(Method):
    """One patch by an ordinary forward pass of the back-end: the metric, and the likeliest tokens.

    It shares nothing with the packed engine but the prompts, so it checks it.
    """

    title: ClassVar[str] = "Verify a cell"
    question: ClassVar[str] = "Does a plain forward pass agree with the grid?"

    site: str = "resid_pre"
    """Kind of site."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer of the cell."""
    head: Annotated[int, Field(ge=0)] | None = None
    """Head of the cell; all if empty."""
    neuron: Annotated[int, Field(ge=0)] | None = None
    """Neuron of the cell, for mlp_post."""
    dictionary: DictionaryRef | None = None
    """Sparse autoencoder of the feature, for site feature."""
    feature: Annotated[int, Field(ge=0)] | None = None
    """Feature of the cell, for site feature."""
    position: int | str | None = None
    """Position or slot of the cell; all if empty."""
    key_position: Annotated[int, Field(ge=0)] | None = None
    """Source position of a pattern's entry; the whole row if empty."""
    window: Annotated[int, Field(ge=1, le=64)] = 1
    """Neighbouring layers edited together."""
    direction: Literal["denoising", "noising"] = "denoising"
    """Denoising: clean into corrupt. Noising: corrupt into clean."""
    with_: Literal["source", "zero"] = "source"
    """The value put in."""
    metric: str = "logit_diff"
    """What is read off the logits."""
    at: str = "last"
    """Where the metric is read."""
    top_k: Annotated[int, Field(ge=1, le=100)] = 10
    """So many tokens at the metric position."""

    def needed(self) -> tuple[str, ...]:
        """The site it patches; a feature stands where its dictionary says."""
        return ("blocks",) if self.site == "feature" else (self.site,)

    def cell(self, n_layers: int) -> Cell:
        """The edits of this cell, where it is no feature."""
        layers: list[int | None] = [None]
        if self.layer is not None:
            first = self.layer - self.window // 2
            layers = [n for n in range(first, first + self.window) if 0 <= n < n_layers]
        return Cell(
            tuple(
                Edit(
                    Site(
                        self.site,
                        layer=n,
                        head=self.head,
                        neuron=self.neuron,
                        position=self.position,
                        key=self.key_position,
                    ),
                    self.with_,
                )
                for n in layers
            )
        )

    def _feature_cell(
        self, model: HookedModel, task: PromptPairs, context: Context, at: int | str
    ) -> Cell:
        """The addition that moves one feature to the other run's value, or to zero."""
        if self.dictionary is None or self.feature is None:
            raise UsageError(
                "A feature is named by its dictionary and its number.",
                remedy="Give dictionary and feature.",
            )
        book = context.dictionary(self.dictionary)
        check_fits(book, model.shape)
        if self.feature >= book.n_features:
            raise UsageError(
                f"Feature {self.feature} was asked for; {book.name} has {book.n_features}."
            )
        base, source = feature_values(
            model, task, book, [self.feature], direction=self.direction, at=at
        )
        change = (source if self.with_ == "source" else 0 * base) - base
        return feature_cells(book, [self.feature], change, [self.position])[0]

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``effect``, ``metric_* [prompt]``, top tokens ``[side, prompt, top]``."""
        metric = metric_named(self.metric)
        at = int(self.at) if self.at.lstrip("-").isdigit() else self.at
        cell = (
            self._feature_cell(model, task, context, at)
            if self.site == "feature"
            else self.cell(model.shape.n_layers)
        )
        runs = {
            "clean": answers(model, task, "clean", at=at),
            "patched": answers(model, task, "patched", at=at, cell=cell, direction=self.direction),
            "corrupt": answers(model, task, "corrupt", at=at),
        }
        scores = {k: score_answers(task, metric, v, runs["clean"]) for k, v in runs.items()}
        order = ("corrupt", "clean") if self.direction == "denoising" else ("clean", "corrupt")
        base, source, patched = scores[order[0]], scores[order[1]], scores["patched"]
        effect, error = ratio_of_means((patched - base)[:, None], source - base)
        tops = {k: likeliest(v, self.top_k) for k, v in runs.items()}
        unit, title = metric.units, metric.title
        dims = ("side", "prompt", "top")
        return dataset(
            {
                "effect": ((), np.float64(effect[0]), "1", "effect", 1),
                "effect_se": ((), np.float64(error[0]), "1", "standard error of the effect", 0),
                "metric_base": (("prompt",), base, unit, f"{title}, base run", 1),
                "metric_patched": (("prompt",), patched, unit, f"{title}, patched", 1),
                "metric_source": (("prompt",), source, unit, f"{title}, source run", 1),
                "probability": (
                    dims,
                    np.stack([t[1] for t in tops.values()]),
                    "1",
                    "probability",
                    0,
                ),
                "token_id": (
                    dims,
                    np.stack([t[0] for t in tops.values()]),
                    "token",
                    "next token",
                    0,
                ),
            },
            {"side": list(tops), "prompt": np.arange(len(task))},
            direction=self.direction,
            metric=self.metric,
            site=self.site,
        )
