"""Training a small language model on the grammar: one deterministic loop for every architecture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.training.batches import Batch, batches
from interp.training.vocabulary import Words

Say = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Args:
        steps: batches the learning rate is planned over.
        stop: batches trained on, if fewer: the rest of the plan is cut off.
        rows: sentences a batch.
        rate: highest learning rate, reached after ``warm`` steps, then falling to a tenth as a
            cosine.
        warm: steps of rise.
        decay: weight decay of the matrices.
        other: loss weight of words that are no answer.
        seed: of the weights and the data.
    """

    steps: int = 5000
    stop: int | None = None
    rows: int = 128
    rate: float = 2e-3
    warm: int = 200
    decay: float = 0.1
    other: float = 0.1
    seed: int = 0

    @property
    def length(self) -> int:
        """Batches trained on."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warm:
            return self.rate * (step + 1) / self.warm
        part = (step - self.warm) / max(1, self.steps - self.warm)
        return self.rate * (0.1 + 0.9 * (1 + math.cos(math.pi * part)) / 2)


def loss_of(module: nn.Module, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next words."""
    keep = batch.weight > 0
    logits = module(batch.tokens, keep)
    following = batch.tokens.roll(-1, dims=1)[keep]
    weight = batch.weight[keep]
    return (F.cross_entropy(logits, following, reduction="none") * weight).sum() / weight.sum()


def train(
    module: nn.Module,
    schedule: Schedule,
    tokenizer: Words,
    say: Say,
    look: Callable[[int], None] | None = None,
) -> float:
    """Train in place; the same schedule on the same machine gives the same bits.

    Args:
        module: takes tokens and a mask, gives logits.
        schedule: see there.
        tokenizer: words to ids.
        say: told the progress about every 200 steps.
        look: called after every 500 steps with the step's number.

    Returns:
        Seconds.
    """
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": schedule.decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=schedule.rate,
        betas=(0.9, 0.98),
    )
    stream = batches(schedule.seed, schedule.rows, schedule.other, tokenizer)
    start, total = time.monotonic(), 0.0
    module.train()
    for step in range(schedule.length):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        loss = loss_of(module, next(stream))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 200 == 0:
            say(
                f"step {step + 1} of {schedule.length}: loss {total / 200:.3f}, "
                f"{time.monotonic() - start:.0f} s"
            )
            total = 0.0
        if look is not None and (step + 1) % 500 == 0:
            module.eval()
            look(step + 1)
            module.train()
    module.eval()
    return time.monotonic() - start
