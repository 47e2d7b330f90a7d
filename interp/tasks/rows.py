"""One row of a table -> one checked prompt pair, or the reason why not; and pairs -> one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.terms import PromptPairs, TaskError
from interp.terms.pairing import check_words

if TYPE_CHECKING:
    from interp.terms import HookedModel

ID_COLUMNS = ("correct_idx", "incorrect_idx")
Cells = Mapping[str, Any]


def pair_of(
    cells: Cells,
    columns: Mapping[str, str],
    model: HookedModel,
    answer_form: str,
    bos: bool | None,
) -> PromptPairs:
    """The pair of one row, alone in its task.

    Raises:
        ValueError: with the reason in words.
    """
    prompts = [_prompt(cells.get(columns[k]), k, model) for k in ("clean", "corrupt")]
    right, wrong = _answers(cells, columns)
    fields: dict[str, Any] = {
        "answer_form": answer_form,
        "slots": _slots(cells),
        "span_map": _span_map(cells),
    }
    try:
        if all(isinstance(x, str) for x in (*prompts, *right, *wrong)):
            check_words(prompts + right + wrong, model.tokenizer)
            given = [x[0] if answer_form == "span" and x else x for x in (right, wrong)]
            texts: list[Any] = [[x] for x in (*prompts, *given)]
            return PromptPairs.from_text(*texts, model=model, bos=bos, **fields)
        return _of_ids(prompts, right, wrong, model, bos, fields)
    except TaskError as error:
        raise ValueError(error.rows[0][1] if error.rows else error.message) from None


def _prompt(cell: Any, what: str, model: HookedModel) -> str | list[int]:
    """A text, or token ids."""
    if isinstance(cell, list) and cell and all(type(t) is int for t in cell):
        return cell
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"its {what} prompt is empty or neither a text nor a list of token ids")
    if model.tokenizer is not None:
        return cell
    try:
        return [int(t) for t in cell.replace(",", " ").split()]
    except ValueError:
        raise ValueError(
            f"its {what} prompt is a text and this model has no tokenizer; write token ids"
        ) from None


def _answers(cells: Cells, columns: Mapping[str, str]) -> tuple[list[Any], list[Any]]:
    """Right and wrong answers as lists; the greater-than form counts its years out."""
    if "label" in columns and "right" not in columns:
        label = str(cells.get("label", "")).strip()
        if not (label.isascii() and label.isdigit() and len(label) <= 2):
            raise ValueError(f"its label {label!r} is no year from 0 to 99")
        years = [f"{y:02d}" for y in range(100)]
        return years[int(label) + 1 :], years[: int(label) + 1]
    out = []
    for ours in ("right", "wrong"):
        column = columns.get(ours, "")
        cell = cells.get(column)
        values = cell if isinstance(cell, list) else [] if cell in (None, "") else [cell]
        if column in ID_COLUMNS:
            values = [_id(v) for v in values]
        if not all(type(v) in (str, int) for v in values):
            raise ValueError(f"its {ours} answer is neither text nor token id")
        out.append(values)
    return out[0], out[1]


def _id(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no token id") from None


def _slots(cells: Cells) -> dict[str, tuple[Any, ...]]:
    slots = cells.get("slots") or {}
    if not isinstance(slots, Mapping):
        raise ValueError('its slots are no object, as in {"subject": 3}')
    out = {}
    for name, value in slots.items():
        places = value if isinstance(value, list) else [value]
        if not places or not all(type(p) is int for p in places):
            raise ValueError(f"its slot {name!r} is neither a position nor a list of them")
        out[str(name)] = (tuple(places) if isinstance(value, list) else value,)
    return out


def _span_map(cells: Cells) -> tuple[Any, ...] | None:
    spans = cells.get("span_map")
    if not spans:
        return None
    try:
        pairs = tuple(((int(a), int(b)), (int(c), int(d))) for (a, b), (c, d) in spans)
    except (TypeError, ValueError):
        raise ValueError("its span_map is no list of pairs, as in [[[0, 2], [0, 3]]]") from None
    return (pairs,)


def _of_ids(
    prompts: Sequence[str | list[int]],
    right: list[Any],
    wrong: list[Any],
    model: HookedModel,
    bos: bool | None,
    fields: dict[str, Any],
) -> PromptPairs:
    """A pair whose prompts or answers are token ids."""
    tokenizer = model.tokenizer
    ids = []
    for prompt in prompts:
        if isinstance(prompt, str):
            assert tokenizer is not None
            prompt = list(tokenizer.encode(prompt, bos=bos))
        ids.append(prompt)
    answers = [[_answer_id(a, model) for a in column] for column in (right, wrong)]
    for t in (*ids[0], *ids[1], *answers[0], *answers[1]):
        if not 0 <= t < model.shape.vocab:
            raise ValueError(f"token id {t} lies outside this model's {model.shape.vocab} tokens")
    tail = len(answers[0]) - 1 if fields["answer_form"] == "span" else 0
    longest, limit = max(map(len, ids)) + tail, model.shape.n_ctx
    if limit is not None and longest > limit:
        raise ValueError(f"it has {longest} tokens and the model's context holds {limit}")
    texts: dict[str, Any] = {}
    if tokenizer is not None:
        both = sorted({*answers[0], *answers[1]})
        texts = {
            "clean_text": (tuple(tokenizer.texts(ids[0])),),
            "corrupt_text": (tuple(tokenizer.texts(ids[1])),),
            "answer_text": dict(zip(both, tokenizer.texts(both), strict=True)),
            "bos": all(row[0] == tokenizer.bos_id for row in ids),
        }
    return PromptPairs.from_tokens(
        [ids[0]], [ids[1]], [answers[0]], [answers[1]], **fields, **texts
    )


def _answer_id(value: Any, model: HookedModel) -> int:
    if isinstance(value, int):
        return value
    if model.tokenizer is None:
        try:
            return int(value)
        except ValueError:
            raise ValueError(
                f"its answer {value!r} is a text and this model has no tokenizer; write a token id"
            ) from None
    found = list(model.tokenizer.encode(value, bos=False))
    if len(found) != 1:
        raise ValueError(f"the answer {value!r} is {len(found)} tokens; write its token id")
    return int(found[0])


def joined(rows: Sequence[PromptPairs], template: tuple[str, ...] | None, name: str) -> PromptPairs:
    """One task of many single pairs.

    A slot stays only where every row has it; the beginning-of-sequence mark only where all agree.
    """

    def column(key: str) -> Any:
        values = [getattr(r, key) for r in rows]
        return None if any(v is None for v in values) else tuple(v[0] for v in values)

    spans = tuple(r.span_map[0] if r.span_map else None for r in rows)
    slots = set(rows[0].slots).intersection(*(set(r.slots) for r in rows))
    answers: dict[int, str] = {}
    for r in rows:
        answers.update(r.answer_text)
    return PromptPairs(
        *(column(k) for k in ("clean", "corrupt", "right", "wrong")),
        answer_form=rows[0].answer_form,
        slots={k: tuple(r.slots[k][0] for r in rows) for k in sorted(slots)},
        template=template,
        span_map=spans if any(spans) else None,
        clean_text=column("clean_text"),
        corrupt_text=column("corrupt_text"),
        answer_text=answers,
        bos=all(r.bos for r in rows),
        name=name,
    )
