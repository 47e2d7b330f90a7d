"""Judging: loss, answer and divergence of programs, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.engine.depth import Batch, Corpus, run_programs, wide
from interp.engine.depth.programs import Program
from interp.engine.depth.walking import slices
from interp.terms import Context, HookedModel, TaskError


@dataclass(frozen=True, eq=False)
class Judged:
    """What programs did, ``[program, prompt]`` each.

    Args:
        loss: summed -log p of the right tokens; count: how many of them, ``[prompt]``.
        count: see ``loss``.
        kl: summed KL(model‖program) at those places; the first program is the model.
        right: whether every scored token is the most probable one.
        margin: smallest log p(right) - log p(best other).
        answer: most probable token at the last scored place.
        truth: the right one there, ``[prompt]``.
    """

    loss: np.ndarray
    count: np.ndarray
    kl: np.ndarray
    right: np.ndarray
    margin: np.ndarray
    answer: np.ndarray
    truth: np.ndarray

    def mean_loss(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Loss a token, ``[program]``."""
        return self.loss[:, rows].sum(1) / self.count[rows].sum()

    def mean_kl(self) -> np.ndarray:
        """Divergence a token, ``[program]``."""
        return self.kl.sum(1) / self.count.sum()


def judge(
    model: HookedModel,
    corpus: Corpus,
    programs: Sequence[Program],
    limit: int,
    context: Context,
    label: str = "programs",
    share: Callable[[float], None] = lambda done: None,
) -> Judged:
    """Run programs over a task; ``programs[0]`` is the model itself.

    Raises:
        TaskError: no token has a right answer, so there is no loss.
    """
    if not any(b.scored.any() for b in corpus.batches):
        raise TaskError(
            "No token of this task has a right answer, so there is no loss.",
            remedy="Give texts of two tokens or more, or pairs with right answers.",
        )
    n, m = len(programs), corpus.n_prompts
    out = {k: np.zeros((n, m)) for k in ("loss", "kl", "right", "margin", "answer")}
    count, truth = np.zeros(m), np.full(m, -1)
    pieces = list(corpus.pieces(max(1, limit // 16)))
    for number, batch in enumerate(pieces):
        key = f"{label}-{number}"
        found = context.load_chunk(key)
        if found is None:
            at_once = max(1, limit // batch.tokens.size)

            def on_stage(done: float, number: int = number) -> None:
                share((number + done) / len(pieces))

            found = _batch(model, batch, programs, at_once, on_stage)
            context.save_chunk(key, found)
        for name in out:
            out[name][:, batch.rows] = found[name]
        count[batch.rows] = batch.scored.sum(1)
        row, at = np.nonzero(batch.scored)
        truth[batch.rows[row]] = batch.targets[row, at, 0]  # the last place stays
        share((number + 1) / len(pieces))
    return Judged(out["loss"], count, out["kl"], out["right"] > 0, out["margin"],
                  out["answer"].astype(int), truth)  # fmt: skip


def _batch(
    model: HookedModel,
    batch: Batch,
    programs: Sequence[Program],
    at_once: int,
    on_stage: Callable[[float], None],
) -> dict[str, np.ndarray]:
    n, B = len(programs), len(batch)
    row, at = np.nonzero(batch.scored)
    out = {k: np.zeros((n, B)) for k in ("loss", "kl", "right", "margin", "answer")}
    out["margin"][:] = np.inf
    blocks = model.blocks
    device = blocks.device
    rows, places = (torch.from_numpy(i).to(device) for i in (row, at))
    right = torch.from_numpy(batch.targets[row, at]).to(device)
    kept: list[torch.Tensor] = [torch.empty(0)] * n

    def visit(number: int, resid: torch.Tensor) -> None:
        kept[number] = resid[rows, places].clone()

    run_programs(blocks, batch.tokens, programs, visit, at_once=at_once, on_stage=on_stage)
    with torch.no_grad():
        for part in slices(len(row), model.shape.vocab * 4):
            own = torch.log_softmax(wide(blocks.unembed(kept[0][part])), -1)
            for number in range(n):
                logp = torch.log_softmax(wide(blocks.unembed(kept[number][part])), -1)
                _note(out, number, logp, own, right[part], row[part.start : part.stop])
    return out


def _note(
    out: dict[str, np.ndarray],
    number: int,
    logp: torch.Tensor,
    own: torch.Tensor,
    right: torch.Tensor,
    row: np.ndarray,
) -> None:
    """Add some scored tokens of one program."""
    known = right >= 0
    picked = logp.gather(1, right.clamp_min(0)).masked_fill(~known, -torch.inf)
    others = logp.scatter(1, torch.where(known, right, right[:, :1]), -torch.inf)
    score = torch.logsumexp(picked, -1)
    margin = (picked.amax(-1) - others.amax(-1)).double().cpu().numpy()
    kl = (own.exp() * (own - logp)).nan_to_num(0.0).sum(-1).clamp_min(0)
    np.add.at(out["loss"][number], row, -score.double().cpu().numpy())
    np.add.at(out["kl"][number], row, kl.double().cpu().numpy())
    np.minimum.at(out["margin"][number], row, margin)
    out["right"][number, row] = out["margin"][number, row] > 0
    out["answer"][number, row] = logp.argmax(-1).cpu().numpy()
