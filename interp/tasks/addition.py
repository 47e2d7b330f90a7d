"""Two-digit addition, digit by digit: a1 a0 b1 b0 -> the sum's digits, units first."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from interp.tasks.families import SEED, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import one_token
from interp.terms import PromptPairs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel

PLACES = ("units", "tens", "hundreds")
CONTRASTS: dict[str, str] = {
    "carry": "the clean units carry, the corrupt ones do not (only b0 changes)",
    "operand": "one digit of either number changes",
}
Sum = tuple[int, int]


def digits(a: int, b: int, given: int) -> tuple[int, ...]:
    """a1 a0 b1 b0 and the first ``given`` digits of the sum, units first."""
    total = a + b
    answer = (total % 10, total // 10 % 10, total // 100)
    return (a // 10, a % 10, b // 10, b % 10, *answer[:given])


def answer(a: int, b: int, given: int) -> int:
    """The digit that follows: units, tens or hundreds of the sum."""
    return (a + b) // 10**given % 10


def _carry(rng: random.Random, given: int) -> tuple[Sum, Sum]:
    """A sum that carries out of the units, and one that does not; b0 alone differs."""
    while True:
        a, tens = rng.randrange(100), 10 * rng.randrange(10)
        b, other = tens + rng.randrange(10), tens + rng.randrange(10)
        carries, stays = a % 10 + b % 10 >= 10, a % 10 + other % 10 < 10
        if carries and stays and answer(a, b, given) != answer(a, other, given):
            return (a, b), (a, other)


def _operand(rng: random.Random, given: int) -> tuple[Sum, Sum]:
    """Two sums whose answers differ, one digit of one number apart."""
    while True:
        numbers = [rng.randrange(100), rng.randrange(100)]
        changed = list(numbers)
        side, power = rng.randrange(2), rng.choice((1, 10))
        changed[side] += (rng.randrange(10) - numbers[side] // power % 10) * power
        if answer(numbers[0], numbers[1], given) != answer(changed[0], changed[1], given):
            return (numbers[0], numbers[1]), (changed[0], changed[1])


def _digit_ids(model: HookedModel) -> tuple[list[int], Callable[[tuple[int, ...]], list[int]]]:
    """Token id of each digit, and digits -> prompt; without a tokenizer a digit is its own id."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        if model.shape.vocab < 10:
            raise TaskError(
                f"Task 'addition' needs ten token ids for digits; this model has "
                f"{model.shape.vocab}."
            )
        return list(range(10)), list
    found = [one_token(tokenizer, f" {d}") for d in range(10)]
    if None in found:
        lost = ", ".join(str(d) for d, i in enumerate(found) if i is None)
        raise TaskError(
            f"Task 'addition' writes one digit a token, and this model's vocabulary has no such "
            f"token for {lost}.",
            remedy="Take a model of digits (token id = digit), or bring prompts of your own.",
        )
    ids = [int(i) for i in found if i is not None]
    start = list(tokenizer.encode("")) if tokenizer.default_bos else []
    return ids, lambda row: start + [ids[d] for d in row]


def make(model: HookedModel, *, n: int, seed: int, contrast: str, digit: str) -> PromptPairs:
    """Pairs of sums, slots a1 a0 b1 b0 END; the answer is the next digit of the sum."""
    given = PLACES.index(digit)
    ids, prompt = _digit_ids(model)
    rng = draws(seed, "addition")
    draw = {"carry": _carry, "operand": _operand}[contrast]
    rows: list[tuple[Sum, Sum]] = list(distinct(lambda: draw(rng, given), n, lambda row: row))
    clean = [prompt(digits(*row[0], given)) for row in rows]
    corrupt = [prompt(digits(*row[1], given)) for row in rows]
    limit = model.shape.n_ctx
    if limit is not None and len(clean[0]) > limit:
        raise TaskError(
            f"A prompt for the {digit} has {len(clean[0])} tokens and the model's context holds "
            f"{limit}."
        )
    shift = len(clean[0]) - 4 - given
    slots = {k: (i + shift,) * n for i, k in enumerate(("a1", "a0", "b1", "b0"))}
    name = {i: str(d) for d, i in enumerate(ids)}
    if model.tokenizer is not None:
        name |= {
            t: s for row in clean for t, s in zip(row, model.tokenizer.texts(row), strict=True)
        }
    return PromptPairs.from_tokens(
        clean,
        corrupt,
        [ids[answer(*row[0], given)] for row in rows],
        [ids[answer(*row[1], given)] for row in rows],
        slots={**slots, "END": (len(clean[0]) - 1,) * n},
        clean_text=tuple(tuple(name[t] for t in row) for row in clean),
        corrupt_text=tuple(tuple(name[t] for t in row) for row in corrupt),
        answer_text={i: name[i] for i in ids},
        bos=shift > 0,
    )


ADDITION = TaskFamily(
    "addition",
    "Two-digit addition",
    "What is the next digit of the sum of two two-digit numbers, units first?",
    {
        "n": N,
        "seed": SEED,
        "contrast": Knob(
            str,
            "carry",
            tuple(CONTRASTS),
            "how the corrupt sum differs: " + "; ".join(f"{k}: {v}" for k, v in CONTRASTS.items()),
        ),
        "digit": Knob(
            str,
            "units",
            PLACES,
            "which digit of the sum is asked for; the ones before it stand in the prompt",
        ),
    },
    make,
)
