"""Keeper: sees to it that a worker serves the store while an app needs one."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from interp.jobs.table import SILENT_S, identity_of, is_alive, jobs_db, now, sweep
from interp.store import Store
from interp.terms import InterpError

LOG = logging.getLogger("interp.jobs")
WATCH_S = 0.5
START_S = 120.0
"""A worker that is starting (importing torch) is given this long for its first beat."""
QUIET = {"GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}
"""The worker shares its cores with a browser: threads that spin while they wait would slow both."""


class Keeper:
    """One app's hold on the store's worker.

    The first app starts it; another app on the same store shares it. When it dies it is started
    again (ever more slowly when it dies before it serves). The last app to leave stops it.

    Args:
        store: whose worker.
        roots: model folders that it may open.
        command: the program that serves; default ``python -m interp.jobs``.
    """

    def __init__(
        self,
        store: Store,
        roots: Sequence[str | Path] = (),
        command: Sequence[str] = (sys.executable, "-m", "interp.jobs"),
    ) -> None:
        self.store, self.command = store, tuple(command)
        self.roots = tuple(str(Path(r).expanduser().resolve()) for r in roots)
        self.me = identity_of()
        self.starts = 0
        self.trouble = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._next = 0.0
        self._reached = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._seen: dict[str, float] = {}

    def begin(self) -> Keeper:
        """Register this app, start a worker if none is there, and keep watching."""
        with jobs_db(self.store) as db:
            db.execute("INSERT OR REPLACE INTO clients VALUES (?)", (self.me,))
        self.look()
        self._thread.start()
        return self

    def alive(self) -> bool:
        """Whether a worker serves the store, or is starting."""
        child = self._child
        return self._served() or (child is not None and child.poll() is None)

    def ready(self, timeout: float = START_S) -> bool:
        """Wait until the worker answers; False when it does not in time."""
        end = now() + timeout
        while not self._served() or not (self.store.root / "catalogue.json").exists():
            if now() > end or self._over.wait(0.05):
                return False
        return True

    def _row(self) -> tuple[str, float] | None:
        with jobs_db(self.store) as db:
            row = db.execute("SELECT identity, heartbeat FROM worker").fetchone()
        return None if row is None else (row["identity"], now() - row["heartbeat"])

    def _served(self) -> bool:
        row = self._row()
        return row is not None and is_alive(row[0]) is not False and row[1] <= SILENT_S

    def _watch(self) -> None:
        while not self._over.wait(WATCH_S):
            try:
                self.look()
                sweep(self.store, self._seen)
            except (OSError, InterpError, sqlite3.Error) as error:
                self.trouble = f"{type(error).__name__}: {error}"
                LOG.warning("keeper: %s", self.trouble)

    def look(self) -> None:
        """Start a worker if none serves the store; end our own when it hangs."""
        child = self._child
        if child is not None and child.poll() is None:
            self._end_if_hung(child)
            return
        if child is not None:
            self._note_end(child)
        if not self._served() and now() >= self._next:
            self._start()

    def _end_if_hung(self, child: subprocess.Popen[bytes]) -> None:
        row = self._row()
        mine = row is not None and f'"pid": {child.pid},' in row[0]
        self._reached = self._reached or mine
        if mine and row is not None and row[1] > SILENT_S + 5.0:
            self.trouble = f"the worker was silent for {row[1]:.0f} s and was started again"
            child.kill()
            child.wait()

    def _note_end(self, child: subprocess.Popen[bytes]) -> None:
        self._child = None
        if self._reached:  # it served: whatever ended it, the next one may start at once
            self.starts = 0
        self._next = now() + (min(30.0, 0.5 * 2**self.starts) if self.starts else 0.0)
        if child.returncode not in (0, 75):
            self.trouble = f"the worker ended with status {child.returncode}"

    def _start(self) -> None:
        self.starts += 1
        self._reached = False
        command = [*self.command, "--store", str(self.store.root)]
        for root in self.roots:
            command += ["--models", root]
        log = os.open(self.store.root / "worker.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
                env={**QUIET, **os.environ},
            )
        finally:
            os.close(log)

    def stop(self, grace: float = 8.0) -> None:
        """Leave; the worker is stopped when no other app uses it and it is ours."""
        from interp.jobs.worker import live_clients

        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        with jobs_db(self.store) as db:
            db.execute("DELETE FROM clients WHERE identity=?", (self.me,))
        child, self._child = self._child, None
        if child is None or child.poll() is not None or live_clients(self.store, but=self.me):
            return
        child.terminate()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        sweep(self.store)


def start_worker(
    store: Store | str | Path | None = None,
    roots: Sequence[str | Path] = (),
) -> Keeper:
    """Have a worker serve this store from now on; ``.stop()`` when the app ends."""
    held = store if isinstance(store, Store) else Store(store)
    return Keeper(held, roots).begin()
