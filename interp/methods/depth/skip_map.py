"""SkipMap: what every layer's contribution and the output lose when one layer is skipped."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.depth import Batch, Corpus, Fill, Skip, Skipped, corpus_of
from interp.engine.depth.corpus import kept_limit, tokens_at_once
from interp.engine.depth.wavefront import local_skips, skip_wavefront
from interp.methods.depth.arrays import (
    STATS,
    attrs,
    dataset,
    depth_coords,
    depth_score,
    facts,
    reduced,
    resampled,
)
from interp.methods.depth.contributions import means_of
from interp.terms import (
    Check,
    Context,
    HookedModel,
    Method,
    PromptPairs,
    Texts,
    TooLargeError,
    UsageError,
)

Part = Literal["layer", "attention", "MLP"]
Mode = Literal["current", "future", "local"]
READOUTS = ("output", "effect")
SPACING, MARGIN = 8, 4


class SkipMap(Method):
    """Skip one layer (or its attention, or its MLP) and see what everything behind it loses.

    ``effect[s, l] = ‖c_l - c̄_l‖/‖c_l‖``, c_l what layer l adds, c̄_l the same without layer s;
    ``output[s] = ‖P - P̄‖₂`` of next-token probabilities, at most √2. Modes: **current** skips at
    all positions behind the first; **future** skips at positions before t and measures from t on,
    so that only what was moved between tokens counts; **local** feeds each later layer alone the
    residual without c_s, a direct dependence that nothing passes on. Skipped is put zero (the
    paper), the task's mean, or another prompt's contribution. Depth score Σ l·e_l / Σ e_l. One
    growing batch per chunk, exact. Where c_l vanishes an effect is undefined. Source:
    csordas2025language.
    """

    title: ClassVar[str] = "Skip map"
    question: ClassVar[str] = "Which layers, and the output, need each layer?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = ("csordas2025language",)

    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("layer",)
    """What is skipped: the layer, its attention, its MLP."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("current",)
    """current: all positions; future: positions before t, seen from t on; local: directly."""
    with_: Literal["zero", "mean", "resample"] = "zero"
    """What takes the skipped contribution's place."""
    layer_reduce: Literal["max", "mean", "q95"] = "max"
    """How tokens are put together in the depth score's interval; maps show all three."""
    t_count: Annotated[int, Field(ge=1, le=64, json_schema_extra={"advanced": True})] = 4
    """How many positions t are drawn for the future mode."""
    splits: tuple[int, ...] = Field((), json_schema_extra={"advanced": True})
    """Positions t themselves, from the end where negative; drawn if empty."""
    on_zero: Annotated[
        Literal["undefined", "clamp"], Field(json_schema_extra={"advanced": True})
    ] = "undefined"
    """Effects on a layer that adds nothing: undefined, or divided by at least 1e-6."""
    keep_first: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Skip and count position 0 too, where a beginning of sequence stands."""
    keep_prompts: Annotated[bool, Field(json_schema_extra={"advanced": True})] = True
    """Keep the output's change at every position of every prompt."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Samples of the bootstrap over prompts; 0 for none."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the positions t and of the bootstrap."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``effect [part, mode, stat, layer_skipped, layer]``, ``output``, ``depth_score``."""
        corpus = corpus_of(model, task, keep_first=self.keep_first)
        L = model.shape.n_layers
        self._check(model, corpus)
        limit = kept_limit(context, tokens_at_once(model, context.memory))
        means = means_of(model, corpus, limit) if self.with_ == "mean" else None
        grid = _Grid(self, corpus, L)
        work = [
            (batch, variants, mode)
            for batch in corpus.pieces(max(1, limit // 24))
            for mode, variants in self._variants(batch, L).items()
        ]
        cells = [len(v) * len(b) * b.length for b, v, _ in work]
        done, total = 0.0, float(sum(cells))
        for number, ((batch, variants, mode), size) in enumerate(zip(work, cells, strict=True)):
            found = context.load_chunk(f"skips-{number}")
            if found is None:
                found = self._run(model, batch, variants, mode, means, limit, context,
                                  (done, size, total))  # fmt: skip
                context.save_chunk(f"skips-{number}", found)
            grid.add(batch, variants, mode, found)
            done += size
            context.advance(done, total)
        return self._dataset(model, corpus, grid, context)

    # -- what is skipped ------------------------------------------------------------------------

    @property
    def _pairs(self) -> bool:
        return self.with_ == "resample"

    def _check(self, model: HookedModel, corpus: Corpus) -> None:
        if model.shape.n_layers < 2:
            raise UsageError(
                "This model has one layer; a skip map needs a layer behind the skipped one.",
                remedy="Take a deeper model.",
            )
        alone = [int(b.rows[0]) + 1 for b in corpus.batches if len(b) == 1]
        if self._pairs and alone:
            raise UsageError(
                f"resample lends one prompt's contribution to another, and prompt {alone[0]} is "
                "the only one of its length.",
                remedy="Give two prompts of each length, or with_='mean'.",
            )
        short = [b.length for b in corpus.batches if not self._drawn(b)]
        if "future" in self.modes and short:
            raise UsageError(
                f"The future mode draws t between {SPACING} and the length less {MARGIN}, and a "
                f"prompt has {short[0]} tokens; wanted 13 or more.",
                remedy="Give longer prompts, or positions t in splits (splits=[-1] is the last).",
            )

    def _drawn(self, batch: Batch) -> list[int]:
        """Positions t of the future mode, the same for all prompts of a length."""
        T, first = batch.length, int(np.argmax(batch.counted))
        if self.splits:
            given = sorted({t + T if t < 0 else t for t in self.splits})
            return [t for t in given if first < t < T]
        choices = np.arange(SPACING, T - MARGIN, SPACING)
        if not len(choices):
            return []
        dice = np.random.default_rng([self.seed, T])
        n = min(self.t_count, len(choices))
        return sorted(int(t) for t in dice.choice(choices, n, replace=False))

    def _variants(self, batch: Batch, L: int) -> dict[str, list[Skip]]:
        """mode -> skips of every part and layer, by part, then t, then layer."""
        T, first = batch.length, int(np.argmax(batch.counted))
        out: dict[str, list[Skip]] = {}
        for mode in dict.fromkeys(self.modes):
            stops = self._drawn(batch) if mode == "future" else [T]
            out[mode] = [
                Skip(part, s, first, stop, stop if mode == "future" else first)
                for part in dict.fromkeys(self.parts)
                for stop in stops
                for s in range(L)
            ]
        return out

    # -- running --------------------------------------------------------------------------------

    def _run(
        self,
        model: HookedModel,
        batch: Batch,
        skips: list[Skip],
        mode: str,
        means: Any,
        limit: int,
        context: Context,
        progress: tuple[float, float, float],
    ) -> dict[str, np.ndarray]:
        """One mode over one batch, as many rows at a time as fit."""
        fill = Fill(self.with_)
        if means is not None:
            fill = Fill("mean", *means)
        if self._pairs:
            fill = Fill("resample", donor=batch.donors)
        at_once = max(4, limit // batch.tokens.size)
        order = sorted(range(len(skips)), key=lambda i: skips[i].layer)
        if mode == "local":
            parts = [list(range(len(skips)))]
        else:
            parts = [order[i : i + at_once] for i in range(0, len(order), at_once)]
        B, T, L = len(batch), batch.length, model.shape.n_layers
        effect = np.full((len(skips), L, B, T), np.nan, np.float64)
        output = np.full((len(skips), B, T), np.nan)
        floors, vanishing = np.zeros(2), 0
        done, size, total = progress
        for i, part in enumerate(parts):

            def on_layer(share: float, i: int = i) -> None:
                context.advance(done + size * (i + share) / len(parts), total)

            given = [skips[j] for j in part]
            clamp = self.on_zero == "clamp"
            found: Skipped = (
                local_skips(model.blocks, batch.tokens, given, fill, at_once=at_once, clamp=clamp,
                            on_layer=on_layer)
                if mode == "local"
                else skip_wavefront(model.blocks, batch.tokens, given, fill, clamp=clamp,
                                    on_layer=on_layer)
            )  # fmt: skip
            effect[part], output[part] = found.effect, found.output
            floors = np.maximum(floors, [found.null_effect, found.null_output])
            vanishing = found.vanishing
        return {
            "effect": effect, "output": output, "floors": floors, "vanishing": np.array(vanishing)
        }  # fmt: skip

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(
        self, model: HookedModel, corpus: Corpus, grid: _Grid, context: Context
    ) -> xr.Dataset:
        L = model.shape.n_layers
        dims = ("part", "mode", "stat", "layer_skipped")
        effect, output = grid.maps()
        scores = np.stack([depth_score(output), depth_score(grid.behind(effect))], -1)
        interval = resampled(corpus.n_prompts, self.n_boot, self.seed, grid.scores)
        what = f"{self.with_} in its place"
        inert = np.arange(L)[:, None] > np.arange(L)[None]
        arrays: dict[str, Any] = {
            "effect": ((*dims, "layer"), effect, attrs(
                f"relative change of each layer's contribution ({what})",
                noise_floor=grid.floors[0], low=0.0, high=1.0, n_undefined=grid.vanishing)),
            "output": (dims, output, attrs(
                f"change of the output's probabilities ({what})", noise_floor=grid.floors[1],
                low=0.0, high=float(np.sqrt(2)))),
            "depth_score": (("part", "mode", "stat", "readout"), scores,
                            attrs("depth score", "layer")),
            "inert": (("layer_skipped", "layer"), inert.astype(np.int8),
                      attrs("1 where the layer stands before the skipped one")),
        }  # fmt: skip
        if interval is not None:
            arrays["depth_score_by_prompt_ci"] = (
                ("bound", "part", "mode"),
                interval,
                attrs(f"95 % interval of the output's depth score ({self.layer_reduce})", "layer"),
            )
        if self.keep_prompts:
            arrays["prompt_output"] = (
                ("part", "mode", "prompt", "layer_skipped", "position"), grid.kept,
                attrs(f"change of the output's probabilities ({what})",
                      noise_floor=grid.floors[1], low=0.0, high=float(np.sqrt(2))))  # fmt: skip
        context.check(Check(
            "null_row", "change in a row that skips nothing, in the same batch",
            float(max(grid.floors)), 1e-2,
            note="What rounding alone does; cells below three times this are faded.",
        ))  # fmt: skip
        coords = {
            "part": grid.parts, "mode": grid.modes, "stat": list(STATS), "readout": list(READOUTS),
            "bound": ["low", "high"], **depth_coords(L, "layer_skipped", "layer"),
            "prompt": np.arange(corpus.n_prompts), "position": np.arange(corpus.longest),
        }  # fmt: skip
        return dataset(arrays, coords, facts(
            model, corpus, with_=self.with_, noise_floor=float(max(grid.floors)),
            n_undefined=grid.vanishing, on_zero=self.on_zero,
            splits=", ".join(str(t) for b in corpus.batches for t in self._drawn(b))
            if "future" in self.modes else "none",
        ))  # fmt: skip


class _Grid:
    """Effects of all tokens of all prompts, gathered, then reduced."""

    def __init__(self, spec: SkipMap, corpus: Corpus, L: int) -> None:
        self.parts, self.modes = list(dict.fromkeys(spec.parts)), list(dict.fromkeys(spec.modes))
        self.stat = spec.layer_reduce
        self.L, self.n = L, corpus.n_prompts
        shape = (len(self.parts), len(self.modes))
        self.tokens: dict[tuple[int, int], list[np.ndarray]] = {}
        self.outputs: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        self.kept = np.full((*shape, self.n, L, corpus.longest), np.nan, np.float32)
        self.floors, self.vanishing = [0.0, 0.0], 0
        cells = len(self.parts) * len(self.modes) * L * L * corpus.n_tokens * 8
        if cells > spec_limit():
            raise TooLargeError(
                f"Effects on every token take {cells / 2**30:.1f} GiB.",
                remedy="Give fewer or shorter prompts, or fewer parts and modes at once.",
            )

    def add(self, batch: Batch, skips: list[Skip], mode: str, found: dict[str, np.ndarray]) -> None:
        """One mode of one batch; several t of the future mode stand side by side."""
        effect, output = found["effect"], found["output"]
        self.floors = [max(a, float(b)) for a, b in zip(self.floors, found["floors"], strict=True)]
        self.vanishing += int(found["vanishing"]) if mode == self.modes[0] else 0
        m = [str(known) for known in self.modes].index(mode)
        for p, part in enumerate(self.parts):
            which = [i for i, s in enumerate(skips) if s.part == part]
            shape = (-1, self.L)
            e = effect[which].reshape(*shape, *effect.shape[1:])
            o = output[which].reshape(*shape, *output.shape[1:])
            flat = np.moveaxis(e, 0, -1).reshape(self.L, self.L, -1)
            self.tokens.setdefault((p, m), []).append(flat)
            each = np.moveaxis(o, 2, 0).transpose(0, 2, 1, 3).reshape(len(batch), self.L, -1)
            self.outputs.setdefault((p, m), []).append((batch.rows, each))
            with np.errstate(invalid="ignore"):
                top = np.where(np.isfinite(o), o, -np.inf).max(0)
            top = np.where(np.isfinite(top), top, np.nan)
            self.kept[p, m, batch.rows, :, : batch.length] = top.transpose(1, 0, 2)

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """``effect [part, mode, stat, s, l]`` and ``output [part, mode, stat, s]``."""
        shape = (len(self.parts), len(self.modes), len(STATS), self.L)
        effect, output = np.full((*shape, self.L), np.nan), np.full(shape, np.nan)
        for (p, m), pieces in self.tokens.items():
            values = np.concatenate(pieces, -1)
            outs = np.concatenate(
                [np.moveaxis(o, 0, 1).reshape(self.L, -1) for _, o in self.outputs[p, m]], -1
            )
            for k, stat in enumerate(STATS):
                effect[p, m, k] = reduced(values, stat, -1)
                output[p, m, k] = reduced(outs, stat, -1)
        return effect, output

    def behind(self, effect: np.ndarray) -> np.ndarray:
        """Mean effect on the layers behind each skipped one."""
        later = np.arange(self.L)[:, None] < np.arange(self.L)[None]
        return reduced(np.where(later, effect, np.nan), "mean", -1)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """The output's depth score of these prompts, ``[part, mode]``."""
        out = np.full((len(self.parts), len(self.modes)), np.nan)
        for (p, m), table in self._by_prompt().items():
            values = table[rows]
            if self.stat == "mean":
                total = np.nansum(values[..., 0], 0), np.nansum(values[..., 1], 0)
                e = total[0] / np.maximum(total[1], 1)
            else:
                e = np.nanmax(values[..., 0], 0) if self.stat == "max" else np.nanquantile(
                    values[..., 0], 0.95, axis=0)  # fmt: skip
            out[p, m] = depth_score(e)
        return out

    def _by_prompt(self) -> dict[tuple[int, int], np.ndarray]:
        """Per prompt and skip: the reduced output and how many tokens it stands for."""
        if not hasattr(self, "_table"):
            self._table = {}
            for key, pieces in self.outputs.items():
                table = np.full((self.n, self.L, 2), np.nan)
                for rows, each in pieces:
                    count = np.isfinite(each).sum(-1)
                    if self.stat == "mean":
                        table[rows, :, 0] = np.nansum(each, -1)
                    else:
                        table[rows, :, 0] = reduced(each, self.stat, -1)
                    table[rows, :, 1] = count
                self._table[key] = table
        return self._table


def spec_limit() -> int:
    """Bytes that effects of single tokens may take."""
    return 4 * 2**30
