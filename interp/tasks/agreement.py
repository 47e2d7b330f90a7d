"""Subject-verb agreement with distractors: "The keys near the cabinet" -> are, not is."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from interp.tasks import words
from interp.tasks.families import SEED, SPLIT, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import check_known, pairs, single, tokenizer_of
from interp.terms import TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel, PromptPairs

INTROS = ("The", "Today the", "Then the", "Yesterday the", "Later the")
STRUCTURES: dict[str, str] = {
    "simple": "{noun}",
    "near": "{noun} near the {other}",
    "behind": "{noun} behind the {other}",
    "with": "{noun} with the {other}",
    "from": "{noun} from the {other}",
    "relative": "{noun} that the {other} {like}",
    "with_near": "{noun} with the {other} near the {third}",
    "behind_with": "{noun} behind the {other} with the {third}",
    "near_from": "{noun} near the {other} from the {third}",
}
HELD_OUT_INTROS = ("Now the", "After lunch the")
HELD_OUT_STRUCTURES: dict[str, str] = {
    "near_behind": "{noun} near the {other} behind the {third}",
    "from_with": "{noun} from the {other} with the {third}",
}
INNER: tuple[tuple[str, str], ...] = (("likes", "like"), ("knows", "know"), ("sees", "see"))
"""Verbs of the relative clause, (singular, plural), which agree with the distractor."""

TEMPLATES = tuple(f"{i} {s}" for s in STRUCTURES.values() for i in INTROS)
HELD_OUT_TEMPLATES = tuple(
    f"{i} {s}" for s in HELD_OUT_STRUCTURES.values() for i in HELD_OUT_INTROS
)
Nouns = tuple[tuple[str, str], ...]


def _nouns(split: str) -> Nouns:
    chosen = words.pick(tuple(n for n, _ in words.NOUNS), words.HELD_OUT_NOUNS, split)
    return tuple(pair for pair in words.NOUNS if pair[0] in chosen)


def _fill(
    rng: random.Random,
    template: str,
    subject: tuple[str, str],
    number: int,
    others: list[tuple[str, str]],
    numbers: list[int],
    inner: tuple[str, str],
) -> tuple[str, int]:
    """The prompt with the subject in this number (0 singular), and where the subject ends."""
    start = template.index("{noun}") + len(subject[number])
    text = template.replace("{noun}", subject[number])
    text = text.replace("{other}", others[0][numbers[0]]).replace("{like}", inner[numbers[0]])
    return text.replace("{third}", others[1][numbers[1]]), start


def _row(rng: random.Random, pool: dict[str, Any]) -> dict[str, Any]:
    template = rng.choice(pool["templates"])
    subject = rng.choice(pool["nouns"])
    others = rng.sample([n for n in pool["others"] if n != subject], 2)
    number = rng.randrange(2)
    numbers = [rng.randrange(2), rng.randrange(2)]
    if pool["distractor"] != "any":
        numbers = [number if pool["distractor"] == "same" else 1 - number] * 2
    inner = rng.choice(INNER)
    clean, end = _fill(rng, template, subject, number, others, numbers, inner)
    corrupt, _ = _fill(rng, template, subject, 1 - number, others, numbers, inner)
    answers = [[" " + pair[k] for pair in pool["verbs"]] for k in (number, 1 - number)]
    return {
        "clean": clean,
        "corrupt": corrupt,
        "right": answers[0],
        "wrong": answers[1],
        "template": template,
        "slots": {"subject": end, "END": len(clean)},
    }


def make(
    model: HookedModel,
    *,
    n: int,
    seed: int,
    structure: str,
    distractor: str,
    verb: str,
    nouns: str,
    templates: str,
) -> PromptPairs:
    """Pairs whose subject differs in number; right are the verbs that agree with the clean one.

    Slots subject, END. Both forms of a noun are single tokens of the model, so the pair aligns.
    """
    tokenizer = tokenizer_of(model, "agreement")
    chosen = {
        "one": (f"{INTROS[0]} {(STRUCTURES | HELD_OUT_STRUCTURES)[structure]}",),
        "train": TEMPLATES,
        "held_out": HELD_OUT_TEMPLATES,
        "any": TEMPLATES + HELD_OUT_TEMPLATES,
    }[templates]
    check_known(tokenizer, chosen, "agreement")
    usable = {
        split: tuple(p for p in _nouns(split) if len(single(tokenizer, p)) == 2)
        for split in {nouns, "any"}
    }
    verbs = tuple(p for p in words.VERBS if len(single(tokenizer, p)) == 2 and verb in ("all", *p))
    if not usable[nouns] or len(usable["any"]) < 3 or not verbs:
        raise TaskError(
            f"Task 'agreement' needs nouns and verbs whose singular and plural are one token each; "
            f"this model's vocabulary has {len(usable[nouns])} such nouns and {len(verbs)} verbs.",
            remedy="Take a model whose vocabulary holds them, or bring prompts of your own.",
        )
    pool = {
        "templates": chosen,
        "nouns": usable[nouns],
        "others": usable["any"],
        "verbs": verbs,
        "distractor": distractor,
    }
    rng = draws(seed, "agreement")
    rows = list(distinct(lambda: _row(rng, pool), n, lambda r: r["clean"]))
    return pairs(model, rows, templates=templates != "one")


def sentence(rng: random.Random) -> str:
    """A training sentence; ``^`` stands before each answer."""
    template = rng.choice(TEMPLATES).replace("{like}", "^{like}")
    others = rng.sample(words.NOUNS, 2)
    number, numbers = rng.randrange(2), [rng.randrange(2), rng.randrange(2)]
    subject = rng.choice([p for p in _nouns("train") if p not in others])
    text, _ = _fill(rng, template, subject, number, others, numbers, rng.choice(INNER))
    verb = rng.choice(words.VERBS)[number]
    tail = {"has": "a hat", "have": "a hat", "does": "it", "do": "it"}
    return f"{text} ^{verb} {tail.get(verb) or rng.choice(words.ADJECTIVES)}."


AGREEMENT = TaskFamily(
    "agreement",
    "Subject-verb agreement",
    "Does the verb agree with its subject when other nouns stand between?",
    {
        "n": N,
        "seed": SEED,
        "structure": Knob(
            str,
            "near",
            (*STRUCTURES, *HELD_OUT_STRUCTURES),
            "what stands between subject and verb (where templates is one)",
        ),
        "distractor": Knob(
            str,
            "any",
            ("any", "same", "opposite"),
            "number of the nouns between, against the clean subject's",
        ),
        "verb": Knob(
            str,
            "all",
            ("all", *(v for v, _ in words.VERBS)),
            "the verb to compare, or all of them as alternatives",
        ),
        "nouns": Knob(
            str,
            "any",
            SPLIT,
            "subjects to draw from: held_out ones were never a subject in training",
        ),
        "templates": Knob(
            str,
            "one",
            ("one", *SPLIT),
            "templates to draw from: one keeps every position comparable between prompts",
        ),
    },
    make,
    held_out={"nouns": words.HELD_OUT_NOUNS, "templates": HELD_OUT_TEMPLATES},
)
