"""Queue: what apps and the command line use. Rows and files only; no model, no tensor library."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.jobs.asking import job_of
from interp.jobs.context import partial_folder
from interp.jobs.table import (
    JOB_ID,
    RESUMABLE,
    SILENT_S,
    STATES,
    Job,
    drop_request,
    is_alive,
    job_row,
    jobs_db,
    now,
    put_request,
    sweep,
    take_answer,
)
from interp.store import Store, canonical, dataset_from_json, make_folder, read_bytes
from interp.terms import Check, InterpError, UsageError, errors, unknown_name

if TYPE_CHECKING:
    import xarray as xr

    from interp.results import Result

MOST_PARTIAL = 512 * 2**20


class Queue:
    """The jobs of one store.

    Args:
        store: a store, or its folder; default the default store.
    """

    def __init__(self, store: Store | str | Path | None = None) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self._seen: dict[str, float] = {}
        self._catalogue: tuple[Any, dict[str, Any]] = (None, {})

    # -- jobs --------------------------------------------------------------------------------

    def submit(self, job: Mapping[str, Any], priority: int = 0) -> str:
        """Put a job into the queue; returns its id.

        The same job that is queued or running already is not taken twice: its id is returned.

        Args:
            job: ``{"method": key, "fields": {…}, "model": ref or {"ref", "backend", "device",
                "dtype"}, "task": ref, task JSON or None, "seed", "memory", "fresh", "title"}``.
            priority: higher ones go first.

        Raises:
            UsageError: a name or value that does not fit.
        """
        text = canonical(job_of(job, self.catalogue())).decode()
        job_id = secrets.token_hex(16)
        with jobs_db(self.store) as db:
            row = db.execute(
                "INSERT INTO jobs (id, spec_json, state, message, created, priority) "
                "SELECT ?, ?, 'queued', 'waiting for the worker', ?, ? WHERE NOT EXISTS "
                "(SELECT 1 FROM jobs WHERE spec_json=? AND state IN ('queued', 'running') "
                "AND cancel_requested=0) RETURNING id",
                (job_id, text, time.time(), int(priority), text),
            ).fetchone()
            if row is None:
                row = db.execute(
                    "SELECT id FROM jobs WHERE spec_json=? AND state IN ('queued', 'running', "
                    "'done') ORDER BY created DESC LIMIT 1",
                    (text,),
                ).fetchone()
        return row["id"] if row is not None else self.submit(job, priority)

    def list(self, states: Iterable[str] | None = None, limit: int | None = None) -> list[Job]:
        """Jobs, newest first.

        Args:
            states: only these.
            limit: at most so many.
        """
        wanted = tuple(STATES if states is None else states)
        for state in wanted:
            if state not in STATES:
                raise unknown_name("state of a job", state, STATES)
        sweep(self.store, self._seen)
        marks = ",".join("?" * len(wanted))
        with jobs_db(self.store) as db:
            rows = db.execute(
                f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY created DESC, id LIMIT ?",
                (*wanted, -1 if limit is None else limit),
            ).fetchall()
        return [job_row(r) for r in rows]

    def show(self, job_id: str) -> Job:
        """One job, by its id or the first characters of it.

        Raises:
            UsageError: there is none.
        """
        sweep(self.store, self._seen)
        with jobs_db(self.store) as db:
            return job_row(self._row(db, job_id))

    def _row(self, db: sqlite3.Connection, job_id: str) -> sqlite3.Row:
        rows: list[sqlite3.Row] = []
        if len(job_id) >= 4 and JOB_ID.fullmatch(job_id.ljust(32, "0")):
            rows = db.execute(
                "SELECT * FROM jobs WHERE substr(id, 1, ?)=? LIMIT 2", (len(job_id), job_id)
            ).fetchall()
        if len(rows) != 1:
            known = "several jobs begin with" if rows else "no job is called"
            raise UsageError(
                f"{known[0].upper()}{known[1:]} {job_id[:40]!r}.",
                remedy="`interp jobs list` shows those there are.",
            )
        return rows[0]

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop: a queued one at once, a running one at its next chunk."""
        with jobs_db(self.store) as db:
            full = self._row(db, job_id)["id"]
            db.execute(
                "UPDATE jobs SET cancel_requested=1, "
                "message=CASE state WHEN 'queued' THEN 'cancelled before it began' ELSE "
                "'stopping after this chunk' END, "
                "finished=CASE state WHEN 'queued' THEN ? ELSE finished END, "
                "state=CASE state WHEN 'queued' THEN 'cancelled' ELSE state END "
                "WHERE id=? AND state IN ('queued', 'running')",
                (time.time(), full),
            )
        return self.show(full)

    def resume(self, job_id: str) -> Job:
        """Put a cancelled, interrupted or failed job back; it goes on from its finished chunks.

        Raises:
            UsageError: it is in another state.
        """
        sweep(self.store, self._seen)
        with jobs_db(self.store) as db:
            row = self._row(db, job_id)
            changed = db.execute(
                "UPDATE jobs SET state='queued', cancel_requested=0, error=NULL, finished=NULL, "
                "message='waiting for the worker', worker=NULL WHERE id=? AND state IN "
                f"({','.join('?' * len(RESUMABLE))})",
                (row["id"], *RESUMABLE),
            ).rowcount
        if not changed:
            raise UsageError(
                f"Job {job_id[:8]} is {row['state']}; only one that was cancelled, "
                "interrupted or failed can be resumed."
            )
        return self.show(row["id"])

    def delete(self, job_id: str) -> None:
        """Forget a job that is over (its run stays).

        Raises:
            UsageError: it is queued or running.
        """
        with jobs_db(self.store) as db:
            row = self._row(db, job_id)
            gone = db.execute(
                "DELETE FROM jobs WHERE id=? AND state NOT IN ('queued', 'running')", (row["id"],)
            ).rowcount
        if not gone:
            raise UsageError(f"Job {job_id[:8]} is {row['state']}.", remedy="Cancel it first.")
        shutil.rmtree(partial_folder(self.store, row["id"]), ignore_errors=True)

    def kill(self, job_id: str) -> Job:
        """Stop a job that does not answer by stopping its worker; it is then interrupted."""
        with jobs_db(self.store) as db:
            row = self._row(db, job_id)
        if row["state"] == "running" and is_alive(row["worker"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(json.loads(row["worker"])["pid"]), signal.SIGKILL)
            end = now() + 5.0
            while is_alive(row["worker"]) and now() < end:
                time.sleep(0.02)
        return self.show(row["id"])

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Wait until a job is over.

        Raises:
            InterpError: it is not over after ``timeout`` seconds.
        """
        end = math.inf if timeout is None else now() + timeout
        while (job := self.show(job_id)).alive:
            if now() > end:
                raise InterpError(f"Job {job_id[:8]} is still {job.state} after {timeout:g} s.")
            time.sleep(0.05)
        return job

    def partial(self, job_id: str) -> xr.Dataset | None:
        """What a running job has finished so far, or None.

        Looking makes the worker write: the first look at a job may find nothing yet.
        """
        with jobs_db(self.store) as db:
            full = self._row(db, job_id)["id"]
        folder = make_folder(self.store.root / "jobs")
        folder = make_folder(partial_folder(self.store, full))
        (folder / "watched").touch(mode=0o600)
        path = folder / "partial.json"
        if not path.exists():
            return None
        return dataset_from_json(json.loads(read_bytes(path, MOST_PARTIAL)))

    # -- the worker --------------------------------------------------------------------------

    def worker(self) -> dict[str, Any] | None:
        """The worker that serves this store: ``{"since", "job", "silent_s"}``, or None."""
        with jobs_db(self.store) as db:
            row = db.execute("SELECT * FROM worker").fetchone()
        if row is None or is_alive(row["identity"]) is False:
            return None
        silent = max(0.0, now() - row["heartbeat"])
        if silent > SILENT_S:
            return None
        return {"since": row["since"], "job": row["job"], "silent_s": silent}

    def catalogue(self) -> dict[str, Any]:
        """What the worker publishes: methods with schemas, tasks, metrics, models; {} before.

        Keys: ``methods`` (key → title, question, citations, needs, accepts, version, schema),
        ``tasks`` (name → title, question, type, schema), ``metrics`` (name → title, units,
        phrase), ``models`` (a list), ``described`` (ref → what describe_model said), ``versions``.
        """
        path = self.store.root / "catalogue.json"
        try:
            status = path.stat()
            mark = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._catalogue[0] != mark:
                self._catalogue = (mark, json.loads(path.read_bytes()))
        except (OSError, ValueError):
            return {}
        return self._catalogue[1]

    def request(
        self, kind: str, payload: Mapping[str, Any] | None = None, timeout: float = 60.0
    ) -> dict[str, Any]:
        """Ask the worker something short; it answers when idle, or between two chunks.

        Args:
            kind: ``ping``, ``run_method``, ``describe_model``, ``doctor``, ``load_task``,
                ``make_pairs``, ``check_pair``, ``tokenize``, ``decode``, ``estimate``,
                ``refresh`` (see ``interp/jobs/answers.py``).
            payload: plain JSON.
            timeout: seconds to wait.

        Raises:
            InterpError: what the worker raised, as it raised it; or no answer in time.
        """
        text = json.loads(canonical(dict(payload or {})))
        request_id = put_request(self.store, kind, text, timeout)
        end, pause = now() + timeout, 0.005
        while (found := take_answer(self.store, request_id)) is None:
            if now() > end:
                drop_request(self.store, request_id)
                raise self._silence(timeout)
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
        if "error" in found:
            raise error_of(found["error"])
        return found["answer"]

    def _silence(self, timeout: float) -> InterpError:
        worker = self.worker()
        if worker is None:
            return InterpError(
                "No worker serves this store.",
                remedy="`interp app` starts one; it may still be starting.",
            )
        busy = "between two chunks of a job" if worker["job"] else "idle"
        return InterpError(
            f"The worker did not answer within {timeout:g} s (it is {busy}).",
            remedy="Try again in a moment.",
        )

    def measure(
        self,
        method: str,
        fields: Mapping[str, Any] | None = None,
        *,
        model: Any,
        task: Any = None,
        seed: int | None = None,
        keep: bool = False,
        timeout: float = 60.0,
    ) -> Result:
        """Run a short method in the worker and return its result.

        Args:
            method: registry key; likewise ``fields``, ``model`` and ``task`` as in ``submit``.
            fields: see ``method``.
            model: see ``method``.
            task: see ``method``.
            seed: of the generators.
            keep: put the result into the store.
            timeout: seconds, after which it is cancelled.
        """
        answer = self.request(
            "run_method",
            {
                "method": method,
                "fields": dict(fields or {}),
                "model": model,
                "task": task,
                "seed": seed,
                "keep": keep,
                "timeout": timeout,
            },
            timeout,
        )
        return result_of_json(answer)


def result_of_json(answer: Mapping[str, Any]) -> Result:
    """A result that came through ``request("run_method")``."""
    from interp.results import Result

    tokens = answer.get("tokens")
    if tokens and isinstance(tokens.get("answers"), dict):
        tokens = {**tokens, "answers": {int(k): v for k, v in tokens["answers"].items()}}
    return Result(
        data=dataset_from_json(answer["data"]),
        spec=answer["spec"],
        provenance=answer["provenance"],
        run_id=answer.get("run_id"),
        tokens=tokens,
        checks=tuple(Check.from_json(c) for c in answer["checks"]),
    )


def error_of(data: Mapping[str, Any]) -> InterpError:
    """The error a worker sent, of the same kind."""
    kind = getattr(errors, str(data.get("kind")), InterpError)
    message, remedy = str(data.get("message", "")), str(data.get("remedy", ""))
    if kind is errors.TaskError:
        rows = [(int(n), str(why)) for n, why in data.get("rows") or []]
        return errors.TaskError(message, rows=rows, remedy=remedy)
    plain = isinstance(kind, type) and issubclass(kind, InterpError)
    if not plain or kind is errors.DiskFullError:
        kind = InterpError
    return kind(message, remedy=remedy)
