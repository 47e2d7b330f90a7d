"""Turning texts into checked prompt pairs with a model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.terms.errors import CapabilityError, TaskError

if TYPE_CHECKING:
    from interp.terms.inputs import PromptPairs
    from interp.terms.models import HookedModel, Tokenizer


def _listed(texts: Sequence[Any] | str) -> list[Any]:
    return [texts] if isinstance(texts, str) else list(texts)


UNKNOWN = frozenset({"<unk>", "[UNK]", "<|unk|>"})


def check_words(texts: Sequence[Any], tokenizer: Tokenizer | None) -> None:
    """See that no word becomes the tokenizer's unknown token: the model could not tell it apart.

    Raises:
        ValueError: with the words that the vocabulary lacks.
    """
    if tokenizer is None:
        return
    for text in dict.fromkeys(t for t in texts if isinstance(t, str)):
        if not set(tokenizer.texts(tokenizer.encode(text, bos=False))) & UNKNOWN:
            continue
        lost = [
            w
            for w in text.split()
            if set(tokenizer.texts(tokenizer.encode(w, bos=False))) & UNKNOWN
        ]
        words = ", ".join(map(repr, lost[:4] or [text]))
        raise ValueError(f"the model's vocabulary lacks {words}; choose words that it holds")


def _answer_tokens(tokenizer: Tokenizer, text: str, form: str) -> tuple[int, ...]:
    """Token ids of one answer; a ValueError says how to mend an answer of several tokens."""
    ids = tuple(tokenizer.encode(text, bos=False))
    if not ids:
        raise ValueError(f"the answer {text!r} has no tokens")
    if form == "set" and len(ids) > 1:
        split = " | ".join(tokenizer.texts(ids))
        other = text.lstrip() if text.startswith(" ") else " " + text
        hint = (
            f"; {other!r} is one token"
            if len(tuple(tokenizer.encode(other, bos=False))) == 1
            else "; score it as a span (answer_form='span') or choose another word"
        )
        raise ValueError(f"the answer {text!r} is {len(ids)} tokens ({split}){hint}")
    return ids


def _answers(tokenizer: Tokenizer, answer: Any, form: str) -> tuple[int, ...]:
    words = [answer] if isinstance(answer, str) else list(answer)
    if form == "span":
        if len(words) != 1:
            raise ValueError("a span answer is one text, and several were given")
        return _answer_tokens(tokenizer, words[0], form)
    return tuple(t for w in words for t in _answer_tokens(tokenizer, w, form))


def pairs_from_text(
    cls: type[PromptPairs],
    clean: Sequence[str] | str,
    corrupt: Sequence[str] | str,
    right: Sequence[Any] | str,
    wrong: Sequence[Any] | str,
    *,
    model: HookedModel,
    answer_form: str,
    bos: bool | None,
    skip_bad: bool,
    **fields: Any,
) -> PromptPairs:
    """The work behind ``PromptPairs.from_text``; see there."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise CapabilityError(
            "This model has no tokenizer, so texts cannot become tokens.",
            remedy="Use PromptPairs.from_tokens with token ids.",
        )
    bos = tokenizer.default_bos if bos is None else bos
    texts = [_listed(c) for c in (clean, corrupt, right, wrong)]
    if not texts[3]:
        texts[3] = [()] * len(texts[0])
    if len({len(t) for t in texts}) != 1:
        sizes = ", ".join(
            f"{n} {len(t)}"
            for n, t in zip(("clean", "corrupt", "right", "wrong"), texts, strict=True)
        )
        raise TaskError(f"The columns differ in length: {sizes}.", remedy="Give one of each a row.")
    rows: list[tuple[Any, ...]] = []
    bad: list[tuple[int, str]] = []
    kept: list[int] = []
    for i, (a, b, r, w) in enumerate(zip(*texts, strict=True)):
        try:
            answers = [x for c in (r, w) for x in ([c] if isinstance(c, str) else c)]
            check_words([a, b, *answers], tokenizer)
            ids = (tuple(tokenizer.encode(a, bos=bos)), tuple(tokenizer.encode(b, bos=bos)))
            answers = (_answers(tokenizer, r, answer_form), _answers(tokenizer, w, answer_form))
            span = (fields.get("span_map") or [None] * len(texts[0]))[i]
            _check_row(cls, (*ids, *answers), answer_form, span)
            _check_context(model, ids, answers[0] if answer_form == "span" else ())
        except ValueError as error:
            bad.append((i + 1, getattr(error, "rows", ((0, str(error)),))[0][1]))
            continue
        rows.append((*ids, *answers))
        kept.append(i)
    if bad and (not skip_bad or not rows):
        shown = "; ".join(f"row {n}: {why}" for n, why in bad[:5])
        more = f" (+{len(bad) - 5} more)" if len(bad) > 5 else ""
        raise TaskError(
            f"{len(bad)} of {len(texts[0])} prompt pairs cannot be used: {shown}{more}.",
            rows=bad,
            remedy="Mend them, or leave them out (skip_bad=True)." if rows else "",
        )
    return _assemble(cls, rows, kept, tokenizer, answer_form, bool(bos), fields)


def _check_row(cls: type[PromptPairs], row: tuple[Any, ...], form: str, span: Any) -> None:
    cls(
        *((column,) for column in row),
        answer_form=form,  # type: ignore[arg-type]
        span_map=None if span is None else (span,),
    )


def _check_context(model: HookedModel, prompts: tuple[Any, ...], tail: tuple[int, ...]) -> None:
    limit = model.shape.n_ctx
    longest = max(map(len, prompts)) + max(0, len(tail) - 1)
    if limit is not None and longest > limit:
        raise ValueError(f"it has {longest} tokens and the model's context holds {limit}")


def _assemble(
    cls: type[PromptPairs],
    rows: list[tuple[Any, ...]],
    kept: list[int],
    tokenizer: Tokenizer,
    form: str,
    bos: bool,
    fields: dict[str, Any],
) -> PromptPairs:
    clean, corrupt, right, wrong = zip(*rows, strict=True)
    for name in ("template", "span_map"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name][i] for i in kept)
    if fields.get("slots"):
        fields["slots"] = {k: tuple(v[i] for i in kept) for k, v in fields["slots"].items()}
    answers = sorted({t for column in (right, wrong) for row in column for t in row})
    return cls(
        clean,
        corrupt,
        right,
        wrong,
        answer_form=form,  # type: ignore[arg-type]
        clean_text=tuple(tuple(tokenizer.texts(c)) for c in clean),
        corrupt_text=tuple(tuple(tokenizer.texts(c)) for c in corrupt),
        answer_text=dict(zip(answers, tokenizer.texts(answers), strict=True)),
        bos=bos,
        **fields,
    )
