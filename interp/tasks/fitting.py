"""Fitting words to a model's tokenizer: which words are one token, and where a word stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from interp.terms import CapabilityError, PromptPairs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel, Tokenizer

ANCHOR = "the"
"""A word to read others behind."""


def tokenizer_of(model: HookedModel, task: str) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        CapabilityError: it has none.
    """
    if model.tokenizer is None:
        raise CapabilityError(
            f"Task {task!r} is made of words, and this model has no tokenizer.",
            remedy="Give token ids with PromptPairs.from_tokens or a file of ids, or take a model "
            "with a tokenizer.",
        )
    return model.tokenizer


def one_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of ``text`` where it is exactly one token that reads back as itself, else None.

    A text that starts with a space is read behind a word, as it stands in a prompt: by itself,
    some tokenizers make two spaces of it.
    """
    ids = list(tokenizer.encode(text, bos=False))
    if text.startswith(" "):
        before = list(tokenizer.encode(ANCHOR, bos=False))
        both = list(tokenizer.encode(ANCHOR + text, bos=False))
        if both[: len(before)] != before:
            return None
        ids = both[len(before) :]
    if len(ids) != 1 or tokenizer.texts(ids)[0].strip() != text.strip():
        return None
    return int(ids[0])


def single(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[str, ...]:
    """The words that are one token after a space."""
    return tuple(w for w in words if one_token(tokenizer, " " + w) is not None)


def wanted(
    tokenizer: Tokenizer, words: Sequence[str], least: int, what: str, task: str
) -> tuple[str, ...]:
    """The single-token words among ``words``.

    Raises:
        TaskError: fewer than ``least`` of them.
    """
    found = single(tokenizer, words)
    if len(found) < least:
        raise TaskError(
            f"Task {task!r} needs at least {least} {what} that are one token each in this model's "
            f"vocabulary, and {len(found)} of {len(words)} are"
            + (f" ({', '.join(found)})." if found else "."),
            remedy="Take a model whose vocabulary holds these words, or bring prompts of your own "
            "(task_from_file, PromptPairs.from_text).",
        )
    return found


def place(tokenizer: Tokenizer, text: str, end: int) -> int:
    """Position of the token that ends at character ``end`` of ``text``, BOS as the model does."""
    return len(tokenizer.encode(text[:end])) - 1


def check_known(tokenizer: Tokenizer, texts: Iterable[str], task: str) -> None:
    """See that the tokenizer holds every word (a word-level one maps others to one unknown token).

    Args:
        tokenizer: the model's.
        texts: templates; words with a ``{slot}`` are passed over.
        task: its name, for the error.

    Raises:
        TaskError: with the words that do not read back.
    """
    lost: dict[str, None] = {}
    for text in texts:
        for word in text.split():
            if "{" in word or word in lost:
                continue
            back = tokenizer.decode(tokenizer.encode(" " + word, bos=False))
            if back.replace(" ", "") != word:
                lost[word] = None
    if lost:
        raise TaskError(
            f"Task {task!r} uses words that this model's vocabulary lacks: "
            f"{', '.join(list(lost)[:8])}{' …' if len(lost) > 8 else ''}.",
            remedy="Take a model whose vocabulary holds these words, or bring prompts of your own.",
        )


def pairs(model: HookedModel, rows: Sequence[dict[str, Any]], *, templates: bool) -> PromptPairs:
    """Prompt pairs of rows with clean, corrupt, right, wrong, template and character slots.

    Args:
        model: whose tokenizer is used.
        rows: dicts; ``slots`` maps a name to the character where its word ends in ``clean``.
        templates: whether the rows come from several templates (else the field stays empty).

    Raises:
        TaskError: a prompt over the model's context, or rows that make no pair.
    """
    tokenizer = tokenizer_of(model, "")
    prompts = [[tuple(tokenizer.encode(r[k])) for r in rows] for k in ("clean", "corrupt")]
    longest, limit = max(map(len, prompts[0] + prompts[1])), model.shape.n_ctx
    if limit is not None and longest > limit:
        raise TaskError(
            f"A prompt of this task has {longest} tokens and the model's context holds {limit}.",
            remedy="Take a model with a longer context, or templates that are shorter.",
        )
    words = {w for r in rows for k in ("right", "wrong") for w in _listed(r[k])}
    ids = {w: one_token(tokenizer, w) for w in sorted(words)}
    answers = [
        tuple(tuple(ids[w] for w in _listed(r[k])) for r in rows) for k in ("right", "wrong")
    ]
    return PromptPairs(
        tuple(prompts[0]),
        tuple(prompts[1]),
        *answers,  # type: ignore[arg-type]
        slots={
            name: tuple(place(tokenizer, r["clean"], r["slots"][name]) for r in rows)
            for name in rows[0]["slots"]
        },
        template=tuple(r["template"] for r in rows) if templates else None,
        clean_text=tuple(tuple(tokenizer.texts(p)) for p in prompts[0]),
        corrupt_text=tuple(tuple(tokenizer.texts(p)) for p in prompts[1]),
        answer_text={i: tokenizer.texts([i])[0] for i in ids.values() if i is not None},
        bos=tokenizer.default_bos,
    )


def _listed(answers: str | Sequence[str]) -> list[str]:
    return [answers] if isinstance(answers, str) else list(answers)
