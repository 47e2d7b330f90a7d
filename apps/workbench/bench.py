"""Bench: what the pages ask the house for. Ids and plain JSON in, results out; never a path.

One object a process, reached by ``bench()`` inside a request. It holds the store and the queue of
``interp`` and adds nothing that computes: a page that needs a number asks the worker for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import current_app

import interp

WELCOME = {"method": "activation_patching", "fields": {}, "model": "zoo:ioi", "task": "ioi:n=32"}
"""What the first page shows: computed by this installation's own worker at the first start."""

KEPT = 12
"""Opened results kept in memory; runs never change."""


def bench() -> Bench:
    """The bench of this process."""
    return current_app.config["BENCH"]


class Bench:
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
        return {k: e for k, e in methods.items() if e.get("family") != "explore"}

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
        result = interp.Result(record.data, record.spec, record.provenance, tuple(record.checks),
                               record.tokens, run_id)
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
        return self.queue.list()

    def job(self, job_id: str) -> dict[str, Any] | None:
        """One job, None where there is none."""
        try:
            return self.queue.show(job_id)
        except interp.InterpError:
            return None

    def job_title(self, row: Mapping[str, Any]) -> str:
        """Method, model and task of a job."""
        spec = row.get("spec") or {}
        model, task = spec.get("model") or {}, spec.get("task") or {}
        return " · ".join(str(p) for p in (
            self.method_title(str(spec.get("method") or "job")),
            model.get("ref"), task.get("ref") or ("own pairs" if task else None)) if p)

    def cancel(self, job_id: str) -> None:
        """Ask a job to stop."""
        self.queue.cancel(job_id)

    def resume(self, job_id: str) -> None:
        """Let a job go on."""
        self.queue.resume(job_id)
