"""Knobs: ``--site resid_pre`` and the like, read from the method's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.forms import Field, errors_by_field, fields_of, parse_values, text_of
from interp.terms import UsageError, unknown_name


def pairs_of(words: Sequence[str], fields: Sequence[Field] = ()) -> dict[str, str]:
    """``--name value``, ``--name=value``, a bare switch ``--name`` and ``--no-name``.

    Args:
        words: what the command line left over.
        fields: of the method, so that switches are known.

    Raises:
        UsageError: a word that belongs to no option, or an option without a value.
    """
    switches = {f.option for f in fields if f.kind == "bool"}
    out: dict[str, str] = {}
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        if not word.startswith("--") or word == "--":
            raise UsageError(
                f"{word!r} belongs to no option.", remedy="Knobs are written as --knob value."
            )
        name, equals, value = word.partition("=")
        name = "--" + name.strip("-_").replace("_", "-")
        follows = i < len(words) and not words[i].startswith("--")
        if equals:
            pass
        elif name in switches and not (follows and _is_truth(words[i])):
            value = "true"
        elif name.startswith("--no-") and "--" + name[5:] in switches:
            name, value = "--" + name[5:], "false"
        elif follows:
            value = words[i]
            i += 1
        else:
            raise UsageError(
                f"{name} was given without a value.", remedy=f"Write {name} VALUE or {name}=VALUE."
            )
        if name in out:
            raise UsageError(f"{name} was given twice.")
        out[name] = value
    return out


def _is_truth(word: str) -> bool:
    return word.strip().lower() in ("true", "false", "yes", "no", "on", "off", "1", "0")


def method_class(name: str) -> Any:
    """The method of a name; dashes do for underscores.

    Raises:
        UsageError: no such method, with the near misses.
    """
    from interp.methods import METHODS

    key = name.replace("-", "_")
    if key not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[key]


def method_from(name: str, words: Sequence[str], more: Mapping[str, str] | None = None) -> Any:
    """A method with its knobs, as typed.

    Raises:
        UsageError: an unknown knob, or a value that does not fit, each said once.
    """
    from pydantic import ValidationError

    kind = method_class(name)
    fields = fields_of(kind.model_json_schema())
    given = {**pairs_of(words, fields), **(more or {})}
    parsed = parse_values(fields, given)
    if parsed.errors:
        raise UsageError(
            f"{kind.key()}: {' '.join(parsed.errors.values())}",
            remedy=f"`interp run {kind.key()} --help` lists its knobs.",
        )
    try:
        return kind(**parsed.values)
    except ValidationError as error:
        told = " ".join(errors_by_field(error.errors()).values())
        raise UsageError(f"{kind.key()}: {told}") from None


def knob_rows(kind: Any) -> list[list[str]]:
    """Each knob of a method: option, what it takes, default, phrase."""
    rows = []
    for f in fields_of(kind.model_json_schema()):
        default = "required" if f.required else text_of(f.default) or "none"
        rows.append([f.option, f.wanted, default, f.phrase])
    return rows
