"""Attribution patching: first-order estimates of activation patching, all nodes at once."""

from __future__ import annotations

import contextlib
import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import metric_named, sweep
from interp.engine.gradients import attribute, integrate, quadrature, rules
from interp.methods.attribution import trust
from interp.methods.attribution.arrays import estimate_arrays
from interp.methods.attribution.layout import Layout, make_layout
from interp.terms import Check, Context, HookedModel, Method, PromptPairs, UsageError

MOST_PATHS = 20_000
"""Cells that integrated gradients walks one by one, at most."""


class AttributionPatching(Method):
    """Estimated effect of patching each node, on the scale of activation patching's effect.

    Of the run that is executed (base, b) and the one that lends (source, s):
    ``attribution_raw(n) = mean Σ_channel (a_s - a_b) ⊙ ρ_b``, ρ the metric's gradient at the node,
    ordinary (attribution patching) or under modified rules (RelP and other LRP rules), and
    ``attribution = attribution_raw / mean (m(s) - m(b))``. Two forward passes and one backward
    for all nodes. An estimate is no effect: ``verify`` measures the largest cells exactly.
    Sources: kramar2024atp (with the QK fix and GradDrop), jafari2025relp, achtibat2024attnlrp,
    ali2022xai, sundararajan2017axiomatic, hanna2024have. Rules are written from the formulas.
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
        "layer,neuron",
        "position",
        "slot",
    ] = "auto"
    """What the grid runs over; positions that are no axis are summed."""
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
    ig_path: Literal["node", "inputs"] = Field("node", json_schema_extra={"advanced": True})
    """What moves from base to source: each node by itself, or the embeddings."""
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
    keep_prompts: bool = Field(True, json_schema_extra={"advanced": True})
    """Keep the estimate of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Bootstrap samples for the confidence interval."""
    verify: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"advanced": True})] = 5
    """So many of the largest cells are measured exactly."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the bootstrap."""

    def needed(self) -> tuple[str, ...]:
        """The site, and gradients."""
        return (self.site, "grad")

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """Dataset of ``attribution``, ``attribution_raw`` and their statistics."""
        self._refuse()
        chosen = self._rules()
        layout = make_layout(
            model, task, self.site, self.axes, layers=self.layers, positions=self.positions
        )
        with contextlib.ExitStack() as stack:
            if chosen.active:
                active = stack.enter_context(rules(model, chosen))
                context.note("rules", active.to_json())
                for line in trust.of_rules(active):
                    context.check(line)
            raw, base, source, nodes = self._estimates(model, task, context, layout)
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
            base,
            source,
            layout,
            task,
            facts,
            unsigned=self.unsigned,
            n_boot=self.n_boot,
            seed=self.seed,
            keep_prompts=self.keep_prompts,
        )
        if self.verify:
            data = self._verified(model, task, context, data, layout)
        self._check(model, task, context, raw, nodes, layout)
        return data

    def _at(self) -> int | str:
        return int(self.at) if self.at.lstrip("-").isdigit() else self.at

    def _rules(self) -> Any:
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

    def _refuse(self) -> None:
        """Knobs that do not go together.

        Raises:
            UsageError: with the remedy.
        """
        ruled = bool(self._rules().active)
        wrong = [
            (
                ruled and self.ig_steps > 0,
                "Backward rules and integrated gradients",
                "both replace the gradient",
                "Use ig_steps=0, or rules='none'.",
            ),
            (
                ruled and self.qk_fix,
                "Backward rules and the QK fix",
                "both treat the softmax",
                "Use qk_fix=False, or rules='none'.",
            ),
            (
                self.ig_steps > 0 and (self.qk_fix or self.grad_drop),
                "Integrated gradients and AtP*'s corrections",
                "both mend the gradient",
                "Use ig_steps=0, or neither qk_fix nor grad_drop.",
            ),
            (
                self.qk_fix and self.site not in ("q", "k"),
                "The QK fix and other sites than q, k",
                "it is about queries and keys",
                "Use site='q' or 'k', or qk_fix=False.",
            ),
            (
                self.grad_drop and self.qk_fix,
                "GradDrop and the QK fix in one run",
                "blocked gradients reach no pattern of their layer",
                "Run them one after the other.",
            ),
        ]
        for bad, what, why, remedy in wrong:
            if bad:
                raise UsageError(f"{what} do not go together: {why}.", remedy=remedy)

    # -- estimates ------------------------------------------------------------------------------

    def _estimates(
        self, model: HookedModel, task: PromptPairs, context: Context, layout: Layout
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Raw estimates ``[prompt, *dims]``, base and source metric, and all nodes' values."""
        knobs: dict[str, Any] = {
            "metric": self.metric,
            "direction": self.direction,
            "at": self._at(),
        }
        points = quadrature(self.ig_steps, self.quadrature) if self.ig_steps else ()
        if points and self.ig_path == "node":
            if (count := math.prod(layout.shape)) > MOST_PATHS:
                raise UsageError(
                    f"Integrated gradients walk every cell by itself, and there are {count}.",
                    remedy="Choose layers, positions or coarser axes, or ig_path='inputs'.",
                )
            cells = [layout.cell(i) for i in np.ndindex(*layout.shape)]
            found, base, source = integrate(model, task, cells, context, points=points, **knobs)
            context.note("passes", {"cells": len(cells), "points": len(points)})
            return found.T.reshape(len(task), *layout.shape), base, source, None
        out = attribute(
            model,
            task,
            [self.site],
            context,
            qk_fix=self.qk_fix,
            grad_drop=self.grad_drop,
            steps=points,
            **knobs,
        )
        context.note("passes", {**out.passes, "streamed_batches": out.streamed})
        nodes = out.values[self.site]
        return layout.lay(nodes, task), out.base, out.source, nodes

    def _words(self, rule_name: str) -> str:
        """The estimator's name with its variant."""
        if self.ig_steps:
            return f"integrated gradients, {self.ig_path}, {self.ig_steps} points"
        parts = ["AtP" if rule_name == "none" else f"rules {rule_name}"]
        parts += ["QK fix"] if self.qk_fix else []
        parts += ["GradDrop"] if self.grad_drop else []
        return " with ".join(parts)

    # -- what is measured beside ------------------------------------------------------------------

    def _top(self, values: np.ndarray, most: int) -> np.ndarray:
        size = np.abs(np.nan_to_num(values.ravel()))
        order = np.argsort(-size, kind="stable")[:most]
        return order[size[order] > 0]

    def _verified(
        self,
        model: HookedModel,
        task: PromptPairs,
        context: Context,
        data: xr.Dataset,
        layout: Layout,
    ) -> xr.Dataset:
        """The largest cells measured exactly, beside their estimates."""
        raw = data["attribution_raw"].values
        top = self._top(raw, self.verify)
        if not len(top):
            return data
        index = [np.unravel_index(c, layout.shape) for c in top]
        where = [tuple(int(i) for i in cell) for cell in index]
        found = sweep(
            model,
            task,
            [layout.cell(i) for i in where],
            context,
            metric=self.metric,
            direction=self.direction,
            at=self._at(),
        )
        exact = np.nanmean(found.patched - found.base, axis=1)
        if self.unsigned:
            exact = np.nanmean(np.abs(found.patched - found.base), axis=1)
        estimate = raw.ravel()[top]
        unit = metric_named(self.metric).units
        for name, values, words in (
            ("verified_effect", exact, "measured change of the largest cells"),
            ("verified_estimate", estimate, "estimated change of the same cells"),
        ):
            data[name] = (
                "top",
                values,
                {"units": unit, "long_name": words, "signed": int(not self.unsigned)},
            )
        data = data.assign_coords(
            top=np.arange(len(top)), name=("top", [layout.name(i) for i in where])
        )
        size = max(float(np.abs(exact).max()), 1e-300)
        context.check(
            Check(
                "verified",
                f"estimate against measured effect, {len(top)} largest cells",
                float(np.abs(exact - estimate).max()) / size,
                note="Largest difference over the largest measured effect. It is the estimator's "
                "error, not a fault: see the cells, and Agreement for whole grids.",
            )
        )
        return data

    def _check(
        self,
        model: HookedModel,
        task: PromptPairs,
        context: Context,
        raw: np.ndarray,
        nodes: np.ndarray | None,
        layout: Layout,
    ) -> None:
        """Lines of the trust panel about the gradient."""
        chosen = self._rules()
        knobs: dict[str, Any] = {
            "metric": self.metric,
            "direction": self.direction,
            "at": self._at(),
        }
        corrected = self.ig_steps or self.qk_fix or self.grad_drop
        if nodes is not None and not corrected and not chosen.active:
            context.check(trust.of_own_graph(model, task, self.site, nodes, **knobs))
        top = self._top(np.nanmean(raw, 0), 1)
        if not len(top) or corrected:
            return
        where = tuple(int(i) for i in np.unravel_index(top[0], layout.shape))
        cell = layout.cell(where)
        site = cell.edits[0].site
        if "slot" not in layout.dims and task.aligned():
            estimate = raw.reshape(len(task), -1)[:, top[0]]
            context.check(trust.of_small_patch(model, task, site, estimate, chosen, **knobs))
        side = "corrupt" if self.direction == "denoising" else "clean"
        for line in (
            trust.of_conservation(
                model, task, chosen, side=side, metric=self.metric, at=self._at()
            ),
            trust.of_frozen_network(model, task, cell, chosen, **knobs),
        ):
            if line is not None:
                context.check(line)
