"""Floor 7: jobs. A table that is the truth, one worker a store, and what apps ask of it.

Nothing here imports a tensor library until a worker serves: web processes use ``Queue`` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interp.jobs.asking import allowed_model, job_of
from interp.jobs.keeper import Keeper, start_worker
from interp.jobs.queue import Queue, result_of_json
from interp.jobs.table import RESUMABLE, STATES, Job


def serve(
    store_root: str | Path | None = None,
    roots: Sequence[str | Path] = (),
    *,
    linger: float | None = 300.0,
) -> int:
    """Be the worker of a store until stopped; see ``interp.jobs.worker.serve``."""
    from interp.jobs.worker import serve as serve_store

    return serve_store(store_root, roots, linger=linger)


__all__ = [
    "RESUMABLE",
    "STATES",
    "Job",
    "Keeper",
    "Queue",
    "allowed_model",
    "job_of",
    "result_of_json",
    "serve",
    "start_worker",
]
