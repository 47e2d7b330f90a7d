"""BlockJacobian: how far each layer is from the identity, and how gradients fare on the way."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from interp.engine.depth import corpus_of, walk
from interp.engine.depth.corpus import tokens_at_once
from interp.engine.depth.jacobians import TokenMap, exact, from_identity, loss_gradients
from interp.methods.depth.arrays import attrs, dataset, depth_coords, facts
from interp.methods.depth.outliers import ATTENTION, LINEAR, weights_of
from interp.terms import Context, HookedModel, Method, PromptPairs, TaskError, Texts

WHOLE = 128
"""Widest model whose Jacobians are computed whole by default."""
PARTS = ("attention", "MLP")


class BlockJacobian(Method):
    """J = ∂H_{l+1}[t]/∂H_l[t] with other positions fixed, and gradient norms of the loss.

    ``identity[l] = ‖J - I‖_F/√d`` and, where J is computed whole, mean |off-diagonal| over mean
    |diagonal|; of a wide model ‖J - I‖_F² is the mean of ‖(J - I)ᵀv‖² over random signs v, with
    its standard error. ``boundary_gradient[l] = ‖∂loss/∂H_l‖``, ``weight_gradient[l, part]`` that
    of a part's linear weights. Pre-norm models grow their residual with depth, and deep layers
    tend to the identity. Sources: sun2025curse, li2025mixln.
    """

    title: ClassVar[str] = "Block Jacobian"
    question: ClassVar[str] = "Which layers do little more than pass their input on?"
    needs: ClassVar[tuple[str, ...]] = ("blocks", "grad")
    citations: ClassVar[tuple[str, ...]] = ("sun2025curse", "li2025mixln")

    n_tokens: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Tokens at which Jacobians are taken, drawn from all that count."""
    estimator: Literal["auto", "whole", "probes"] = "auto"
    """Whole Jacobians, or random probes; auto computes whole ones up to a width of 128."""
    draws: Annotated[int, Field(ge=2, le=4096, json_schema_extra={"advanced": True})] = 32
    """Random probes of each token."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Count position 0 too, where a beginning of sequence stands."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Which tokens and probes are drawn."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``identity [layer]``, ``off_diagonal``, ``boundary_gradient``, ``weight_gradient``."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        L, d = model.shape.n_layers, model.shape.d_model
        whole = self.estimator == "whole" or (self.estimator == "auto" and d <= WHOLE)
        limit = tokens_at_once(model, context.memory, held=12 * L)
        chosen = self._chosen(corpus)
        square: list[np.ndarray] = [np.empty((L, 0))]
        spread: list[np.ndarray] = [np.empty((L, 0))]
        ratio: list[np.ndarray] = [np.empty((L, 0))]
        generator = torch.Generator().manual_seed(self.seed)
        total = sum(int(b.scored.sum()) for b in corpus.batches)
        sums = _Sums(model, corpus, total)
        pieces = list(corpus.pieces(max(1, limit // 2)))
        for done, batch in enumerate(pieces):
            picks = [(list(batch.rows).index(r), t) for r, t in chosen if r in batch.rows]
            if picks:
                a, b, c = self._tokens(model, batch, picks, whole, generator, limit)
                square.append(a)
                spread.append(b)
                ratio.append(c)
            if total:
                sums.add(batch)
            context.advance(done + 1, len(pieces))
        return self._dataset(model, corpus, [np.concatenate(x, 1) for x in (square, spread, ratio)],
                             sums, whole)  # fmt: skip

    def _chosen(self, corpus: Any) -> list[tuple[int, int]]:
        every = [
            (int(r), int(t))
            for b in corpus.batches
            for r in b.rows
            for t in np.flatnonzero(b.counted)
        ]
        dice = np.random.default_rng(self.seed)
        pick = dice.choice(len(every), min(self.n_tokens, len(every)), replace=False)
        return [every[i] for i in sorted(pick)]

    def _tokens(
        self,
        model: HookedModel,
        batch: Any,
        picks: list[tuple[int, int]],
        whole: bool,
        generator: torch.Generator,
        limit: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """‖J - I‖_F², its variance over probes, and the off-diagonal ratio: ``[layer, token]``."""
        device, d = model.blocks.device, model.shape.d_model
        rows, at = (torch.tensor(c, device=device) for c in zip(*picks, strict=True))
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        at_once = max(1, limit // batch.length * 4)
        with torch.no_grad():
            for step in walk(model.blocks, batch.tokens):
                mapped = TokenMap(step.block, step.resid, rows, at)
                if whole:
                    j = exact(mapped, at_once).double()
                    away = j - torch.eye(d, dtype=j.dtype, device=device)
                    own = j.diagonal(dim1=1, dim2=2).abs().mean(-1)
                    off = (j.abs().sum((1, 2)) - own * d) / max(d * (d - 1), 1)
                    values = away.square().sum((1, 2)), torch.zeros_like(own), off / own
                else:
                    probed = from_identity(mapped, self.draws, generator, at_once).double()
                    error = probed.var(-1) / self.draws
                    values = probed.mean(-1), error, torch.full_like(error, torch.nan)
                found.append(tuple(v.cpu().numpy() for v in values))  # type: ignore[arg-type]
        return tuple(np.stack(column) for column in zip(*found, strict=True))  # type: ignore[return-value]

    def _dataset(
        self, model: HookedModel, corpus: Any, found: list[np.ndarray], sums: _Sums, whole: bool
    ) -> xr.Dataset:
        L, d = model.shape.n_layers, model.shape.d_model
        square, spread, ratio = found
        each = np.sqrt(square / d)
        with np.errstate(invalid="ignore", divide="ignore"):
            probe = np.sqrt(spread) / (2 * np.sqrt(square * d))
        n = each.shape[1]
        between = each.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(L, np.nan)
        error = np.sqrt(np.nan_to_num(between) ** 2 + (np.nan_to_num(probe) ** 2).sum(1) / n**2)
        arrays: dict[str, Any] = {
            "identity": (("layer",), each.mean(1), attrs("distance from the identity, ‖J - I‖/√d")),
            "identity_se": (("layer",), error, attrs("standard error over tokens and probes")),
            "off_diagonal": (("layer",), ratio.mean(1), attrs(
                "mean |off-diagonal| / mean |diagonal| of J",
                undefined_reason="" if whole else "probes do not show single entries")),
        }  # fmt: skip
        if sums.total:
            arrays["boundary_gradient"] = (
                ("boundary",),
                sums.boundary(),
                attrs("‖∂loss/∂H‖", "nat"),
            )
            arrays["weight_gradient"] = (
                ("part", "layer"),
                sums.weights(),
                attrs("‖∂loss/∂weights‖", "nat"),
            )
        coords = {**depth_coords(L, "layer", "boundary"), "part": list(PARTS)}
        return dataset(arrays, coords, facts(
            model, corpus, estimator="whole" if whole else "probes", jacobian_tokens=n,
            loss=sums.loss if sums.total else float("nan"),
        ))  # fmt: skip


class _Sums:
    """Gradient norms of the mean loss, batch by batch."""

    def __init__(self, model: HookedModel, corpus: Any, total: int) -> None:
        self.model, self.total, self.loss = model, total, 0.0
        mlp = tuple(n for n in LINEAR if n not in ATTENTION)
        self.groups = [weights_of(b, names) for names in (ATTENTION, mlp)
                       for b in model.blocks.layers]  # fmt: skip
        self.square = np.zeros(model.shape.n_layers + 1)
        self.sums: list[list[torch.Tensor]] | None = None
        if corpus.batches and not total:
            raise TaskError(
                "No token of these prompts has a successor, so there is no loss.",
                remedy="Give longer prompts.",
            )

    def add(self, batch: Any) -> None:
        """One batch."""
        loss, boundary, weights = loss_gradients(
            self.model.blocks, batch, self.groups, self.total, self.model.shape.vocab
        )
        self.loss += loss
        self.square += [float(g.double().square().sum()) for g in boundary]
        if self.sums is None:
            self.sums = weights
        else:
            self.sums = [
                [a + b for a, b in zip(x, y, strict=True)]
                for x, y in zip(self.sums, weights, strict=True)
            ]

    def boundary(self) -> np.ndarray:
        """``[boundary]``."""
        return np.sqrt(self.square)

    def weights(self) -> np.ndarray:
        """``[part, layer]``."""
        assert self.sums is not None
        norms = [sum(float(g.double().square().sum()) for g in group) ** 0.5 for group in self.sums]
        return np.array(norms).reshape(len(PARTS), -1)
