"""FeaturePaths: the paths by which an observable reaches back to the tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from interp.engine.pulls import Pulled, pull_all
from interp.engine.traces import Maps, Trace, trace, trace_bytes
from interp.methods.observables.effects import Chain
from interp.methods.observables.graph import count_paths
from interp.methods.observables.inputs import (
    Readout,
    Rows,
    array,
    check_pairs,
    dataset,
    signs,
)
from interp.methods.observables.routes import (
    by_source,
    flow,
    heads_in_all,
    name_of,
    names_in,
    routes_of,
)
from interp.methods.observables.search import Found, Search
from interp.methods.observables.trust import of_observables, of_paths, of_recursion
from interp.tasks.observables import observables_of
from interp.terms import Context, HookedModel, Method, PromptPairs, TooLargeError, UsageError

MOST_PATHS = 1_000_000
"""More paths than this are not enumerated."""

ROUTES = 12
"""So many routes are split by source token."""


class FeaturePaths(Method):
    """Paths of heads and MLPs that carry an observable from tokens to logits, found by beam search.

    Patterns are held fixed and norms passed as ``ln`` says, so ``o = Σ_paths + constants``; one
    recursion gives the sum over all paths, the search its largest terms. A path's value is ``y·x``
    at the embedding: x what stands there (``total``), or how clean and corrupt differ
    (``contrast``). A prefix's value is the sum of its children, which cancel: a beam is a
    heuristic, so ``explained`` and ``dropped`` are stated. The best paths are measured again by
    path patching, queries and keys fixed and live: *effects*, beside *attributions*. o counts for
    each prompt's clean side. Prompts must have one length. Source: dunefsky2024observable.
    """

    title: ClassVar[str] = "Feature paths"
    question: ClassVar[str] = "By which paths does this observable reach back to the tokens?"
    citations: ClassVar[tuple[str, ...]] = ("dunefsky2024observable",)
    needs: ClassVar[tuple[str, ...]] = ("blocks", "weights")
    version: ClassVar[int] = 1

    observable: Annotated[str, Field(min_length=1, max_length=500)] = "answers"
    """What is read: answers, a built-in name, or words for and against, as she / he."""
    objective: Literal["total", "contrast"] = "contrast"
    """What a path's value is: what the clean prompt has, or how clean and corrupt differ."""
    ln: Literal["frozen", "exact", "norm"] = "frozen"
    """How norms are passed; only frozen ones conserve."""
    rank: Literal["abs", "signed"] = "abs"
    """Keep the largest paths by size, or by sign."""
    width: Annotated[int, Field(ge=1, le=512)] = 32
    """Prefixes kept at each depth."""
    max_depth: Annotated[int, Field(ge=1, le=8)] = 4
    """Most nodes between logits and embedding."""
    search: Literal["beam", "exhaustive"] = "beam"
    """Follow the largest prefixes, or every path (up to a million)."""
    verify: Annotated[int, Field(ge=0, le=64)] = 16
    """So many of the best paths are measured again by path patching."""

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``score [path]``, effects, ``flow [src, dst]``, ``source [route, prompt, position]``."""
        check_pairs(task, self.title, aligned=True)
        maps = Maps(model)
        observables = observables_of(self.observable, model, task)
        if len(observables) > 1:
            raise UsageError(
                f"{len(observables)} observables were given; paths are searched for one.",
                remedy="Run it once for each.",
            )
        self._check_size(maps, task, context)
        readout = Readout.of(maps, observables[0])
        of_observables(context, [readout])
        clean, corrupt = (trace(maps, np.array(side)) for side in (task.clean, task.corrupt))
        rows = np.arange(len(task))
        sign = signs(readout.observable, task)
        turn = torch.from_numpy(np.where(sign == 0, 1.0, sign)).to(maps.like)
        u = readout.vector(rows) * turn[:, None]
        base = readout.constant(rows) * turn
        o = [array(readout.value(maps, run.last[:, -1], rows) * turn) for run in (clean, corrupt)]
        context.advance(1, 4)
        other = corrupt if self.objective == "contrast" else None
        pulled = pull_all(maps, clean, u, self.ln, base=base)
        if self.ln == "frozen":
            of_recursion(context, maps, clean, pulled, o[0])
        found = self._search(maps, clean, other, u, context)
        goal = o[0] if other is None else o[0] - o[1]
        of_paths(context, maps, found, goal, base, u, whole=other is None and self.ln == "frozen")
        context.advance(3, 4)
        effects = self._effects(maps, clean, other, readout, found, rows, turn)
        data = self._dataset(maps, clean, other, u, found, effects, pulled, goal, o)
        context.advance(4, 4)
        return data.assign_attrs(weight_hash=model.weight_hash, parallel=int(model.shape.parallel))

    def _check_size(self, maps: Maps, task: PromptPairs, context: Context) -> None:
        length, n = task.lengths[0], len(task)
        width = maps.like.element_size() * maps.shape.d_model
        needed = n * (2 * trace_bytes(maps, length) + 4 * self.width * width)
        if needed > context.memory:
            raise TooLargeError(
                f"The paths of {n} prompts need about {needed / 1e9:.1f} GB and "
                f"{context.memory / 1e9:.1f} GB may be used.",
                remedy="Take fewer prompts, or a smaller width.",
            )
        count = count_paths(maps.shape, length)
        if self.search == "exhaustive" and count > MOST_PATHS:
            raise TooLargeError(
                f"There are {count:.3g} paths at {length} positions, over {MOST_PATHS:,}.",
                remedy="Use search='beam'.",
            )

    def _search(
        self, maps: Maps, run: Trace, other: Trace | None, u: torch.Tensor, context: Context
    ) -> Found:
        search = Search(maps, run, u, treatment=self.ln, other=other, signed=self.rank == "signed")
        if self.search == "exhaustive":
            total = count_paths(maps.shape, run.length)
            return search.exhaustive(
                self.width, lambda done: context.advance(1 + 2 * done / total, 4)
            )
        depth = self.max_depth
        return search.beam(
            self.width, depth, lambda level: context.advance(1 + 2 * level / (depth + 1), 4)
        )

    def _effects(
        self,
        maps: Maps,
        run: Trace,
        other: Trace | None,
        readout: Readout,
        found: Found,
        rows: np.ndarray,
        turn: torch.Tensor,
    ) -> np.ndarray:
        """Mean effects of the paths ``[fixed or live, path]``; NaN where not measured."""
        out = np.full((2, len(found.ended)), np.nan)
        for k, live in enumerate((False, True)):
            chain = Chain(maps, run, other, live)
            for i, path in enumerate(found.ended[: self.verify]):
                out[k, i] = (chain.effect(path, readout, rows) * turn.cpu().numpy()).mean()
        return out

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(
        self,
        maps: Maps,
        run: Trace,
        other: Trace | None,
        u: torch.Tensor,
        found: Found,
        effects: np.ndarray,
        pulled: Pulled,
        goal: np.ndarray,
        o: list[np.ndarray],
    ) -> xr.Dataset:
        routes = routes_of(found.ended, ROUTES)
        stand = run.embed if other is None else run.embed - other.embed
        names = names_in(found.ended, maps.shape.parallel)
        what = f"{self.objective}, norms {self.ln}, QK fixed"
        values = np.stack([p.value for p in found.ended])
        mean = float(goal.mean())
        rows: Rows = {
            "paths": (
                ("path", "evidence"), np.stack([values.mean(1), *effects], 1), "logit",
                f"the best paths: attribution ({what}), and effects measured by path patching", 1,
            ),
            "score": (("path",), values.mean(1), "logit", f"attribution of each path ({what})", 1),
            "source": (
                ("route", "prompt", "position"),
                np.stack([by_source(maps, run, other, u, r, self.ln) for r in routes]),
                "logit", f"attribution of each source token by each route ({what})", 1,
            ),
            "flow": (
                ("src", "dst"), flow(found.ended, names), "logit",
                f"what the paths found carry along each edge ({what})", 1,
            ),
            **self._verified(found, effects, values),
            "explained": (
                (), np.float64(values.sum(0).mean() / mean if mean else np.nan), "1",
                "share of the mean of o (or its difference) that the paths found add up to", 1,
            ),
            "dropped": (
                (), np.float64((found.dropped + found.left).mean() / mean if mean else np.nan), "1",
                "share that stood on prefixes and paths that were not kept", 1,
            ),
            "attribution": (
                ("layer", "head"), heads_in_all(maps, run, other, pulled).mean(0), "logit",
                f"attribution of each head by all paths behind it ({what})", 1,
            ),
            "token_attribution": (
                ("prompt", "position"), array((pulled.embed * stand).sum(-1)), "logit",
                f"attribution of each token by all paths ({what})", 1,
            ),
            "value": (("path", "prompt"), values, "logit", "attribution in each prompt", 1),
            "o": (("side", "prompt"), np.stack(o), "logit", "the observable", 1),
        }  # fmt: skip
        rows |= self._prefixes(found, what)
        coords = self._coords(maps, found, rows, routes, names, len(goal))
        return dataset(rows, coords, **self._facts(maps, run, found))

    def _prefixes(self, found: Found, what: str) -> Rows:
        """The prefixes that were followed, with their vectors."""
        prefixes = found.prefixes[: self.width]
        if not prefixes:
            return {}
        return {
            "prefix_score": (
                ("prefix",), np.array([p.value.mean() for p in prefixes]), "logit",
                f"value of the prefixes that were followed ({what})", 1,
            ),
            "prefix_vector": (
                ("prefix", "d_model"), np.stack([array(p.y).mean(0) for p in prefixes]),
                "logit per unit", "feature vector where each prefix ends, mean over prompts", 1,
            ),
        }  # fmt: skip

    def _coords(
        self, maps: Maps, found: Found, rows: Rows, routes: Any, names: list[str], n: int
    ) -> dict[str, Any]:
        """Names of paths, routes, prefixes and nodes."""
        prefixes = found.prefixes[: self.width]
        coords: dict[str, Any] = {
            "evidence": ["attribution", "effect, QK fixed", "effect, QK live"],
            "path": np.arange(len(found.ended)),
            "path_name": ("path", [p.name for p in found.ended]),
            "route": [name_of(r) for r in routes],
            "prefix": np.arange(len(prefixes)),
            "prefix_name": ("prefix", [p.name for p in prefixes]),
            "prefix_layer": ("prefix", [p.steps[-1][0].layer for p in prefixes]),
            "src": names, "dst": names, "side": ["clean", "corrupt"],
            "prompt": np.arange(n), "layer": np.arange(maps.shape.n_layers),
            "measure": ["effect, QK fixed", "attribution"],
        }  # fmt: skip
        verified = rows.get("verified")
        if verified is not None:
            count = verified[1].shape[1]
            coords["cell"] = np.arange(count)
            coords["cell_name"] = ("cell", [p.name for p in found.ended[:count]])
        return coords

    def _verified(self, found: Found, effects: np.ndarray, values: np.ndarray) -> Rows:
        count = min(self.verify, len(found.ended))
        if not count:
            return {}
        rows: Rows = {
            "effect": (("path",), effects[0], "logit", "measured effect of each path, QK fixed", 1),
            "effect_live": (
                ("path",), effects[1], "logit", "measured effect of each path, QK live", 1,
            ),
            "verified": (
                ("measure", "cell"), np.stack([effects[0, :count], values.mean(1)[:count]]),
                "logit", "attribution against measured effect of the best paths", 1,
            ),
        }  # fmt: skip
        return rows

    def _facts(self, maps: Maps, run: Trace, found: Found) -> dict[str, Any]:
        return {
            "observable": self.observable,
            "objective": self.objective,
            "ln": self.ln,
            "stage": "residual",
            "tangent": "own",
            "patterns": "held fixed",
            "search": self.search,
            "paths": float(count_paths(maps.shape, run.length)),
            "evaluations": found.evaluations,
            "n_dropped": found.n_dropped,
        }
