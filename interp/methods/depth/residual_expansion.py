"""ResidualExpansion: how many sublayers paths go through, and whether layers need their order."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.depth import Corpus, corpus_of, wide
from interp.engine.depth.corpus import kept_limit, tokens_at_once
from interp.engine.depth.orders import order_spectrum
from interp.engine.depth.programs import Program, plain
from interp.methods.depth.arrays import attrs, dataset, depth_coords, facts
from interp.methods.depth.judging import judge
from interp.terms import Check, Context, HookedModel, Method, PromptPairs, Texts

LOGIT_SHARE = 8
"""Logits of all tokens of a batch may take this share of the memory."""


class ResidualExpansion(Method):
    """The residual split by order, layers that read one residual, and random lesions.

    With patterns, norm scales and activation factors held at the run's own values every sublayer u
    is affine, and E_k, what went through k of them, follows E_k ← E_k + J_u E_{k-1},
    E_0 ← E_0 + bias. Σ_k E_k is the forward pass, whose residual is shown. ``window_kl[w, i]``:
    layers i … i+w-1 all read H_i; w = 1 is the model. ``lesion_loss[k]``: k random layers gone.
    Sources: bermeitinger2023make, dherin2025residual, veit2016residual.
    """

    title: ClassVar[str] = "Residual expansion"
    question: ClassVar[str] = "Do layers build on each other, or work side by side?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = (
        "bermeitinger2023make", "dherin2025residual", "veit2016residual",
    )  # fmt: skip

    max_order: Annotated[int, Field(ge=1, le=400)] = 24
    """Highest order shown by itself; the last bar gathers what lies beyond it."""
    longest: Annotated[int, Field(ge=1, le=64)] = 6
    """Longest window of layers that read one residual."""
    draws: Annotated[int, Field(ge=1, le=1000)] = 8
    """Random sets of layers that are left out, of each size."""
    max_drop: Annotated[int, Field(ge=1, le=200, json_schema_extra={"advanced": True})] = 6
    """Most layers left out at once."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Count position 0 in the spectrum too, where a beginning of sequence stands."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the random sets."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``spectrum [order]``, ``logit_spectrum``, ``window_kl [window, layer]``, lesions."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        L = model.shape.n_layers
        most = min(self.max_order, 2 * L)
        limit = kept_limit(context, tokens_at_once(model, context.memory))
        spectrum, apart = self._spectrum(model, corpus, most, context)
        windows = [
            (w, i) for w in range(1, min(self.longest, L) + 1) for i in range(L - w + 1)
        ]  # fmt: skip
        lesions = self._lesions(L)
        programs = [plain(range(L)), *(_window(L, i, w) for w, i in windows), *lesions]
        judged = judge(
            model, corpus, programs, limit, context,
            share=lambda s: context.advance(0.4 + 0.6 * s, 1.0),
        )  # fmt: skip
        context.check(Check(
            "orders_sum_to_the_forward_pass", "largest |Σ E_k - H_L| in standard deviations",
            apart, 1e-5 if model.blocks.dtype.itemsize == 8 else 1e-3,
            note="The frozen network is the model itself at this run.",
        ))  # fmt: skip
        loss, kl = judged.mean_loss(), judged.mean_kl()
        n = len(windows)
        maps = np.full((2, min(self.longest, L), L), np.nan)
        for (w, i), j in zip(windows, range(1, 1 + n), strict=True):
            maps[:, w - 1, i] = kl[j], loss[j] - loss[0]
        gone = (loss[1 + n :] - loss[0]).reshape(-1, self.draws)
        return self._dataset(model, corpus, spectrum, maps, gone, apart)

    def _spectrum(
        self, model: HookedModel, corpus: Corpus, most: int, context: Context
    ) -> tuple[np.ndarray, float]:
        """Mean lengths ``[residual | logits | part of H_L, order]``."""
        size = model.shape.vocab * 8 * LOGIT_SHARE
        limit = min(tokens_at_once(model, context.memory, held=12 + most),
                    max(1, context.memory // size))  # fmt: skip
        total, worst = np.zeros((3, most + 1)), 0.0
        pieces = list(corpus.pieces(limit))
        for number, batch in enumerate(pieces):

            def on_layer(share: float, number: int = number) -> None:
                context.advance(0.4 * (number + share) / len(pieces), 1.0)

            parts, logits, last, apart = order_spectrum(model, batch.tokens, most, on_layer)
            worst, first = max(worst, apart), int(batch.counted.argmax())
            seen, end = wide(parts[:, :, first:]), wide(last[:, first:])
            along = (seen * end).sum(-1) / end.square().sum(-1)
            for i, value in enumerate((seen.norm(dim=-1), wide(logits[:, :, first:]), along)):
                total[i] += value.double().sum((1, 2)).cpu().numpy()
        return total / corpus.n_tokens, worst

    def _lesions(self, L: int) -> list[Program]:
        dice = np.random.default_rng(self.seed)
        out = []
        for k in range(1, min(self.max_drop, L - 1) + 1):
            for _ in range(self.draws):
                gone = set(dice.choice(L, k, replace=False).tolist())
                out.append(plain([i for i in range(L) if i not in gone]))
        return out

    def _dataset(
        self,
        model: HookedModel,
        corpus: Corpus,
        spectrum: np.ndarray,
        maps: np.ndarray,
        gone: np.ndarray,
        apart: float,
    ) -> xr.Dataset:
        L = model.shape.n_layers
        error = gone.std(1, ddof=1) / np.sqrt(gone.shape[1]) if gone.shape[1] > 1 else (
            np.full(len(gone), np.nan))  # fmt: skip
        arrays: dict[str, Any] = {
            "spectrum": (("order",), spectrum[0], attrs("length of what went through so many "
                                                        "sublayers")),
            "share": (("order",), spectrum[2], attrs("share of the last residual (sums to 1)",
                                                     signed=1)),
            "logit_spectrum": (("order",), spectrum[1], attrs("length of its part of the logits")),
            "window_kl": (("window", "layer"), maps[0],
                          attrs("KL(model‖so many layers from here on read one residual)", "nat")),
            "window_loss": (("window", "layer"), maps[1],
                            attrs("change of the loss when layers read one residual", "nat", 1)),
            "lesion_loss": (("drop",), gone.mean(1),
                            attrs("change of the loss without random layers", "nat", 1)),
            "lesion_loss_se": (("drop",), error, attrs("standard error over draws", "nat")),
        }  # fmt: skip
        coords: dict[str, Any] = {
            "order": np.arange(spectrum.shape[1]), **depth_coords(L, "layer"),
            "window": np.arange(1, maps.shape[1] + 1), "drop": np.arange(1, len(gone) + 1),
        }  # fmt: skip
        return dataset(arrays, coords, facts(
            model, corpus, sum_residual=apart, last_order_gathers_higher_ones=int(
                spectrum.shape[1] <= 2 * L), n_undefined=0))  # fmt: skip


def _window(L: int, start: int, width: int) -> Program:
    """Layers start … start + width - 1 read one residual."""
    stage = tuple((layer, "layer") for layer in range(start, start + width))
    return (*plain(range(start)), stage, *plain(range(start + width, L)))
