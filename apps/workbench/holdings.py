"""What the workbench holds: runs, jobs, models and tasks, by their ids and refs; never a path."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import interp

WELCOME = {"method": "activation_patching", "fields": {}, "model": "zoo:ioi", "task": "ioi:n=32"}
"""What the first page shows: computed by this installation's own worker at the first start."""

HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.-]{1,64})?")
PARTS = ("pair_check", "verify_cell", "head_page")
"""Methods that pages ask for themselves: no page of their own in the rail."""
FRESH = 5.0
"""Seconds for which the list of models is taken as it was seen."""
KEPT = 12
"""Opened results kept in memory; runs never change."""


def plain(row: Any) -> dict[str, Any]:
    """A row of the jobs table as plain JSON."""
    return dict(row) if isinstance(row, Mapping) else row.to_json()


def tell_apart(rows: list[dict[str, Any]]) -> None:
    """Give folders of one name as much of their path as it takes to name each alone."""
    named = Counter(r["ref"] for r in rows)
    for row in [r for r in rows if named[r["ref"]] > 1]:
        parts = Path(row["stored"]).parts
        start = len(Path(row["ref"]).parts)
        longer = ("/".join(parts[-n:]) for n in range(start + 1, len(parts)))
        ends = [Path(r["stored"]).parts for r in rows if r is not row]
        alone = (n for n in longer if all(e[-len(Path(n).parts) :] != Path(n).parts for e in ends))
        row["ref"] = row["title"] = next(alone, row["stored"])


class Holdings:
    """Store, queue and model roots.

    Args:
        store: where runs are kept.
        roots: folders whose model folders are offered.
        queue: the jobs of the store; made from it if None.
    """

    def __init__(self, store: Any, *, roots: tuple[Path, ...] = (), queue: Any = None) -> None:
        self.store = store
        self.roots = roots
        self.queue = interp.Queue(store) if queue is None else queue
        self.worker: Any = None
        self._results: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._models: list[dict[str, Any]] = []
        self._looked = float("-inf")
        self._tasks: OrderedDict[tuple[str, str], tuple[Any, Any]] = OrderedDict()
        self.first: str | None = None

    # -- catalogue ---------------------------------------------------------------------------

    def catalogue(self) -> dict[str, Any]:
        """What the worker published: methods with schema, needs and task types."""
        return self.queue.catalogue() or {}

    def method(self, key: str) -> dict[str, Any] | None:
        """One method's entry."""
        return (self.catalogue().get("methods") or {}).get(key)

    def listed_methods(self) -> dict[str, dict[str, Any]]:
        """The methods that have a page; the short ones that pages ask for themselves are not."""
        methods = self.catalogue().get("methods") or {}
        return {k: e for k, e in methods.items() if k not in PARTS}

    def method_title(self, key: str) -> str:
        """A method's title; its key where nothing is published yet."""
        return (self.method(key) or {}).get("title") or key.replace("_", " ")

    def worker_state(self) -> tuple[str, str]:
        """(``ok``, ``busy`` or ``off``, what to say) of the worker."""
        beat = self.queue.worker()
        if beat is None:
            return "off", "worker not running"
        running = [j for j in self.jobs() if j["state"] == "running"]
        return ("busy", "worker measuring") if running else ("ok", "worker ready")

    # -- runs and jobs -----------------------------------------------------------------------

    def result(self, run_id: str) -> Any:
        """A stored run as a result; opened once."""
        run_id = self.store.resolve(run_id)
        with self._lock:
            if run_id in self._results:
                self._results.move_to_end(run_id)
                return self._results[run_id]
        record = self.store.get(run_id)
        result = interp.Result(
            record.data, record.spec, record.provenance, tuple(record.checks), record.tokens, run_id
        )
        with self._lock:
            self._results[run_id] = result
            while len(self._results) > KEPT:
                self._results.popitem(last=False)
        return result

    def compare(self, a: Any, b: Any) -> Any:
        """The difference of b from a."""
        return interp.compare(a, b)

    def delete_run(self, run_id: str) -> None:
        """Delete a run for good."""
        with self._lock:
            self._results.pop(run_id, None)
        self.store.delete(run_id)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, newest first, as plain rows."""
        return [plain(row) for row in self.queue.list()]

    def job(self, job_id: str) -> dict[str, Any] | None:
        """One job, None where there is none."""
        try:
            return plain(self.queue.show(job_id))
        except interp.InterpError:
            return None

    def job_title(self, row: Mapping[str, Any]) -> str:
        """Method, model and task of a job."""
        spec = row.get("job") or {}
        if spec.get("title"):
            return str(spec["title"])
        model, task = spec.get("model") or {}, spec.get("task") or {}
        return " · ".join(
            str(p)
            for p in (
                self.method_title(str(spec.get("method") or "job")),
                model.get("ref"),
                task.get("ref") or ("own pairs" if task else None),
            )
            if p
        )

    def cancel(self, job_id: str) -> None:
        """Ask a job to stop."""
        self.queue.cancel(job_id)

    def resume(self, job_id: str) -> None:
        """Let a job go on."""
        self.queue.resume(job_id)

    def kill(self, job_id: str) -> None:
        """Stop a job that does not answer; its worker is started again."""
        self.queue.kill(job_id)

    def submit(
        self,
        method: str,
        fields: Mapping[str, Any],
        model: str,
        task: str | None,
        machine: Mapping[str, Any] | None = None,
    ) -> str:
        """Queue a run; the job's id.

        Args:
            method: registry key.
            fields: its knobs.
            model: a ref that is offered here, or a hub id.
            task: a ref, ``pairs:<key>``, or None.
            machine: backend, dtype, device.
        """
        self.check_model(model)
        job = {
            "method": method,
            "fields": dict(fields),
            "model": {"ref": model, **(machine or {})},
            "task": self.task_json(task),
        }
        return self.queue.submit(job)

    def partial(self, job_id: str) -> Any:
        """What a running job has finished so far as a dataset, or None."""
        try:
            return self.queue.partial(job_id)
        except interp.InterpError:
            return None

    def welcome_state(self) -> tuple[str | None, str | None]:
        """(run, job) of the first page's grid; both None where there is neither."""
        row = self.job(self.first) if self.first else None
        if row is None:
            return self.welcomed(), None
        if row["state"] != "done":
            return None, self.first
        run_id = row.get("run_id")
        kept = any(run_id == known.id for known in self.store.list())
        return (run_id, self.first) if kept else (self.welcomed(), None)

    def welcomed(self) -> str | None:
        """The stored run of the first page's grid, None where there is none."""
        family = str(WELCOME["task"]).partition(":")[0]
        for row in self.store.list(method=WELCOME["method"], model=WELCOME["model"]):
            named = row.task.startswith(family) and row.fields.get("site") == "resid_pre"
            if named and not row.damaged:
                return row.id
        return None

    # -- models and tasks --------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """Shipped models and the model folders of the roots, named as they are listed."""
        if time.monotonic() - self._looked > FRESH:
            self._models = [dict(vars(m)) for m in interp.list_models(self.roots)]
            for row in self._models:
                row["stored"] = row["ref"]
                row["ref"] = row["title"] if row.get("origin", "zoo") != "zoo" else row["ref"]
            tell_apart(self._models)
            self._looked = time.monotonic()
        return self._models

    def model_of(self, spec: Mapping[str, Any]) -> str:
        """The model of a stored run as the pages name it: a folder by its listed name."""
        return self.listed_name(str((spec.get("model") or {}).get("ref") or ""))

    def listed_name(self, stored: str) -> str:
        """The listed name of a model that a run names its own way."""
        return next((m["ref"] for m in self.models() if m["stored"] == stored), stored)

    def stored_name(self, ref: str) -> str:
        """How the runs of a listed model name it."""
        return next((m["stored"] for m in self.models() if m["ref"] == ref), ref)

    def model_options(self) -> list[dict[str, str]]:
        """What a picker of models offers."""
        return [{"value": r["ref"], "label": r["ref"]} for r in self.models() if r.get("ok", True)]

    def check_model(self, ref: str) -> None:
        """Refuse a model that was not offered: no path comes from the page.

        Raises:
            InterpError: neither listed here nor the pattern of a hub id.
        """
        if ref in {r["ref"] for r in self.models()}:
            return
        if HUB.fullmatch(ref) and ".." not in ref:
            return
        raise interp.InterpError(
            f"The model {ref[:60]!r} is not offered here.",
            remedy="Choose one of the list, or give a hub id.",
        )

    def task_options(self, accepts: Any) -> list[dict[str, str]]:
        """The task families of the types a method accepts."""
        return [
            {"value": f"{k}:n={f.knobs['n'].default},seed=0", "label": f.title}
            for k, f in interp.TASKS.items()
            if f.type_name in accepts or "Any" in accepts
        ]

    def default_task(self) -> str:
        """The first family, small."""
        return WELCOME["task"]

    def task_title(self, task: str) -> str:
        """A task's ref for a person."""
        return "your own pairs" if task.startswith("pairs:") else task

    def task_json(self, task: str | None) -> dict[str, Any] | None:
        """A task as a job carries it: by ref, or whole where it was built here.

        Raises:
            InterpError: no family of that name, or prompts that are not kept here.
        """
        if not task:
            return None
        if task.startswith("pairs:"):
            return {"ref": None, "inline": interp.kept_task(self.store, task.partition(":")[2])}
        if task.partition(":")[0] not in interp.TASKS:
            raise interp.InterpError(
                f"The task {task[:60]!r} is not offered here.",
                remedy="Choose one of the list, or build a pair.",
            )
        return {"ref": task}

    def task_of(self, spec: Mapping[str, Any]) -> str:
        """The task of a stored run as this page names it."""
        task = spec.get("task") or {}
        if task.get("inline"):
            return "pairs:" + interp.keep_task(self.store, task["inline"])
        return str(task.get("ref") or "")
