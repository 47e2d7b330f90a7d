"""JobContext: a method's company inside the worker. Progress, cancel, short requests, partials."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.jobs.asking import allowed_model
from interp.jobs.table import jobs_db, now
from interp.run import LocalContext
from interp.store import canonical, dataset_to_json, make_folder, replace_file
from interp.terms import CancelledError, UsageError

if TYPE_CHECKING:
    import xarray as xr

    from interp.run import Shelf
    from interp.store import Store
    from interp.terms import HookedModel

LOOK_S = 0.1
"""The table is looked at between chunks, at most this often."""
PARTIAL_S = 1.0
WATCHED_S = 10.0
"""Partial results are written while somebody has looked for them this recently."""


class StoppedError(CancelledError):
    """The worker is being stopped; the job is interrupted, not cancelled."""


class LostError(CancelledError):
    """The row is no longer this worker's: it was silent too long and somebody took over."""


class JobContext(LocalContext):
    """The context of one job.

    Args:
        job_id: the row.
        store: the store.
        worker: identity that holds the row.
        roots: model folders that may be opened.
        between: called between chunks; serves short requests.
        stopping: whether the worker is being stopped.
        shelf: open models.
        options: ``device``, ``dtype``, ``backend`` of the job's model, and ``memory``.
    """

    def __init__(
        self,
        job_id: str,
        *,
        store: Store,
        worker: str,
        roots: tuple[Path, ...],
        between: Callable[[], object],
        stopping: Callable[[], bool],
        shelf: Shelf,
        **options: Any,
    ) -> None:
        super().__init__(store=store, shelf=shelf, **options)
        self.job_id, self.worker, self.roots = job_id, worker, roots
        self._between, self._stopping = between, stopping
        self._looked = self._wrote = 0.0
        self._serving = False
        self._folder = partial_folder(store, job_id)

    def say(self, message: str) -> None:
        """What it is doing now."""
        with jobs_db(self.store) as db:  # type: ignore[arg-type]
            db.execute(
                "UPDATE jobs SET message=? WHERE id=? AND worker=?",
                (message[:300], self.job_id, self.worker),
            )

    def begun(self, spec: dict[str, Any], hash_: str) -> None:
        """The spec is resolved; the row shows its hash."""
        with jobs_db(self.store) as db:  # type: ignore[arg-type]
            db.execute(
                "UPDATE jobs SET spec_hash=?, message='measuring' WHERE id=? AND worker=?",
                (hash_, self.job_id, self.worker),
            )

    def advance(self, done: float, total: float) -> None:
        """Progress into the table; cancel and short requests out of it.

        Raises:
            CancelledError: the person cancelled.
            StoppedError: the worker is being stopped.
            LostError: the row is no longer this worker's.
        """
        self.done, self.total = float(done), float(total)
        if now() - self._looked >= LOOK_S or done >= total:
            self._look()
            self._looked = now()
        if self._stopping():
            raise StoppedError("The worker was stopped.")
        super().advance(done, total)

    def _look(self) -> None:
        with jobs_db(self.store) as db:  # type: ignore[arg-type]
            changed = db.execute(
                "UPDATE jobs SET done=?, total=?, heartbeat=?, progress_at=CASE WHEN done<>? OR "
                "total<>? THEN ? ELSE progress_at END WHERE id=? AND state='running' AND worker=? "
                "RETURNING cancel_requested",
                (
                    self.done,
                    self.total,
                    now(),
                    self.done,
                    self.total,
                    now(),
                    self.job_id,
                    self.worker,
                ),
            ).fetchone()
        if changed is None:
            raise LostError("This worker was silent too long and lost the job.")
        if changed["cancel_requested"]:
            self.cancel()
        if not self._serving:
            self._serving = True
            try:
                self._between()
            finally:
                self._serving = False

    def partial(self, make: Callable[[], xr.Dataset]) -> None:
        """Write what is finished, at most once a second, while somebody looks."""
        if now() - self._wrote < PARTIAL_S or not self._watched():
            return
        self._wrote = now()
        write_partial(self._folder, make())

    def _watched(self) -> bool:
        with contextlib.suppress(OSError):
            return time.time() - (self._folder / "watched").stat().st_mtime < WATCHED_S
        return False

    def model(self, ref: str) -> HookedModel:
        """Open a model, if this worker may."""
        return super().model(allowed_model(ref, self.roots))

    def dictionary(self, ref: str) -> Any:
        """Open a dictionary that ships or lies in one of the worker's folders."""
        from interp.models import load_dictionary

        return load_dictionary(ref, roots=self.roots)

    def result(self, ref: str) -> Any:
        """Open a stored run by its id; a worker opens none by path."""
        from interp.results import stored_result

        if self.store is None:
            raise UsageError(f"There is no run {ref!r}.")
        return stored_result(self.store, ref)


def partial_folder(store: Store, job_id: str) -> Path:
    """Where a job's partial results lie."""
    return store.root / "jobs" / job_id


def write_partial(folder: Path, data: xr.Dataset) -> None:
    """Write a partial dataset in one step."""
    make_folder(folder)
    replace_file(folder / "partial.json", canonical(dataset_to_json(data)))
