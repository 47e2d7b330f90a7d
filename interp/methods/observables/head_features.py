"""HeadFeatures: the direction that every head and MLP reads of an observable, and its length."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from interp.engine.traces import Maps
from interp.methods.observables.angles import cosine, gain_cosine
from interp.methods.observables.arrays import arrays_of
from interp.methods.observables.effects import direct_effects
from interp.methods.observables.graph import Node, read_nodes
from interp.methods.observables.inputs import (
    Batch,
    Readout,
    array,
    batches,
    check_pairs,
    dataset,
    signs,
)
from interp.methods.observables.means import Means
from interp.methods.observables.mlps import Mlps
from interp.methods.observables.reading import Standing, at_logits, heads_free, heads_of, through
from interp.methods.observables.trust import of_angles, of_identity, of_observables
from interp.tasks.observables import observables_of
from interp.terms import Context, HookedModel, Method, PromptPairs, UsageError


class HeadFeatures(Method):
    """Feature vectors ``y = W_V W_O u`` of every head, from the weights; heads ranked by |y|.

    ``u = W_U n`` for the observable ``o = logits[last] · n``. Norms are passed as ``ln`` says;
    ``E[(x·y)²] = |y|²`` for x standard normal, so |y| (for an input that the norm has divided) says
    how much a head could contribute, whatever the prompt: no data is needed, and heads that never
    look where it counts are false positives. With pairs of prompts, patterns and scales come from
    the clean run (each source position weighed by its attention), |y| stands beside the measured
    direct effect, and MLPs get vectors too. ``behind`` names nodes that the vector passes first
    (virtual heads). Patterns are
    held fixed throughout. Source: dunefsky2024observable.
    """

    title: ClassVar[str] = "Feature vectors"
    question: ClassVar[str] = "Which heads could move this observable, and what do they read?"
    citations: ClassVar[tuple[str, ...]] = ("dunefsky2024observable",)
    needs: ClassVar[tuple[str, ...]] = ("blocks", "weights")
    version: ClassVar[int] = 1

    observable: Annotated[str, Field(min_length=1, max_length=1000)] = "answers"
    """What is read: answers, a built-in name, or words for and against, as she / he."""
    ln: Literal["ignore", "norm", "frozen", "exact"] = "frozen"
    """How norms are passed; frozen and exact need prompts (without any, norm is taken)."""
    behind: Annotated[str, Field(max_length=500)] = ""
    """Nodes that the vector passes first, latest first, as L9H6, L5H1."""
    tangent: Literal["boundary", "own", "mean"] = "boundary"
    """Where MLPs are made linear: between the classes, at the run, or at its mean."""
    top: Annotated[int, Field(ge=1, le=200)] = 10
    """So many of the longest vectors are compared with the largest effects."""
    after_cap: bool = Field(False, json_schema_extra={"advanced": True})
    """Read the logits behind their soft cap, by its slope at each prompt; before it if off."""

    def measure(self, model: HookedModel, task: PromptPairs | None, context: Context) -> xr.Dataset:
        """``norm``, ``vector [observable, layer, head, d_model]``; with pairs also effects."""
        maps = Maps(model)
        nodes = read_nodes(self.behind, model.shape)
        readouts = [Readout.of(maps, o) for o in observables_of(self.observable, model, task)]
        of_observables(context, readouts)
        if self.after_cap and maps.cap is not None and task is None:
            raise UsageError(
                "The slope of the logits' soft cap is that of a prompt, and none was given.",
                remedy="Give a task, or leave after_cap off.",
            )
        if not self._below(maps, nodes)[0]:
            raise UsageError(
                f"No head writes before {nodes[-1].name}.", remedy="Take nodes of later layers."
            )
        if task is None:
            found = self._free(maps, readouts, nodes, context)
        else:
            check_pairs(task, self.title, aligned=False)
            found = self._measured(maps, readouts, nodes, task, context)
        return self._dataset(found, model, readouts, nodes, task)

    @property
    def treatment(self) -> str:
        """How norms are passed where there is no run."""
        return "ignore" if self.ln == "ignore" else "norm"

    def _below(self, maps: Maps, nodes: tuple[Node, ...]) -> tuple[int, int]:
        """Layers whose heads, and whose MLPs, write before the last of ``behind``."""
        layers, parallel = maps.shape.n_layers, maps.shape.parallel
        if not nodes:
            return layers, layers
        order = nodes[-1].order(parallel)
        heads = sum(Node(n, 0).order(parallel) < order for n in range(layers))
        return heads, sum(Node(n, -1).order(parallel) < order for n in range(layers))

    # -- from the weights alone -----------------------------------------------------------------

    def _free(
        self, maps: Maps, readouts: list[Readout], nodes: tuple[Node, ...], context: Context
    ) -> dict[str, Any]:
        below = self._below(maps, nodes)[0]
        u = torch.cat([r.vector([0]) for r in readouts])
        at = at_logits(maps, None, u, self.treatment)
        for node in nodes:
            at = through(maps, node, at, self.treatment)
        vector = heads_free(maps, at, self.treatment, below)
        of_identity(context, maps, at, vector, self.treatment)
        bare = self.treatment == "ignore" or maps.layer(0).norms["pre_attn"] is None
        width = 1.0 if bare else maps.shape.d_model**0.5
        context.advance(1, 1)
        return {
            "vector": array(vector),
            "length": array(vector.norm(dim=-1)),
            "norm": array(vector.norm(dim=-1) / width),
            "gain_cosine": self._gains(maps, at, below),
        }

    @staticmethod
    def _gains(maps: Maps, at: Standing, below: int) -> np.ndarray:
        """cos(γ*y, y) of every head's own norm ``[R, layer, H]``."""
        bare = heads_free(maps, at, "ignore", below)
        found = [gain_cosine(maps.layer(n).norms["pre_attn"], bare[:, n]) for n in range(below)]
        return array(torch.stack(found, 1)) if found else np.zeros((len(bare), 0, 0))

    # -- with prompts ---------------------------------------------------------------------------

    def _measured(
        self,
        maps: Maps,
        readouts: list[Readout],
        nodes: tuple[Node, ...],
        task: PromptPairs,
        context: Context,
    ) -> dict[str, Any]:
        sign = np.stack([signs(r.observable, task) for r in readouts])
        n, below = len(task), self._below(maps, nodes)
        parts = [Means(n, s) for s in sign]
        mlps = [Mlps(maps, r, s, self.tangent, self.ln, below[1])
                for r, s in zip(readouts, sign, strict=True)]  # fmt: skip
        done = 0
        for batch in batches(maps, task, context.memory // 2):
            for i, readout in enumerate(readouts):
                at = self._standing(maps, batch, readout, nodes)
                self._heads(maps, batch, readout, at, below[0], parts[i], nodes)
                mlps[i].add(batch, at)
            done += len(batch.rows)
            context.advance(done, n)
        of_angles(context, parts, self.ln)
        out = {key: np.stack([p[key] for p in parts]) for key in parts[0]}
        lines = Mlps.together(mlps, task, context)
        missing = below[0] - below[1]  # behind an MLP stand its own layer's heads, and no MLP
        for key in set(lines) - {"mix"} if missing else ():
            room = [(0, 0), (0, missing)] + [(0, 0)] * (lines[key].ndim - 2)
            lines[key] = np.pad(lines[key], room, constant_values=np.nan)
        return {**out, **lines}

    def _standing(
        self, maps: Maps, batch: Batch, readout: Readout, nodes: tuple[Node, ...]
    ) -> Standing:
        u = readout.vector(batch.rows)
        if self.after_cap:
            u = readout.slope(maps, batch.clean, batch.rows)
        at = at_logits(maps, batch.clean, u, self.ln)
        for node in nodes:
            at = through(maps, node, at, self.ln)
        return at

    def _heads(
        self,
        maps: Maps,
        batch: Batch,
        readout: Readout,
        at: Standing,
        below: int,
        kept: Any,
        nodes: tuple[Node, ...],
    ) -> None:
        reads = [heads_of(maps, n, at, self.ln) for n in range(below)]
        if not reads:
            return
        vector = torch.stack([r.vector for r in reads], 1)
        kept.add(batch.rows, "vector", vector, signed=True)
        kept.add(batch.rows, "length", vector.norm(dim=-1), square=True)
        reach = torch.stack([r.reach for r in reads], 1)
        kept.add(batch.rows, "norm", reach, square=True)
        turned = torch.stack([r.cosine for r in reads], 1)
        kept.add(batch.rows, "cosine", turned)
        kept.each(batch.rows, "prompt_cosine", turned)
        total = torch.stack([r.total for r in reads], 1)
        split = torch.stack([r.share.sum(-1) + r.bias for r in reads], 1)
        kept.add(batch.rows, "attribution", total, signed=True)
        kept.worst("identity", (total - split).abs(), total)
        kept.each(batch.rows, "o", readout.value(maps, batch.clean.last[:, -1], batch.rows))
        if maps.final is not None:
            u, x = readout.vector(batch.rows), batch.clean.last[:, -1]
            kept.each(batch.rows, "cosine_final", cosine(maps.final, u, x))
        if not nodes:
            effect = direct_effects(maps, batch, readout)
            kept.add(batch.rows, "direct_effect", effect, signed=True)

    def _softcap(self, maps_cap: float | None) -> str:
        """What is said of the logits' soft cap."""
        if maps_cap is None:
            return ""
        return "slope of the cap at each prompt" if self.after_cap else "measured before the cap"

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(
        self,
        found: dict[str, Any],
        model: HookedModel,
        readouts: list[Readout],
        nodes: tuple[Node, ...],
        task: PromptPairs | None,
    ) -> xr.Dataset:
        names = [r.observable.name for r in readouts]
        ln = self.ln if task is not None else self.treatment
        rows = arrays_of(found, ln, self.top)
        facts = {
            "ln": ln,
            "stage": "affine" if ln == "ignore" else "residual",
            "behind": " < ".join(n.name for n in nodes),
            "tangent": self.tangent,
            "weight_hash": model.weight_hash,
            "patterns": "held fixed" if task is not None else "not read",
            "parallel": int(model.shape.parallel),
            "softcap": self._softcap(maps_cap=readouts[0].cap),
        }
        if "o" in found and task is not None:
            sign = np.stack([signs(r.observable, task) for r in readouts])
            share = np.where(sign.any(1), (np.sign(found["o"]) == sign).mean(1), np.nan)
            facts["right_sign"] = share.tolist()
        coords = {
            "observable": names,
            "prompt": np.arange(0 if task is None else len(task)),
            "layer": np.arange(found["norm"].shape[1]),
        }
        return dataset(rows, coords, **facts)
