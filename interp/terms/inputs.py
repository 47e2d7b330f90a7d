"""What a method looks at: pairs of prompts, plain texts, or labelled inputs. Checked at birth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.terms.errors import TaskError

if TYPE_CHECKING:
    from interp.terms.models import HookedModel

Tokens = tuple[int, ...]
AnswerForm = Literal["set", "span"]


def digest(data: Any) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(
        json.dumps(data, sort_keys=True, separators=(",", ":"), default=str).encode()
    ).hexdigest()


def _tokens(rows: Sequence[Sequence[int]]) -> tuple[Tokens, ...]:
    return tuple(tuple(int(t) for t in row) for row in rows)


@dataclass(frozen=True)
class PromptPairs:
    """Pairs of a clean and a corrupt prompt, with the answers the metric compares.

    Args:
        clean: token ids, one tuple a prompt (lengths may differ from prompt to prompt).
        corrupt: token ids; the same length as its clean prompt unless ``span_map`` is given.
        right: per prompt, a set of single tokens, or one token span if ``answer_form="span"``.
        wrong: likewise; may be empty tuples where a metric needs only ``right``.
        answer_form: ``"set"`` (right tokens are alternatives) or ``"span"`` (right tokens follow
            one another and are scored by their summed log-probability).
        slots: name -> per prompt a position or a tuple of positions (clean side).
        template: per prompt the template it was made from (the unit of the bootstrap).
        span_map: per prompt, pairs ``((clean start, stop), (corrupt start, stop))`` that say which
            positions correspond when lengths differ.
        clean_text: per prompt, the text of each token, for labels; likewise ``corrupt_text``.
        answer_text: token id -> text, for the tokens in ``right`` and ``wrong``.
        bos: whether position 0 of every prompt is a beginning-of-sequence token.
        name: what to call it.
        ref: the text that makes this task again (``"ioi:n=32,seed=0"``), None for one made by hand.

    Raises:
        TaskError: with every bad row and its reason.
    """

    clean: tuple[Tokens, ...]
    corrupt: tuple[Tokens, ...]
    right: tuple[Tokens, ...]
    wrong: tuple[Tokens, ...] = ()
    answer_form: AnswerForm = "set"
    slots: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    template: tuple[str, ...] | None = None
    span_map: tuple[Any, ...] | None = None
    clean_text: tuple[tuple[str, ...], ...] | None = None
    corrupt_text: tuple[tuple[str, ...], ...] | None = None
    answer_text: Mapping[int, str] = field(default_factory=dict)
    bos: bool = False
    name: str = "prompt pairs"
    ref: str | None = None

    def __post_init__(self) -> None:
        for name in ("clean", "corrupt", "right", "wrong"):
            object.__setattr__(self, name, _tokens(getattr(self, name)))
        if not self.wrong:
            object.__setattr__(self, "wrong", ((),) * len(self.clean))
        for name in ("clean_text", "corrupt_text"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
        if not self.clean:
            raise TaskError("There is no prompt pair in this task.", remedy="Give at least one.")
        rows = list(self.problems())
        if rows:
            shown = "; ".join(f"row {n}: {why}" for n, why in rows[:5])
            more = f" (+{len(rows) - 5} more)" if len(rows) > 5 else ""
            raise TaskError(
                f"{len(rows)} of {len(self.clean)} prompt pairs cannot be used: {shown}{more}.",
                rows=rows,
            )

    def problems(self) -> Iterator[tuple[int, str]]:
        """Rows that cannot be used, counted from 1, each with its reason."""
        n = len(self.clean)
        for name in ("corrupt", "right", "wrong", "template", "span_map"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                yield 1, f"{name} has {len(column)} rows where clean has {n}"
                return
        for i in range(n):
            reason = self._row_problem(i)
            if reason:
                yield i + 1, reason

    def _row_problem(self, i: int) -> str | None:
        clean, corrupt = self.clean[i], self.corrupt[i]
        if not clean or not corrupt:
            return "a prompt is empty"
        if clean == corrupt:
            return "clean and corrupt are the same tokens, so there is nothing to patch"
        if len(clean) != len(corrupt) and (self.span_map is None or not self.span_map[i]):
            return (
                f"clean has {len(clean)} tokens and corrupt {len(corrupt)}; "
                "make them equally long or give a span map"
            )
        if not self.right[i]:
            return "it has no right answer"
        if self.answer_form == "set" and set(self.right[i]) & set(self.wrong[i]):
            return "a token stands among both the right and the wrong answers"
        for name, column in self.slots.items():
            places = column[i] if isinstance(column[i], (tuple, list)) else (column[i],)
            if any(not 0 <= int(p) < len(clean) for p in places):
                return f"slot {name!r} lies outside the prompt"
        return None

    def __len__(self) -> int:
        return len(self.clean)

    def select(self, rows: Sequence[int]) -> PromptPairs:
        """The pairs at these row numbers (from 0), in this order."""

        def pick(column: Any) -> Any:
            return None if column is None else tuple(column[i] for i in rows)

        return replace(
            self,
            ref=None,
            slots={k: pick(v) for k, v in self.slots.items()},
            **{
                k: pick(getattr(self, k))
                for k in (
                    "clean corrupt right wrong template span_map clean_text corrupt_text".split()
                )
            },
        )

    def swapped(self) -> PromptPairs:
        """Clean and corrupt exchanged; the answers stay as they are."""
        return replace(
            self,
            ref=None,
            clean=self.corrupt,
            corrupt=self.clean,
            clean_text=self.corrupt_text,
            corrupt_text=self.clean_text,
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each clean prompt."""
        return tuple(map(len, self.clean))

    def base_lengths(self, direction: str) -> tuple[int, ...]:
        """Number of tokens of each base prompt: corrupt in denoising, clean in noising."""
        return self.lengths if direction == "noising" else tuple(map(len, self.corrupt))

    def first_difference(self) -> np.ndarray:
        """Per prompt the first position where clean and corrupt differ, shape ``[prompt]``."""
        out = []
        for a, b in zip(self.clean, self.corrupt, strict=True):
            out.append(
                next(
                    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                    min(len(a), len(b)),
                )
            )
        return np.array(out, dtype=np.int64)

    def buckets(self) -> dict[int, list[int]]:
        """Prompt length -> row numbers; batches are made within a bucket, so nothing is padded."""
        found: dict[int, list[int]] = {}
        for i, length in enumerate(self.lengths):
            found.setdefault(length, []).append(i)
        return dict(sorted(found.items()))

    def aligned(self) -> bool:
        """Whether a position means the same in every prompt (equal lengths on each side)."""
        return len(set(self.lengths)) == 1 and len(set(map(len, self.corrupt))) == 1

    def hash(self) -> str:
        """sha256 of what is measured: tokens, answers, slots, templates, span map."""
        return digest(
            [
                "PromptPairs",
                self.clean,
                self.corrupt,
                self.right,
                self.wrong,
                self.answer_form,
                {k: list(v) for k, v in self.slots.items()},
                self.template,
                self.span_map,
            ]
        )

    @classmethod
    def from_tokens(
        cls,
        clean: Sequence[Sequence[int]],
        corrupt: Sequence[Sequence[int]],
        right: Sequence[int | Sequence[int]],
        wrong: Sequence[int | Sequence[int]] = (),
        **fields: Any,
    ) -> PromptPairs:
        """Pairs of token ids; a single id as an answer is a set of one."""

        def sets(column: Sequence[int | Sequence[int]]) -> tuple[Tokens, ...]:
            return tuple(
                (int(a),) if isinstance(a, (int, np.integer)) else tuple(int(t) for t in a)
                for a in column
            )

        return cls(_tokens(clean), _tokens(corrupt), sets(right), sets(wrong), **fields)

    @classmethod
    def from_text(
        cls,
        clean: Sequence[str] | str,
        corrupt: Sequence[str] | str,
        right: Sequence[str | Sequence[str]] | str,
        wrong: Sequence[str | Sequence[str]] | str = (),
        *,
        model: HookedModel,
        answer_form: AnswerForm = "set",
        bos: bool | None = None,
        skip_bad: bool = False,
        **fields: Any,
    ) -> PromptPairs:
        """Pairs of texts, tokenised by the model's tokenizer.

        Args:
            clean: a text or one a row.
            corrupt: likewise.
            right: per row a text, or several that are alternatives.
            wrong: likewise.
            model: whose tokenizer is used; ``model.tokenizer`` must not be None.
            answer_form: ``"set"`` wants each answer to be one token; ``"span"`` allows several.
            bos: prepend a beginning-of-sequence token; None does what the model does by default.
            skip_bad: leave out the rows that fail instead of raising.
            **fields: further fields of ``PromptPairs``.

        Raises:
            TaskError: rows that cannot be used, each with its reason and remedy.
        """
        from interp.terms.pairing import pairs_from_text

        return pairs_from_text(
            cls,
            clean,
            corrupt,
            right,
            wrong,
            model=model,
            answer_form=answer_form,
            bos=bos,
            skip_bad=skip_bad,
            **fields,
        )


@dataclass(frozen=True)
class Texts:
    """Plain token sequences, for methods that need no pair.

    Args:
        tokens: token ids, one tuple a prompt.
        answer_mask: per prompt a 0/1 mark on each token; 1 marks the answer.
        text: per prompt the text of each token, for labels.
        bos: whether position 0 of every prompt is a beginning-of-sequence token.
        name: what to call it.
        ref: the text that makes this task again, None for one made by hand.
    """

    tokens: tuple[Tokens, ...]
    answer_mask: tuple[tuple[int, ...], ...] | None = None
    text: tuple[tuple[str, ...], ...] | None = None
    bos: bool = False
    name: str = "texts"
    ref: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _tokens(self.tokens))
        rows = [(i + 1, "it is empty") for i, t in enumerate(self.tokens) if not t]
        if not self.tokens or rows:
            raise TaskError("A text has no tokens.", rows=rows, remedy="Give at least one token.")
        if self.answer_mask is not None:
            object.__setattr__(self, "answer_mask", _tokens(self.answer_mask))
            bad = [
                (i + 1, f"{len(m)} marks for {len(t)} tokens")
                for i, (m, t) in enumerate(zip(self.answer_mask, self.tokens, strict=True))
                if len(m) != len(t)
            ]
            if bad:
                raise TaskError("answer_mask and tokens differ in length.", rows=bad)

    def __len__(self) -> int:
        return len(self.tokens)

    def hash(self) -> str:
        """sha256 of the tokens and marks."""
        return digest(["Texts", self.tokens, self.answer_mask])


@dataclass(frozen=True, eq=False)
class LabelledInputs:
    """Raw inputs (images, vectors) with integer labels.

    Args:
        inputs: shape ``[prompt, *input dims]``, float.
        labels: shape ``[prompt]``, int.
        label_text: label -> words.
        name: what to call it.
        ref: the text that makes this task again, None for one made by hand.
    """

    inputs: np.ndarray
    labels: np.ndarray
    label_text: Mapping[int, str] = field(default_factory=dict)
    name: str = "labelled inputs"
    ref: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", np.asarray(self.inputs))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        if len(self.inputs) == 0 or len(self.inputs) != len(self.labels):
            raise TaskError(
                f"{len(self.inputs)} inputs and {len(self.labels)} labels were given; wanted as "
                "many labels as inputs, and at least one."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def hash(self) -> str:
        """sha256 of inputs and labels."""
        sha = hashlib.sha256(b"LabelledInputs")
        for array in (self.inputs, self.labels):
            sha.update(repr((array.shape, array.dtype.str)).encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


Task = PromptPairs | Texts | LabelledInputs


def task_to_json(task: Task) -> dict[str, Any]:
    """The whole task as plain JSON, so that a spec can carry one that no name makes again."""
    out: dict[str, Any] = {"type": type(task).__name__}
    for f in fields(task):
        value = getattr(task, f.name)
        if isinstance(value, np.ndarray):
            value = {"dtype": value.dtype.str, "values": value.tolist()}
        elif isinstance(value, Mapping):
            value = [[k, v] for k, v in value.items()]
        out[f.name] = value
    return json.loads(json.dumps(out))


def task_from_json(data: Mapping[str, Any]) -> Task:
    """The inverse of ``task_to_json``.

    Raises:
        TaskError: the data is no task.
    """
    kinds: dict[str, Any] = {c.__name__: c for c in (PromptPairs, Texts, LabelledInputs)}
    kind = kinds.get(str(data.get("type")))
    if kind is None:
        raise TaskError(f"{data.get('type')!r} is no kind of task; wanted one of {list(kinds)}.")
    known = {f.name for f in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            continue
        if isinstance(value, Mapping):
            value = np.asarray(value["values"], dtype=value["dtype"])
        elif name in ("slots", "answer_text", "label_text"):
            value = {k: _frozen(v) for k, v in value}
        elif isinstance(value, list):
            value = _frozen(value)
        values[name] = value
    return kind(**values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
