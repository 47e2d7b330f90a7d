"""The worker: one process a store, models warm, jobs one after the other, requests in between."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from interp.jobs import table
from interp.jobs.answers import QUICK, Desk, answer_to, next_of, unexpected
from interp.jobs.asking import allowed_model, allowed_task, job_of
from interp.jobs.catalogue import publish
from interp.jobs.context import JobContext, LostError, StoppedError, partial_folder, write_partial
from interp.jobs.table import BEAT_S, Job, identity_of, is_alive, jobs_db, now
from interp.run import Shelf, method_of, run
from interp.store import Store, make_folder
from interp.terms import CancelledError, DiskFullError, InterpError

LOG = logging.getLogger("interp.jobs")
IDLE_S = 0.04
LINGER_S = 300.0
TAKEN = 75
"""Exit status of a worker that finds another one serving the store."""
BROKEN = 70
"""Exit status of a worker whose device no longer answers; a new one is started."""

T = TypeVar("T")


class Worker:
    """Serves one store.

    Args:
        store: whose jobs and requests.
        roots: model folders that may be opened.
        linger: seconds after which a worker without clients and work ends; None never ends.
        shelf: open models.
    """

    def __init__(
        self,
        store: Store,
        roots: Sequence[str | Path] = (),
        *,
        linger: float | None = LINGER_S,
        shelf: Shelf | None = None,
    ) -> None:
        self.store = store
        self.roots = tuple(Path(r).expanduser().resolve() for r in roots)
        self.me = identity_of()
        self.desk = Desk(
            store,
            self.roots,
            Shelf() if shelf is None else shelf,
            lambda: self.answer_waiting(True),
        )
        self._serving: set[str] = set()
        self.linger = linger
        self._stop = threading.Event()
        self._busy_at = now()
        self.broken = False

    def stop(self, *_: object) -> None:
        """End at the next chunk; the running job is interrupted."""
        self._stop.set()

    def serve(self) -> None:
        """Work until stopped, or until nobody has been there for ``linger`` seconds."""
        with self._beating():
            table.sweep(self.store)
            publish(self.store, self.roots)
            while not self._stop.is_set() and not self.broken:
                worked = self._patiently(self._step)
                if worked:
                    self._busy_at = now()
                elif self._deserted():
                    return
                else:
                    self._stop.wait(IDLE_S)

    def _step(self) -> bool:
        worked = self.answer_waiting()
        job = table.claim(self.store, self.me)
        if job is not None:
            self._perform(job)
        return worked or job is not None

    def answer_waiting(self, quick: bool = False) -> bool:
        """Answer every request that waits, one after the other; look anew after each.

        Those that measure and come meanwhile wait for the next time, so that a job goes on.

        Args:
            quick: only those that measure nothing, as between the chunks of one that does.
        """
        any_, began = False, now()
        while True:
            asks = [
                a
                for a in table.waiting(self.store)
                if a.id not in self._serving and (a.created <= began or a.kind in QUICK)
            ]
            ask = next_of(asks, quick)
            if ask is None:
                return any_
            self._serving.add(ask.id)
            try:
                table.answer(self.store, ask.id, answer_to(self.desk, ask))
            finally:
                self._serving.discard(ask.id)
            any_ = True
            if self._stop.is_set():
                return any_

    def _deserted(self) -> bool:
        if self.linger is None or now() - self._busy_at < self.linger:
            return False
        self._busy_at = now()
        return not live_clients(self.store)

    # -- one job -------------------------------------------------------------------------------

    def _perform(self, job: Job) -> None:
        LOG.info("job %s: %s", job.id, job.job.get("method"))
        with jobs_db(self.store) as db:
            db.execute("UPDATE worker SET job=? WHERE identity=?", (job.id, self.me))
        try:
            state, facts = self._measure(job)
        except LostError:
            LOG.warning("job %s was taken over", job.id)
            return
        finally:
            self._patiently(self._unmark)
        self._patiently(lambda: self._finish(job.id, state, facts))
        LOG.info("job %s: %s", job.id, state)

    def _unmark(self) -> None:
        with jobs_db(self.store) as db:
            db.execute("UPDATE worker SET job=NULL WHERE identity=?", (self.me,))

    def _measure(self, row: Job) -> tuple[str, dict[str, Any]]:
        """Run the job; returns its last state and the columns to set."""
        try:
            job = job_of(row.job)
            said = dict(job["model"])
            ref = allowed_model(said.pop("ref"), self.roots)
            context = JobContext(
                row.id,
                store=self.store,
                worker=self.me,
                roots=self.roots,
                between=self.answer_waiting,
                stopping=self._stop.is_set,
                shelf=self.desk.shelf,
                memory=job["memory"],
                **said,
            )
            context.say(f"opening {job['model']['ref']}")
            result = run(
                method_of(job["method"], job["fields"]),
                ref,
                allowed_task(job["task"]),
                context=context,
                progress=False,
                store=self.store,
                seed=job["seed"],
                fresh=job["fresh"],
                resume=not job["fresh"] or row.attempts > 1,
            )
            return "done", {
                "run_id": result.run_id,
                "spec_hash": result.spec_hash,
                "message": "found in the store"
                if result.provenance.get("found_in_store")
                else "done",
            }
        except LostError:
            raise
        except StoppedError:
            return "interrupted", {"message": "the worker was stopped"}
        except CancelledError as error:
            self._keep_partial(row.id, error)
            return "cancelled", {"message": error.message}
        except InterpError as error:
            LOG.warning("job %s failed: %s", row.id, error)
            return "failed", {"error": str(error), "message": "failed"}
        except Exception as error:
            LOG.error("job %s failed\n%s", row.id, traceback.format_exc())
            self.broken = device_lost(error)
            if self.broken:
                return "interrupted", {
                    "message": "the device stopped answering; the worker starts again"
                }
            return "failed", {
                "error": f"{unexpected(error)} The worker's log has the details "
                f"under job {row.id[:8]}.",
                "message": "failed",
            }

    def _keep_partial(self, job_id: str, error: CancelledError) -> None:
        if error.partial is not None:
            with contextlib.suppress(DiskFullError):
                make_folder(self.store.root / "jobs")
                write_partial(partial_folder(self.store, job_id), error.partial.data)

    def _finish(self, job_id: str, state: str, facts: dict[str, Any]) -> None:
        sets = "".join(f", {k}=?" for k in facts)
        full = ", done=MAX(total, 1), total=MAX(total, 1)" if state == "done" else ""
        with jobs_db(self.store) as db:
            db.execute(
                f"UPDATE jobs SET state=?, finished=?, worker=NULL{sets}{full} "
                "WHERE id=? AND state='running' AND worker=?",
                (state, time.time(), *facts.values(), job_id, self.me),
            )
        if state == "done":
            (partial_folder(self.store, job_id) / "partial.json").unlink(missing_ok=True)

    # -- staying alive -------------------------------------------------------------------------

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do it again while the disk is full or the database is held by another."""
        while True:
            try:
                return act()
            except (sqlite3.OperationalError, DiskFullError) as error:
                LOG.warning("waiting: %s", error)
                if self._stop.wait(1.0):
                    raise

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """A side thread that says every two seconds that this process lives."""
        over = threading.Event()

        def beat() -> None:
            while True:
                try:
                    self._beat()
                except (sqlite3.Error, InterpError, OSError) as error:
                    LOG.warning("a beat was lost: %s", error)
                if over.wait(BEAT_S):
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        with jobs_db(self.store) as db:
            db.execute(
                "INSERT OR REPLACE INTO worker VALUES (1, ?, ?, ?, NULL)",
                (self.me, now(), time.time()),
            )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5.0)
            with contextlib.suppress(sqlite3.Error, InterpError), jobs_db(self.store) as db:
                db.execute("DELETE FROM worker WHERE identity=?", (self.me,))

    def _beat(self) -> None:
        with jobs_db(self.store) as db:
            db.execute("UPDATE worker SET heartbeat=? WHERE identity=?", (now(), self.me))
            db.execute(
                "UPDATE jobs SET heartbeat=? WHERE state='running' AND worker=?", (now(), self.me)
            )


def live_clients(store: Store, but: str | None = None) -> list[str]:
    """Apps that use the store's worker now; those that are gone are struck off."""
    with jobs_db(store) as db:
        listed = [r["identity"] for r in db.execute("SELECT identity FROM clients")]
        gone = [i for i in listed if is_alive(i) is False]
        db.executemany("DELETE FROM clients WHERE identity=?", [(i,) for i in gone])
    return [i for i in listed if i not in gone and i != but]


def device_lost(error: BaseException) -> bool:
    """Whether the accelerator itself is gone, so that no later job could use it."""
    text = str(error)
    marks = (
        "CUDA error",
        "an illegal memory access",
        "device-side assert",
        "unspecified launch",
        "CUDA driver",
        "cudaError",
    )
    named = type(error).__name__ == "AcceleratorError"
    return type(error).__name__ != "OutOfMemoryError" and (
        named or isinstance(error, RuntimeError) and any(m in text for m in marks)
    )


def serve(
    store_root: str | Path | None = None,
    roots: Sequence[str | Path] = (),
    *,
    linger: float | None = LINGER_S,
    shelf: Shelf | None = None,
) -> int:
    """Serve a store as this process's only business; returns the exit status.

    Args:
        store_root: the store's folder; default the default store.
        roots: model folders that may be opened.
        linger: seconds without clients and work after which it ends; None never ends.
        shelf: open models; default one of its own.
    """
    from filelock import FileLock, Timeout

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    store = Store(store_root)
    lock = FileLock(store.root / "worker.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return TAKEN
    try:
        worker = Worker(store, roots, linger=linger, shelf=shelf)
        for name in ("SIGTERM", "SIGINT"):
            signal.signal(getattr(signal, name), worker.stop)
        log_to(store)
        LOG.info("worker of %s begins", store.root)
        worker.serve()
        return BROKEN if worker.broken else 0
    finally:
        lock.release()


def log_to(store: Store) -> None:
    """Keep the worker's log beside the store: 1 MB, and the one before."""
    path = store.root / "worker.log"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=2**20, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
