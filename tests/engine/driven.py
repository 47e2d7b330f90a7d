"""What the engine's tests drive: a hard checkpoint's blocks, and a context that remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from interp.models.blocks import ModelBlocks
from interp.models.families import shape_of
from interp.terms import CancelledError, Check, PromptPairs
from tests.checkpoints import hard_model


class Remembering:
    """A context that keeps chunks, checks and notes in memory and may cancel."""

    def __init__(self, memory: int = 10**9, cancel_after: int | None = None) -> None:
        self.memory, self.cancel_after = memory, cancel_after
        self.chunks: dict[str, dict[str, np.ndarray]] = {}
        self.saved: list[str] = []
        self.checks: list[Check] = []
        self.notes: dict[str, Any] = {}
        self.progress: list[tuple[float, float]] = []
        self.partials = 0

    def advance(self, done: float, total: float) -> None:
        self.progress.append((done, total))
        if self.cancel_after is not None and len(self.progress) > self.cancel_after:
            raise CancelledError("cancelled")

    def cancelled(self) -> bool:
        return False

    def save_chunk(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.saved.append(key)
        self.chunks[key] = {k: np.asarray(v) for k, v in arrays.items()}

    def load_chunk(self, key: str) -> dict[str, np.ndarray] | None:
        return self.chunks.get(key)

    def check(self, check: Check) -> None:
        self.checks.append(check)

    def partial(self, make: Callable[[], Any]) -> None:
        self.partials += 1
        make()

    def note(self, key: str, value: Any) -> None:
        self.notes[key] = value


def driven(family: str, **overrides: Any) -> tuple[Any, Any]:
    """A float64 hard module of a family and the model that the engine drives."""
    module = hard_model(family, **overrides).double()
    blocks = ModelBlocks(module)
    return module, SimpleNamespace(blocks=blocks, shape=shape_of(module), id=family, sites=())


def pairs_for(
    vocab: int, *, n: int = 4, length: int = 9, shared: int = 2, seed: int = 0
) -> PromptPairs:
    """Random pairs that differ from position ``shared`` on, in several places."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, vocab, (n, length))
    corrupt = clean.copy()
    for i in range(n):
        for p in (shared + i % 3, shared + 3, length - 2):
            corrupt[i, p] = (corrupt[i, p] + 1 + rng.integers(vocab - 1)) % vocab
    answers = rng.permutation(vocab)[: 4 * n].reshape(n, 4)
    return PromptPairs.from_tokens(
        clean.tolist(),
        corrupt.tolist(),
        answers[:, :2].tolist(),
        answers[:, 2:].tolist(),
        template=tuple(f"t{i % 2}" for i in range(n)),
    )


def telling_pairs(module: Any, **knobs: Any) -> PromptPairs:
    """Pairs whose right answer the clean run prefers and whose wrong one the corrupt run does."""
    import torch

    n = knobs.pop("n", 4)
    many = pairs_for(97, **{**knobs, "n": 24})
    with torch.no_grad():
        best = [
            module(torch.tensor(side)).logits[:, -1].argmax(-1).tolist()
            for side in (many.clean, many.corrupt)
        ]
    rows = [i for i in range(24) if best[0][i] != best[1][i]][:n]
    assert len(rows) == n
    return PromptPairs.from_tokens(
        [many.clean[i] for i in rows],
        [many.corrupt[i] for i in rows],
        [best[0][i] for i in rows],
        [best[1][i] for i in rows],
        template=tuple(f"t{i % 2}" for i in range(n)),
    )
