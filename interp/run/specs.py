"""Specs: what was asked, as plain JSON; and refs turned into the things they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.run.machine import facts_of_tensors
from interp.store import FORMAT, canonical, read_bytes
from interp.terms import (
    Context,
    HookedModel,
    Method,
    ModelRef,
    PromptPairs,
    ResultRef,
    Task,
    UsageError,
    task_from_json,
    task_to_json,
    unknown_name,
)

MOST_BYTES = 64 * 2**20


def method_of(
    method: Method | type[Method] | str,
    fields: Mapping[str, Any] | None = None,
) -> Method:
    """A method from itself, its class, or its registry key with fields.

    Raises:
        UsageError: no such method, or a field that does not exist or does not fit.
    """
    if isinstance(method, Method):
        return method if not fields else method_of(type(method), {**method.model_dump(), **fields})
    if isinstance(method, str):
        from interp.methods import METHODS

        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        method = METHODS[method]
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UsageError(
            f"A {type(method).__name__} was given as method.",
            remedy="Give one such as interp.methods.ActivationPatching().",
        )
    from pydantic import ValidationError

    known = method.model_fields
    for name in fields or {}:
        if name not in known:
            raise unknown_name(f"knob of {method.key()} called", name, known)
    try:
        return method(**(fields or {}))
    except ValidationError as error:
        raise UsageError(f"{method.key()}: {_reasons(error)}") from error


def _reasons(error: Any) -> str:
    lines = []
    for item in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(str(p) for p in item["loc"]) or "the method"
        given = repr(item.get("input"))
        lines.append(f"{place} was given as {given[:80]}: {item['msg'].lower()}")
    return "; ".join(lines) + "."


def task_of(task: Task | str | Mapping[str, Any] | None, model: HookedModel) -> Task | None:
    """A task from itself, a ref, a file that holds one, or its JSON.

    Raises:
        UsageError: no such task or knob.
        TaskError: rows that cannot be used.
    """
    if task is None or not isinstance(task, (str, Mapping, Path)):
        return task
    if isinstance(task, Mapping):
        if "type" in task:
            return task_from_json(task)
        if task.get("inline"):
            return task_from_json(task["inline"])
        return task_of(task.get("ref"), model)
    if str(task).endswith(".json") and Path(task).is_file():
        held = _held_task(Path(task))
        if held is not None:
            return held
    from interp.tasks import load_task

    return load_task(task, model)


def _held_task(path: Path) -> Task | None:
    """A whole task written by ``task_to_json``, or None where the file is something else."""
    if path.stat().st_size > MOST_BYTES:
        return None
    try:
        data = json.loads(read_bytes(path.resolve(), MOST_BYTES))
    except ValueError:
        return None
    return task_from_json(data) if isinstance(data, dict) and "type" in data else None


def spec_of(
    method: Method,
    model: HookedModel,
    task: Task | None,
    *,
    ref: str | None = None,
    context: Context | None = None,
) -> dict[str, Any]:
    """The spec of a run, as it is stored and hashed.

    Args:
        method: the method.
        model: the open model.
        task: the task or None.
        ref: the text the model was opened by; default what the model calls itself.
        context: opens the models and results that fields name, so that their hashes stand in the
            spec too.
    """
    spec: dict[str, Any] = {
        "format": FORMAT,
        "method": method.key(),
        "version": method.version,
        "fields": method.model_dump(mode="json"),
        "model": {
            "ref": str(ref or getattr(model, "ref", None) or model.id),
            "weight_hash": model.weight_hash,
            "backend": model.backend,
            "dtype": facts_of_tensors(model)[1],
        },
        "task": _task_spec(task),
    }
    if context is not None:
        for key, kind in (("models", ModelRef), ("results", ResultRef)):
            named = {str(v) for v in _values(method) if isinstance(v, kind)}
            if named:
                spec[key] = {ref: _hash(context, key, ref) for ref in sorted(named)}
    return json.loads(canonical(spec))


def _hash(context: Context, key: str, ref: str) -> str:
    return context.model(ref).weight_hash if key == "models" else context.result(ref).spec_hash


def _values(method: Method) -> list[Any]:
    out: list[Any] = []
    for name in type(method).model_fields:
        value = getattr(method, name)
        out += list(value) if isinstance(value, (tuple, list)) else [value]
    return out


def _task_spec(task: Task | None) -> dict[str, Any] | None:
    if task is None:
        return None
    out: dict[str, Any] = {
        "ref": task.ref,
        "hash": task.hash(),
        "type": type(task).__name__,
        "name": task.name,
    }
    if task.ref is None:
        out["inline"] = task_to_json(task)
    return out


def tokens_of(task: Task | None, model: HookedModel) -> dict[str, Any] | None:
    """Raw texts of the task's tokens, for labels; ids as text where nothing knows their words."""
    if task is None:
        return None
    tokens: dict[str, Any] = {}
    for name, ids, texts in (
        (
            "clean",
            getattr(task, "clean", None) or getattr(task, "tokens", None),
            getattr(task, "clean_text", None) or getattr(task, "text", None),
        ),
        ("corrupt", getattr(task, "corrupt", None), getattr(task, "corrupt_text", None)),
    ):
        if ids is not None:
            rows = texts if texts is not None else [_texts(row, model) for row in ids]
            tokens[name] = [list(map(str, row)) for row in rows]
    answers = getattr(task, "answer_text", None)
    if isinstance(task, PromptPairs):
        ids = sorted({t for side in (task.right, task.wrong) for row in side for t in row})
        known = dict(answers or {})
        lost = [i for i in ids if i not in known]
        known |= dict(zip(lost, _texts(lost, model), strict=True))
        tokens["answers"] = {int(i): str(known[i]) for i in ids}
    labels = getattr(task, "label_text", None)
    if labels:
        tokens["labels"] = {int(k): str(v) for k, v in labels.items()}
    return tokens or None


def _texts(ids: Any, model: HookedModel) -> list[str]:
    if model.tokenizer is None:
        return [str(i) for i in ids]
    return model.tokenizer.texts(list(ids))
