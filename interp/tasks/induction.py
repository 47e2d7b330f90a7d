"""Induction: a run of symbols, some of them again; what followed the last one the first time?"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from interp.tasks.families import SEED, Knob, N, TaskFamily, draws
from interp.tasks.fitting import one_token
from interp.terms import PromptPairs, TaskError, UsageError

if TYPE_CHECKING:
    from interp.terms import HookedModel

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONTRASTS: dict[str, str] = {
    "successor": "what follows the first mention changes",
    "cue": "the last symbol changes to another one of the run",
}


class Row(NamedTuple):
    """One drawn pair, in symbols counted from 0.

    Args:
        clean: the run and its repetition.
        corrupt: the same with one symbol changed.
        right: what followed in ``clean``.
        wrong: what followed in ``corrupt``.
        first: place of the cue's first mention in the run.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    right: int
    wrong: int
    first: int


def drawn(rng: random.Random, symbols: int, length: int, again: int, contrast: str) -> Row:
    """``length`` different symbols, then ``again`` of them in the same order; the last is the cue.

    Args:
        rng: decides all.
        symbols: how many there are.
        length: of the run.
        again: how many are said again.
        contrast: a key of ``CONTRASTS``.
    """
    *run, other = rng.sample(range(symbols), length + 1)
    first = rng.randrange(again - 1, length - 1)
    said = run[first - again + 1 : first + 1]
    if contrast == "successor":
        changed = [*run]
        changed[first + 1] = other
        return Row((*run, *said), (*changed, *said), run[first + 1], other, first)
    cue = rng.choice([i for i in range(length - 1) if i != first])
    return Row((*run, *said), (*run, *said[:-1], run[cue]), run[first + 1], run[cue + 1], first)


def symbols_of(model: HookedModel) -> list[int]:
    """Token ids of the symbols: the letters that are one token each, or, untold, every id.

    Raises:
        TaskError: fewer than four letters are one token.
    """
    if model.tokenizer is None:
        return list(range(model.shape.vocab))
    found = [one_token(model.tokenizer, f" {letter}") for letter in LETTERS]
    ids = [int(i) for i in found if i is not None]
    if len(ids) < 4:
        raise TaskError(
            f"Task 'induction' is made of letters, and {len(ids)} of 26 are one token each in "
            "this model's vocabulary.",
            remedy="Take zoo:induction, or a model whose tokenizer has single letters.",
        )
    return ids


def make(
    model: HookedModel, *, n: int, seed: int, length: int, again: int, contrast: str
) -> PromptPairs:
    """Pairs of runs, slots FIRST (the cue's first mention), NEXT (what followed it), END."""
    ids = symbols_of(model)
    tokenizer = model.tokenizer
    start = list(tokenizer.encode("")) if tokenizer is not None and tokenizer.default_bos else []
    if length + 1 > len(ids):
        raise TaskError(
            f"A run of {length} different symbols and one more were asked for; the model has "
            f"{len(ids)} symbols.",
            remedy=f"Take length={len(ids) - 1} or less.",
        )
    if again > length - 1:
        raise UsageError(
            f"again was given as {again} and length as {length}.",
            remedy="The cue needs a successor in the run: take again below length.",
        )
    whole, limit = len(start) + length + again, model.shape.n_ctx
    if limit is not None and whole > limit:
        raise TaskError(
            f"A prompt of this task has {whole} tokens and the model's context holds {limit}.",
            remedy="Take a smaller length, or fewer symbols again.",
        )
    rng = draws(seed, "induction")
    rows = [drawn(rng, len(ids), length, again, contrast) for _ in range(n)]
    clean = [[*start, *(ids[s] for s in row.clean)] for row in rows]
    corrupt = [[*start, *(ids[s] for s in row.corrupt)] for row in rows]
    names = {t: tokenizer.texts([t])[0] if tokenizer else str(t) for t in {*ids, *start}}
    firsts = [len(start) + row.first for row in rows]
    return PromptPairs.from_tokens(
        clean,
        corrupt,
        [ids[row.right] for row in rows],
        [ids[row.wrong] for row in rows],
        slots={
            "FIRST": tuple(firsts),
            "NEXT": tuple(i + 1 for i in firsts),
            "END": (whole - 1,) * n,
        },
        clean_text=tuple(tuple(names[t] for t in row) for row in clean),
        corrupt_text=tuple(tuple(names[t] for t in row) for row in corrupt),
        answer_text={t: names[t] for t in ids},
        bos=bool(start),
    )


INDUCTION = TaskFamily(
    "induction",
    "Induction",
    "What followed this symbol the last time it was seen?",
    {
        "n": N,
        "seed": SEED,
        "length": Knob(int, 12, (3, 1000), "different symbols in the run"),
        "again": Knob(int, 1, (1, 999), "how many of them are said again; the last is the cue"),
        "contrast": Knob(
            str,
            "successor",
            tuple(CONTRASTS),
            "how the corrupt run differs: " + "; ".join(f"{k}: {v}" for k, v in CONTRASTS.items()),
        ),
    },
    make,
)
