"""Observables by name or by words: which tokens count for, which against."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.tasks.fitting import one_token
from interp.terms import Observable, PromptPairs, TaskError, UsageError, near_misses

if TYPE_CHECKING:
    from interp.terms import HookedModel, Tokenizer

ANSWERS = "answers"
"""The observable of a task of pairs: mean right answer less mean wrong one, prompt by prompt."""


@dataclass(frozen=True)
class Words:
    """A built-in observable: words for and against, each with the space it is read with.

    Args:
        title: a few words.
        plus: words for.
        minus: words against.
    """

    title: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]


OBSERVABLES: dict[str, Words] = {
    "pronoun_subject": Words("she or he", (" she",), (" he",)),
    "pronoun_object": Words("her or him", (" her",), (" him",)),
    "suffix": Words("woman or man", ("woman",), ("man",)),
    "case": Words("object or subject", (" him", " them", " me"), (" he", " they", " I")),
    "occupation": Words(
        "occupations by gender",
        (" nurse", " teacher", " secretary"),
        (" programmer", " doctor", " engineer"),
    ),
    "nurse": Words("nurse or programmer", (" nurse",), (" programmer",)),
    "actress": Words("actress or actor", (" actress",), (" actor",)),
    "party": Words("party", (" Democrat",), (" Republican",)),
    "code_brace": Words("C or Python, by the brace", ("){",), ("):",)),
    "code_comment": Words("Python or C, by the comment", (" #",), (" //",)),
    "control": Words("car or angel, a control", (" car",), (" angel",)),
}
"""Name -> words. Observables of dunefsky2024observable, and a control."""


def observables_of(text: str, model: HookedModel, task: Any = None) -> list[Observable]:
    """Observables from text, ``;`` between several.

    ``answers`` is the task's right less its wrong answers; a name of ``OBSERVABLES``; or words for
    and against, as ``she her / he him``: a word stands with a space before it, ``"){"`` in quotes
    as it is, ``#17`` is a token id.

    Raises:
        UsageError: an unknown name, a word of several tokens, or the same word on both sides.
    """
    found = [
        _one(part.strip(), model, task)
        for part in re.split(r";(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", text)
    ]
    names = [o.name for o in found]
    if len(set(names)) < len(names):
        raise UsageError(f"An observable was named twice in {text!r}.", remedy="Name each once.")
    return found


def _one(text: str, model: HookedModel, task: Any) -> Observable:
    if text == ANSWERS:
        if not isinstance(task, PromptPairs):
            raise UsageError(
                "The observable 'answers' is a task's right less its wrong answers, and no pairs "
                "of prompts were given.",
                remedy="Give pairs, or name the tokens, as observable='she / he'.",
            )
        if not all(task.wrong):
            raise UsageError(
                "The observable 'answers' needs wrong answers, and this task has none.",
                remedy="Name the tokens, as observable='she / he'.",
            )
        return Observable.per_example(task)
    if text in OBSERVABLES:
        known = OBSERVABLES[text]
        return _of_words(text, known.plus, known.minus, model)
    sides = _sides(text)
    if len(sides) == 1 and len(sides[0]) == 1 and not sides[0][0].startswith("#"):
        close = near_misses(text, [ANSWERS, *OBSERVABLES])
        raise UsageError(
            f"There is no observable {text!r}.",
            remedy=(f"Did you mean {' or '.join(map(repr, close))}? " if close else "")
            + "Or write words for and against, as 'she / he'.",
        )
    if len(sides) > 2:
        raise UsageError(
            f"{text!r} has {len(sides)} sides; wanted words for, a slash, words against."
        )
    return _of_words(text, sides[0], sides[1] if len(sides) == 2 else (), model)


def _sides(text: str) -> list[tuple[str, ...]]:
    sides: list[list[str]] = [[]]
    for quoted, slash, plain in re.findall(r"\"([^\"]*)\"|(?<!\S)(/)(?!\S)|(\S+)", text):
        if slash:
            sides.append([])
        elif plain:
            sides[-1].append(plain if plain.startswith("#") else " " + plain)
        else:
            sides[-1].append(quoted)
    return [tuple(side) for side in sides]


def _of_words(
    name: str, plus: tuple[str, ...], minus: tuple[str, ...], model: HookedModel
) -> Observable:
    ids = [[_token(w, name, model) for w in side] for side in (plus, minus)]
    words = {i: w for side, w_side in zip(ids, (plus, minus), strict=True)
             for i, w in zip(side, w_side, strict=True)}  # fmt: skip
    return Observable.from_tokens(*ids, name=name, words=words)


def _token(word: str, name: str, model: HookedModel) -> int:
    if re.fullmatch(r"#\d+", word):
        token = int(word[1:])
        if token >= model.shape.vocab:
            raise UsageError(
                f"Token {token} of the observable {name!r} is not among the model's "
                f"{model.shape.vocab}."
            )
        return token
    if model.tokenizer is None:
        raise UsageError(
            f"The observable {name!r} is made of words, and this model has no tokenizer.",
            remedy="Give token ids, as '#17 / #4', or 'answers' with a task of token ids.",
        )
    token = one_token(model.tokenizer, word)
    if token is None:
        raise UsageError(
            f"{word!r} of the observable {name!r} is {_split(model.tokenizer, word)} in this "
            "model's vocabulary; an observable reads single tokens.",
            remedy="Take words that are one token each.",
        )
    return token


def _split(tokenizer: Tokenizer, word: str) -> str:
    ids = list(tokenizer.encode(word, bos=False))
    if len(ids) == 1:
        return "unknown"
    return f"{len(ids)} tokens ({' | '.join(tokenizer.texts(ids))})"


def check_words(name: str, model: HookedModel) -> None:
    """See that a built-in observable's words are single tokens.

    Raises:
        TaskError: with the words that are not.
    """
    try:
        observables_of(name, model)
    except UsageError as error:
        raise TaskError(f"Task {name!r}: {error.message}", remedy=error.remedy) from None
