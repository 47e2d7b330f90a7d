"""LayerPrograms: the model's layers skipped, repeated, swapped and run side by side."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine.depth import Corpus, corpus_of
from interp.engine.depth.corpus import kept_limit, tokens_at_once
from interp.engine.depth.programs import Program, plain
from interp.methods.depth.arrays import attrs, dataset, depth_coords, facts, resampled
from interp.methods.depth.judging import Judged, judge
from interp.terms import Context, HookedModel, Method, PromptPairs, Texts, UsageError

Move = Literal["skip", "repeat", "swap", "parallel"]
CONTROLS = ("the model", "best of its programs", "best of random programs", "shuffled answers")


class LayerPrograms(Method):
    """Other orders of a model's layers, every contiguous one, and whether they answer better.

    Skips and repeats of 1 … ``longest`` layers in a row (each occurrence with its own keys and
    values), swaps of neighbours, windows of layers that all read one residual. Of N programs the
    best for each prompt looks good by chance alone: of random guesses among k answers
    1 - (1 - 1/k)^N are right. So beside the share of prompts that some program answers stand as
    many random programs of the same lengths, the same programs rewarded for shuffled answers, and
    the accuracy of the best single program on prompts it was not chosen on. Source: li2025skip.
    """

    title: ClassVar[str] = "Layer programs"
    question: ClassVar[str] = "Would the layers do better, or as well, in another order?"
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    citations: ClassVar[tuple[str, ...]] = ("li2025skip", "veit2016residual")

    moves: Annotated[tuple[Move, ...], Field(min_length=1)] = ("skip", "repeat", "swap", "parallel")
    """What is done to the layers."""
    longest: Annotated[int, Field(ge=1, le=32)] = 4
    """Longest stretch of layers in a row."""
    most_times: Annotated[int, Field(ge=2, le=8)] = 3
    """A stretch is run up to so many times."""
    custom: tuple[tuple[int, ...], ...] = Field((), json_schema_extra={"advanced": True})
    """Programs of your own: layer numbers in the order they run."""
    held_out: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"advanced": True})] = 0.5
    """Share of the prompts on which the best program is not chosen."""
    n_boot: Annotated[int, Field(ge=0, le=100_000, json_schema_extra={"advanced": True})] = 1000
    """Samples of the bootstrap over prompts; 0 for none."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of random programs, the split and the shuffling."""

    def measure(
        self, model: HookedModel, task: Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``delta_loss [program]``, maps by move, and ``solved [control]``."""
        corpus = corpus_of(model, task)
        L = model.shape.n_layers
        named = self._programs(L)
        control = self._random(named, L)
        programs = [plain(range(L)), *(p for _, _, p in named), *control]
        limit = kept_limit(context, tokens_at_once(model, context.memory))
        judged = judge(
            model, corpus, programs, limit, context, share=lambda s: context.advance(s, 1.0)
        )
        return self._dataset(model, corpus, named, judged, len(control))

    # -- programs -------------------------------------------------------------------------------

    def _programs(self, L: int) -> list[tuple[str, tuple[Any, ...], Program]]:
        """(name, where it stands, program) of every move."""
        for own in self.custom:
            bad = [layer for layer in own if not 0 <= layer < L]
            if not own or bad:
                raise UsageError(
                    f"The program {list(own)} {'runs no layer' if not own else f'runs {bad[0]}'}; "
                    f"wanted layers 0 to {L - 1}.",
                    remedy="Write at least one layer, counted from 0.",
                )
        out: list[tuple[str, tuple[Any, ...], Program]] = []
        moves = dict.fromkeys(self.moves)
        every = list(range(L))
        for length in range(1, min(self.longest, L) + 1):
            for i in range(L - length + 1):
                stretch = every[i : i + length]
                words = f"{i}" if length == 1 else f"{i}-{i + length - 1}"
                if "skip" in moves and length < L:
                    rest = plain([*every[:i], *every[i + length :]])
                    out.append((f"skip {words}", ("skip", length, i), rest))
                for times in range(2, self.most_times + 1) if "repeat" in moves else ():
                    again = plain([*every[:i], *stretch * times, *every[i + length :]])
                    out.append((f"{words} × {times}", ("repeat", times, length, i), again))
                if "parallel" in moves and length > 1:
                    stage = tuple((layer, "layer") for layer in stretch)
                    beside = (*plain(every[:i]), stage, *plain(every[i + length :]))
                    out.append((f"{words} side by side", ("parallel", length, i), beside))
        for i in range(L - 1) if "swap" in moves else ():
            swapped = [*every[:i], i + 1, i, *every[i + 2 :]]
            out.append((f"swap {i}, {i + 1}", ("swap", i), plain(swapped)))
        for own in self.custom:
            out.append((" ".join(map(str, own)), ("custom",), plain(own)))
        return out

    def _random(self, named: list[tuple[str, tuple[Any, ...], Program]], L: int) -> list[Program]:
        """As many random programs, each as long as one of the others."""
        dice = np.random.default_rng([self.seed, 1])
        lengths = [sum(len(stage) for stage in program) for _, _, program in named]
        return [plain([int(x) for x in dice.integers(0, L, n)]) for n in lengths]

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(
        self,
        model: HookedModel,
        corpus: Corpus,
        named: list[tuple[str, tuple[Any, ...], Program]],
        judged: Judged,
        n_control: int,
    ) -> xr.Dataset:
        n, L = len(named), model.shape.n_layers
        loss, kl = judged.mean_loss(), judged.mean_kl()
        own = slice(1, 1 + n)
        arrays: dict[str, Any] = self._maps(named, loss[own] - loss[0], L)
        solved = self._solved(judged, n, np.arange(corpus.n_prompts))
        arrays["solved"] = (
            ("control",),
            solved,
            attrs("prompts answered right by the model, or by some program"),
        )
        interval = resampled(corpus.n_prompts, self.n_boot, self.seed,
                             lambda rows: self._solved(judged, n, rows))  # fmt: skip
        if interval is not None:
            arrays["solved_ci"] = (("bound", "control"), interval, attrs("95 % bootstrap interval"))
        arrays["delta_loss"] = (
            ("program",),
            loss[own] - loss[0],
            attrs("change of the loss", "nat", 1),
        )
        arrays["kl"] = (("program",), kl[own], attrs("KL(model‖program)", "nat"))
        arrays["accuracy"] = (
            ("program",),
            judged.right[own].mean(1),
            attrs("prompts answered right"),
        )
        arrays["margin"] = (
            ("program",),
            judged.margin[own].mean(1),
            attrs("log p(right) - log p(best other)", "nat", 1),
        )
        found = self._found(judged, n)
        coords: dict[str, Any] = {
            "program": np.arange(n), "program_name": ("program", [name for name, _, _ in named]),
            "control": list(CONTROLS), "bound": ["low", "high"], **depth_coords(L, "layer"),
            "window": np.arange(1, min(self.longest, L) + 1),
            "times": np.arange(2, self.most_times + 1),
        }  # fmt: skip
        best = named[found["best"]][0] if n else ""
        return dataset(arrays, coords, facts(
            model, corpus, n_programs=n, n_random=n_control, loss=float(loss[0]), best_program=best,
            best_chosen_accuracy=found["chosen"], best_held_out_accuracy=found["held_out"],
            model_held_out_accuracy=found["model"], best_held_out_margin=found["margin"],
            n_undefined=0,
        ))  # fmt: skip

    def _maps(
        self, named: list[tuple[str, tuple[Any, ...], Program]], delta: np.ndarray, L: int
    ) -> dict[str, Any]:
        W = min(self.longest, L)
        maps = {
            "skip": np.full((W, L), np.nan), "parallel": np.full((W, L), np.nan),
            "repeat": np.full((self.most_times - 1, W, L), np.nan), "swap": np.full(L, np.nan),
        }  # fmt: skip
        for (_, where, _), value in zip(named, delta, strict=True):
            move, *place = where
            if move == "swap":
                maps["swap"][place[0]] = value
            elif move == "repeat":
                maps["repeat"][place[0] - 2, place[1] - 1, place[2]] = value
            elif move != "custom":
                maps[move][place[0] - 1, place[1]] = value
        dims = {
            "skip": ("window", "layer"), "parallel": ("window", "layer"), "swap": ("layer",),
            "repeat": ("times", "window", "layer"),
        }  # fmt: skip
        words = {
            "skip": "without so many layers from here on",
            "swap": "with this layer and the next swapped",
            "parallel": "with so many layers from here on side by side",
            "repeat": "with so many layers from here on repeated",
        }  # fmt: skip
        return {
            f"{move}_loss": (dims[move], maps[move],
                             attrs(f"change of the loss {words[move]}", "nat", 1))
            for move in dict.fromkeys(self.moves)
        }  # fmt: skip

    def _solved(self, judged: Judged, n: int, rows: np.ndarray) -> np.ndarray:
        """Shares of ``CONTROLS`` over these prompts."""
        right = judged.right[:, rows]
        given = judged.answer[: 1 + n, rows]
        dice = np.random.default_rng([self.seed, 2])
        # the reward of a shuffled answer: for what is right of another prompt
        lucky = given == judged.truth[dice.permutation(len(judged.truth))][rows]
        return np.array([
            right[0].mean(), right[: 1 + n].any(0).mean(),
            right[1 + n :].any(0).mean() if len(right) > 1 + n else np.nan, lucky.any(0).mean(),
        ])  # fmt: skip

    def _found(self, judged: Judged, n: int) -> dict[str, Any]:
        """The best single program on some prompts, and what it does on the others."""
        m = judged.right.shape[1]
        order = np.random.default_rng([self.seed, 3]).permutation(m)
        cut = max(1, min(m - 1, round(m * (1 - self.held_out)))) if m > 1 else 1
        chosen, rest = order[:cut], order[cut:] if m > 1 else order
        score = judged.right[1 : 1 + n][:, chosen].mean(1)
        loss = judged.mean_loss(chosen)[1 : 1 + n]
        best = int(np.lexsort((loss, -score))[0])
        return {
            "best": best, "chosen": float(score[best]),
            "held_out": float(judged.right[1 + best, rest].mean()),
            "model": float(judged.right[0, rest].mean()),
            "margin": float(judged.margin[1 + best, rest].mean()),
        }  # fmt: skip
