"""Reading: what was typed into a form becomes a method's values, or one sentence a field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.forms.fields import Field, alternatives, describe, word_of, words_of
from interp.terms.errors import UsageError, near_misses

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NONE = ("", "none", "null")


@dataclass(frozen=True)
class Parsed:
    """What a person typed, read.

    Args:
        values: field -> value, for the fields that were given.
        errors: field (or unknown name) -> one sentence.
    """

    values: dict[str, Any]
    errors: dict[str, str]

    def or_raise(self, what: str = "") -> dict[str, Any]:
        """The values.

        Raises:
            UsageError: with every error, one after the other.
        """
        if self.errors:
            told = " ".join(self.errors.values())
            raise UsageError(f"{what}: {told}" if what else told)
        return self.values


def parse_values(
    fields: Iterable[Field], values: Mapping[str, Any], *, complete: bool = True
) -> Parsed:
    """Read what was typed.

    Args:
        fields: of the form.
        values: name (``with_``, ``with`` or ``--with``) -> text, or a value that is JSON already.
            Empty text and None leave a field at its default.
        complete: whether a missing required field is an error.
    """
    by_name = {f.name: f for f in fields}
    found = {**{f.name.strip("_").replace("_", "-"): f for f in by_name.values()}, **by_name}
    out: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name, given in values.items():
        f = found.get(name) or found.get(name.strip("-_").replace("_", "-"))
        if f is None:
            close = near_misses(name.lstrip("-"), by_name)
            known = (
                f"did you mean {' or '.join(map(repr, close))}?"
                if close
                else (f"known: {', '.join(by_name) or 'none'}.")
            )
            errors[name] = f"There is no knob {name.lstrip('-')!r}; {known}"
            continue
        blank = isinstance(given, str) and not given.strip()
        if given is None or (blank and not _takes_empty(f)):
            continue
        try:
            out[f.name] = parse_value(f, given)
        except ValueError as error:
            errors[f.name] = str(error)
    if complete:
        for f in by_name.values():
            if f.required and f.name not in out and f.name not in errors:
                errors[f.name] = f"{f.name} is missing; wanted {f.wanted}."
    return Parsed(out, errors)


def _takes_empty(f: Field) -> bool:
    return (
        f.kind == "text"
        and any(
            p.get("type") == "string" and not words_of(p) and p.get("minLength", 0) == 0
            for p in alternatives(f.schema)
        )
        and not f.nullable
    )


def parse_value(f: Field, given: Any) -> Any:
    """One value as its field takes it.

    Raises:
        UsageError: naming what was given, what was wanted, and near misses of a choice.
    """
    close: list[str] = []
    if f.nullable and isinstance(given, str) and given.strip().lower() in NONE:
        return None
    for schema in alternatives(f.schema):
        try:
            return _read(schema, given)
        except ValueError as error:
            if len(alternatives(f.schema)) == 1 and error.args and error.args[0]:
                reason = str(error.args[0])
                raise UsageError(f"{f.name} was given as {_shown(given)}; {reason}.") from None
    words = [word_of(w) for w in f.choices]
    if words and isinstance(given, str):
        close = near_misses(given, words)
    remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise UsageError(f"{f.name} was given as {_shown(given)}; wanted {f.wanted}.", remedy=remedy)


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "…"


def _read(schema: Mapping[str, Any], given: Any) -> Any:
    if words_of(schema):
        return _read_word(schema, given)
    kind = schema.get("type")
    if kind == "null":
        if given is None or (isinstance(given, str) and given.strip().lower() in NONE):
            return None
        raise ValueError
    if kind == "boolean":
        return _read_bool(given)
    if kind in ("integer", "number"):
        return _read_number(schema, given, whole=kind == "integer")
    if kind == "string":
        return _read_text(schema, given)
    if kind == "array":
        return _read_list(schema, given)
    return _read_json(schema, given)


def _read_word(schema: Mapping[str, Any], given: Any) -> Any:
    for word in words_of(schema):
        if given == word and type(given) is type(word):
            return word
    for word in words_of(schema):
        if isinstance(given, str) and given.strip() == word_of(word):
            return word
    close = near_misses(str(given), [word_of(w) for w in words_of(schema)])
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    raise ValueError(f"wanted {describe(schema)}{hint}")


def _read_bool(given: Any) -> bool:
    if isinstance(given, bool):
        return given
    word = given.strip().lower() if isinstance(given, str) else None
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError("wanted true or false")


def _read_number(schema: Mapping[str, Any], given: Any, whole: bool) -> int | float:
    wanted = f"wanted {describe(schema)}"
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        raise ValueError(wanted)
    try:
        value = float(given)
        if whole:
            value = int(given) if not isinstance(given, float) else int(value)
            if float(given) != value:
                raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(wanted) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(wanted)
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise ValueError(wanted)
    return value


def _read_text(schema: Mapping[str, Any], given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"wanted {describe(schema)}")
    if not schema.get("minLength", 0) <= len(given) <= schema.get("maxLength", 10**9):
        raise ValueError(
            f"wanted {schema.get('minLength', 0)} to "
            f"{schema.get('maxLength', 'any number of')} characters"
        )
    if "pattern" in schema and not re.search(schema["pattern"], given):
        raise ValueError(f"wanted text of the form {schema['pattern']}")
    return given


def _read_list(schema: Mapping[str, Any], given: Any) -> list[Any]:
    entry = schema.get("items")
    whole = isinstance(entry, Mapping) and any(
        p.get("type") == "integer" for p in alternatives(entry)
    )
    items = _split(given, spans=whole)
    if "prefixItems" in schema:
        parts = schema["prefixItems"]
        if len(items) != len(parts):
            raise ValueError(f"wanted {len(parts)} entries, found {len(items)}")
        return [_read_any(p, v) for p, v in zip(parts, items, strict=True)]
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(items) < least or (most is not None and len(items) > most):
        raise ValueError(f"wanted {least} to {most or 'any number of'} entries, found {len(items)}")
    return [_read_any(entry, v) for v in items] if isinstance(entry, Mapping) else items


def _read_any(schema: Mapping[str, Any], given: Any) -> Any:
    for part in alternatives(schema):
        try:
            return _read(part, given)
        except ValueError:
            continue
    raise ValueError(f"the entry {_shown(given)} does not fit: wanted {describe(schema)}")


def _split(given: Any, spans: bool) -> list[Any]:
    """A list from JSON, from ``0,2,5``, with ``spans`` from ``0-3`` (ends included)."""
    if isinstance(given, (list, tuple)):
        return list(given)
    if not isinstance(given, str):
        return [given]
    text = given.strip()
    if text.startswith("["):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError("it is no JSON list") from error
        return list(value)
    out: list[Any] = []
    for word in filter(None, (w.strip() for w in text.split(","))):
        span = re.fullmatch(r"(\d{1,6})(?:-|\.\.)(\d{1,6})", word)
        first, last = (int(span[1]), int(span[2])) if spans and span else (1, 0)
        if 0 <= last - first <= 100_000:
            out += list(range(first, last + 1))
        else:
            out.append(word)
    return out


def _read_json(schema: Mapping[str, Any], given: Any) -> Any:
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given)
        except json.JSONDecodeError:
            if schema.get("type") == "object":
                raise ValueError("wanted a JSON object") from None
            return given
    if schema.get("type") == "object" and not isinstance(value, Mapping):
        raise ValueError("wanted a JSON object")
    return value


def text_of(value: Any) -> str:
    """A value as it is typed into its field; ``parse_value`` reads it back."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if (
        isinstance(value, (list, tuple))
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        and value
    ):
        return ",".join(repr(v) for v in value)
    return json.dumps(value, ensure_ascii=False)


def errors_by_field(errors: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """pydantic's ``ValidationError.errors()`` as one sentence a field."""
    out: dict[str, str] = {}
    for error in errors:
        loc = error.get("loc") or ("",)
        name = str(loc[0]) or "the form"
        message = str(error.get("msg", "does not fit")).removeprefix("Value error, ")
        given = (
            f" (given {_shown(error['input'])})"
            if len(loc) == 1 and "input" in error and not isinstance(error["input"], Mapping)
            else ""
        )
        out.setdefault(name, f"{name}: {message}{given}.".replace("..", "."))
    return out
