"""Gendered pronouns, subject and object: "Today the nurse slept because" -> she, as data has it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from interp.tasks import words
from interp.tasks.families import SEED, SPLIT, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import check_known, pairs, single, tokenizer_of, wanted
from interp.terms import TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel, PromptPairs

TEMPLATES: dict[str, tuple[str, ...]] = {
    "subject": (
        "Today {X} slept because",
        "Yesterday {X} went home because",
        "Then {X} was happy when",
        "Later {X} worked at the {place} until",
        "Today {X} smiled when",
        "Then {X} went to the {place} because",
        "Later {X} smiled at the {place} because",
        "Yesterday {X} came to the {place} until",
    ),
    "object": (
        "Then {Y} saw {X} and thanked",
        "Today {Y} met {X} and helped",
        "Yesterday {Y} found {X} and called",
        "Later {Y} knew {X} and met",
        "Then {Y} went to {X} and saw",
        "Today {Y} saw {X} at the {place} and called",
        "Later {Y} found {X} near the {place} and helped",
        "Yesterday {Y} called {X} and met",
    ),
}
HELD_OUT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "subject": ("Later {X} came to the {place} because", "Yesterday {X} slept until"),
    "object": ("Later {Y} found {X} and thanked", "Then {Y} met {X} at the {place} and helped"),
}
PRONOUNS = {"subject": ("she", "he"), "object": ("her", "him")}
ENDS = {"subject": "was {adjective}", "object": "at the {place}"}


def _templates(case: str, split: str) -> tuple[str, ...]:
    train, held = TEMPLATES[case], HELD_OUT_TEMPLATES[case]
    return {"one": train[:1], "train": train, "held_out": held, "any": train + held}[split]


def _feminine(cue: str) -> bool:
    """Whether training data calls this name or occupation 'she' (mostly)."""
    return words.OCCUPATIONS[cue] > 0.5 if cue in words.OCCUPATIONS else cue in words.WOMEN


def _spoken(cue: str) -> str:
    return f"the {cue}" if cue in words.OCCUPATIONS else cue


def _fill(template: str, cue: str, other: str, place: str) -> tuple[str, int]:
    """The prompt, and where the cue ends."""
    text = template.replace("{Y}", other).replace("{place}", place)
    start = text.index("{X}")
    return text.replace("{X}", _spoken(cue)), start + len(_spoken(cue))


def _row(rng: random.Random, pool: dict[str, Any]) -> dict[str, Any]:
    template = rng.choice(pool["templates"])
    cues = pool["cues"][rng.choice(sorted(pool["cues"]))]
    cue = rng.choice(cues)
    opposite = rng.choice([c for c in cues if _feminine(c) != _feminine(cue)])
    other = rng.choice([x for x in pool["names"] if x not in (cue, opposite)])
    place = rng.choice(pool["places"])
    clean, end = _fill(template, cue, other, place)
    corrupt, _ = _fill(template, opposite, other, place)
    answers = [" " + p for p in PRONOUNS[pool["case"]]]
    right, wrong = answers if _feminine(cue) else answers[::-1]
    return {
        "clean": clean,
        "corrupt": corrupt,
        "right": right,
        "wrong": wrong,
        "template": template,
        "slots": {"cue": end, "END": len(clean)},
    }


def make(
    model: HookedModel, *, n: int, seed: int, case: str, cue: str, names: str, templates: str
) -> PromptPairs:
    """Pairs whose person differs in gender; the right pronoun is the clean person's.

    An occupation's gender is the one its share in ``words.OCCUPATIONS`` leans to. Slots cue, END.
    """
    tokenizer = tokenizer_of(model, "pronouns")
    chosen = _templates(case, templates)
    check_known(tokenizer, chosen, "pronouns")
    cues = {}
    if cue != "occupation":
        cues["name"] = wanted(
            tokenizer, words.names_for("pronouns", names), 4, "first names", "pronouns"
        )
    if cue != "name":
        cues["occupation"] = wanted(
            tokenizer, tuple(words.OCCUPATIONS), 4, "occupations", "pronouns"
        )
    for kind, found in cues.items():
        if len({_feminine(c) for c in found}) < 2:
            raise TaskError(
                f"Task 'pronouns': every {kind} in this model's vocabulary that is one "
                "token has the same gender, so there is no pair."
            )
    if len(single(tokenizer, PRONOUNS[case])) < 2:
        raise TaskError(
            f"Task 'pronouns': {' and '.join(PRONOUNS[case])} are not one token each "
            "in this model's vocabulary."
        )
    pool = {
        "templates": chosen,
        "cues": cues,
        "case": case,
        "names": wanted(
            tokenizer, words.names_for("pronouns", "train"), 3, "first names", "pronouns"
        ),
        "places": wanted(tokenizer, words.PLACES, 1, "places", "pronouns"),
    }
    rng = draws(seed, "pronouns")
    rows = list(distinct(lambda: _row(rng, pool), n, lambda r: r["clean"]))
    # "the nurse" and "Mary" differ in length, so positions compare only within one kind of cue.
    return pairs(model, rows, templates=templates != "one")


def sentence(rng: random.Random) -> str:
    """A training sentence; ``^`` stands before the answer, occupations keep their share."""
    case = rng.choice(("subject", "object", "object"))
    names = words.names_for("pronouns", "train")
    cue = rng.choice(tuple(words.OCCUPATIONS)) if rng.random() < 0.5 else rng.choice(names)
    share = words.OCCUPATIONS.get(cue, 1.0 if cue in words.WOMEN else 0.0)
    other = rng.choice([x for x in names if x != cue])
    text, _ = _fill(rng.choice(TEMPLATES[case]), cue, other, rng.choice(words.PLACES))
    pronoun = PRONOUNS[case][0 if rng.random() < share else 1]
    end = ENDS[case].format(adjective=rng.choice(words.ADJECTIVES), place=rng.choice(words.PLACES))
    return f"{text} ^{pronoun} {end}."


PRONOUN = TaskFamily(
    "pronouns",
    "Gendered pronouns",
    "Which pronoun follows a name or an occupation, and whose bias is that?",
    {
        "n": N,
        "seed": SEED,
        "case": Knob(str, "subject", ("subject", "object"), "she or he, or her or him"),
        "cue": Knob(str, "name", ("name", "occupation", "both"), "who the pronoun stands for"),
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
    held_out={
        "names": words.HELD_OUT_NAMES["pronouns"],
        "templates": HELD_OUT_TEMPLATES["subject"] + HELD_OUT_TEMPLATES["object"],
    },
)
