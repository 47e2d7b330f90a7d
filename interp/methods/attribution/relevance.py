"""Relevance: the metric passed back layer by layer under LRP's rules; token heatmaps."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import metric_named
from interp.engine.gradients import relevance, rules
from interp.engine.statistics import bootstrap_interval, mean_and_error, resampling_weights
from interp.methods.attribution import trust
from interp.methods.attribution.layout import make_layout
from interp.terms import Context, HookedModel, Method, PromptPairs


class Relevance(Method):
    """Share of the metric that each node holds in one run, under a set of backward rules.

    ``relevance(n) = Σ_channel a ⊙ ρ``: the node's value times the metric's gradient there, modified
    by the rules. At ``embed`` it is the token heatmap. It speaks of one run alone: no patch is
    estimated. Rules: achtibat2024attnlrp, ali2022xai (CP-LRP), jafari2025relp; with ``none`` it is
    gradient times input.
    """

    title: ClassVar[str] = "Relevance"
    question: ClassVar[str] = "Which tokens and nodes does the answer rest on?"
    citations: ClassVar[tuple[str, ...]] = (
        "achtibat2024attnlrp",
        "ali2022xai",
        "jafari2025relp",
        "you2025when",
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
        "mlp_post",
    ] = "embed"
    """Where relevance is read; embed is the token heatmap."""
    axes: Literal[
        "auto",
        "layer,position",
        "layer,slot",
        "layer",
        "layer,head",
        "layer,head,position",
        "layer,head,slot",
        "layer,neuron",
        "position",
        "slot",
    ] = "auto"
    """What the grid runs over; positions that are no axis are summed."""
    side: Literal["clean", "corrupt"] = "clean"
    """Which prompt of a pair."""
    metric: Literal["logit_diff", "prob", "logprob", "prob_diff", "span_logprob"] = "logit_diff"
    """What is passed back."""
    rules: Literal["none", "relp", "relp_ah", "relp_no_identity", "attnlrp", "cplrp"] = "attnlrp"
    """Backward rules; none is gradient times input."""
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
    """Norms of queries and keys; left alone, a head's own norm makes relevance at q and k zero."""
    cap_rule: Literal["default", "identity"] = Field(
        "default", json_schema_extra={"advanced": True}
    )
    """Soft caps; default leaves them alone."""
    at: str = Field("last", json_schema_extra={"advanced": True}, max_length=60)
    """Where the metric is read: last, an index, or a slot of the task."""
    layers: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Layers shown; all if empty."""
    positions: tuple[int, ...] | None = Field(None, json_schema_extra={"advanced": True})
    """Positions shown; all if empty."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the bootstrap."""

    def needed(self) -> tuple[str, ...]:
        """The site, gradients, and layers that the engine drives."""
        return (self.site, "grad", "blocks")

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``relevance``, ``prompt_relevance [prompt, *dims]``, ``metric_value [prompt]``."""
        at = int(self.at) if self.at.lstrip("-").isdigit() else self.at
        chosen = trust.chosen_rules(
            self.rules,
            attn=self.attn_rule,
            gate=self.gate_rule,
            qk_norm=self.qk_norm_rule,
            cap=self.cap_rule,
        )
        layout = make_layout(
            model, task, self.site, self.axes, layers=self.layers, positions=self.positions
        )
        knobs: dict[str, Any] = {"metric": self.metric, "side": self.side, "at": at}
        with rules(model, chosen) as active:
            context.note("rules", active.to_json())
            found = relevance(model, task, [self.site], context, **knobs)
        for line in trust.of_rules(active):
            context.check(line)
        line = trust.of_conservation(model, task, chosen, **knobs)
        if line is not None:
            context.check(line)
        if self.site in ("q", "k"):
            context.check(trust.of_scale(found.values[self.site], found.base))
        context.note("passes", found.passes)
        each = layout.lay(found.values[self.site], task)
        return self._dataset(each, found.base, layout.dims, layout.coords, task, chosen.name)

    def _dataset(
        self,
        each: np.ndarray,
        value: np.ndarray,
        dims: tuple[str, ...],
        coords: dict[str, np.ndarray],
        task: PromptPairs,
        rule_name: str,
    ) -> xr.Dataset:
        metric, n = metric_named(self.metric), len(task)
        shape, flat = each.shape[1:], each.reshape(n, -1)
        mean, error = mean_and_error(flat)
        interval = np.full((2, flat.shape[1]), np.nan)
        if self.n_boot and n > 1:
            weights = resampling_weights(n, task.template, self.n_boot, self.seed)
            interval = bootstrap_interval(flat, None, weights)
        words = "gradient times input" if rule_name == "none" else f"relevance, rules {rule_name}"
        unit = metric.units
        arrays = {
            "relevance": (dims, mean.reshape(shape), unit, f"{words}, {self.side} prompts", 1),
            "relevance_se": (dims, error.reshape(shape), unit, "standard error", 0),
            "relevance_ci": (
                ("bound", *dims),
                interval.reshape(2, *shape),
                unit,
                "95 % bootstrap interval",
                1,
            ),
            "prompt_relevance": (("prompt", *dims), each, unit, f"{words}, each prompt", 1),
            "metric_value": (("prompt",), value, unit, f"{metric.title}, {self.side} prompts", 1),
        }
        data = xr.Dataset(
            {
                k: (d, v, {"units": u, "long_name": t, "signed": s})
                for k, (d, v, u, t, s) in arrays.items()
            },
            coords={**coords, "prompt": np.arange(n), "bound": ["low", "high"]},
        )
        data.attrs.update(
            {
                "site": self.site,
                "side": self.side,
                "metric": self.metric,
                "at": self.at,
                "metric_title": metric.title,
                "rules": rule_name,
                "n_prompts": n,
            }
        )
        return data
