"""Noising: base runs that are the clean prompts with noise on their embeddings."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, clean_buckets
from interp.terms import PromptPairs, UsageError


def noised_buckets(pairs: PromptPairs, at: int | str, noise: np.ndarray) -> list[Bucket]:
    """Clean prompts as both runs; they first differ where the noise begins.

    Args:
        pairs: the task.
        at: where the metric is read.
        noise: ``[prompt, position, d_model]``, zero where nothing is added.

    Raises:
        UsageError: noise for other prompts than the task's.
    """
    longest = max(map(len, pairs.clean))
    if noise.ndim != 3 or len(noise) != len(pairs) or noise.shape[1] < longest:
        raise UsageError(
            f"Noise was given as {list(noise.shape)}; wanted [prompt, position, d_model] with "
            f"{len(pairs)} prompts and at least {longest} positions."
        )
    noised = np.abs(noise).max(2) > 0
    first = np.where(noised.any(1), noised.argmax(1), noise.shape[1])
    return [
        dataclasses.replace(b, first=np.minimum(first[b.rows], b.length))
        for b in clean_buckets(pairs, at)
    ]


def add_noise(x_ND: Tensor, bucket: Bucket, noise: np.ndarray) -> Tensor:
    """Packed embeddings with the noise on the base runs' tokens (they stand first)."""
    n, length = len(bucket), bucket.length
    width = min(length, noise.shape[1])
    own = torch.as_tensor(noise[bucket.rows, :width], dtype=x_ND.dtype, device=x_ND.device)
    x_ND = x_ND.clone()
    x_ND[: n * length].view(n, length, -1)[:, :width] += own
    return x_ND
