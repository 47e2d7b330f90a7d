"""Pointer chains: pairs "A→C" in any order, a start and a number of hops; where does one arrive?

Every prompt holds a beginning, the six pairs of one chain and three distractors, shuffled, and a
query "B after 3 hops". Answering takes as many steps in a row as there are hops, and each step
needs the answer of the one before: the plainest question that depth is for.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from interp.tasks.families import SEED, Knob, N, TaskFamily, draws
from interp.terms import PromptPairs, TaskError, UsageError

if TYPE_CHECKING:
    from interp.terms import HookedModel

SYMBOLS = "ABCDEFGHIJ"
CHAIN, DISTRACTORS = 6, 3
BOS = 0
FIRST_SYMBOL = 1
FIRST_PAIR = FIRST_SYMBOL + len(SYMBOLS)
FIRST_QUERY = FIRST_PAIR + len(SYMBOLS) ** 2
READER = FIRST_QUERY + len(SYMBOLS) * (CHAIN + 1)
VOCAB = READER + 1
"""Token ids: beginning, 10 symbols, 100 pairs, 70 queries (start, hops), the reader."""


def pair(key: int, value: int) -> int:
    """Token id of the pair key → value."""
    return FIRST_PAIR + len(SYMBOLS) * key + value


def query(start: int, hops: int) -> int:
    """Token id of "start after so many hops"."""
    return FIRST_QUERY + (CHAIN + 1) * start + hops


def spoken(token: int) -> str:
    """A token in words."""
    if token == BOS:
        return "<s>"
    if token < FIRST_PAIR:
        return SYMBOLS[token - FIRST_SYMBOL]
    if token < FIRST_QUERY:
        key, value = divmod(token - FIRST_PAIR, len(SYMBOLS))
        return f"{SYMBOLS[key]}→{SYMBOLS[value]}"
    if token < READER:
        start, hops = divmod(token - FIRST_QUERY, CHAIN + 1)
        return f"{SYMBOLS[start]} after {hops}"
    return "read"


class Chain(NamedTuple):
    """One drawn prompt.

    Args:
        tokens: its ids.
        corrupt: the same with the value of the last pair that is needed changed.
        entities: the chain, start first; places: position of hop j's pair, j = 1…6.
        places: see ``entities``.
        wrong: the entity that the corrupt prompt leads to.
    """

    tokens: tuple[int, ...]
    corrupt: tuple[int, ...]
    entities: tuple[int, ...]
    places: tuple[int, ...]
    wrong: int


def drawn(rng: random.Random, hops: int, reader: bool) -> Chain:
    """One prompt of so many hops."""
    order = list(range(len(SYMBOLS)))
    rng.shuffle(order)
    entities, others = order[: CHAIN + 1], order[CHAIN + 1 :]
    pairs = list(zip(entities, entities[1:], strict=False))
    pairs += [(key, rng.randrange(len(SYMBOLS))) for key in others[:DISTRACTORS]]
    shuffled = list(range(len(pairs)))
    rng.shuffle(shuffled)
    wrong = rng.choice(others)
    changed = list(pairs)
    changed[hops - 1] = (entities[hops - 1], wrong)
    tail = (query(entities[0], hops), *((READER,) if reader else ()))
    rows = [(BOS, *(pair(*some[i]) for i in shuffled), *tail) for some in (pairs, changed)]
    places = tuple(1 + shuffled.index(j) for j in range(CHAIN))
    return Chain(rows[0], rows[1], tuple(entities), places, wrong)


def make(model: HookedModel, *, n: int, seed: int, hops: int, reader: bool) -> PromptPairs:
    """Pairs of prompts; slots hop1 … hop6 (the chain's pairs), query, END."""
    if model.tokenizer is not None or model.shape.vocab != VOCAB:
        raise TaskError(
            f"Task 'hops' speaks {VOCAB} token ids of its own (pairs and queries), and this model "
            f"has {'a tokenizer' if model.tokenizer is not None else model.shape.vocab}"
            f"{'' if model.tokenizer is not None else ' of them'}.",
            remedy="Take zoo:hops or zoo:hops-trained.",
        )
    if reader and hops == CHAIN:
        raise UsageError(
            f"A reader behind {hops} hops was asked for; the last layer would have to hop and read "
            "at once.",
            remedy=f"Take at most {CHAIN - 1} hops, or no reader.",
        )
    rng = draws(seed, "hops")
    most = CHAIN - int(reader)
    counts = [hops or 1 + i % most for i in range(n)]
    rows = [drawn(rng, count, reader) for count in counts]
    names = {i: spoken(i) for i in range(FIRST_SYMBOL, FIRST_PAIR)}
    end = len(rows[0].tokens) - 1
    slots = {f"hop{j + 1}": tuple(r.places[j] for r in rows) for j in range(CHAIN)}
    return PromptPairs.from_tokens(
        [r.tokens for r in rows],
        [r.corrupt for r in rows],
        [FIRST_SYMBOL + r.entities[c] for r, c in zip(rows, counts, strict=True)],
        [FIRST_SYMBOL + r.wrong for r in rows],
        slots={**slots, "query": (end - int(reader),) * n, "END": (end,) * n},
        template=None if hops else tuple(f"{c} hops" for c in counts),
        clean_text=tuple(tuple(map(spoken, r.tokens)) for r in rows),
        corrupt_text=tuple(tuple(map(spoken, r.corrupt)) for r in rows),
        answer_text=names,
        bos=True,
    )


HOPS = TaskFamily(
    "hops",
    "Pointer chain",
    "Where does one arrive after following so many pairs, one after the other?",
    {
        "n": N,
        "seed": SEED,
        "hops": Knob(int, 3, (0, CHAIN), "how many pairs have to be followed; 0 mixes them"),
        "reader": Knob(
            bool, False, (), "put a last token behind the query, at which the answer is read"
        ),
    },
    make,
)
