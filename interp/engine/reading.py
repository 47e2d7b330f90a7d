"""Reading: values, probabilities and likely tokens of ordinary runs, as arrays of float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from interp.engine.buckets import buckets_of
from interp.engine.metrics import Metric, targets_of
from interp.engine.plain import metric_logits, patched_logits
from interp.engine.plans import Cell
from interp.terms import HookedModel, PromptPairs, Site, UsageError


def _array(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def run_reads(
    model: HookedModel, tokens: np.ndarray, sites: Sequence[Site]
) -> dict[Site, np.ndarray]:
    """Values of sites in one run, ``[prompt, position, *site dims]``."""
    with torch.no_grad():
        run = model.run(tokens, read=sites, positions=[-1])
    return {s: _array(run.reads[s]) for s in sites}


def run_probabilities(model: HookedModel, tokens: np.ndarray) -> np.ndarray:
    """Next-token probabilities, ``[prompt, position, vocab]``."""
    with torch.no_grad():
        logits = model.run(tokens).logits
    return _array(
        logits.float().softmax(-1) if logits.dtype != torch.float64 else logits.softmax(-1)
    )


def answers(
    model: HookedModel,
    pairs: PromptPairs,
    side: str,
    *,
    at: int | str = "last",
    cell: Cell | None = None,
    direction: str = "denoising",
) -> list[torch.Tensor]:
    """Logits at the metric positions of each prompt, ``[at, vocab]`` in fp32 or better.

    Args:
        model: any adapter.
        pairs: the prompts.
        side: ``clean``, ``corrupt``, or ``patched`` (the base run under ``cell``).
        at: where the metric is read.
        cell: the edits of the patched run.
        direction: which run is the base of the patched one.

    Raises:
        UsageError: the cell's positions have no counterpart in the other prompt.
    """
    out: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
    for bucket in buckets_of(pairs, direction if side == "patched" else "denoising", at):
        tokens, where = (
            (bucket.source, bucket.at_source) if side == "clean" else (bucket.base, bucket.at)
        )
        with torch.no_grad():
            logits = (
                metric_logits(model, tokens, where)[0]
                if cell is None
                else patched_logits(model, cell, bucket, pairs)
            )
        if logits is None:
            raise UsageError("This position has no counterpart in the other prompt.")
        for i, row in enumerate(bucket.rows):
            out[row] = logits[i]
    return out


def score_answers(
    pairs: PromptPairs,
    metric: Metric,
    logits: list[torch.Tensor],
    clean: list[torch.Tensor] | None = None,
) -> np.ndarray:
    """A metric of each prompt from its ``answers``; ``clean`` for metrics that compare."""
    out = np.full(len(pairs), np.nan)
    for i, row in enumerate(logits):
        targets = targets_of(pairs, [i], metric, row.shape[-1], row.device)
        if metric.clean and clean is not None:
            targets = dataclasses.replace(targets, clean=clean[i].log_softmax(-1)[None])
        chosen = row if targets.columns is None else row[:, targets.columns]
        first = torch.zeros(1, dtype=torch.long, device=row.device)
        out[i] = metric.score(chosen[None], targets, first).item()
    return out


def likeliest(logits: list[torch.Tensor], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest tokens at the first metric position: ids and probabilities ``[prompt, k]``."""
    p = torch.stack([row[0].double().softmax(-1) for row in logits])
    best = p.topk(min(k, p.shape[-1]))
    return best.indices.cpu().numpy(), best.values.cpu().numpy()


def head_writing(
    model: HookedModel, layer: int, head: int, z: np.ndarray, scale: float
) -> np.ndarray:
    """Logits that a head's outputs promote, with the final norm's divisor held at ``scale``.

    Args:
        model: its blocks and weights are used.
        layer: layer of the head.
        head: which.
        z: head outputs before W_O, ``[source, d_head]``.
        scale: divisor of the final norm.

    Returns:
        ``[source, vocab]``, centred over the vocabulary.
    """
    blocks = model.blocks
    with torch.no_grad():
        value = torch.as_tensor(z, dtype=blocks.dtype, device=blocks.device)
        write = blocks.layers[layer].head_write(value, head).double()
        weights = model.weights
        if weights.final_centres:
            write = write - write.mean(-1, keepdim=True)
        gain = weights.ln_final_w
        if gain is not None:
            write = write * gain.double()
        logits = write / scale @ weights.W_U.double()
        return _array(logits - logits.mean(-1, keepdim=True))
