"""PairCheck: can the model do this at all, and do the two prompts differ in what it says?"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.engine import METRICS, Metric, answers, likeliest, score_answers
from interp.methods.explore.sides import dataset
from interp.terms import Check, Context, HookedModel, Method, PromptPairs

SHOWN = ("logit_diff", "prob", "logprob", "prob_diff", "rank", "accuracy", "span_logprob")


class PairCheck(Method):
    """Baseline metrics of both prompts and their likeliest answers, before anything is patched."""

    title: ClassVar[str] = "Pair check"
    question: ClassVar[str] = "Can the model do this task, and do the prompts differ?"

    top_k: Annotated[int, Field(ge=1, le=100)] = 10
    """So many tokens at the metric position."""

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """Metrics ``[side, prompt]``; ``probability`` and ``token_id [side, prompt, top]``."""
        sides = [answers(model, task, side) for side in ("clean", "corrupt")]
        data = {}
        for metric in fitting(task):
            values = np.stack([score_answers(task, metric, logits) for logits in sides])
            signed = int(metric.name in ("logit_diff", "prob_diff"))
            data[metric.name] = (("side", "prompt"), values, metric.units, metric.title, signed)
        tops = [likeliest(logits, self.top_k) for logits in sides]
        dims = ("side", "prompt", "top")
        data["probability"] = (dims, np.stack([t[1] for t in tops]), "1", "probability", 0)
        data["token_id"] = (dims, np.stack([t[0] for t in tops]), "token", "next token", 0)
        self._check(data, context)
        return dataset(data, {"side": ["clean", "corrupt"], "prompt": np.arange(len(task))})

    def _check(self, data: dict, context: Context) -> None:
        if "accuracy" in data:
            right = float(data["accuracy"][1][0].mean())
            context.check(
                Check(
                    "baseline_accuracy",
                    "clean prompts answered right",
                    right,
                    0.5,
                    at_least=True,
                    note="Below this the model cannot do the task, and patching explains noise.",
                )
            )
        name = "logit_diff" if "logit_diff" in data else "logprob"
        name = name if name in data else "span_logprob"
        clean, corrupt = data[name][1]
        context.check(
            Check(
                "metric_gap",
                "mean gap between clean and corrupt",
                float((clean - corrupt).mean()),
                1e-3,
                at_least=True,
                note="Effects are shares of this gap; without one they are undefined.",
            )
        )


def fitting(task: PromptPairs) -> list[Metric]:
    """The metrics that a task's answers allow."""
    span = task.answer_form == "span"
    found = [METRICS[n] for n in SHOWN if METRICS[n].span == span]
    return [m for m in found if not m.wrong or all(task.wrong)]
