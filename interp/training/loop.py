"""One deterministic training loop for the small models: AdamW under a warm-up and a cosine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Args:
        steps: batches.
        rows: prompts a batch.
        rate: highest learning rate, reached after ``warm`` steps.
        warm: steps of rise.
        hold: share of the steps behind the rise that stay at the highest.
        floor: the last learning rate, as a share of the highest; between, a cosine.
        decay: weight decay of the matrices.
        vectors: weight decay of biases and gains.
        clip: longest gradient.
        seed: of the weights and the data.
    """

    steps: int
    rows: int
    rate: float = 2e-3
    warm: int = 100
    hold: float = 0.0
    floor: float = 0.1
    decay: float = 0.01
    vectors: float = 0.0
    clip: float = 1.0
    seed: int = 0

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        start = self.warm + self.hold * (self.steps - self.warm)
        part = max(0.0, step - start) / max(1.0, self.steps - start)
        level = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * part)) / 2
        return self.rate * min(1.0, (step + 1) / max(1, self.warm)) * level


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: these matrices are too small for two.

    The bits are then the same on every machine of a kind.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    plan: Plan,
    say: Say,
    each: Callable[[int], None] | None = None,
    stop: int | None = None,
) -> float:
    """Train in place on one thread; the same plan on the same machine gives the same bits.

    Args:
        module: what is trained; in eval mode afterwards.
        loss_of: the loss of a step's batch, given the step's number.
        plan: see there.
        say: told the progress about every tenth of the steps.
        each: called after every step with the number of steps done.
        stop: steps to take, if fewer than planned.

    Returns:
        Seconds of this process's CPU time.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in weights if p.dim() > 1], "weight_decay": plan.decay},
            {"params": [p for p in weights if p.dim() <= 1], "weight_decay": plan.vectors},
        ],
        lr=plan.rate,
        betas=(0.9, 0.98),
    )
    with one_thread():
        return _loop(
            module, loss_of, plan, say, each, min(plan.steps, stop or plan.steps), optimizer
        )


def _loop(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    plan: Plan,
    say: Say,
    each: Callable[[int], None] | None,
    steps: int,
    optimizer: torch.optim.Optimizer,
) -> float:
    """``fit`` with its optimizer made."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    began = time.process_time()
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.at(step)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, plan.clip)
        optimizer.step()
        if each is not None:
            each(step + 1)
        if (step + 1) % max(1, plan.steps // 10) == 0:
            took = time.process_time() - began
            say(f"  step {step + 1} of {steps}: loss {loss.item():.4f}, {took:.0f} s")
    module.eval()
    return time.process_time() - began
