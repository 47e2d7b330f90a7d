"""Attribution patching: first-order estimates of activation patching, all nodes at once."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import metric_named
from interp.engine.gradients import attribute, integrate, integrate_modules, quadrature, rules
from interp.methods.attribution import trust
from interp.methods.attribution.arrays import estimate_arrays
from interp.methods.attribution.beside import check_facts, with_verified
from interp.methods.attribution.dictionaries import feature_layout, with_error
from interp.methods.attribution.layout import Layout, make_layout
from interp.methods.attribution.refusing import refuse
from interp.models.dictionaries import Dictionary, check_fits
from interp.terms import Context, DictionaryRef, HookedModel, Method, PromptPairs, UsageError

MOST_PATHS = 20_000
"""Cells that integrated gradients walks one by one, at most."""


class AttributionPatching(Method):
    """Estimated effect of patching each node, on the scale of activation patching's effect.

    Of the run that is executed (base, b) and the one that lends (source, s):
    ``attribution_raw(n) = mean Σ_channel (a_s - a_b) ⊙ ρ_b``, ρ the metric's gradient at the node,
    ordinary (attribution patching) or under modified rules (RelP and other LRP rules), and
    ``attribution = attribution_raw / mean (m(s) - m(b))``. Two forward passes and one backward
    for all nodes. Of a dictionary's feature it is ``Δf_j (W_dec[j] · ρ)`` at the dictionary's site.
    An estimate is no effect: ``verify`` measures the largest cells exactly. Sources: kramar2024atp
    (with the QK fix and GradDrop), jafari2025relp, achtibat2024attnlrp, ali2022xai,
    sundararajan2017axiomatic, hanna2024have, marks2025sparse. Rules are written from the formulas.
    """

    title: ClassVar[str] = "Attribution patching"
    question: ClassVar[str] = "Which activations would matter if they were patched?"
    citations: ClassVar[tuple[str, ...]] = (
        "kramar2024atp",
        "jafari2025relp",
        "achtibat2024attnlrp",
        "ali2022xai",
        "sundararajan2017axiomatic",
        "hanna2024have",
        "marks2025sparse",
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
    """What would be put in place of the base run's value."""
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
        "layer,neuron",
        "feature",
        "feature,position",
        "feature,slot",
        "position",
        "slot",
    ] = "auto"
    """What the grid runs over; positions that are no axis are summed."""
    dictionary: DictionaryRef | None = None
    """Sparse autoencoder whose features are meant by site feature."""
    direction: Literal["denoising", "noising"] = "denoising"
    """Denoising: clean into the corrupt run. Noising: corrupt into the clean run."""
    metric: Literal["logit_diff", "prob", "logprob", "prob_diff", "kl", "js", "span_logprob"] = (
        "logit_diff"
    )
    """What is differentiated."""
    rules: Literal["none", "relp", "relp_ah", "relp_no_identity", "attnlrp", "cplrp"] = "none"
    """Backward rules; none is the ordinary gradient."""
    attn_rule: Literal["default", "grad", "ah", "uniform"] = Field(
        "default", json_schema_extra={"advanced": True}
    )
    """How attention is passed backwards; default as the rules say."""
    gate_rule: Literal["default", "half", "value"] = Field(
        "default", json_schema_extra={"advanced": True}
    )
    """How a gated MLP is passed backwards; default as the rules say."""
    qk_norm_rule: Literal["default", "linear"] = Field(
        "default", json_schema_extra={"advanced": True}
    )
    """Norms of queries and keys; default leaves them alone."""
    cap_rule: Literal["default", "identity"] = Field(
        "default", json_schema_extra={"advanced": True}
    )
    """Soft caps; default leaves them alone."""
    qk_fix: bool = Field(False, json_schema_extra={"advanced": True})
    """Queries and keys by the softmax's own finite change."""
    grad_drop: bool = Field(False, json_schema_extra={"advanced": True})
    """Mean size with each layer's gradient blocked in turn: a ranking, unsigned."""
    ig_steps: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"advanced": True})] = 0
    """Points of integrated gradients; 0 takes the base run's gradient alone."""
    ig_path: Literal["node", "inputs", "activations", "eap_ig_repo"] = Field(
        "node", json_schema_extra={"advanced": True}
    )
    """What moves to the source: each node, the embeddings, each module, or as published code."""
    quadrature: Literal["midpoint", "left", "right"] = Field(
        "midpoint", json_schema_extra={"advanced": True}
    )
    """Where the points of integrated gradients lie."""
    prompt_reduce: Literal["signed", "abs"] = Field("signed", json_schema_extra={"advanced": True})
    """Mean of the estimates, or of their sizes (a ranking)."""
    at: str = Field("last", json_schema_extra={"advanced": True}, max_length=60)
    """Where the metric is read: last, an index, or a slot of the task."""
    layers: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Layers shown; all if empty."""
    positions: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Positions shown; all if empty."""
    top: Annotated[int, Field(ge=1, le=10_000, json_schema_extra={"advanced": True})] = 64
    """So many features of largest attribution are shown."""
    keep_prompts: bool = Field(True, json_schema_extra={"advanced": True})
    """Keep the estimate of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    verify: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"advanced": True})] = 5
    """So many of the largest cells are measured exactly."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the bootstrap."""

    def needed(self) -> tuple[str, ...]:
        """The site, and gradients; a feature stands where its dictionary says."""
        return ("blocks", "grad") if self.site == "feature" else (self.site, "grad")

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """Dataset of ``attribution``, ``attribution_raw`` and their statistics."""
        chosen = self.rule_set()
        refuse(self, bool(chosen.active))
        book = None
        if self.dictionary is not None:
            book = context.dictionary(self.dictionary)
            check_fits(book, model.shape)
        layout = make_layout(
            model, task, self.site, self.axes, layers=self.layers, positions=self.positions
        )
        with contextlib.ExitStack() as stack:
            if chosen.active:
                active = stack.enter_context(rules(model, chosen))
                context.note("rules", active.to_json())
                for line in trust.of_rules(active):
                    context.check(line)
            found = self._estimates(model, task, context, layout, book)
        raw, layout, nodes = found.raw, found.layout, found.nodes
        facts = {
            "site": self.site,
            "direction": self.direction,
            "metric": self.metric,
            "at": self.at,
            "rules": chosen.name,
            "with_": "source",
            "estimator": self._words(chosen.name),
        }
        data = estimate_arrays(
            raw,
            found.base,
            found.source,
            layout,
            task,
            facts,
            unsigned=self.unsigned,
            n_boot=self.n_boot,
            seed=self.seed,
            keep_prompts=self.keep_prompts,
        )
        if book is not None:
            unit, bound = metric_named(self.metric).units, trust.tolerance(model)
            data = with_error(data, found.parts, book, context, unit, bound)
        if self.verify:
            data = with_verified(self, model, task, context, data, layout)
        check_facts(self, model, task, context, raw, nodes, layout)
        return data

    @property
    def place(self) -> int | str:
        """Where the metric is read, as the engine takes it."""
        return int(self.at) if self.at.lstrip("-").isdigit() else self.at

    @property
    def knobs(self) -> dict[str, Any]:
        """What every pass is told."""
        return {"metric": self.metric, "direction": self.direction, "at": self.place}

    def rule_set(self) -> Any:
        """The backward rules, single ones changed."""
        return trust.chosen_rules(
            self.rules,
            attn=self.attn_rule,
            gate=self.gate_rule,
            qk_norm=self.qk_norm_rule,
            cap=self.cap_rule,
        )

    @property
    def unsigned(self) -> bool:
        """Whether it gives sizes, hence a ranking."""
        return self.grad_drop or self.prompt_reduce == "abs"

    # -- estimates ------------------------------------------------------------------------------

    def _estimates(
        self,
        model: HookedModel,
        task: PromptPairs,
        context: Context,
        layout: Layout,
        book: Dictionary | None,
    ) -> _Found:
        """Raw estimates of the grid, and of all nodes where one pass gave them."""
        points = quadrature(self.ig_steps, self.quadrature) if self.ig_steps else ()
        if points and self.ig_path == "node":
            return self._by_node(model, task, context, layout, points)
        if points and self.ig_path in ("activations", "eap_ig_repo"):
            repo = self.ig_path == "eap_ig_repo"
            out = integrate_modules(
                model, task, self.site, context, points=points, repo=repo, **self.knobs
            )
        else:
            out = attribute(
                model,
                task,
                [self.site],
                context,
                qk_fix=self.qk_fix,
                grad_drop=self.grad_drop,
                steps=points,
                keys="key" in layout.dims,
                dictionary=book,
                **self.knobs,
            )
        context.note("passes", {**out.passes, "streamed_batches": out.streamed})
        nodes = out.values[self.site]
        if book is not None:
            where: dict[str, Any] = {"direction": self.direction, "at": self.place}
            layout = feature_layout(model, task, layout, book, out.values, self.top, **where)
        return _Found(layout.lay(nodes, task), out.base, out.source, layout, nodes, out.values)

    def _by_node(
        self,
        model: HookedModel,
        task: PromptPairs,
        context: Context,
        layout: Layout,
        points: tuple[float, ...],
    ) -> _Found:
        """Every cell along its own path."""
        if (count := math.prod(layout.shape)) > MOST_PATHS:
            raise UsageError(
                f"Integrated gradients walk every cell by itself, and there are {count}.",
                remedy="Choose layers, positions or coarser axes, or ig_path='inputs'.",
            )
        cells = [layout.cell(i) for i in np.ndindex(*layout.shape)]
        found, base, source = integrate(model, task, cells, context, points=points, **self.knobs)
        context.note("passes", {"cells": len(cells), "points": len(points)})
        raw = found.T.reshape(len(task), *layout.shape)
        return _Found(raw, base, source, layout, None, {})

    def _words(self, rule_name: str) -> str:
        """The estimator's name with its variant."""
        if self.ig_steps:
            return f"integrated gradients, {self.ig_path}, {self.ig_steps} points"
        parts = ["AtP" if rule_name == "none" else f"rules {rule_name}"]
        parts += ["QK fix"] if self.qk_fix else []
        parts += ["GradDrop"] if self.grad_drop else []
        return " with ".join(parts)


@dataclass(frozen=True, eq=False)
class _Found:
    """What the engine gave.

    Args:
        raw: estimates of the grid ``[prompt, *dims]``.
        base: metric of the base run ``[prompt]``; source: of the source run.
        source: see ``base``.
        layout: the grid's axes.
        nodes: estimates of all nodes, where one pass gave them.
        parts: the engine's arrays.
    """

    raw: np.ndarray
    base: np.ndarray
    source: np.ndarray
    layout: Layout
    nodes: np.ndarray | None
    parts: dict[str, np.ndarray]
