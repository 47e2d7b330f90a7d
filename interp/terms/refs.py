"""Refs: how a spec names a model, a task, a stored result or a dictionary. Text, never objects."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from interp.terms.errors import UsageError


class _Ref(str):
    """A name with a type, so that a form knows which picker to show."""

    what = "thing"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(min_length=1, max_length=500),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "ref": cls.what}


class ModelRef(_Ref):
    """``zoo:NAME``, a local folder, or a hub id (optionally ``@revision``)."""

    what = "model"


class ResultRef(_Ref):
    """The id of a stored run, or the path of a saved one."""

    what = "result"


class DictionaryRef(_Ref):
    """A folder with a sparse autoencoder (``cfg.json`` and safetensors), or ``zoo:NAME``."""

    what = "dictionary"


@dataclass(frozen=True)
class TaskRef:
    """A task by name with its knobs, or a file: ``ioi:n=64,seed=1`` or ``pairs.jsonl``.

    Args:
        name: a key of ``TASKS`` or the path of a file.
        knobs: n, seed and what else the task takes.
    """

    name: str
    knobs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> TaskRef:
        """Read ``name:key=value,key=value``; a path with a suffix is a file."""
        match = re.fullmatch(r"([A-Za-z_][\w-]*)(?::(.*))?", text, re.DOTALL)
        if match is None:
            name, _, tail = text.partition("::")
            return cls(name, _knobs(tail))
        return cls(match[1].replace("-", "_"), _knobs(match[2] or ""))

    def __str__(self) -> str:
        if not self.knobs:
            return self.name
        known = re.fullmatch(r"[A-Za-z_][\w-]*", self.name)
        tail = ",".join(f"{k}={v}" for k, v in self.knobs.items())
        return f"{self.name}{':' if known else '::'}{tail}"


def _knobs(text: str) -> dict[str, Any]:
    knobs: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(
                f"{item!r} is no knob of a task.",
                remedy="Write key=value, as in 'ioi:n=64,seed=1'.",
            )
        knobs[key.strip()] = _value(value.strip())
    return knobs


def _value(text: str) -> Any:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", text):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)
