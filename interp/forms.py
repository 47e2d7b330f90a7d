"""Forms: a method's JSON schema becomes fields, and what a person typed becomes its values.

Pure: no model, no web library. The app's controls, the command line's options and a report spec's
knobs all go through ``parse_values``, so the three faces take the same words and say the same
errors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.terms.errors import UsageError, near_misses

FieldKind = Literal["bool", "int", "float", "choice", "text", "choices", "list", "ref", "refs",
                    "json"]

LEADING = ("site", "direction", "metric", "with_", "axes", "input_site", "output_site", "rules",
           "attn_rule", "observable", "models", "model_b", "result")
"""Knobs that a person meets first; the rest stand behind "More"."""

MOST_UNFOLDED = 5

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NONE = ("", "none", "null")


@dataclass(frozen=True)
class Field:
    """One control of a form.

    Args:
        name: the method's field.
        label: words beside the control.
        kind: which control: a switch (``bool``), a number (``int``, ``float``), one of a few
            (``choice``), several of a few (``choices``), free ``text``, a ``list`` of numbers or
            words, a picker (``ref``, ``refs``), or JSON (``json``).
        default: the value where nothing is given; None also where there is none (see ``required``).
        bounds: (lowest, highest), None where open; for lists those of an entry.
        choices: the allowed values of ``choice`` and ``choices``; for other kinds words that are
            allowed beside the ordinary value (``last`` beside a position).
        phrase: what it does, in a few words.
        ref: what a picker picks: ``model``, ``result``, ``dictionary``.
        advanced: behind "More".
        required: it has no default.
        nullable: it may be left open (None).
        schema: the JSON schema of the value, with its references resolved.
    """

    name: str
    label: str
    kind: FieldKind
    default: Any = None
    bounds: tuple[float | None, float | None] = (None, None)
    choices: tuple[Any, ...] = ()
    phrase: str = ""
    ref: str | None = None
    advanced: bool = False
    required: bool = False
    nullable: bool = False
    schema: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def option(self) -> str:
        """Its name on the command line: ``with_`` is ``--with``."""
        return "--" + self.name.strip("_").replace("_", "-")

    @property
    def wanted(self) -> str:
        """What it takes, in words: ``a whole number from 1 to 10``."""
        return describe(self.schema)


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


# -- schema to fields -----------------------------------------------------------------------------


def fields_of(json_schema: Mapping[str, Any]) -> list[Field]:
    """The fields of a form, in the schema's order, the few that matter first marked unfolded.

    Args:
        json_schema: what pydantic's ``model_json_schema()`` gives, or a task's ``schema()``.
    """
    defs = json_schema.get("$defs", {})
    required = set(json_schema.get("required", ()))
    plain = [_field(name, resolve(part, defs), name in required)
             for name, part in json_schema.get("properties", {}).items()]
    unfolded = _unfolded(plain)
    return [Field(**{**vars(f), "advanced": f.name not in unfolded}) for f in plain]


def _unfolded(fields: list[Field]) -> set[str]:
    said = {f.name: f.schema.get("advanced") for f in fields}
    first = [f.name for f in fields if f.required or said[f.name] is False]
    ranked = sorted((f.name for f in fields if f.name in LEADING), key=LEADING.index)
    rest = [f.name for f in fields] if len(ranked) < 2 else []
    for name in (*ranked, *rest):
        if len(first) < MOST_UNFOLDED and name not in first and said[name] is not True:
            first.append(name)
    return set(first)


def resolve(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with every ``$ref`` put in place."""
    if "$ref" in schema:
        target = defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
        rest = {k: v for k, v in schema.items() if k != "$ref"}
        return resolve({**target, **rest}, defs)
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            out[key] = [resolve(v, defs) for v in value]
        elif key == "items" and isinstance(value, Mapping):
            out[key] = resolve(value, defs)
        else:
            out[key] = value
    if len(out.get("allOf", ())) == 1:
        out = {**out.pop("allOf")[0], **out}
    return out


def alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas of which a value fits one."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return [a for part in schema[key] for a in alternatives(part)]
    return [schema]


def _field(name: str, schema: Mapping[str, Any], required: bool) -> Field:
    parts = alternatives(schema)
    real = [p for p in parts if p.get("type") != "null"]
    kind, choices, main = _kind(real)
    entry = main.get("items", main) if kind in ("list", "choices", "refs") else main
    low, high = _bounds(entry)
    label = str(schema.get("label") or name.strip("_").replace("_", " "))
    return Field(
        name, label, kind, schema.get("default"), (low, high), choices,
        " ".join(str(schema.get("description", "")).split()),
        ref=entry.get("ref") or main.get("ref"), required=required,
        nullable=len(real) < len(parts), schema=schema)


def _kind(parts: list[Mapping[str, Any]]) -> tuple[FieldKind, tuple[Any, ...], Mapping[str, Any]]:
    words = tuple(w for p in parts for w in _words(p))
    open_ = [p for p in parts if not _words(p)]
    if not open_:
        return "choice", words, parts[0] if parts else {}
    if len(open_) > 1:
        simple = all(p.get("type") in ("string", "integer", "number", "boolean") for p in open_)
        flat = all(p.get("type") != "object" for p in open_)
        return ("text" if simple or flat else "json"), words, open_[0]
    part = open_[0]
    kind: FieldKind = {
        "boolean": "bool", "integer": "int", "number": "float", "string": "text", "array": "list",
    }.get(str(part.get("type")), "json")  # type: ignore[assignment]
    if kind == "text" and part.get("ref"):
        kind = "ref"
    if kind == "list":
        entry = part.get("items") or {}
        if isinstance(entry, Mapping) and _words(entry):
            return "choices", tuple(_words(entry)), part
        if isinstance(entry, Mapping) and entry.get("ref"):
            return "refs", words, part
        if isinstance(entry, Mapping) and entry.get("type") in ("object", "array"):
            return "json", words, part
    if words and kind not in ("list", "json", "ref", "refs"):
        kind = "text"
    return kind, words, part


def _words(schema: Mapping[str, Any]) -> list[Any]:
    if "enum" in schema:
        return list(schema["enum"])
    return [schema["const"]] if "const" in schema else []


def _bounds(schema: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    return low, high


# -- what a value may be, in words ----------------------------------------------------------------


def describe(schema: Mapping[str, Any]) -> str:
    """What fits a schema, as a person would say it."""
    parts = alternatives(schema)
    words = [w for p in parts for w in _words(p)]
    told = []
    if words:
        told.append(("one of " if len(words) > 1 else "") + ", ".join(map(_word, words)))
    told += [_describe(p) for p in parts if not _words(p) and p.get("type") != "null"]
    if any(p.get("type") == "null" for p in parts):
        told.append("none")
    return " or ".join(dict.fromkeys(told)) or "anything"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _describe(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if kind == "array":
        entry = schema.get("items")
        if "prefixItems" in schema:
            return "a list of " + ", ".join(describe(p) for p in schema["prefixItems"])
        inner = describe(entry) if isinstance(entry, Mapping) else "values"
        return f"a list, each {inner}"
    if kind in ("integer", "number"):
        name = "a whole number" if kind == "integer" else "a number"
        return name + _range(schema)
    if kind == "string":
        return f"the name of a {schema['ref']}" if schema.get("ref") else "a word"
    return {"boolean": "true or false", "object": "a JSON object"}.get(str(kind), "a JSON value")


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    told = [f" of at least {low}" if low is not None else "",
            f" of at most {high}" if high is not None else "",
            f" above {above}" if above is not None else "",
            f" below {below}" if below is not None else ""]
    return " and".join(filter(None, told))


# -- what was typed to values ---------------------------------------------------------------------


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
        f = found.get(name) or found.get(name.lstrip("-").replace("_", "-"))
        if f is None:
            close = near_misses(name.lstrip("-"), by_name)
            known = f"did you mean {' or '.join(map(repr, close))}?" if close else (
                f"known: {', '.join(by_name) or 'none'}.")
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
    return f.kind == "text" and any(
        p.get("type") == "string" and not _words(p) and p.get("minLength", 0) == 0
        for p in alternatives(f.schema)) and not f.nullable


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
    words = [_word(w) for w in f.choices]
    if words and isinstance(given, str):
        close = near_misses(given, words)
    remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise UsageError(f"{f.name} was given as {_shown(given)}; wanted {f.wanted}.", remedy=remedy)


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "…"


def _read(schema: Mapping[str, Any], given: Any) -> Any:
    if _words(schema):
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
    for word in _words(schema):
        if given == word and type(given) is type(word):
            return word
    for word in _words(schema):
        if isinstance(given, str) and given.strip() == _word(word):
            return word
    close = near_misses(str(given), [_word(w) for w in _words(schema)])
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
    if ((low is not None and value < low) or (high is not None and value > high)
            or (above is not None and value <= above) or (below is not None and value >= below)):
        raise ValueError(wanted)
    return value


def _read_text(schema: Mapping[str, Any], given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"wanted {describe(schema)}")
    if not schema.get("minLength", 0) <= len(given) <= schema.get("maxLength", 10**9):
        raise ValueError(f"wanted {schema.get('minLength', 0)} to "
                         f"{schema.get('maxLength', 'any number of')} characters")
    if "pattern" in schema and not re.search(schema["pattern"], given):
        raise ValueError(f"wanted text of the form {schema['pattern']}")
    return given


def _read_list(schema: Mapping[str, Any], given: Any) -> list[Any]:
    entry = schema.get("items")
    whole = isinstance(entry, Mapping) and any(
        p.get("type") == "integer" for p in alternatives(entry))
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
        if spans and span and int(span[2]) >= int(span[1]) and int(span[2]) - int(span[1]) <= 100_000:
            out += list(range(int(span[1]), int(span[2]) + 1))
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


# -- and back -------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """A value as it is typed into its field; ``parse_value`` reads it back."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in value) and value:
        return ",".join(repr(v) for v in value)
    return json.dumps(value, ensure_ascii=False)


def errors_by_field(errors: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """pydantic's ``ValidationError.errors()`` as one sentence a field."""
    out: dict[str, str] = {}
    for error in errors:
        loc = error.get("loc") or ("",)
        name = str(loc[0]) or "the form"
        message = str(error.get("msg", "does not fit")).removeprefix("Value error, ")
        given = f" (given {_shown(error['input'])})" if len(loc) == 1 and "input" in error and \
            not isinstance(error["input"], Mapping) else ""
        out.setdefault(name, f"{name}: {message}{given}.".replace("..", "."))
    return out
