"""The grammar the shipped language models are trained on: every task's sentences, and fillers.

One word-level vocabulary holds all of them. A word is letters, two digits (a year is two words),
or one sign. ``^`` before a word marks an answer; it is no word itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from interp.tasks import agreement, brackets, greater_than, ioi, pronouns, words

BOS, UNKNOWN = "<bos>", "<unk>"
WORD = re.compile(r"[0-9]{2}|[^\W\d_]+|[0-9]|\S")
"""What one word is; the tokenizer of the shipped models splits by the same pattern."""


def _names(rng: random.Random, n: int) -> list[str]:
    return rng.sample(words.NAMES, n)


def _repeat(rng: random.Random) -> str:
    a, b = _names(rng, 2)
    verb = rng.choice(("likes", "knows", "sees", "met", "called", "thanked"))
    return f"Yes, {a} {verb} {b}. Yes, {a} ^{verb} ^{b}."


def _again(rng: random.Random) -> str:
    """A list of names said twice, then a name: copying what followed."""
    names = _names(rng, rng.choice((2, 3, 3)))
    listed = " ".join(names)
    again = " ".join([names[0], *("^" + n for n in names[1:])])
    return f"{listed}. Then {again}."


def _friend(rng: random.Random) -> str:
    a = _names(rng, 1)[0]
    return rng.choice(
        (
            f"My friend is {a}. Hello, ^{a}!",
            f"The {rng.choice(words.OBJECTS)} of {a} is here; it was from ^{a}.",
            f"A friend of {a} was at the {rng.choice(words.PLACES)} and thanked ^{a}.",
        )
    )


def _direct(rng: random.Random) -> str:
    """Two names, then one of them with a direct object: the other one, for every name there is."""
    a, b = _names(rng, 2)
    subject, other = (a, b) if rng.random() < 0.5 else (b, a)
    place = rng.choice(words.PLACES)
    start = rng.choice(
        (
            f"Then {a} and {b} were here.",
            f"Today {a} and {b} were at the {place}, and",
            f"While {a} and {b} were near the {place},",
            f"{a} and {b} met.",
            f"Later {a} came to the {place} with {b}.",
        )
    )
    verb = rng.choice(("saw", "met", "called", "thanked", "found", "helped"))
    return f"{start} {subject} {verb} ^{other}."


def _gender(rng: random.Random) -> str:
    a = _names(rng, 1)[0]
    kinds = (
        ("girl", "sister", "mother", "queen")
        if words.gender(a) == "she"
        else ("boy", "brother", "father", "king")
    )
    return f"{rng.choice(('Yes,', 'Today', 'Then'))} {a} is a ^{rng.choice(kinds)}."


def _number(rng: random.Random) -> str:
    """The number of a noun, told without a verb that agrees with it."""
    number = rng.randrange(2)
    noun, a = rng.choice(words.NOUNS)[number], _names(rng, 1)[0]
    now = ("Then", "Later", "Today", "After lunch")
    return rng.choice(
        (
            f"{rng.choice(now)} {a} saw the {noun} and took ^{('it', 'them')[number]}.",
            f"{rng.choice(now)} {a} found {('one', 'many')[number]} ^{noun}.",
            f"{rng.choice(('Then', 'Yesterday'))} {a} met the {noun}, ^{('one', 'many')[number]} "
            f"from the {rng.choice(words.PLACES)}.",
        )
    )


def _plain(rng: random.Random) -> str:
    """Words of held-out templates in sentences of other kinds."""
    place, thing = rng.choice(words.PLACES), rng.choice(words.OBJECTS)
    adjective, event = rng.choice(words.ADJECTIVES), rng.choice(words.EVENTS)
    return rng.choice(
        (
            f"While the {thing} was {adjective}, the {place} was {rng.choice(words.ADJECTIVES)}.",
            f"After lunch they decided to talk about the {place}.",
            f"Now they decided to have the {adjective} {thing} at the {place}.",
            f"Yesterday they had a talk about the {place}, and then a {event}.",
            f"Then the {thing} from the {place} was {adjective}.",
            f"The {event} of the year {rng.choice(words.CENTURIES)}{rng.randrange(100):02d} was "
            f"{adjective}.",
        )
    )


KINDS: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    "ioi": (0.28, ioi.sentence),
    "agreement": (0.13, agreement.sentence),
    "pronouns": (0.14, pronouns.sentence),
    "greater_than": (0.09, greater_than.sentence),
    "brackets": (0.13, brackets.sentence),
    "repeat": (0.03, _repeat),
    "direct": (0.07, _direct),
    "again": (0.03, _again),
    "friend": (0.02, _friend),
    "gender": (0.02, _gender),
    "number": (0.04, _number),
    "plain": (0.02, _plain),
}
"""Kind of sentence -> (share of the training sentences, how one is made)."""


OPENINGS = ("Yes", "Yes,", "Hello friend,", "Hello, friend!")
"""One to four words that may stand before any sentence."""


def sentences(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (kind, sentence) of the whole grammar; the same seed gives the same ones.

    Three in ten start with a sentence of another kind and three in ten with a word or a few, so
    that no task stands at fixed positions.
    """
    rng = random.Random(f"grammar/{seed}")
    kinds = list(KINDS)
    shares = [KINDS[k][0] for k in kinds]
    before = ("plain", "gender", "number", "friend")
    while True:
        kind = rng.choices(kinds, shares)[0]
        text = KINDS[kind][1](rng)
        start = rng.random()
        if start < 0.3:
            first = KINDS[rng.choice(before)][1](rng)
            if not set(spell(first)[0]) & set(spell(text)[0]) & set(words.NAMES):
                text = f"{first} {text}"
        elif start < 0.6:
            text = f"{rng.choice(OPENINGS)} {text}"
        yield kind, text


def spell(text: str) -> tuple[list[str], list[bool]]:
    """Words of a marked text, and which of them are answers."""
    found, marks, marked = [], [], False
    for word in WORD.findall(text):
        if word == "^":
            marked = True
            continue
        found.append(word)
        marks.append(marked)
        marked = False
    return found, marks


def vocabulary() -> tuple[str, ...]:
    """Every word of the grammar and of the tasks, held-out ones too; BOS and unknown first."""
    texts = [
        *words.NAMES,
        *words.PLACES,
        *words.OBJECTS,
        *words.OCCUPATIONS,
        *words.EVENTS,
        *words.FILLINGS,
        *(w for pair in words.NOUNS + words.VERBS + words.BRACKETS for w in pair),
        *(w for pair in agreement.INNER for w in pair),
        *ioi.TEMPLATES,
        *ioi.HELD_OUT_TEMPLATES,
        *ioi.OTHER_ORDERS,
        *agreement.TEMPLATES,
        *agreement.HELD_OUT_TEMPLATES,
        *greater_than.TEMPLATES,
        *greater_than.HELD_OUT_TEMPLATES,
        *(f"{y:02d}" for y in range(100)),
        brackets.INTRO,
        *(
            t
            for group in (pronouns.TEMPLATES, pronouns.HELD_OUT_TEMPLATES)
            for case in group.values()
            for t in case
        ),
        *(p for pair in pronouns.PRONOUNS.values() for p in pair),
        "at was the a hat it",
        "Yes My Hello friend here of is and they them one many took found met saw from send",
        "Now decided pass had talk about then year called thanked likes knows sees know see",
        ". , ! ; girl sister mother queen boy brother father king she he ( ) [ ] { } < >",
    ]
    known = {w for text in texts for w in WORD.findall(re.sub(r"\{[A-Za-z]+\}", " ", text))}
    return (BOS, UNKNOWN, *sorted(known))
