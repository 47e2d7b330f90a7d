"""The jobs table: rows, states, and the single UPDATE by which a worker takes one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import sqlite3
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from interp.store import Store, database

STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
RESUMABLE = ("cancelled", "interrupted", "failed")
SILENT_S = 15.0
"""A worker that has not beaten for so long is taken for dead."""
BEAT_S = 2.0
STALLED_S = 120.0
"""A job that beats but has not moved for so long is shown as stalled."""
JOB_ID = re.compile(r"[0-9a-f]{32}")

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, spec_json TEXT NOT NULL, spec_hash TEXT, state TEXT NOT NULL,
  done REAL NOT NULL DEFAULT 0, total REAL NOT NULL DEFAULT 0, message TEXT NOT NULL DEFAULT '',
  created REAL NOT NULL, started REAL, heartbeat REAL, progress_at REAL, finished REAL,
  error TEXT, run_id TEXT, cancel_requested INTEGER NOT NULL DEFAULT 0,
  priority INTEGER NOT NULL DEFAULT 0, worker TEXT, attempts INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state, priority, created);
CREATE TABLE IF NOT EXISTS requests (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, payload TEXT NOT NULL, state TEXT NOT NULL,
  answer TEXT, created REAL NOT NULL, deadline REAL NOT NULL);
CREATE TABLE IF NOT EXISTS worker (
  only INTEGER PRIMARY KEY CHECK (only = 1), identity TEXT NOT NULL, heartbeat REAL NOT NULL,
  since REAL NOT NULL, job TEXT);
CREATE TABLE IF NOT EXISTS clients (identity TEXT PRIMARY KEY);
"""


def jobs_db(store: Store) -> AbstractContextManager[sqlite3.Connection]:
    """A short-lived connection to the store's jobs."""
    return database(store.root / "jobs.sqlite", SCHEMA)


# -- who is alive ------------------------------------------------------------------------------


@cache
def _place() -> str:
    """This computer, this boot, this set of process numbers."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        with contextlib.suppress(OSError):
            parts.append(Path(path).read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "|".join(parts)


def born(pid: int) -> str | None:
    """When a living process started, in a form that no change of the clock alters; else None."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if words[0] in "ZX" else words[19]
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def identity_of(pid: int | None = None) -> str:
    """A process, so that no later one with its number is taken for it."""
    pid = os.getpid() if pid is None else pid
    return json.dumps({"place": _place(), "pid": pid, "born": born(pid)}, sort_keys=True)


def is_alive(identity: str | None) -> bool | None:
    """Whether that process lives; None where it cannot be seen from here."""
    try:
        who = json.loads(identity or "")
        pid = int(who["pid"])
        if who["place"].split("|")[0:1] != _place().split("|")[0:1]:
            return None
        if who["place"] != _place():
            same_boot = who["place"].split("|")[1:2] == _place().split("|")[1:2]
            return None if same_boot else False
        return who["born"] is not None and born(pid) == who["born"]
    except (ValueError, KeyError, TypeError):
        return False


def now() -> float:
    """Seconds on the clock that nobody sets, the same in every process of this boot."""
    return time.monotonic()


# -- rows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One row of the jobs table, as a page shows it.

    Args:
        id: 32 hex digits.
        job: what was submitted.
        state: one of ``STATES``.
        spec_hash: of the run, once the worker has resolved it.
        done: how far it is, in any unit; likewise ``total``.
        total: see ``done``.
        message: what it is doing.
        created: seconds since 1970; likewise ``started``, ``finished``.
        started: see ``created``.
        finished: see ``created``.
        error: why it failed, in a sentence.
        run_id: the stored run, when it is done.
        cancel_requested: somebody asked it to stop.
        priority: higher ones go first.
        attempts: how often a worker has taken it.
        silent_s: seconds since the worker's last beat, while it runs.
        still_s: seconds since its last progress, while it runs.
    """

    id: str
    job: dict[str, Any]
    state: str
    spec_hash: str | None = None
    done: float = 0.0
    total: float = 0.0
    message: str = ""
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    run_id: str | None = None
    cancel_requested: bool = False
    priority: int = 0
    attempts: int = 0
    silent_s: float | None = None
    still_s: float | None = None

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0

    @property
    def alive(self) -> bool:
        """Whether it can still change by itself."""
        return self.state in ("queued", "running")

    @property
    def resumable(self) -> bool:
        """Whether ``resume`` puts it back into the queue."""
        return self.state in RESUMABLE

    @property
    def stalled(self) -> bool:
        """It beats and does not move."""
        return self.state == "running" and (self.still_s or 0.0) > STALLED_S

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the derived words."""
        return {
            **vars(self),
            "share": self.share,
            "alive": self.alive,
            "stalled": self.stalled,
            "resumable": self.resumable,
        }


def job_row(row: sqlite3.Row) -> Job:
    """A row as a Job; one whose JSON cannot be read keeps its state and an empty job."""
    try:
        asked = json.loads(row["spec_json"])
    except ValueError:
        asked = None
    beat, moved = row["heartbeat"], row["progress_at"]
    running = row["state"] == "running"
    return Job(
        id=row["id"],
        job=asked if isinstance(asked, dict) else {},
        state=row["state"],
        spec_hash=row["spec_hash"],
        done=row["done"],
        total=row["total"],
        message=row["message"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        error=row["error"],
        run_id=row["run_id"],
        cancel_requested=bool(row["cancel_requested"]),
        priority=row["priority"],
        attempts=row["attempts"],
        silent_s=max(0.0, now() - beat) if running and beat is not None else None,
        still_s=max(0.0, now() - moved) if running and moved is not None else None,
    )


def claim(store: Store, worker: str) -> Job | None:
    """Take the next queued job, or None. One UPDATE, so that two workers never take the same."""
    with jobs_db(store) as db:
        row = db.execute(
            "UPDATE jobs SET state='running', worker=?, started=?, heartbeat=?, progress_at=?, "
            "finished=NULL, error=NULL, message='starting', attempts=attempts+1 "
            "WHERE id=(SELECT id FROM jobs WHERE state='queued' "
            "ORDER BY priority DESC, created, id LIMIT 1) AND state='queued' RETURNING *",
            (worker, time.time(), now(), now()),
        ).fetchone()
    return None if row is None else job_row(row)


def sweep(store: Store, seen: dict[str, float] | None = None) -> list[str]:
    """Mark running jobs whose worker is gone or silent as interrupted; returns their ids.

    Args:
        store: whose jobs.
        seen: memory of the caller: a worker that lives but is silent must be found so twice,
            3 s apart, because a locked database silences it too.
    """
    lost = []
    with jobs_db(store) as db:
        for row in db.execute("SELECT * FROM jobs WHERE state='running'").fetchall():
            if not _lost(row, seen if seen is not None else {}):
                continue
            job = job_row(row)
            changed = db.execute(
                "UPDATE jobs SET state='interrupted', finished=?, message=?, worker=NULL "
                "WHERE id=? AND state='running' AND worker IS ?",
                (time.time(), f"interrupted at {job.share:.0%}", row["id"], row["worker"]),
            ).rowcount
            if changed:
                lost.append(row["id"])
    return lost


def _lost(row: sqlite3.Row, seen: dict[str, float]) -> bool:
    alive = is_alive(row["worker"])
    if alive is False:
        return True
    silent = now() - (row["heartbeat"] or 0.0)
    if 0.0 <= silent <= SILENT_S:
        seen.pop(row["id"], None)
        return False
    if silent < 0.0 and alive:
        return False
    first = seen.setdefault(row["id"], now())
    return now() - first >= 3.0


# -- short requests ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A short request on its way to the worker.

    Args:
        id: of the row.
        kind: which handler.
        payload: its JSON.
        created: when it was asked.
    """

    id: str
    kind: str
    payload: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0


def put_request(store: Store, kind: str, payload: dict[str, Any], timeout: float) -> str:
    """Write a request down; returns its id."""
    request_id = secrets.token_hex(16)
    with jobs_db(store) as db:
        db.execute(
            "INSERT INTO requests VALUES (?, ?, ?, 'waiting', NULL, ?, ?)",
            (request_id, kind, json.dumps(payload), now(), now() + timeout),
        )
    return request_id


def take_answer(store: Store, request_id: str) -> dict[str, Any] | None:
    """The answer, which is then forgotten; None while there is none."""
    with jobs_db(store) as db:
        row = db.execute(
            "SELECT answer FROM requests WHERE id=? AND state='answered'", (request_id,)
        ).fetchone()
        if row is None:
            return None
        db.execute("DELETE FROM requests WHERE id=?", (request_id,))
    return json.loads(row["answer"])


def drop_request(store: Store, request_id: str) -> None:
    """Forget a request nobody waits for any more."""
    with jobs_db(store) as db:
        db.execute("DELETE FROM requests WHERE id=?", (request_id,))


def waiting(store: Store) -> list[Ask]:
    """Requests that wait, oldest first; those past their time are forgotten."""
    with jobs_db(store) as db:
        rows = db.execute(
            "SELECT id, kind, payload, created, deadline FROM requests "
            "WHERE state='waiting' ORDER BY created"
        ).fetchall()
        if rows:
            db.execute("DELETE FROM requests WHERE deadline < ?", (now() - 60.0,))
    found = []
    for row in rows:
        if row["deadline"] < now():
            continue
        try:
            payload = json.loads(row["payload"])
        except ValueError:
            payload = None
        payload = payload if isinstance(payload, dict) else {}
        found.append(Ask(row["id"], row["kind"], payload, float(row["created"])))
    return found


def answer(store: Store, request_id: str, answer: dict[str, Any]) -> None:
    """Put the answer where the one who asked looks."""
    with jobs_db(store) as db:
        db.execute(
            "UPDATE requests SET state='answered', answer=? WHERE id=?",
            (json.dumps(answer), request_id),
        )
