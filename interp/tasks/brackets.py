"""Closing brackets: "List: ( red [ blue" -> ], the innermost bracket that is open."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from interp.tasks import words
from interp.tasks.families import SEED, SPLIT, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import check_known, pairs, single, tokenizer_of, wanted
from interp.terms import TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel, PromptPairs

INTRO = "List:"
SHAPES: tuple[str, ...] = (
    "owow",
    "ow",
    "oow",
    "oowcw",
    "owcow",
    "owocw",
    "owowcw",
    "ooow",
    "owowow",
    "oowcow",
    "owcowow",
)
HELD_OUT_SHAPES: tuple[str, ...] = ("oowow", "owowcow", "owoow", "owocow")
"""A shape is a prompt: o opens, c closes the innermost, w is a word. Training has none of these."""
DEEPEST = 3


def _draw(
    rng: random.Random, shape: str, kinds: tuple[tuple[str, str], ...], fillings: tuple[str, ...]
) -> tuple[list[str], list[tuple[int, tuple[str, str]]]]:
    """The symbols of a prompt, and what is still open: (place, kind), outermost first."""
    out: list[str] = []
    held: list[tuple[int, tuple[str, str]]] = []
    for symbol in shape:
        if symbol == "o":
            kind = rng.choice(kinds)
            held.append((len(out), kind))
            out.append(kind[0])
        elif symbol == "c":
            out.append(held.pop()[1][1])
        else:
            out.append(rng.choice(fillings))
    return out, held


def _row(rng: random.Random, pool: dict[str, Any]) -> dict[str, Any]:
    """A pair whose innermost open bracket differs in kind."""
    shape = rng.choice(pool["shapes"])
    symbols, held = _draw(rng, shape, pool["kinds"], pool["fillings"])
    at, kind = held[-1]
    other = rng.choice([k for k in pool["kinds"] if k != kind])
    changed = [*symbols[:at], other[0], *symbols[at + 1 :]]
    end = len(" ".join((INTRO, *symbols[: at + 1])))
    clean = " ".join((INTRO, *symbols))
    return {
        "clean": clean,
        "corrupt": " ".join((INTRO, *changed)),
        "right": " " + kind[1],
        "wrong": [" " + k[1] for k in pool["kinds"] if k != kind],
        "template": shape,
        "slots": {"open": end, "END": len(clean)},
    }


def make(
    model: HookedModel, *, n: int, seed: int, templates: str, shape: str, fillings: str
) -> PromptPairs:
    """Pairs whose innermost open bracket differs; right closes the clean one. Slots open, END."""
    tokenizer = tokenizer_of(model, "brackets")
    check_known(tokenizer, (INTRO,), "brackets")
    kinds = tuple(k for k in words.BRACKETS if len(single(tokenizer, k)) == 2)
    if len(kinds) < 2:
        raise TaskError(
            f"Task 'brackets' needs two kinds of brackets that are one token each; this model's "
            f"vocabulary has {len(kinds)}."
        )
    pool = {
        "shapes": {
            "one": (shape,),
            "train": SHAPES,
            "held_out": HELD_OUT_SHAPES,
            "any": SHAPES + HELD_OUT_SHAPES,
        }[templates],
        "kinds": kinds,
        "fillings": wanted(
            tokenizer,
            words.pick(words.FILLINGS, words.HELD_OUT_FILLINGS, fillings),
            1,
            "words to fill in",
            "brackets",
        ),
    }
    rng = draws(seed, "brackets")
    rows = list(distinct(lambda: _row(rng, pool), n, lambda r: r["clean"]))
    return pairs(model, rows, templates=templates != "one")


def sentence(rng: random.Random) -> str:
    """A balanced training sentence; ``^`` stands before each closing bracket."""
    fillings = words.pick(words.FILLINGS, words.HELD_OUT_FILLINGS, "train")
    while True:
        shape, depth = "", 0
        for _ in range(rng.randrange(2, 7)):
            choices = "o" * (depth < DEEPEST) + "c" * (depth > 0 and shape[-1] != "o")
            symbol = rng.choice(choices or "w")
            shape += symbol + ("w" if symbol == "o" and rng.random() < 0.7 else "")
            depth += {"o": 1, "c": -1}.get(symbol, 0)
        shape += ("w" if shape.endswith("o") else "") + "c" * depth
        if not any(shape.startswith(s) for s in HELD_OUT_SHAPES):
            break
    out: list[str] = []
    held: list[str] = []
    for symbol in shape:
        if symbol == "o":
            kind = rng.choice(words.BRACKETS)
            held.append(kind[1])
            out.append(kind[0])
        else:
            out.append("^" + held.pop() if symbol == "c" else rng.choice(fillings))
    return " ".join((INTRO, *out, "."))


BRACKET = TaskFamily(
    "brackets",
    "Closing brackets",
    "Which bracket closes the innermost one that is open?",
    {
        "n": N,
        "seed": SEED,
        "shape": Knob(
            str,
            "owow",
            tuple(dict.fromkeys((*SHAPES, *HELD_OUT_SHAPES))),
            "the prompt's pattern: o opens, c closes, w is a word (where templates is one)",
        ),
        "fillings": Knob(
            str,
            "any",
            SPLIT,
            "words to draw from: held_out ones never stood between brackets in training",
        ),
        "templates": Knob(
            str,
            "one",
            ("one", *SPLIT),
            "patterns to draw from: one keeps every position comparable between prompts",
        ),
    },
    make,
    held_out={"fillings": words.HELD_OUT_FILLINGS, "shapes": HELD_OUT_SHAPES},
)
