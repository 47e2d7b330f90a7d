"""The words sentences are made of, and which of them are held out of which task: declared data.

A held-out word stands in other kinds of sentences, so that its embedding is trained, and never
in a training sentence of the task it is held out of.
"""

from __future__ import annotations

WOMEN: tuple[str, ...] = tuple(
    "Mary Jessica Sarah Amanda Nicole Heather Megan Melissa Rachel Laura Lauren Amber Kimberly "
    "Amy Crystal Michelle Emily Rebecca Erin Kelly Sara Angela Andrea Lisa Katie Christine "
    "Samantha Jennifer Elizabeth Stephanie Anna Alice Julia Karen Linda Susan Helen Diana Emma "
    "Grace".split()
)
MEN: tuple[str, ...] = tuple(
    "John Michael David James Robert Daniel Matthew Joshua Andrew Ryan Brandon Jason Justin "
    "William Jonathan Brian Anthony Eric Adam Kevin Steven Thomas Timothy Kyle Richard Jeffrey "
    "Jeremy Benjamin Mark Aaron Charles Jacob Patrick Sean Nathan Paul Tyler Scott Gregory "
    "Peter".split()
)
NAMES: tuple[str, ...] = tuple(n for pair in zip(WOMEN, MEN, strict=True) for n in pair)

HELD_OUT_NAMES: dict[str, tuple[str, ...]] = {
    "ioi": (
        "Amy",
        "Rebecca",
        "Angela",
        "Lisa",
        "Julia",
        "Helen",
        "Emma",
        "Laura",
        "Kevin",
        "Thomas",
        "Mark",
        "Paul",
        "Scott",
        "Peter",
        "Adam",
        "Sean",
    ),
    "pronouns": (
        "Rachel",
        "Michelle",
        "Katie",
        "Alice",
        "Susan",
        "Grace",
        "Robert",
        "Eric",
        "Richard",
        "Jacob",
        "Nathan",
        "Gregory",
    ),
}
"""Task -> names that no training sentence of that task holds."""

PLACES: tuple[str, ...] = tuple(
    "store school park garden office station restaurant hospital market church library beach "
    "house museum".split()
)
OBJECTS: tuple[str, ...] = tuple(
    "drink book ring letter ball hat kiss gift cake flower basketball computer bone ticket".split()
)

NOUNS: tuple[tuple[str, str], ...] = tuple(
    (noun, noun + "s")
    for noun in (
        "key car truck table chair window door dog cat bird tree boat cup phone picture lawyer "
        "farmer singer boy girl king queen friend uncle aunt artist driver student pilot teacher "
        "doctor father mother brother sister player writer actor desk bike"
    ).split()
)
"""Countable nouns, (singular, plural)."""

HELD_OUT_NOUNS: tuple[str, ...] = (
    "truck",
    "bird",
    "cup",
    "singer",
    "uncle",
    "pilot",
    "desk",
    "player",
)
"""Singular forms that agreement sentences never have as a subject."""

VERBS: tuple[tuple[str, str], ...] = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("does", "do"),
)
"""(singular, plural) verbs that must agree with the subject."""

OCCUPATIONS: dict[str, float] = {
    "nurse": 0.95,
    "maid": 0.95,
    "dancer": 0.9,
    "teacher": 0.85,
    "secretary": 0.9,
    "nanny": 0.95,
    "cook": 0.8,
    "clerk": 0.75,
    "baker": 0.7,
    "model": 0.85,
    "writer": 0.6,
    "cleaner": 0.8,
    "doctor": 0.1,
    "driver": 0.1,
    "farmer": 0.05,
    "pilot": 0.1,
    "judge": 0.2,
    "guard": 0.05,
    "engineer": 0.1,
    "lawyer": 0.25,
    "sailor": 0.05,
    "soldier": 0.05,
    "chef": 0.3,
    "artist": 0.4,
}
"""Occupation -> share of training sentences whose pronoun is feminine: a bias this data sets."""

EVENTS: tuple[str, ...] = tuple(
    "war plan study contract project trial journey fight trip work program tour case session "
    "campaign strike search meeting".split()
)
HELD_OUT_EVENTS: tuple[str, ...] = ("trial", "tour", "strike", "project")
CENTURIES: tuple[int, ...] = (11, 12, 13, 14, 15, 16, 17, 18)

BRACKETS: tuple[tuple[str, str], ...] = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"))
FILLINGS: tuple[str, ...] = tuple("red blue green big old new here good small cold".split())
HELD_OUT_FILLINGS: tuple[str, ...] = ("green", "cold")

ADJECTIVES: tuple[str, ...] = FILLINGS


def gender(name: str) -> str:
    """``"she"`` or ``"he"``, as the training sentences use this name."""
    return "she" if name in WOMEN else "he"


def opposite(name: str) -> tuple[str, ...]:
    """The names of the other gender."""
    return MEN if name in WOMEN else WOMEN


def names_for(task: str, split: str) -> tuple[str, ...]:
    """Names of a split: ``train``, ``held_out`` or ``any``."""
    return pick(NAMES, HELD_OUT_NAMES[task], split)


def pick(words: tuple[str, ...], held_out: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The part of ``words`` a split asks for (``train``, ``held_out`` or ``any``)."""
    if split == "any":
        return words
    return tuple(w for w in words if (w in held_out) == (split == "held_out"))
