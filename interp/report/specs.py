"""Report specs: ``{models, tasks, methods, compare}`` read, checked, and spread into cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from interp.terms import TaskRef, UsageError, unknown_name

KEYS = ("title", "question", "models", "tasks", "methods", "compare", "seed")
MODEL_KEYS = ("ref", "backend", "device", "dtype", "revision")
COMPARABLE = ("models", "tasks", "methods")
MOST_BYTES = 1_000_000
MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a report.

    Args:
        model: the model's ref.
        options: how it is loaded (backend, device, dtype, revision).
        task: the task's ref, or None.
        method: key of the method.
        knobs: what the spec sets, as written.
    """

    model: str
    options: Mapping[str, Any]
    task: str | None
    method: str
    knobs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Names the cell's folder: the same cell has the same key in every report."""
        body = json.dumps(
            [self.model, dict(self.options), self.task, self.method, dict(self.knobs)],
            sort_keys=True,
            default=str,
        )
        return hashlib.sha256(body.encode()).hexdigest()[:24]

    @property
    def asked(self) -> str:
        """The method with the knobs that the spec sets."""
        knobs = ", ".join(f"{k}={v}" for k, v in self.knobs.items())
        return self.method + (f"({knobs})" if knobs else "")

    @property
    def title(self) -> str:
        """Method, model and task in one line."""
        return " · ".join(filter(None, [self.asked, self.model, self.task]))


@dataclass(frozen=True)
class ReportSpec:
    """What a report asks.

    Args:
        models: (ref, loading options).
        tasks: refs; empty for methods that take none.
        methods: (key, knobs).
        compare: along which of ``models``, ``tasks``, ``methods`` results are set side by side.
        title: of the report.
        question: one sentence above everything.
        seed: given to every run.
    """

    models: tuple[tuple[str, Mapping[str, Any]], ...]
    tasks: tuple[str, ...] = ()
    methods: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    compare: tuple[str, ...] = ()
    title: str = "Report"
    question: str = ""
    seed: int | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Every combination, model by model, so that each is loaded once."""
        return [
            Cell(model, options, task, method, knobs)
            for model, options in self.models
            for task in (self.tasks or (None,))
            for method, knobs in self.methods
        ]


def read_spec(spec: str | Path | Mapping[str, Any]) -> ReportSpec:
    """Read a report spec from YAML (or JSON) or from a mapping.

    Args:
        spec: a path, or the mapping itself.

    Raises:
        UsageError: no such file, no YAML, an unknown key (with near misses), nothing to run.
    """
    if isinstance(spec, Mapping):
        return _checked(spec, None)
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UsageError(
            f"There is no report spec at {path}.",
            remedy="Give a YAML file with models, tasks and methods.",
        )
    if path.stat().st_size > MOST_BYTES:
        raise UsageError(
            f"{path.name} has {path.stat().st_size:,} bytes; a report spec has at "
            f"most {MOST_BYTES:,}."
        )
    text = path.read_text(encoding="utf-8")
    try:
        _no_aliases(text)
        body = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{path.name} is no YAML{where}: {getattr(error, 'problem', None) or error}."
        ) from None
    if not isinstance(body, Mapping):
        raise UsageError(
            f"{path.name} holds {type(body).__name__}; wanted a mapping with "
            "models, tasks and methods."
        )
    return _checked(body, path.parent)


def _no_aliases(text: str) -> None:
    """Refuse aliases: a few lines of them can stand for gigabytes, and no spec needs one."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read", problem_mark=event.start_mark
            )


def _checked(body: Mapping[str, Any], folder: Path | None) -> ReportSpec:
    for key in body:
        if key not in KEYS:
            raise unknown_name("key of a report spec called", str(key), KEYS)
    models = tuple(_model(m, folder) for m in _listed(body, "models"))
    tasks = tuple(_task(t, folder) for t in _listed(body, "tasks"))
    methods = tuple(part for m in _listed(body, "methods") for part in _methods(m))
    compare = tuple(str(c) for c in _listed(body, "compare"))
    for word in compare:
        if word not in COMPARABLE:
            raise unknown_name("comparison", word, COMPARABLE)
    for name, found in (("models", models), ("methods", methods)):
        if not found:
            raise UsageError(
                f"The report spec names no {name}.",
                remedy=f"Add {name}: [ … ]; `interp list {name}` shows them.",
            )
    count = len(models) * max(1, len(tasks)) * len(methods)
    if count > MOST_CELLS:
        raise UsageError(
            f"The report spec asks for {count:,} runs; at most {MOST_CELLS:,} go into one report.",
            remedy="Split it.",
        )
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise UsageError(f"seed was given as {seed!r}; wanted a whole number.")
    return ReportSpec(
        models,
        tasks,
        methods,
        compare,
        str(body.get("title") or "Report"),
        str(body.get("question") or ""),
        seed,
        dict(body),
    )


def _listed(body: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = body.get(key)
    if value is None:
        return ()
    if isinstance(value, (str, Mapping)):
        return (value,)
    if not isinstance(value, Sequence):
        raise UsageError(f"{key} was given as {value!r}; wanted a list.")
    return value


def _model(entry: Any, folder: Path | None) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, Mapping):
        for key in entry:
            if key not in MODEL_KEYS:
                raise unknown_name("option of a model called", str(key), MODEL_KEYS)
        if "ref" not in entry:
            raise UsageError(
                f"A model was given as {dict(entry)!r}; its ref is missing.",
                remedy="Write {ref: 'zoo:ioi', dtype: float32}.",
            )
        options = {k: str(v) for k, v in entry.items() if k != "ref"}
        return _located(str(entry["ref"]), folder), options
    if not isinstance(entry, str) or not entry:
        raise UsageError(f"A model was given as {entry!r}; wanted zoo:NAME, a folder or a hub id.")
    return _located(entry, folder), {}


def _located(ref: str, folder: Path | None) -> str:
    """A relative path in a spec starts at the spec's own folder, if it is there."""
    if folder is not None and ref.startswith("."):
        beside = folder / ref
        if beside.exists():
            return str(beside)
    return ref


def _task(entry: Any, folder: Path | None) -> str:
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, knobs),) = entry.items()
        if isinstance(knobs, Mapping) or knobs is None:
            return str(TaskRef(str(name), dict(knobs or {})))
    if isinstance(entry, str) and entry:
        return _located(entry, folder)
    raise UsageError(f"A task was given as {entry!r}; wanted 'ioi:n=64' or {{ioi: {{n: 64}}}}.")


def _methods(entry: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(entry, str):
        return [(entry.replace("-", "_"), {})]
    if isinstance(entry, Mapping):
        out = []
        for name, knobs in entry.items():
            if knobs is not None and not isinstance(knobs, Mapping):
                raise UsageError(
                    f"The knobs of {name} were given as {knobs!r}; wanted {{knob: value}}."
                )
            out.append((str(name).replace("-", "_"), dict(knobs or {})))
        return out
    raise UsageError(
        f"A method was given as {entry!r}; wanted its name, or {{name: {{knob: value}}}}}}}}."
    )


def shard_of(text: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """``i/n`` as numbers, i from 1.

    Raises:
        UsageError: no such shard.
    """
    if text is None:
        return None
    try:
        i, n = text if isinstance(text, tuple) else map(int, str(text).split("/"))
    except ValueError:
        i, n = 0, 0
    if not 1 <= i <= n:
        raise UsageError(f"The shard was given as {text!r}; wanted i/n, as 1/4 to 4/4.")
    return i, n
