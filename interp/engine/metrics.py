"""Metrics: one number per prompt from the logits at the metric positions, in fp32 or better.

Shapes: ``logits [row, at, vocab or column]`` are the logits of a row at its metric positions;
``lse [row, at]`` their log-sum-exp over the whole vocabulary. The formulas are those of the
patching literature (see docs/bibliography.bib: zhang2024best, mueller2025mib for KL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.terms import PromptPairs, UsageError, unknown_name


@dataclass(frozen=True)
class Targets:
    """The answers of the prompts in a chunk, as tensors.

    Args:
        columns: token ids whose logits are wanted, ``[column]``; None for the whole vocabulary.
        right: weight of each column for the right answers, ``[prompt, column]``, rows sum to 1.
        wrong: likewise for the wrong answers; a zero row where there is none.
        span: right token of each metric position, ``[prompt, at]``, for spans.
        clean: log-probabilities of the clean run at the metric positions ``[prompt, at, vocab]``.
    """

    columns: Tensor | None
    right: Tensor
    wrong: Tensor
    span: Tensor | None = None
    clean: Tensor | None = None


Score = Callable[[Tensor, Targets, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A metric and how to speak of it.

    Args:
        name: identifier.
        title: words for a label.
        units: unit of the number.
        score: ``(logits [row, at, vocab], targets, prompt of each row [row]) -> [row]``.
        phrase: one sentence on what it measures.
        full: whether it needs the logits of the whole vocabulary.
        wrong: whether it needs wrong answers.
        clean: whether it compares with the clean run.
        span: whether it scores a token span.
        differentiable: whether a gradient of it means something.
    """

    name: str
    title: str
    units: str
    score: Score
    phrase: str
    full: bool = True
    wrong: bool = False
    clean: bool = False
    span: bool = False
    differentiable: bool = True


def _last(logits: Tensor) -> Tensor:
    return logits[:, -1]


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights.to(values)).sum(-1)


def _logit_diff(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    return _weighted(_last(logits), (targets.right - targets.wrong)[prompt])


def _mass(logits: Tensor, weights: Tensor) -> Tensor:
    """log Σ p over the tokens with weight > 0; -inf where there is none."""
    logp = torch.log_softmax(_last(logits), -1)
    return logp.masked_fill(weights.to(logp) <= 0, -torch.inf).logsumexp(-1)


def _prob(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    return _mass(logits, targets.right[prompt]).exp()


def _logprob(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    return _mass(logits, targets.right[prompt])


def _prob_diff(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    right, wrong = targets.right[prompt], targets.wrong[prompt]
    return _mass(logits, right).exp() - _mass(logits, wrong).exp()


def _kl(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    assert targets.clean is not None
    clean = targets.clean[prompt].to(logits)
    logp = torch.log_softmax(logits, -1)
    return (clean.exp() * (clean - logp)).sum(-1).mean(-1)


def _js(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    assert targets.clean is not None
    clean = targets.clean[prompt].to(logits)
    logp = torch.log_softmax(logits, -1)
    mid = torch.logaddexp(clean, logp) - torch.log(torch.tensor(2.0, dtype=logp.dtype))
    js = 0.5 * ((clean.exp() * (clean - mid)).sum(-1) + (logp.exp() * (logp - mid)).sum(-1))
    return js.mean(-1)


def _best(logits: Tensor, weights: Tensor) -> Tensor:
    return _last(logits).masked_fill(weights <= 0, -torch.inf).amax(-1)


def _accuracy(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    best = _best(logits, targets.right[prompt])
    return (best >= _last(logits).amax(-1)).to(logits)


def _rank(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    best = _best(logits, targets.right[prompt])
    return (_last(logits) > best[:, None]).sum(-1).to(logits)


def _span_logprob(logits: Tensor, targets: Targets, prompt: Tensor) -> Tensor:
    assert targets.span is not None
    logp = torch.log_softmax(logits, -1)
    return logp.gather(-1, targets.span[prompt][..., None])[..., 0].sum(-1)


def _listed(*metrics: Metric) -> dict[str, Metric]:
    return {m.name: m for m in metrics}


METRICS: dict[str, Metric] = _listed(
    Metric(
        "logit_diff",
        "logit difference",
        "logit",
        _logit_diff,
        "Mean logit of the right answers minus mean logit of the wrong ones.",
        full=False,
        wrong=True,
    ),
    Metric(
        "prob",
        "probability",
        "probability",
        _prob,
        "Summed probability of the right answers; it misses negative components.",
    ),
    Metric(
        "logprob",
        "log-probability",
        "nat",
        _logprob,
        "Log of the summed probability of the right answers.",
    ),
    Metric(
        "prob_diff",
        "probability difference",
        "probability",
        _prob_diff,
        "Probability of the right answers minus that of the wrong ones.",
        wrong=True,
    ),
    Metric(
        "kl",
        "KL divergence from the clean run",
        "nat",
        _kl,
        "Sum over the vocabulary of p_clean (log p_clean - log p).",
        clean=True,
    ),
    Metric(
        "js",
        "Jensen-Shannon divergence from the clean run",
        "nat",
        _js,
        "Symmetric and bounded by log 2.",
        clean=True,
    ),
    Metric(
        "accuracy",
        "accuracy",
        "fraction",
        _accuracy,
        "1 where the most likely token is a right answer.",
        differentiable=False,
    ),
    Metric(
        "rank",
        "rank of the best right answer",
        "rank",
        _rank,
        "0 where the right answer comes first.",
        differentiable=False,
    ),
    Metric(
        "span_logprob",
        "log-probability of the span",
        "nat",
        _span_logprob,
        "Sum over the span's tokens of log p(token | what stands before).",
        span=True,
    ),
)
"""Every metric by name. Higher is better for all but kl, js and rank."""


def metric_named(name: str) -> Metric:
    """The metric of this name; a UsageError with near misses where there is none."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


def check_metric(metric: Metric, pairs: PromptPairs) -> None:
    """Raise where the task's answers do not fit the metric.

    Raises:
        UsageError: a span metric without spans, or a difference without wrong answers.
    """
    is_span = pairs.answer_form == "span"
    if metric.span != is_span and not metric.clean:
        wanted = "token spans" if metric.span else "sets of single tokens"
        given = "token spans" if is_span else "sets of single tokens"
        raise UsageError(
            f"Metric {metric.name!r} wants answers that are {wanted}; this task has {given}.",
            remedy="Use metric 'span_logprob'." if is_span else "Use metric 'logit_diff'.",
        )
    if metric.wrong and not all(pairs.wrong):
        row = next(i for i, w in enumerate(pairs.wrong) if not w)
        raise UsageError(
            f"Metric {metric.name!r} needs wrong answers, and prompt {row + 1} has none.",
            remedy="Give wrong answers, or use metric 'logprob'.",
        )


def targets_of(
    pairs: PromptPairs, rows: list[int], metric: Metric, vocab: int, device: torch.device
) -> Targets:
    """The answers of these prompts as tensors.

    Args:
        pairs: the task.
        rows: which prompts, in the order of the chunk.
        metric: decides whether all columns or only the answers' are kept.
        vocab: size of the vocabulary.
        device: where the tensors go.
    """
    used = sorted({t for i in rows for t in (*pairs.right[i], *pairs.wrong[i])})
    if used and used[-1] >= vocab:
        raise UsageError(
            f"Answer token {used[-1]} is outside the model's vocabulary of {vocab} tokens."
        )
    columns = None if metric.full else torch.tensor(used, device=device)
    place = {t: (t if columns is None else c) for c, t in enumerate(used)}
    width = vocab if columns is None else len(used)
    weights = torch.zeros(2, len(rows), width, dtype=torch.float64)
    for r, i in enumerate(rows):
        for side, answers in enumerate((pairs.right[i], pairs.wrong[i])):
            for token in answers:
                weights[side, r, place[token]] += 1 / len(answers)
    span = None
    if pairs.answer_form == "span":
        span = torch.tensor([pairs.right[i] for i in rows], device=device)
    return Targets(columns, weights[0].to(device), weights[1].to(device), span)
