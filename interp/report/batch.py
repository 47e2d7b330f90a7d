"""Batches: run every cell that fits, keep what is finished, say why the others do not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interp.forms import errors_by_field, fields_of, parse_values
from interp.report.page import Section, write_page
from interp.report.specs import Cell, ReportSpec, read_spec, shard_of
from interp.results import Result, load_result
from interp.terms import (
    CancelledError,
    DamagedError,
    InterpError,
    Method,
    RefusedError,
    TaskError,
    UnsafeError,
    UsageError,
    unknown_name,
)

log = logging.getLogger("interp")

Progress = Callable[[int, int, str], None]


@dataclass
class Outcome:
    """What became of one cell.

    Args:
        cell: which.
        state: ``done``, ``found`` (from an earlier try), ``misfit``, ``failed``, ``missing``.
        result: of a done or found one.
        reason: of a misfit or failure, one or two sentences.
    """

    cell: Cell
    state: str
    result: Result | None = None
    reason: str = ""


@dataclass
class Bench:
    """What is open while a report runs: one model at a time, and its tasks.

    Args:
        spec: the report's.
        memory: bytes a run may use.
        progress: handed to ``run``.
        store: where runs are also kept, or None.
    """

    spec: ReportSpec
    memory: int | str | None
    progress: bool
    store: Any
    key: Any = None
    model: Any = None
    tasks: dict[str, Any] = field(default_factory=dict)

    def open(self, cell: Cell) -> tuple[Any, Any]:
        """The model and task of a cell."""
        from interp.models import load_model
        from interp.tasks import load_task

        key = (cell.model, json.dumps(dict(cell.options), sort_keys=True))
        if key != self.key:
            self.key = self.model = None
            self.tasks = {}
            self.model = load_model(cell.model, **cell.options)
            self.key = key
        if cell.task is not None and cell.task not in self.tasks:
            self.tasks[cell.task] = load_task(cell.task, self.model)
        return self.model, self.tasks.get(cell.task) if cell.task is not None else None


def report(
    spec: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    resume: bool = False,
    shard: str | tuple[int, int] | None = None,
    engine: str = "local",
    pictures: str | None = None,
    memory: int | str | None = None,
    store: Any = None,
    progress: bool = False,
    on_cell: Progress | None = None,
) -> Path:
    """Run a report spec and write one HTML file that opens offline.

    Args:
        spec: path of a YAML file, or the mapping ``{models, tasks, methods, compare}``.
        out: folder for ``report.html``, ``report.json`` (what became of each run) and ``runs/``
            (each finished run, saved); or the path of the HTML file itself.
        resume: go on with a folder that is not empty: finished runs are not run again.
        shard: ``"i/n"``: run only every n-th cell, from the i-th; several shards may share ``out``.
        engine: ``"local"``; ``"ray"`` where that engine is installed with the product.
        pictures: also write each figure as ``"png"`` or ``"svg"`` where a browser is found.
        memory: bytes a run may use, or text as ``"8GiB"``.
        store: also keep every run there (a ``Store``).
        progress: a progress bar for each run, where stderr is a terminal.
        on_cell: called before each cell with (done, total, title).

    Returns:
        the path of the HTML file.

    Raises:
        UsageError: the spec cannot be read, or ``out`` is not empty and ``resume`` is not set.
        CancelledError: stopped by the person; what is finished is kept and in the report.
    """
    asked = read_spec(spec)
    if engine != "local":
        raise UsageError(f"The engine was given as {engine!r}; here is only 'local'.")
    part = shard_of(shard)
    page, folder = _places(Path(out).expanduser())
    if not resume and part is None and (folder / "report.json").exists():
        raise UsageError(
            f"{folder} holds a report already.",
            remedy="Go on with it (resume), or choose another folder.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    cells = _cells(asked)
    bench = Bench(asked, memory, progress, store)
    outcomes: list[Outcome] = []
    stopped: CancelledError | None = None
    for i, cell in enumerate(cells):
        if on_cell is not None:
            on_cell(i, len(cells), cell.title)
        mine = part is None or i % part[1] == part[0] - 1
        found = _found(folder, cell) if resume or part is not None else None
        if found is not None:
            outcomes.append(Outcome(cell, "found", found))
        elif not mine or stopped is not None:
            outcomes.append(Outcome(cell, "missing", reason="not run yet; resume runs it"))
        else:
            try:
                outcomes.append(_one(bench, cell, folder))
            except CancelledError as error:
                stopped = error
                outcomes.append(Outcome(cell, "missing", reason="cancelled; resume runs it"))
    if on_cell is not None:
        on_cell(len(cells), len(cells), "writing the report")
    _write(page, folder, asked, outcomes, pictures)
    if stopped is not None:
        raise CancelledError(str(stopped), remedy=f"Finished runs are in {page}; resume goes on.")
    return page


def _places(out: Path) -> tuple[Path, Path]:
    if out.suffix.lower() in (".html", ".htm"):
        return out, out.with_suffix("")
    if out.is_file():
        raise UsageError(f"{out} is a file; wanted a folder for the report.")
    return out / "report.html", out


def _found(folder: Path, cell: Cell) -> Result | None:
    """A finished cell of an earlier try; a damaged one is run again."""
    place = folder / "runs" / cell.key
    if not place.is_dir():
        return None
    try:
        return load_result(place)
    except (DamagedError, UnsafeError) as error:
        log.warning("%s is damaged and runs again: %s", place, error)
        aside = place.with_name(f"{place.name}.damaged")
        if not aside.exists():
            place.rename(aside)
        return None


def _cells(spec: ReportSpec) -> list[Cell]:
    """The cells, after reading every method and knob: a typo costs no night.

    A method that takes no task runs once a model, whatever tasks there are.
    """
    taskless = [method_of(name, knobs).accepts() == ("none",) for name, knobs in spec.methods]
    several = dict(zip(((n, repr(k)) for n, k in spec.methods), taskless, strict=True))
    out = [replace(c, task=None) if several[c.method, repr(c.knobs)] else c for c in spec.cells()]
    return list({c.key: c for c in out}.values())


def method_of(name: str, knobs: Mapping[str, Any]) -> Method:
    """A method by its key, its knobs read as every face reads them.

    Raises:
        UsageError: no such method or knob, or a value that does not fit.
    """
    from pydantic import ValidationError

    from interp.methods import METHODS

    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    kind = METHODS[name]
    values = parse_values(fields_of(kind.model_json_schema()), knobs).or_raise(name)
    try:
        return kind(**values)
    except ValidationError as error:
        told = " ".join(errors_by_field(error.errors()).values())
        raise UsageError(f"{name}: {told}") from None


def _one(bench: Bench, cell: Cell, folder: Path) -> Outcome:
    """Run one cell. What does not fit, or fails, is said in the report and the rest goes on."""
    from interp.run import run

    try:
        method = method_of(cell.method, cell.knobs)
        accepted = method.accepts()
        if cell.task is None and accepted and "none" not in accepted and "Any" not in accepted:
            raise UsageError(
                f"{cell.method} needs a task ({', '.join(accepted)}), and the spec names none.",
                remedy="Add tasks: [ … ].",
            )
        model, task = bench.open(cell)
        result = run(
            method,
            model,
            task,
            memory=bench.memory,
            progress=bench.progress,
            store=bench.store,
            seed=bench.spec.seed,
        )
        result.save(folder / "runs" / cell.key)
        return Outcome(cell, "done", load_result(folder / "runs" / cell.key))
    except CancelledError:
        raise
    except (RefusedError, UsageError, TaskError) as error:
        return Outcome(cell, "misfit", reason=str(error))
    except InterpError as error:
        return Outcome(cell, "failed", reason=str(error))
    except Exception as error:
        log.exception("%s failed", cell.title)
        first = (str(error).splitlines() or ["no message"])[0]
        told = f"{type(error).__name__}: {first} (the log has the whole story)"
        return Outcome(cell, "failed", reason=told)


def _write(
    page: Path, folder: Path, spec: ReportSpec, outcomes: Iterable[Outcome], pictures: str | None
) -> None:
    outcomes = list(outcomes)
    sections = [
        Section(
            o.cell.title,
            o.result,
            o.state,
            o.reason,
            anchor=f"run-{i + 1}",
            model=o.cell.model,
            task=o.cell.task or "",
            method=o.cell.asked,
        )
        for i, o in enumerate(outcomes)
    ]
    write_page(
        page,
        sections,
        title=spec.title,
        question=spec.question,
        compare=spec.compare,
        source=dict(spec.source),
        pictures=pictures,
        folder=folder,
    )
    summary = {
        "format": 1,
        "title": spec.title,
        "spec": dict(spec.source),
        "cells": [
            {
                "model": o.cell.model,
                "task": o.cell.task,
                "method": o.cell.method,
                "knobs": dict(o.cell.knobs),
                "state": o.state,
                "reason": o.reason,
                "folder": f"runs/{o.cell.key}" if o.result is not None else None,
                "spec_hash": o.result.spec_hash if o.result is not None else None,
                "passed": o.result.passed if o.result is not None else None,
            }
            for o in outcomes
        ],
    }
    target = folder / "report.json"
    half = target.with_suffix(".half")
    half.write_text(json.dumps(summary, indent=1, default=str) + "\n", encoding="utf-8")
    half.replace(target)
