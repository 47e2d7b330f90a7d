"""Fields: a method's JSON schema as controls of a form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FieldKind = Literal[
    "bool", "int", "float", "choice", "text", "choices", "list", "ref", "refs", "json"
]

LEADING = (
    "site",
    "direction",
    "metric",
    "with_",
    "axes",
    "input_site",
    "output_site",
    "rules",
    "attn_rule",
    "observable",
    "models",
    "model_b",
    "result",
)
"""Knobs that a person meets first; the rest stand behind "More"."""

MOST_UNFOLDED = 5


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


def fields_of(json_schema: Mapping[str, Any]) -> list[Field]:
    """The fields of a form, in the schema's order, the few that matter first marked unfolded.

    Args:
        json_schema: what pydantic's ``model_json_schema()`` gives, or a task's ``schema()``.
    """
    defs = json_schema.get("$defs", {})
    required = set(json_schema.get("required", ()))
    plain = [
        _field(name, resolve(part, defs), name in required)
        for name, part in json_schema.get("properties", {}).items()
    ]
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
        name,
        label,
        kind,
        schema.get("default"),
        (low, high),
        choices,
        " ".join(str(schema.get("description", "")).split()),
        ref=entry.get("ref") or main.get("ref"),
        required=required,
        nullable=len(real) < len(parts),
        schema=schema,
    )


def _kind(parts: list[Mapping[str, Any]]) -> tuple[FieldKind, tuple[Any, ...], Mapping[str, Any]]:
    words = tuple(w for p in parts for w in words_of(p))
    open_ = [p for p in parts if not words_of(p)]
    if not open_:
        return "choice", words, parts[0] if parts else {}
    if len(open_) > 1:
        simple = all(p.get("type") in ("string", "integer", "number", "boolean") for p in open_)
        flat = all(p.get("type") != "object" for p in open_)
        return ("text" if simple or flat else "json"), words, open_[0]
    part = open_[0]
    kind: FieldKind = {
        "boolean": "bool",
        "integer": "int",
        "number": "float",
        "string": "text",
        "array": "list",
    }.get(str(part.get("type")), "json")  # type: ignore[assignment]
    if kind == "text" and part.get("ref"):
        kind = "ref"
    if kind == "list":
        entry = part.get("items") or {}
        if isinstance(entry, Mapping) and words_of(entry):
            return "choices", tuple(words_of(entry)), part
        if isinstance(entry, Mapping) and entry.get("ref"):
            return "refs", words, part
        if isinstance(entry, Mapping) and entry.get("type") in ("object", "array"):
            return "json", words, part
    if words and kind not in ("list", "json", "ref", "refs"):
        kind = "text"
    return kind, words, part


def words_of(schema: Mapping[str, Any]) -> list[Any]:
    """The few values a schema allows, or none where it is open."""
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
    words = [w for p in parts for w in words_of(p)]
    told = []
    if words:
        told.append(("one of " if len(words) > 1 else "") + ", ".join(map(word_of, words)))
    told += [_describe(p) for p in parts if not words_of(p) and p.get("type") != "null"]
    if any(p.get("type") == "null" for p in parts):
        told.append("none")
    return " or ".join(dict.fromkeys(told)) or "anything"


def word_of(value: Any) -> str:
    """A value as a person types it."""
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
    told = [
        f" of at least {low}" if low is not None else "",
        f" of at most {high}" if high is not None else "",
        f" above {above}" if above is not None else "",
        f" below {below}" if below is not None else "",
    ]
    return " and".join(filter(None, told))
