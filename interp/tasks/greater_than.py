"""Greater-than: "The war lasted from the year 1732 to the year 17" -> 33 … 99."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from interp.tasks import words
from interp.tasks.families import SEED, SPLIT, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import check_known, one_token, pairs, tokenizer_of, wanted
from interp.terms import TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel, PromptPairs, Tokenizer

TEMPLATES = (
    "The {event} lasted from the year {start} to the year {century}",
    "Then the {event} lasted from {start} to {century}",
    "The {event} was good from {start} to {century}",
    "The {event} went on from the year {start} until the year {century}",
    "A big {event} lasted from {start} until {century}",
    "Then the {event} went on from {start} until {century}",
)
HELD_OUT_TEMPLATES = (
    "The {event} went on from {start} to {century}",
    "Then a {event} lasted from the year {start} until {century}",
)
YEARS = tuple(range(2, 98))


def _templates(split: str) -> tuple[str, ...]:
    return {
        "one": TEMPLATES[:1],
        "train": TEMPLATES,
        "held_out": HELD_OUT_TEMPLATES,
        "any": TEMPLATES + HELD_OUT_TEMPLATES,
    }[split]


def _split(tokenizer: Tokenizer, century: int, year: int) -> bool:
    """Whether the tokenizer reads CCYY as CC and YY."""
    ids = tokenizer.encode(f" {century}{year:02d}", bos=False)
    return [t.strip() for t in tokenizer.texts(ids)] == [str(century), f"{year:02d}"]


def _row(rng: random.Random, pool: dict[str, Any]) -> dict[str, Any]:
    template = rng.choice(pool["templates"])
    century, year = rng.choice(pool["starts"])
    values = {"event": rng.choice(pool["events"]), "century": century}
    clean = template.format(start=f"{century}{year:02d}", **values)
    corrupt = template.format(start=f"{century}01", **values)
    end = template.index("{start}") + len(values["event"]) - len("{event}") + 4
    return {
        "clean": clean,
        "corrupt": corrupt,
        "right": [t for t in pool["answers"] if int(t) > year],
        "wrong": [t for t in pool["answers"] if int(t) <= year],
        "template": template,
        "slots": {"YY": end, "END": len(clean)},
    }


def make(model: HookedModel, *, n: int, seed: int, events: str, templates: str) -> PromptPairs:
    """Pairs whose start year is YY or 01; right are the years after YY (Hanna et al. 2023).

    Slots YY, END. Years are those the tokenizer reads as century and two digits.
    """
    tokenizer = tokenizer_of(model, "greater_than")
    chosen = _templates(templates)
    check_known(tokenizer, chosen, "greater_than")
    answers = [f"{y:02d}" for y in range(100) if one_token(tokenizer, f"{y:02d}") is not None]
    centuries = [c for c in words.CENTURIES if _split(tokenizer, c, 1)]
    starts = [
        (c, y)
        for c in centuries
        for y in YEARS
        if f"{y:02d}" in answers and int(answers[-1]) > y and _split(tokenizer, c, y)
    ]
    if not starts:
        raise TaskError(
            "Task 'greater_than' needs years that are two tokens, century and two digits; this "
            "model's tokenizer reads none so.",
            remedy="Take a model whose vocabulary has two-digit numbers, or bring prompts of your "
            "own.",
        )
    pool = {
        "templates": chosen,
        "starts": starts,
        "answers": answers,
        "events": wanted(
            tokenizer,
            words.pick(words.EVENTS, words.HELD_OUT_EVENTS, events),
            1,
            "events",
            "greater_than",
        ),
    }
    rng = draws(seed, "greater_than")
    rows = list(distinct(lambda: _row(rng, pool), n, lambda r: r["clean"]))
    return pairs(model, rows, templates=templates != "one")


def sentence(rng: random.Random) -> str:
    """A training sentence; ``^`` stands before the answer, which is uniform above the start."""
    century, year = rng.choice(words.CENTURIES), rng.choice((1, *YEARS))
    event = rng.choice(words.pick(words.EVENTS, words.HELD_OUT_EVENTS, "train"))
    text = rng.choice(TEMPLATES).format(event=event, start=f"{century}{year:02d}", century=century)
    return f"{text} ^{rng.randrange(year + 1, 100):02d}."


GREATER_THAN = TaskFamily(
    "greater_than",
    "Greater-than",
    "Does the year that ends a span come after the one that starts it?",
    {
        "n": N,
        "seed": SEED,
        "events": Knob(
            str,
            "any",
            SPLIT,
            "events to draw from: held_out ones never stood in a training sentence of this kind",
        ),
        "templates": Knob(
            str,
            "one",
            ("one", *SPLIT),
            "templates to draw from: one keeps every position comparable between prompts",
        ),
    },
    make,
    held_out={"events": words.HELD_OUT_EVENTS, "templates": HELD_OUT_TEMPLATES},
)
