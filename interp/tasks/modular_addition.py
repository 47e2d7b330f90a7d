"""Modular addition: "a b =" -> (a + b) mod p, every number one token."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING

from interp.tasks.families import SEED, SPLIT, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import one_token
from interp.terms import PromptPairs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel

SIGN = "="
SHARE = 0.4
"""Share of all sums that ``zoo:modadd`` was trained on."""
CONTRASTS: dict[str, str] = {
    "first": "the first number changes",
    "second": "the second number changes",
}
Sum = tuple[int, int]


@lru_cache(maxsize=8)
def training_sums(modulus: int) -> frozenset[Sum]:
    """The sums that ``zoo:modadd`` was trained on."""
    every = [(a, b) for a in range(modulus) for b in range(modulus)]
    random.Random(f"modular addition/{modulus}").shuffle(every)
    return frozenset(every[: round(SHARE * len(every))])


def _numbers(model: HookedModel, sign: bool) -> tuple[list[int], list[int], list[int]]:
    """Ids of 0, 1, 2, … as far as each is one token; of what stands before; of the sign."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        count = model.shape.vocab - int(sign)
        return list(range(count)), [], [count] if sign else []
    ids: list[int] = []
    while len(ids) < 1000 and (found := one_token(tokenizer, f" {len(ids)}")) is not None:
        ids.append(found)
    equals = one_token(tokenizer, f" {SIGN}") if sign else None
    if len(ids) < 3 or (sign and equals is None):
        raise TaskError(
            "Task 'modular_addition' needs numbers and an equals sign that are one token each; "
            f"this model's vocabulary has {len(ids)} such numbers"
            f"{' and no sign' if sign and equals is None else ''}.",
            remedy="Take zoo:modadd, or sign=false where there is no sign.",
        )
    start = list(tokenizer.encode("")) if tokenizer.default_bos else []
    return ids, start, [] if equals is None else [equals]


def make(
    model: HookedModel, *, n: int, seed: int, modulus: int, sign: bool, split: str, contrast: str
) -> PromptPairs:
    """Pairs of sums, slots a, b, END; the answer is the sum's remainder."""
    ids, start, end = _numbers(model, sign)
    p = modulus or len(ids)
    if p > len(ids):
        raise TaskError(
            f"The modulus was given as {p}; this model has one token each for 0 to {len(ids) - 1}.",
            remedy=f"Take modulus={len(ids)} or less.",
        )
    rng, known = draws(seed, "modular_addition"), training_sums(p)

    def fits(row: Sum) -> bool:
        return split == "any" or (row in known) == (split == "train")

    def draw() -> tuple[Sum, Sum]:
        while True:
            a, b, other = (rng.randrange(p) for _ in range(3))
            changed = (other, b) if contrast == "first" else (a, other)
            if changed != (a, b) and fits((a, b)) and fits(changed):
                return (a, b), changed

    rows = list(distinct(draw, n, lambda row: row[0]))
    sides = [
        [[*start, ids[row[side][0]], ids[row[side][1]], *end] for row in rows] for side in (0, 1)
    ]
    answers = [[ids[sum(row[side]) % p] for row in rows] for side in (0, 1)]
    names = {t: str(k) for k, t in enumerate(ids)} | dict.fromkeys(end, SIGN)
    if model.tokenizer is not None:
        names |= {t: model.tokenizer.texts([t])[0] for t in start}
    texts = [tuple(tuple(names[t] for t in row) for row in side) for side in sides]
    return PromptPairs.from_tokens(
        *sides,
        *answers,
        slots={
            "a": (len(start),) * n,
            "b": (len(start) + 1,) * n,
            "END": (len(sides[0][0]) - 1,) * n,
        },
        clean_text=texts[0],
        corrupt_text=texts[1],
        answer_text={t: str(k) for k, t in enumerate(ids[:p])},
        bos=bool(start),
    )


MODULAR_ADDITION = TaskFamily(
    "modular_addition",
    "Modular addition",
    "What is left of the sum of two numbers when the modulus is taken away?",
    {
        "n": N,
        "seed": SEED,
        "modulus": Knob(
            int, 0, (0, 1000), "what is counted round; 0: as many numbers as are one token each"
        ),
        "sign": Knob(bool, True, (), "put an equals sign last, at which the answer is read"),
        "split": Knob(
            str, "any", SPLIT, "sums that zoo:modadd was trained on, sums it never saw, or all"
        ),
        "contrast": Knob(
            str,
            "first",
            tuple(CONTRASTS),
            "how the corrupt sum differs: " + "; ".join(f"{k}: {v}" for k, v in CONTRASTS.items()),
        ),
    },
    make,
)
