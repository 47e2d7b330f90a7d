"""Prompt pairs from a file: JSON lines, CSV, and the table forms others publish.

A row needs a clean and a corrupt prompt and a right answer; a wrong answer is optional. Columns
are found by these names, the first that is there (or name yours: ``clean="my column"``):

============  ==============================================================================
``clean``     clean, clean_prefix, clean_prompt, prompt
``corrupt``   corrupt, corrupted, patch_prefix, corrupt_prompt, counterfactual
``right``     right, clean_answer, correct, answer, correct_idx
``wrong``     wrong, patch_answer, incorrect, incorrect_idx
``template``  template
============  ==============================================================================

Prompts are texts, or lists of token ids (in CSV, ids apart by spaces, for a model without a
tokenizer). Answers are a text, a list of texts that are alternatives, or token ids (a number in
JSON; the columns ``correct_idx`` and ``incorrect_idx`` always hold ids of the model's own
vocabulary). A word the vocabulary lacks makes its row a bad one. JSON rows may also have ``slots``
({name: position}) and ``span_map``.

A table with ``clean``, ``corrupted`` and ``label`` is the greater-than form: ``label`` is the
year YY (0 to 99), right = {YY+1 … 99}, wrong = {00 … YY}.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.tasks.families import Knob
from interp.tasks.rows import ID_COLUMNS, joined, pair_of
from interp.terms import PromptPairs, TaskError, TaskRef, TooLargeError, UsageError, near_misses
from interp.terms import unknown_name as unknown

if TYPE_CHECKING:
    from interp.terms import HookedModel

MOST_BYTES = 10_000_000
MOST_LINES = 100_000
COLUMNS: dict[str, tuple[str, ...]] = {
    "clean": ("clean", "clean_prefix", "clean_prompt", "prompt"),
    "corrupt": ("corrupt", "corrupted", "patch_prefix", "corrupt_prompt", "counterfactual"),
    "right": ("right", "clean_answer", "correct", "answer", "correct_idx"),
    "wrong": ("wrong", "patch_answer", "incorrect", "incorrect_idx"),
    "template": ("template",),
}
FORMS = ("auto", "jsonl", "csv")
FILE_OPTIONS: dict[str, Knob] = {
    "form": Knob(str, "auto", FORMS, "how the file is written; auto sees by its content"),
    **{
        name: Knob(
            str, None, (), f"column with {what}; by default the first of {', '.join(COLUMNS[name])}"
        )
        for name, what in (
            ("clean", "the clean prompts"),
            ("corrupt", "the corrupt prompts"),
            ("right", "the right answers"),
            ("wrong", "the wrong answers"),
            ("template", "the template of each row, the unit of the bootstrap"),
        )
    },
    "answer_form": Knob(
        str,
        "set",
        ("set", "span"),
        "set: each answer is one token; span: an answer is several tokens in a row",
    ),
    "bos": Knob(
        bool,
        None,
        (),
        "start prompts with the beginning-of-sequence token; by default as the model does",
    ),
    "skip_bad": Knob(bool, False, (), "leave out the rows that cannot be used"),
    "n": Knob(int, None, (1, MOST_LINES), "use the first rows only"),
}
"""Options of ``task_from_file``, described for a form."""


@dataclass(frozen=True)
class Line:
    """A row of a file: the line it ends on, and its cells or the reason it cannot be read."""

    number: int
    cells: dict[str, Any]
    reason: str = ""


def task_from_file(
    path: str | os.PathLike[str],
    model: HookedModel,
    *,
    form: str = "auto",
    clean: str | None = None,
    corrupt: str | None = None,
    right: str | None = None,
    wrong: str | None = None,
    template: str | None = None,
    answer_form: str = "set",
    bos: bool | None = None,
    skip_bad: bool = False,
    n: int | None = None,
) -> PromptPairs:
    """Prompt pairs of a table; see the module's text for the columns.

    Args:
        path: a file of JSON lines (or one JSON array) or CSV, at most 10 MB and 100,000 lines.
        model: whose tokenizer is used; without one the prompts are token ids.
        form: ``"jsonl"``, ``"csv"``, or ``"auto"`` to see by the content.
        clean: name of the column with the clean prompts; likewise the next four.
        corrupt: see ``clean``.
        right: see ``clean``.
        wrong: see ``clean``.
        template: see ``clean``.
        answer_form: ``"set"`` wants each answer to be one token; ``"span"`` allows several.
        bos: prepend a beginning-of-sequence token; None does what the model does by default.
        skip_bad: leave out the rows that fail (the task's name says how many) instead of raising.
        n: use the first ``n`` rows only.

    Raises:
        TaskError: no such file, nothing in it, a column missing, or bad rows, each with its line
            and reason.
        TooLargeError: over 10 MB or 100,000 lines.
    """
    if form not in FORMS:
        raise unknown("form of a file", form, FORMS)
    if answer_form not in ("set", "span"):
        raise unknown("answer form", answer_form, ("set", "span"))
    if n is not None and n < 1:
        raise UsageError(f"n was given as {n}; wanted 1 or more.")
    path = Path(path)
    lines = list(_lines(path, form))[:n]
    if not lines:
        raise TaskError(f"There is no row in {path.name!r}.", remedy="Give at least one.")
    named = {
        "clean": clean,
        "corrupt": corrupt,
        "right": right,
        "wrong": wrong,
        "template": template,
    }
    columns = _columns(path, lines, named)
    _check_vocabulary(path, lines, columns, model)
    task = _pairs(path, lines, columns, model, answer_form, bos, skip_bad)
    return replace(
        task,
        ref=_ref(
            path,
            {
                **named,
                "form": form,
                "answer_form": answer_form,
                "bos": bos,
                "skip_bad": skip_bad,
                "n": n,
            },
        ),
    )


def _ref(path: Path, options: dict[str, Any]) -> str | None:
    """The text that reads this file again, or None where a comma or sign in a name forbids one."""
    said = {k: v for k, v in options.items() if v != FILE_OPTIONS[k].default}
    shown = {k: str(v).lower() if isinstance(v, bool) else v for k, v in said.items()}
    ref = str(TaskRef(str(path), shown))
    try:
        return ref if TaskRef.parse(ref) == TaskRef(str(path), said) else None
    except UsageError:
        return None


def _text(path: Path) -> str:
    """The file's text; errors are sentences."""
    try:
        kind = path.stat()
    except OSError:
        folder = path.parent
        others = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        close = near_misses(path.name, others)
        raise TaskError(
            f"There is no file {str(path)!r}.",
            remedy=f"Did you mean {' or '.join(map(repr, close))}?" if close else "",
        ) from None
    if not stat.S_ISREG(kind.st_mode):
        raise TaskError(f"{str(path)!r} is not a file.", remedy="Give a JSONL or CSV file.")
    if kind.st_size > MOST_BYTES:
        raise TooLargeError(
            f"{path.name!r} has {kind.st_size / 1e6:.1f} MB; wanted at most "
            f"{MOST_BYTES / 1e6:.0f} MB.",
            remedy="Split it.",
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path.name!r} is not UTF-8 text (byte {error.start}).",
            remedy="Save it as UTF-8 JSONL or CSV.",
        ) from None
    if "\0" in text:
        raise TaskError(
            f"{path.name!r} holds NUL bytes, so it is no text.",
            remedy="Save it as UTF-8 JSONL or CSV.",
        )
    if not text.strip():
        raise TaskError(f"{path.name!r} is empty.", remedy="Give one prompt pair a line.")
    if text.count("\n") > MOST_LINES:
        raise TooLargeError(
            f"{path.name!r} has {text.count(chr(10))} lines; wanted at most {MOST_LINES}.",
            remedy="Split it.",
        )
    return text


def _lines(path: Path, form: str) -> Iterator[Line]:
    text = _text(path)
    if form == "auto":
        form = "jsonl" if text.lstrip()[0] in "{[" else "csv"
    yield from _json_lines(path, text) if form == "jsonl" else _csv_lines(path, text)


def _json_lines(path: Path, text: str) -> Iterator[Line]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{path.name!r} is no JSON: {error}.") from None
        for i, row in enumerate(rows):
            yield Line(i + 1, row) if isinstance(row, dict) else Line(i + 1, {}, "is no object")
        return
    for i, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Line(i + 1, {}, f"it is no JSON ({str(error)[:80]})")
            continue
        yield (
            Line(i + 1, row)
            if isinstance(row, dict)
            else Line(i + 1, {}, 'it is no JSON object, as in {"clean": …}')
        )


def _csv_lines(path: Path, text: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            if header is None:
                header = [c.strip() for c in cells]
                continue
            if len(cells) != len(header):
                yield Line(
                    reader.line_num,
                    {},
                    f"it has {len(cells)} cells where the header has {len(header)}",
                )
                continue
            yield Line(reader.line_num, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        yield Line(reader.line_num, {}, f"it is no CSV ({error})")


def _columns(path: Path, lines: list[Line], named: dict[str, str | None]) -> dict[str, str]:
    """Our name -> the file's column."""
    there = {k: None for line in lines for k in line.cells}
    if not there:
        shown = "; ".join(f"line {x.number}: {x.reason}" for x in lines[:3])
        raise TaskError(
            f"No row of {path.name!r} can be read: {shown}.",
            rows=[(x.number, x.reason) for x in lines],
        )
    found: dict[str, str] = {}
    for ours, theirs in COLUMNS.items():
        if named[ours] is not None:
            if named[ours] not in there:
                raise unknown(f"column of {path.name!r} called", str(named[ours]), there)
            found[ours] = str(named[ours])
        else:
            column = next((c for c in theirs if c in there), None)
            if column is not None:
                found[ours] = column
    if "right" not in found and "label" in there:
        found["label"] = "label"
    missing = [k for k in ("clean", "corrupt") if k not in found]
    if not {"right", "label"} & set(found):
        missing.append("right")
    if missing:
        raise TaskError(
            f"{path.name!r} has the columns {', '.join(map(repr, there))}, and none for "
            f"{' and '.join(missing)}.",
            remedy=f"Name it, as in {missing[0]}='{next(iter(there))}', or call it "
            f"{COLUMNS[missing[0]][0]!r}.",
        )
    return found


def _check_vocabulary(
    path: Path, lines: list[Line], columns: dict[str, str], model: HookedModel
) -> None:
    """Refuse a table whose answers are ids of another vocabulary: the rest would be nonsense."""
    for column in set(columns.values()) & set(ID_COLUMNS):
        cells = (str(line.cells.get(column, "")).strip() for line in lines)
        highest = max((int(c) for c in cells if c.isascii() and c.isdigit()), default=0)
        if highest >= model.shape.vocab:
            raise TaskError(
                f"Column {column!r} of {path.name!r} holds token ids up to {highest}, and this "
                f"model's vocabulary has {model.shape.vocab}: they are another model's.",
                remedy="Add a column with the answers as text, and name it (right=…, wrong=…).",
            )


def _pairs(
    path: Path,
    lines: list[Line],
    columns: dict[str, str],
    model: HookedModel,
    answer_form: str,
    bos: bool | None,
    skip_bad: bool,
) -> PromptPairs:
    """Each line a pair; bad ones are named, or left out and counted in the task's name."""
    good: list[PromptPairs] = []
    templates: list[str] = []
    bad: list[tuple[int, str]] = []
    for line in lines:
        try:
            if line.reason:
                raise ValueError(line.reason)
            good.append(pair_of(line.cells, columns, model, answer_form, bos))
            templates.append(str(line.cells.get(columns.get("template", ""), "")))
        except ValueError as error:
            bad.append((line.number, str(error)))
    if bad and not (skip_bad and good):
        shown = "; ".join(f"line {number}: {why}" for number, why in bad[:5])
        more = f" (+{len(bad) - 5} more)" if len(bad) > 5 else ""
        raise TaskError(
            f"{len(bad)} of {len(lines)} rows of {path.name!r} cannot be used: {shown}{more}.",
            rows=bad,
            remedy="Mend them, or leave them out (skip_bad=true)." if good else "",
        )
    left_out = f" ({len(bad)} of {len(lines)} rows left out)" if bad else ""
    return joined(good, tuple(templates) if "template" in columns else None, path.name + left_out)
