"""Indirect object identification: "… Mary and John … John gave a drink to" -> Mary."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from interp.tasks import words
from interp.tasks.families import SEED, SPLIT, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import check_known, pairs, tokenizer_of, wanted

if TYPE_CHECKING:
    from interp.terms import HookedModel, PromptPairs

FRAMES: tuple[str, ...] = (
    "When {A} and {B} went to the {place},",
    "Then, {A} and {B} went to the {place}.",
    "Then, {A} and {B} were working at the {place}.",
    "After {A} and {B} went to the {place},",
    "While {A} and {B} were working at the {place},",
    "Then, {A} and {B} had a long talk at the {place}, and",
    "Yesterday {A} and {B} were at the {place}.",
    "Today {A} and {B} had lunch near the {place}, and",
    "Friends {A} and {B} found a {object} at the {place}.",
    "When {A} and {B} had a {object} at the {place},",
    "Then, {A} and {B} were thinking about going to the {place}.",
    "Later {A} met {B} at the {place}, and",
    "While {A} and {B} were having lunch,",
    "After {A} and {B} were at the {place},",
    "Yesterday {A} and {B} had a talk about the {object}.",
    "Then {A} and {B} found the {place}, and then",
    "Today {A} came to the {place} with {B}.",
    "The {place} was big, and when {A} and {B} came,",
)
HELD_OUT_FRAMES: tuple[str, ...] = (
    "While {A} and {B} were at the {place},",
    "After {A} and {B} had lunch at the {place},",
    "Yesterday {A} and {B} had a talk about the {place}, and then",
    "Then {A} came to the {place} with {B}, and",
)
GIVINGS: tuple[str, ...] = (
    "{S} gave a {object} to",
    "{S} gave the {object} to",
    "{S} decided to give a {object} to",
    "{S} wanted to give the {object} to",
    "{S} said hello to",
    "{S} handed a {object} to",
    "{S} passed the {object} to",
    "{S} sent a big {object} to",
    "{S} decided to pass the {object} to",
    "{S} wanted to send a {object} to",
    "{S} had to send the small {object} to",
    "{S} then handed the new {object} to",
)
HELD_OUT_GIVINGS: tuple[str, ...] = (
    "{S} decided to send the {object} to",
    "{S} wanted to pass a {object} to",
    "{S} handed the old {object} to",
    "{S} then gave a {object} to",
)

TEMPLATES: tuple[str, ...] = tuple(f"{f} {g}" for f in FRAMES for g in GIVINGS)
HELD_OUT_TEMPLATES: tuple[str, ...] = tuple(
    f"{f} {g}" for f in HELD_OUT_FRAMES for g in HELD_OUT_GIVINGS
)
"""Both halves unseen."""

OTHER_ORDERS: tuple[str, ...] = (
    "{S} was at the {place}. Later {S} met {IO} and gave a {object} to",
    "Yesterday {S} went to the {place}. There {S} saw {IO} and handed the {object} to",
    "Then {S} was happy. At the {place} {S} found {IO} and passed a {object} to",
    "Today {IO} was at the {place}. Later {S} came, and then {S} gave the {object} to",
    "Today {S} was at the {place}. Later {IO} came, and then {S} gave the {object} to",
    "Then {S} went to see {IO}. At the {place}, {S} sent a {object} to",
)
"""Training sentences in which the last name is as often the receiver's as not, so that finding the
receiver takes noticing which name is repeated."""

CORRUPTIONS: dict[str, str] = {
    "swap": "the second subject becomes the other name, so the answers change places",
    "third": "the second subject becomes a third name, so neither name is repeated",
    "names": "all names are others, the pattern stays",
    "order": "the first two names change places (ABBA against BABA), the answer stays",
}


def template_list(split: str) -> tuple[str, ...]:
    """Templates of a split: ``one``, ``train``, ``held_out`` or ``any``."""
    return {
        "one": TEMPLATES[:1],
        "train": TEMPLATES,
        "held_out": HELD_OUT_TEMPLATES,
        "any": TEMPLATES + HELD_OUT_TEMPLATES,
    }[split]


def fill(
    template: str,
    first: str,
    second: str,
    subject: str,
    place: str,
    thing: str,
) -> tuple[str, dict[str, int]]:
    """The prompt, and the character where each name of it ends."""
    values = {"A": first, "B": second, "S": subject, "place": place, "object": thing}
    text, ends = "", {}
    for piece in template.replace("{", "\0{").replace("}", "}\0").split("\0"):
        key = piece.strip("{}") if piece.startswith("{") else None
        text += values[key] if key else piece
        if key:
            ends[key] = len(text)
    return text, ends


def _row(rng: random.Random, pool: dict[str, Any], order: str, corruption: str) -> dict[str, Any]:
    """One pair: IO and S are drawn, ABBA puts IO first."""
    template, place, thing = (rng.choice(pool[k]) for k in ("templates", "places", "objects"))
    io, subject, *others = rng.sample(pool["names"], min(5, len(pool["names"])))
    pattern = order if order != "both" else rng.choice(("ABBA", "BABA"))
    first, second = (io, subject) if pattern == "ABBA" else (subject, io)
    clean, ends = fill(template, first, second, subject, place, thing)
    changed: dict[str, tuple[str, str, str]] = {
        "swap": (first, second, io),
        "third": (first, second, others[0]),
        "names": tuple({io: others[0], subject: others[1]}[x] for x in (first, second, subject)),
        "order": (second, first, subject),
    }
    corrupt, _ = fill(template, *changed[corruption], place, thing)
    s1, io_end = (ends["B"], ends["A"]) if pattern == "ABBA" else (ends["A"], ends["B"])
    return {
        "clean": clean,
        "corrupt": corrupt,
        "right": " " + io,
        "wrong": " " + subject,
        "template": f"{template} [{pattern}]",
        "slots": {"IO": io_end, "S1": s1, "S2": ends["S"], "END": len(clean)},
    }


def make(
    model: HookedModel,
    *,
    n: int,
    seed: int,
    order: str,
    corruption: str,
    names: str,
    templates: str,
) -> PromptPairs:
    """Pairs of indirect-object prompts (Wang et al. 2022), slots IO, S1, S2, END.

    Names, places and objects are single tokens of the model, so clean and corrupt align.
    """
    tokenizer = tokenizer_of(model, "ioi")
    chosen = template_list(templates)
    check_known(tokenizer, chosen, "ioi")
    pool = {
        "names": wanted(tokenizer, words.names_for("ioi", names), 4, "first names", "ioi"),
        "places": wanted(tokenizer, words.PLACES, 1, "places", "ioi"),
        "objects": wanted(tokenizer, words.OBJECTS, 1, "objects", "ioi"),
        "templates": chosen,
    }
    rng = draws(seed, "ioi")
    rows = list(
        distinct(lambda: _row(rng, pool, order, corruption), n, lambda r: (r["clean"], r["right"]))
    )
    return pairs(model, rows, templates=templates != "one")


def sentence(rng: random.Random) -> str:
    """A training sentence; ``^`` stands before the answer.

    Most are filled templates (a tenth of them with three different names), 15 in a hundred have
    the names in other orders.
    """
    place, thing = rng.choice(words.PLACES), rng.choice(words.OBJECTS)
    io, subject, third = rng.sample(words.names_for("ioi", "train"), 3)
    if rng.random() < 0.15:
        text = rng.choice(OTHER_ORDERS).format(S=subject, IO=io, place=place, object=thing)
    else:
        first, second = (io, subject) if rng.random() < 0.5 else (subject, io)
        named = third if rng.random() < 0.1 else subject
        text, _ = fill(rng.choice(TEMPLATES), first, second, named, place, thing)
    return f"{text} ^{io}."


IOI = TaskFamily(
    "ioi",
    "Indirect object",
    "Which of two names was not repeated, and is therefore the one who receives?",
    {
        "n": N,
        "seed": SEED,
        "corruption": Knob(
            str,
            "swap",
            tuple(CORRUPTIONS),
            "what the corrupt prompt changes: "
            + "; ".join(f"{k}: {v}" for k, v in CORRUPTIONS.items()),
        ),
        "order": Knob(
            str,
            "both",
            ("both", "ABBA", "BABA"),
            "whether the receiver is named first (ABBA) or second (BABA)",
        ),
        "names": Knob(
            str,
            "any",
            SPLIT,
            "names to draw from: held_out ones never stood in a training sentence of this kind",
        ),
        "templates": Knob(
            str,
            "one",
            ("one", *SPLIT),
            "templates to draw from: one keeps every position comparable between prompts",
        ),
    },
    make,
    held_out={"names": words.HELD_OUT_NAMES["ioi"], "templates": HELD_OUT_TEMPLATES},
)
