"""Which heads carry a task: mean ablation of head outputs on the raw module, and a search.

A head's output is the input of its layer's output projection, split by heads. It is replaced by
its mean over the task's clean prompts, position by position, so the task's prompts must align.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.terms import PromptPairs

Head = tuple[int, int]
"""(layer, head)."""


class Ablation:
    """Mean ablation on one module and one task.

    Args:
        module: takes tokens ``[row, position]``; gives logits, or an output with ``logits``.
        projections: each layer's output projection.
        heads: heads a layer.
        task: aligned pairs with one right and one wrong word each.
    """

    def __init__(
        self, module: Any, projections: Sequence[nn.Module], heads: int, task: PromptPairs
    ) -> None:
        assert task.aligned(), "positions of the prompts must mean the same"
        self.module, self.projections, self.heads = module, list(projections), heads
        self.tokens = torch.tensor(task.clean)
        self.right = torch.tensor([r[0] for r in task.right])
        self.wrong = torch.tensor([w[0] for w in task.wrong])
        self.all: list[Head] = [(i, h) for i in range(len(projections)) for h in range(heads)]
        self.means = self._means()
        self.full = self.logit_diff(())

    def _means(self) -> list[Tensor]:
        """Mean input of each projection, ``[position, heads × d_head]``."""
        seen: dict[Any, Tensor] = {}
        hooks = [
            p.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, args[0].mean(0)))
            for i, p in enumerate(self.projections)
        ]
        try:
            with torch.no_grad():
                self.module(self.tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return [seen[i] for i in range(len(self.projections))]

    @contextmanager
    def ablated(self, heads: Iterable[Head]) -> Iterator[None]:
        """While inside, these heads give their mean."""
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            by_layer.setdefault(layer, []).append(head)

        def hook(layer: int, chosen: list[int]) -> Any:
            def replace(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                z = args[0].clone()
                width = z.shape[-1] // self.heads
                for h in chosen:
                    part = slice(h * width, (h + 1) * width)
                    z[..., part] = self.means[layer][:, part]
                return (z, *args[1:])

            return self.projections[layer].register_forward_pre_hook(replace)

        hooks = [hook(layer, chosen) for layer, chosen in by_layer.items()]
        try:
            yield
        finally:
            for h in hooks:
                h.remove()

    def logit_diff(self, heads: Iterable[Head]) -> float:
        """Mean right less wrong logit at the last position, with these heads ablated."""
        with torch.no_grad(), self.ablated(heads):
            out = self.module(self.tokens)
        logits = getattr(out, "logits", out)[:, -1]
        rows = torch.arange(len(logits))
        return float((logits[rows, self.right] - logits[rows, self.wrong]).mean())

    def kept(self, heads: Iterable[Head]) -> float:
        """Share of the logit difference left when every *other* head is ablated."""
        named = set(heads)
        return self.logit_diff([h for h in self.all if h not in named]) / self.full

    def left(self, heads: Iterable[Head]) -> float:
        """Share of the logit difference left when these heads are ablated."""
        return self.logit_diff(heads) / self.full

    def random_sets(
        self, size: int, n: int, seed: int, without: Iterable[Head] = ()
    ) -> list[list[Head]]:
        """``n`` different sets of heads of this size, drawn from the heads not in ``without``.

        Where so many heads are not left, the sets are as large, and as many, as there can be.
        """
        rng = random.Random(f"heads/{seed}")
        pool = [h for h in self.all if h not in set(without)]
        size = min(size, len(pool))
        found: dict[tuple[Head, ...], None] = {}
        while len(found) < min(n, math.comb(len(pool), size)):
            found[tuple(sorted(rng.sample(pool, size)))] = None
        return [list(heads) for heads in found]


@dataclass(frozen=True)
class Circuit:
    """The heads found and what they do.

    Args:
        heads: (layer, head), in order.
        kept: share of the logit difference with the others ablated.
        left: share with these ablated.
    """

    heads: tuple[Head, ...]
    kept: float
    left: float


def search(ablation: Ablation, keep: float = 0.85, leave: float = 0.15) -> Circuit:
    """The smallest set a greedy search finds that keeps ``keep`` and whose loss leaves ``leave``.

    Heads are taken away one by one, each time the one whose loss hurts least, while ``keep``
    holds; then heads that stand in for lost ones are added, each time the one whose further loss
    hurts most, until ``leave`` holds.
    """
    named = list(ablation.all)
    while len(named) > 1:
        best = max(named, key=lambda h: ablation.kept([x for x in named if x != h]))
        without = [x for x in named if x != best]
        if ablation.kept(without) < keep:
            break
        named = without
    while ablation.left(named) > leave and len(named) < len(ablation.all):
        others = [h for h in ablation.all if h not in named]
        named.append(min(others, key=lambda h: ablation.left([*named, h])))
    heads = tuple(sorted(named))
    return Circuit(heads, ablation.kept(heads), ablation.left(heads))
