"""Activation patching: exact effect of putting one run's activations into another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import (
    Cell,
    Sweep,
    estimate,
    metric_named,
    screened_sweep,
    sweep,
    undriven,
)
from interp.methods.patching.effects import Reading, averaged, effects_of
from interp.methods.patching.features import feature_grids, likely_features, named_features
from interp.methods.patching.grids import Grid, axes_of, chosen_layers, make_grid
from interp.methods.patching.neurons import likely_neurons, named_neurons
from interp.methods.patching.trust import check_plain, check_screen, check_sweep
from interp.methods.patching.values import lent_values
from interp.models.dictionaries import Dictionary, check_fits
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


class ActivationPatching(Method):
    """Effect of each activation: 0 when nothing moved, 1 when the metric reached the source run.

    A base run is executed with one activation taken from a source run. Denoising puts clean into
    corrupt (what suffices), noising corrupt into clean (what is needed).
    ``effect_raw = m(patched) - m(base)`` per prompt;
    ``effect = mean effect_raw / mean (m(source) - m(base))``. Every cell is measured exactly.
    Sources: vig2020causal, meng2022locating, zhang2024best, heimersheim2024use.
    """

    title: ClassVar[str] = "Activation patching"
    question: ClassVar[str] = "Which activations carry what makes the two prompts differ?"
    citations: ClassVar[tuple[str, ...]] = (
        "vig2020causal",
        "meng2022locating",
        "zhang2024best",
        "heimersheim2024use",
    )
    version: ClassVar[int] = 1

    site: Literal[
        "embed",
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "z",
        "q",
        "k",
        "v",
        "pattern",
        "mlp_post",
        "feature",
    ] = "resid_pre"
    """What is put in place of the base run's value."""
    axes: Literal[
        "auto",
        "layer,position",
        "layer,slot",
        "layer",
        "layer,head",
        "layer,head,position",
        "layer,head,slot",
        "layer,head,query",
        "layer,head,query,key",
        "neuron",
        "neuron,position",
        "neuron,slot",
        "feature",
        "feature,position",
        "feature,slot",
        "position",
        "slot",
    ] = "auto"
    """What the grid runs over; heads of k and v are key/value heads."""
    dictionary: DictionaryRef | None = None
    """Sparse autoencoder whose features are meant by site feature."""
    direction: Literal["denoising", "noising"] = "denoising"
    """Denoising: clean into the corrupt run. Noising: corrupt into the clean run."""
    with_: Literal["source", "zero", "mean", "resample", "constant"] = "source"
    """The value put in: the other run's, zero, the task's mean, another prompt's, or a constant."""
    mode: Literal["replace", "add"] = Field("replace", json_schema_extra={"advanced": True})
    """Whether the value replaces the activation or is added to it."""
    metric: Literal[
        "logit_diff",
        "prob",
        "logprob",
        "prob_diff",
        "kl",
        "js",
        "accuracy",
        "rank",
        "span_logprob",
    ] = "logit_diff"
    """What is read off the logits."""
    at: str = Field("last", json_schema_extra={"advanced": True}, max_length=60)
    """Where the metric is read: last, an index, or a slot of the task."""
    window: Annotated[int, Field(ge=1, le=64, json_schema_extra={"advanced": True})] = 1
    """Neighbouring layers edited together, centred on the named one."""
    layers: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Layers to sweep; all if empty."""
    positions: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Positions to sweep; all if empty."""
    mean_over: Literal["prompts", "prompts,positions"] = Field(
        "prompts", json_schema_extra={"advanced": True}
    )
    """What a mean is taken over: prompts (one for each position), or positions too."""
    constant: tuple[float, ...] = Field((0.0,), json_schema_extra={"advanced": True})
    """The constant: one number, or one for each coordinate."""
    neurons: str = Field("", json_schema_extra={"advanced": True}, max_length=4000)
    """Neurons by name (L2N17, with commas); the largest by attribution if empty."""
    features: str = Field("", json_schema_extra={"advanced": True}, max_length=4000)
    """Features by name (F17, with commas); the largest by attribution if empty."""
    top: Annotated[int, Field(ge=1, le=10_000, json_schema_extra={"advanced": True})] = 32
    """So many neurons or features are chosen by attribution and measured exactly."""
    draws: Annotated[int, Field(ge=1, le=100, json_schema_extra={"advanced": True})] = 1
    """Random draws averaged by resampling."""
    keep_prompts: bool = Field(True, json_schema_extra={"advanced": True})
    """Keep the patched metric of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    verify: Annotated[int, Field(ge=0, le=100, json_schema_extra={"advanced": True})] = 1
    """So many of the largest cells are measured again by plain forward passes."""
    screen: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 0
    """Screen all cells in bfloat16 and measure so many of the largest again; 0 for no screen."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of resampling, bootstrap and sign flips."""

    def needed(self) -> tuple[str, ...]:
        """The site it patches; a feature stands where its dictionary says."""
        return ("blocks",) if self.site == "feature" else (self.site,)

    def estimate(self, model: HookedModel, task: PromptPairs) -> dict[str, float]:
        """Cells, rows, FLOPs, bytes and seconds before it runs (``engine.Estimate``)."""
        cells = self._likely_cells(model, task)
        if undriven(model, cells):
            return {"cells": len(cells), "rows": len(cells) * len(task), "prompts": len(task)}
        found = estimate(
            model, task, cells, metric=self.metric, direction=self.direction, at=self._at()
        )
        return vars(found)

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """Dataset of ``effect``, ``effect_raw`` and their statistics over the chosen axes."""
        if (self.site == "feature") != (self.dictionary is not None):
            raise UsageError(
                "Features belong to a dictionary, and a dictionary has features alone.",
                remedy="Give site='feature' and dictionary='zoo:NAME' or a folder, or neither.",
            )
        if self.site == "feature":
            grids, estimates, book = self._feature_grids(model, task, context)
        else:
            neurons, estimates = self._chosen(model, task, context)
            grids, book = self._grids(model, task, neurons), None
        grid = grids[0]
        cells = [*self._identities(model, task), *(c for g in grids for c in g.cells)]
        extra = len(cells) - len(grids) * len(grid.cells)

        def gather(found: Sweep) -> Sweep:
            return averaged(found, extra, len(grids))

        knobs = {
            "metric": self.metric,
            "direction": self.direction,
            "at": self._at(),
            "on_chunk": lambda s: context.partial(lambda: self._dataset(gather(s), grid, task, 0)),
        }
        if self.screen:
            screened = screened_sweep(
                model, task, cells, context, top=self.screen, always=extra, **knobs
            )
            found = screened.sweep
            check_screen(context, screened)
        else:
            found = sweep(model, task, cells, context, **knobs)
        data = self._dataset(gather(found), grid, task, self.n_boot)
        if estimates is not None:
            says = {"units": metric_named(self.metric).units, "signed": 1}
            axis = "neuron" if book is None else "feature"
            says["long_name"] = f"estimate that chose the {axis} (all positions)"
            data["attribution"] = ((axis,), estimates, says)
        if book is not None:
            data.attrs.update(dictionary=book.name, dictionary_site=str(book.site))
        whole = gather(found)
        size = np.abs(np.nan_to_num((whole.patched - whole.base).mean(1)))
        top = np.argsort(-size, kind="stable")[: self.verify]
        if self.screen:
            exact = np.all(screened.exact[extra:].reshape(len(grids), -1), axis=0)
            data["exact"] = (
                grid.dims,
                grid.laid(exact.astype(np.int8)),
                {"units": "1", "long_name": "1 where measured in full precision", "signed": 0},
            )
            top = top[exact[top]]
        # a neuron may be off and a first row all on itself in both runs: no sign of a dead edit
        told = self.with_ == "source" and self.site not in ("pattern", "mlp_post", "feature")
        check_sweep(model, context, found, extra, dead_edits=told)
        if len(top):
            verified = [grid.cells[c] for c in top]
            check_plain(
                model,
                task,
                context,
                found,
                verified,
                extra + top,
                metric=self.metric,
                direction=self.direction,
                at=self._at(),
            )
        return data

    def _at(self) -> int | str:
        return int(self.at) if self.at.lstrip("-").isdigit() else self.at

    def _likely_cells(self, model: HookedModel, task: PromptPairs) -> list[Cell]:
        """The cells, or of a dictionary that is not open yet as many at the first layer."""
        if self.site != "feature":
            return [c for g in self._grids(model, task) for c in g.cells]
        names = axes_of("feature", self.axes, task)
        wide = {"position": len(self.positions or range(max(task.base_lengths(self.direction))))}
        wide["slot"] = len(task.slots)
        count = self.top * (wide[names[1]] if len(names) > 1 else 1)
        return [Cell((Edit(Site("resid_pre", layer=0), "source"),))] * count

    def _feature_grids(
        self, model: HookedModel, task: PromptPairs, context: Context
    ) -> tuple[list[Grid], np.ndarray | None, Dictionary]:
        """Grids of features, the estimates that chose them, and their dictionary."""
        assert self.dictionary is not None
        book = context.dictionary(self.dictionary)
        check_fits(book, model.shape)
        where: dict[str, Any] = {"direction": self.direction, "at": self._at()}
        features, estimates = named_features(self.features, book), None
        if not features:
            knobs = {"metric": self.metric, **where}
            features, estimates = likely_features(model, task, context, book, self.top, **knobs)
        grids = feature_grids(
            model,
            task,
            book,
            features,
            self.axes,
            positions=self.positions,
            with_=self.with_,
            mode=self.mode,
            mean_over=self.mean_over,
            constant=self.constant,
            draws=self.draws,
            seed=self.seed,
            **where,
        )
        return grids, estimates, book

    def _identities(self, model: HookedModel, task: PromptPairs) -> list[Cell]:
        """Cells whose answer is known: patching everything at layer 0 gives the source run.

        Under a span map some tokens have no partner, so not everything can be patched.
        """
        sites = {s.kind for s in model.sites}
        if "resid_pre" not in sites or task.span_map is not None:
            return []
        return [Cell((Edit(Site("resid_pre", layer=0), "source"),))]

    def _grids(
        self, model: HookedModel, task: PromptPairs, neurons: Sequence[Site] | None = None
    ) -> list[Grid]:
        """One grid, or one a draw."""
        if neurons is None:
            neurons = self._neurons(model)
        fields: dict[str, Any] = {
            "layers": self.layers,
            "positions": self.positions,
            "window": self.window,
            "mode": self.mode,
            "neurons": neurons,
            "direction": self.direction,
        }
        if self.with_ in ("source", "zero"):
            return [make_grid(model, task, self.site, self.axes, with_=self.with_, **fields)]
        layers = [None] if self.site == "embed" else range(model.shape.n_layers)
        draws = lent_values(
            model,
            task,
            [Site(self.site, layer=n) for n in layers],
            self.with_,
            mean_over=self.mean_over,
            draws=self.draws,
            constant=self.constant,
            seed=self.seed,
            direction=self.direction,
            at=self._at(),
        )
        return [make_grid(model, task, self.site, self.axes, values=v, **fields) for v in draws]

    def _neurons(self, model: HookedModel) -> list[Site]:
        """Neurons by name; where attribution is to choose, as many others for an estimate."""
        if self.site != "mlp_post" or self.neurons:
            return named_neurons(self.neurons, model)
        width = model.shape.d_mlp
        index = range(min(self.top, model.shape.n_layers * width))
        return [Site("mlp_post", layer=k // width, neuron=k % width) for k in index]

    def _chosen(
        self, model: HookedModel, task: PromptPairs, context: Context
    ) -> tuple[list[Site] | None, np.ndarray | None]:
        """Neurons whose attribution is largest, and it; None where none has to be found."""
        if self.site != "mlp_post" or self.neurons:
            return None, None
        layers = chosen_layers(self.layers, model.shape.n_layers)
        return likely_neurons(
            model,
            task,
            context,
            self.top,
            layers=layers,
            metric=self.metric,
            direction=self.direction,
            at=self._at(),
        )

    def _dataset(self, found: Sweep, grid: Grid, task: PromptPairs, n_boot: int) -> xr.Dataset:
        how = Reading(self.metric, self.direction, self.at, n_boot, self.seed, self.keep_prompts)
        about = {"site": self.site, "with_": self.with_, "window": self.window}
        return effects_of(found, grid, task, how, about)
