"""Concepts: prompts for the built-in observables, clean for their plus side, corrupt for the minus.

Three templates each, of our own, with names that are one token; a second three in the words of the
shipped models, for tokenizers that lack a word of the first (dunefsky2024observable has the
observables).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from interp.tasks import words
from interp.tasks.families import SEED, Knob, N, TaskFamily, distinct, draws
from interp.tasks.fitting import check_known, pairs, tokenizer_of, wanted
from interp.tasks.observables import OBSERVABLES, check_words
from interp.tasks.politicians import DEMOCRATS, REPUBLICANS
from interp.terms import TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel, PromptPairs

Sets = tuple[tuple[str, ...], ...]

SUBJECT: Sets = (
    ("My friend {X} is a good student, isn't", "Our teacher {X} lives near the school, doesn't",
     "His neighbour {X} can swim very well, can't"),
    ("Today {X} slept because", "Then {X} was happy when", "Yesterday {X} went home because"),
)  # fmt: skip
OBJECT: Sets = (
    ("My friend {X} did so well that we all praised", "In fact {X} was so kind that we all loved",
     "Yesterday {X} helped us all, and we thanked"),
    ("Then {Y} saw {X} and thanked", "Today {Y} met {X} and helped",
     "Yesterday {Y} found {X} and called"),
)  # fmt: skip
JOB: Sets = (
    ("My friend {X} works as a", "One day {X} wants to become a", "After school {X} became a"),
    ("Today {X} worked as a",),
)  # fmt: skip
CASE: Sets = (
    ("They know {X} well and we called", "Today {X} was there and we saw",
     "Then {X} came home and we met"),
    ("Then {Y} saw {X} and thanked", "Today {Y} met {X} and helped",
     "Yesterday {Y} found {X} and called"),
)  # fmt: skip
CASE_CORRUPT: Sets = (
    ("They know {X} well and left because", "Today {X} was there and slept until",
     "Then {X} came home and smiled when"),
    ("Then {Y} saw {X} and when", "Today {Y} met {X} and because",
     "Yesterday {Y} found {X} and until"),
)  # fmt: skip
PARTY: Sets = (("{X} is a", "Everybody knows that {X} is a", "In politics, {X} is a"),)
TEMPLATES = Knob(str, "one", ("one", "all"), "one template keeps positions comparable, or all")


def _held(tokenizer: Any, sets: Sets, name: str) -> int:
    """The first set of templates whose words the tokenizer has.

    Raises:
        TaskError: none, with the words of the first that it lacks.
    """
    first: TaskError | None = None
    for i, templates in enumerate(sets):
        try:
            check_known(tokenizer, templates, name)
        except TaskError as error:
            first = first or error
            continue
        return i
    assert first is not None
    raise first


def _people(
    model: HookedModel, name: str, sets: Sets, *, n: int, seed: int, templates: str
) -> PromptPairs:
    """A woman in the clean prompt, a man in the corrupt one."""
    tokenizer = tokenizer_of(model, name)
    check_words(name, model)
    chosen = sets[_held(tokenizer, sets, name)]
    chosen = chosen[:1] if templates == "one" else chosen
    women, men = (
        wanted(tokenizer, people, 2, "first names", name) for people in (words.WOMEN, words.MEN)
    )

    def row(rng: random.Random) -> dict[str, Any]:
        template, her, him = rng.choice(chosen), rng.choice(women), rng.choice(men)
        other = rng.choice([x for x in (*women, *men) if x not in (her, him)])
        return _row(name, template, template, her, him, other)

    rng = draws(seed, name)
    rows = list(distinct(lambda: row(rng), n, lambda r: (r["clean"], r["corrupt"])))
    return pairs(model, rows, templates=templates != "one")


def _row(
    name: str, clean: str, corrupt: str, first: str, second: str, other: str
) -> dict[str, Any]:
    known = OBSERVABLES[name]
    clean, corrupt = (t.replace("{Y}", other) for t in (clean, corrupt))
    start = clean.index("{X}")
    text = clean.replace("{X}", first)
    return {
        "clean": text,
        "corrupt": corrupt.replace("{X}", second),
        "right": list(known.plus),
        "wrong": list(known.minus),
        "template": clean,
        "slots": {"cue": start + len(first), "END": len(text)},
    }


def _case(model: HookedModel, *, n: int, seed: int, templates: str) -> PromptPairs:
    """A place for an object in the clean prompt, for a subject in the corrupt one."""
    tokenizer = tokenizer_of(model, "case")
    check_words("case", model)
    both = tuple(a + b for a, b in zip(CASE, CASE_CORRUPT, strict=True))
    which = _held(tokenizer, both, "case")
    chosen = list(zip(CASE[which], CASE_CORRUPT[which], strict=True))
    people = wanted(tokenizer, words.NAMES, 3, "first names", "case")
    length = {t: len(tokenizer.encode(t.replace("{X}", people[0]).replace("{Y}", people[1])))
              for pair in chosen for t in pair}  # fmt: skip
    equal = [(a, b) for a, b in chosen if length[a] == length[b]]
    if not equal:
        raise TaskError(
            "Task 'case': this model's tokenizer splits the templates' two ends differently.",
            remedy="Bring pairs of your own (task_from_file).",
        )
    equal = equal[:1] if templates == "one" else equal

    def row(rng: random.Random) -> dict[str, Any]:
        a, b = rng.choice(equal)
        who, other = rng.sample(people, 2)
        return _row("case", a, b, who, who, other)

    rng = draws(seed, "case")
    rows = list(distinct(lambda: row(rng), n, lambda r: r["clean"]))
    return pairs(model, rows, templates=templates != "one")


def _party(model: HookedModel, *, n: int, seed: int, templates: str) -> PromptPairs:
    """A Democrat in the clean prompt, a Republican of as many tokens in the corrupt one."""
    tokenizer = tokenizer_of(model, "party")
    check_words("party", model)
    chosen = PARTY[_held(tokenizer, PARTY, "party")]
    chosen = chosen[:1] if templates == "one" else chosen
    check_known(tokenizer, [n for p in DEMOCRATS + REPUBLICANS for n in p.split()], "party")

    def row(rng: random.Random) -> dict[str, Any]:
        template = rng.choice(chosen)
        one = rng.choice(DEMOCRATS)
        length = len(tokenizer.encode(template.replace("{X}", one)))
        alike = [r for r in REPUBLICANS
                 if len(tokenizer.encode(template.replace("{X}", r))) == length]  # fmt: skip
        return {} if not alike else _row("party", template, template, one, rng.choice(alike), "")

    rng = draws(seed, "party")

    def some() -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not found:
            found = row(rng)
        return found

    rows = list(distinct(some, n, lambda r: (r["clean"], r["corrupt"])))
    return pairs(model, rows, templates=templates != "one")


def _family(name: str, question: str, make: Callable[..., PromptPairs]) -> TaskFamily:
    known = OBSERVABLES[name]
    plus, minus = (", ".join(map(repr, side)) for side in (known.plus, known.minus))
    return TaskFamily(
        name,
        known.title[0].upper() + known.title[1:],
        f"{question} ({plus} against {minus})",
        {"n": N, "seed": SEED, "templates": TEMPLATES},
        make,
    )


def _of_people(name: str, sets: Sets, question: str) -> TaskFamily:
    def make(model: HookedModel, *, n: int, seed: int, templates: str) -> PromptPairs:
        return _people(model, name, sets, n=n, seed=seed, templates=templates)

    return _family(name, question, make)


CONCEPTS: dict[str, TaskFamily] = {
    f.name: f
    for f in (
        _of_people("pronoun_subject", SUBJECT, "Which subject pronoun follows a name?"),
        _of_people("pronoun_object", OBJECT, "Which object pronoun follows praise of a name?"),
        _of_people("suffix", SUBJECT, "Does a name call for a woman or a man?"),
        _family("case", "Does the sentence want an object or a subject?", _case),
        _of_people("occupation", JOB, "Which occupation does a name call for?"),
        _of_people("nurse", JOB, "Is a woman thought a nurse and a man a programmer?"),
        _of_people("actress", JOB, "Is a woman an actress and a man an actor, as grammar has it?"),
        _family("party", "Which party does a politician stand for?", _party),
        _of_people("control", SUBJECT, "Does a name tell apart what has nothing to do with it?"),
    )
}
"""Built-in observables with prompts of their own, by name; entries of ``TASKS``."""
