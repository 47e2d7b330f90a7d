"""What a job is: plain JSON, checked when it is submitted and again when a worker takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.store import canonical
from interp.terms import UnsafeError, UsageError, near_misses, unknown_name

MOST_BYTES = 16 * 2**20
KEYS = ("method", "fields", "model", "task", "seed", "memory", "fresh", "title")
MODEL_KEYS = ("ref", "backend", "device", "dtype")
BACKENDS = ("transformer_lens", "nnsight", "torch_module")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,2})?")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.\-/]{1,100})?")
ZOO = re.compile(r"zoo:[\w.-]{1,80}(@[\w.-]{1,40})?")


def job_of(data: Any, catalogue: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A job in its full form.

    Args:
        data: ``{"method", "fields", "model", "task", "seed", "memory", "fresh", "title"}``; model
            a ref or ``{"ref", "backend", "device", "dtype"}``; task a ref, a task's JSON,
            ``{"ref": …}``, ``{"inline": …}`` or None.
        catalogue: what the worker publishes; names are held against it where it is given.

    Raises:
        UsageError: a key, name or value that does not fit, with near misses.
    """
    if not isinstance(data, Mapping):
        raise UsageError("A job is a JSON object.", remedy="Give {'method': …, 'model': …}.")
    for key in data:
        if key not in KEYS:
            raise unknown_name("part of a job called", str(key), KEYS)
    method = data.get("method")
    if not isinstance(method, str) or not method:
        raise UsageError(
            "A job names its method.",
            remedy="Give {'method': 'activation_patching', 'model': 'zoo:ioi'}.",
        )
    fields = data.get("fields") or {}
    if not isinstance(fields, Mapping):
        raise UsageError(f"A job's fields were given as {type(fields).__name__}; wanted an object.")
    _check_method(method, fields, catalogue)
    job = {
        "method": method,
        "fields": dict(fields),
        "model": _model(data.get("model")),
        "task": _task(data.get("task")),
        "seed": _whole("seed", data.get("seed")),
        "memory": data.get("memory"),
        "fresh": bool(data.get("fresh", False)),
        "title": str(data.get("title") or "")[:200],
    }
    if job["memory"] is not None:
        from interp.run import parse_bytes

        job["memory"] = parse_bytes(job["memory"])
    size = len(canonical(job))
    if size > MOST_BYTES:
        raise UsageError(
            f"The job has {size:,} bytes; at most {MOST_BYTES:,} are taken.",
            remedy="Use fewer prompts, or a task by name.",
        )
    return json.loads(canonical(job))


def _check_method(
    method: str,
    fields: Mapping[str, Any],
    catalogue: Mapping[str, Any] | None,
) -> None:
    known = (catalogue or {}).get("methods") or {}
    if not known:
        return
    if method not in known:
        raise unknown_name("method", method, known)
    names = (known[method].get("schema") or {}).get("properties") or {}
    for name in fields:
        if name not in names:
            close = near_misses(str(name), names)
            raise UsageError(
                f"There is no knob of {method} called {str(name)!r}.",
                remedy=f"Did you mean {' or '.join(map(repr, close))}?"
                if close
                else f"Known: {', '.join(names) or 'none'}.",
            )


def _model(model: Any) -> dict[str, Any]:
    if isinstance(model, str):
        model = {"ref": model}
    if not isinstance(model, Mapping) or not isinstance(model.get("ref"), str) or not model["ref"]:
        raise UsageError("A job names its model.", remedy="Give {'model': 'zoo:ioi'}.")
    for key in model:
        if key not in MODEL_KEYS:
            raise unknown_name("part of a job's model called", str(key), MODEL_KEYS)
    backend, dtype = model.get("backend"), model.get("dtype") or "float32"
    device = model.get("device") or "cpu"
    if backend is not None and backend not in BACKENDS:
        raise unknown_name("backend", str(backend), BACKENDS)
    if dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES)
    if not isinstance(device, str) or not DEVICE.fullmatch(device):
        raise UsageError(f"There is no device {device!r}.", remedy="Give cpu, cuda or cuda:0.")
    return {"ref": model["ref"][:500], "backend": backend, "device": device, "dtype": dtype}


def _task(task: Any) -> dict[str, Any] | None:
    if task is None or task == "":
        return None
    if isinstance(task, str):
        return {"ref": task[:2000]}
    if isinstance(task, Mapping) and isinstance(task.get("type"), str):
        return {"inline": dict(task)}
    if isinstance(task, Mapping) and isinstance(task.get("inline"), Mapping):
        return {"inline": dict(task["inline"])}
    if isinstance(task, Mapping) and isinstance(task.get("ref"), str):
        return {"ref": task["ref"][:2000]}
    raise UsageError("A job's task is a ref such as 'ioi:n=32', a task's JSON, or none.")


def _whole(name: str, value: Any) -> int | None:
    if value is None or (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    ):
        return value
    raise UsageError(f"{name} was given as {value!r}; wanted a whole number from 0.")


# -- what a worker may open --------------------------------------------------------------------


def allowed_model(ref: str, roots: Sequence[Path]) -> str:
    """The ref, if a worker may open it: shipped, under a root, or a hub id.

    A local folder is opened only if it is one of the roots the worker was started with or lies
    under one, links followed; a name without a slash is looked for there. The name may begin with
    that of the root itself, or with more of its path, where the rest alone stands for two folders.

    Raises:
        UnsafeError: a path outside the roots.
    """
    if ZOO.fullmatch(ref):
        return ref
    places = [root / ref for root in roots] if "\x00" not in ref else []
    longer = [(r, above / ref) for r in roots for above in r.parents] if places else []
    for root, place in [*zip(roots, places, strict=False), *longer]:
        inside, top = place.resolve(), root.resolve()
        whole = inside == top and (top / "config.json").is_file()
        if inside.is_dir() and (whole or top in inside.parents):
            return str(inside)
    if (
        HUB_ID.fullmatch(ref)
        and ".." not in ref
        and not any(p.exists() for p in (Path(ref), *places))
    ):
        return ref
    raise UnsafeError(
        f"The model {ref[:100]!r} is neither shipped, nor a hub id, nor a folder under the model "
        "folders this worker was started with.",
        remedy="Start it with --models FOLDER to offer the models in it.",
    )


def allowed_task(task: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The task, if a worker may open it: one by name, or one that is given whole.

    Raises:
        UnsafeError: the path of a file.
    """
    if task is None or "inline" in task:
        return dict(task) if task else None
    from interp.tasks import TASKS
    from interp.terms import TaskRef

    name = TaskRef.parse(task["ref"]).name
    if name in TASKS:
        return dict(task)
    if re.search(r"[./\\]", name):
        raise UnsafeError(
            "A worker opens no file by its path.",
            remedy="Send the prompts themselves (upload the file), or a task by "
            f"name: {', '.join(TASKS)}.",
        )
    raise unknown_name("task", name, TASKS)
