"""Store: a folder of runs, listed through an SQLite index that can be made again from them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interp.store.chunks import Chunks, sweep_chunks
from interp.store.database import database, transaction
from interp.store.files import canonical, make_folder, replace_file
from interp.store.records import (
    Record,
    read_manifest,
    read_run,
    read_spec,
    spec_hash,
    sweep_halves,
    verify_run,
    write_run,
)
from interp.terms import DamagedError, DiskFullError, UnsafeError, UsageError

CHUNKS_KEPT_S = 90 * 86400.0
RUN_ID = re.compile(r"[0-9a-f]{32}")
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, spec_hash TEXT, created REAL, method TEXT, model TEXT, task TEXT,
  fields TEXT, summary TEXT, bytes INTEGER, failed_checks INTEGER, damaged TEXT, tags TEXT,
  note TEXT);
CREATE INDEX IF NOT EXISTS runs_hash ON runs (spec_hash);
CREATE INDEX IF NOT EXISTS runs_created ON runs (created);
"""


@dataclass(frozen=True)
class RunRow:
    """One line of the list of runs.

    Args:
        id: 32 hex digits.
        spec_hash: of the spec; equal for two runs of the same thing.
        created: seconds since 1970.
        method: registry key; likewise ``model`` (ref) and ``task`` (ref or name).
        model: see ``method``.
        task: see ``method``.
        fields: the knobs.
        summary: wall time, direction, metric and what else a list shows.
        bytes: on disk.
        failed_checks: lines of the trust panel that do not pass.
        damaged: why it cannot be opened, or None.
        tags: words a person gave it.
        note: a sentence a person gave it.
    """

    id: str
    spec_hash: str | None
    created: float
    method: str
    model: str
    task: str
    fields: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    failed_checks: int = 0
    damaged: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "tags": list(self.tags)}


def default_root() -> Path:
    """``$INTERP_HOME``, or ``~/.local/share/interp``."""
    home = os.environ.get("INTERP_HOME")
    return Path(home) if home else Path.home() / ".local" / "share" / "interp"


class Store:
    """Runs on disk: immutable folders, an index, tags and notes.

    Two processes may use one store. The folders are the truth; an index that is lost or spoilt is
    made again from them.

    Args:
        root: the store's folder; default ``$INTERP_HOME`` or ``~/.local/share/interp``.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        make_folder(self.root)
        self.runs = make_folder(self.root / "runs")
        self.labels = make_folder(self.root / "labels")
        sweep_halves(self.runs)
        sweep_chunks(self.root / "chunks", older=CHUNKS_KEPT_S)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    # -- writing -----------------------------------------------------------------------------

    def add(self, record: Record) -> str:
        """Keep a run; returns its id.

        Raises:
            DiskFullError: it does not fit; the store is as it was.
        """
        run_id = secrets.token_hex(16)
        write_run(self.runs / run_id, record)
        with self._index():
            pass  # brings the index in step
        return run_id

    def delete(self, run_id: str) -> None:
        """Remove a run for good."""
        run_id = self.resolve(run_id)
        gone = self.runs / f".half-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            (self.runs / run_id).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        (self.labels / f"{run_id}.json").unlink(missing_ok=True)
        with self._index() as db:
            db.execute("DELETE FROM runs WHERE id=?", (run_id,))

    def tag(self, run_id: str, *tags: str, remove: Sequence[str] = ()) -> tuple[str, ...]:
        """Add and remove tags; returns those it has now."""
        run_id = self.resolve(run_id)
        bad = [t for t in tags if not t.strip() or len(t) > 60]
        if bad:
            raise UsageError(f"{bad[0]!r} is no tag; wanted 1 to 60 characters.")
        labels = self._labels(run_id)
        kept = sorted(({*labels["tags"], *(t.strip() for t in tags)}) - set(remove))
        self._label(run_id, {**labels, "tags": kept})
        return tuple(kept)

    def note(self, run_id: str, text: str) -> None:
        """Put a note on a run; an empty text removes it."""
        run_id = self.resolve(run_id)
        if len(text) > 10_000:
            raise UsageError(f"The note has {len(text):,} characters; at most 10,000 are kept.")
        self._label(run_id, {**self._labels(run_id), "note": text})

    def _labels(self, run_id: str) -> dict[str, Any]:
        try:
            data = json.loads((self.labels / f"{run_id}.json").read_bytes())
            return {"tags": [str(t) for t in data["tags"]], "note": str(data["note"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {"tags": [], "note": ""}

    def _label(self, run_id: str, labels: dict[str, Any]) -> None:
        replace_file(self.labels / f"{run_id}.json", canonical(labels))
        with self._index() as db:
            db.execute(
                "UPDATE runs SET tags=?, note=? WHERE id=?",
                (json.dumps(labels["tags"]), labels["note"], run_id),
            )

    # -- reading -----------------------------------------------------------------------------

    def path(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.runs / self.resolve(run_id)

    def resolve(self, run_id: str) -> str:
        """A full id from itself or from its first characters (at least 4).

        Raises:
            UsageError: none or several runs begin so.
        """
        if RUN_ID.fullmatch(run_id) and (self.runs / run_id).is_dir():
            return run_id
        found = []
        if re.fullmatch(r"[0-9a-f]{4,32}", run_id):
            found = [name for name in self._ids() if name.startswith(run_id)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{len(found)} runs begin with {run_id!r}.",
                remedy="Give more characters of the id.",
            )
        raise UsageError(
            f"There is no run {run_id[:40]!r} in {self.root}.",
            remedy="`interp runs list` shows those there are.",
        )

    def get(self, run_id: str) -> Record:
        """Open a run; one that turns out damaged is marked so, and others stay as they are.

        Raises:
            UsageError: there is no such run.
            DamagedError: the file, the expected and the found hash.
        """
        run_id = self.resolve(run_id)
        try:
            return read_run(self.runs / run_id)
        except (DamagedError, UnsafeError) as error:
            self._mark(run_id, str(error))
            raise DamagedError(
                f"Run {run_id[:8]} is damaged. {error}", remedy="Other runs are unaffected."
            ) from error

    def row(self, run_id: str) -> RunRow:
        """The list's line for one run."""
        run_id = self.resolve(run_id)
        with self._index() as db:
            return _row(db.execute("SELECT * FROM runs WHERE id=?", (run_id,)).fetchone())

    def find(self, hash_: str) -> str | None:
        """The newest undamaged run with this spec hash, or None."""
        with self._index() as db:
            row = db.execute(
                "SELECT id FROM runs WHERE spec_hash=? AND damaged IS NULL "
                "ORDER BY created DESC LIMIT 1",
                (hash_,),
            ).fetchone()
        return row["id"] if row else None

    def list(
        self,
        *,
        method: str | None = None,
        model: str | None = None,
        task: str | None = None,
        tag: str | None = None,
        text: str | None = None,
        limit: int | None = None,
    ) -> list[RunRow]:
        """Runs, newest first, damaged ones among them with the reason.

        Args:
            method: only this registry key; likewise ``model`` and ``task`` (exact refs).
            model: see ``method``.
            task: see ``method``.
            tag: only runs with this tag.
            text: only runs in whose method, model, task, tags, note or id this text stands.
            limit: at most so many.
        """
        wheres, values = [], []
        for column, value in (("method", method), ("model", model), ("task", task)):
            if value is not None:
                wheres.append(f"{column}=?")
                values.append(value)
        sql = "SELECT * FROM runs" + (" WHERE " + " AND ".join(wheres) if wheres else "")
        with self._index() as db:
            rows = [_row(r) for r in db.execute(sql + " ORDER BY created DESC, id", values)]
        if tag is not None:
            rows = [r for r in rows if tag in r.tags]
        if text:
            needle = text.lower()
            rows = [
                r
                for r in rows
                if needle in " ".join((r.method, r.model, r.task, r.note, r.id, *r.tags)).lower()
            ]
        return rows[:limit]

    def chunks(self, hash_: str) -> Chunks:
        """The finished parts of an unfinished run of this spec."""
        make_folder(self.root / "chunks")
        return Chunks(self.root / "chunks" / hash_)

    # -- the index ---------------------------------------------------------------------------

    def _ids(self) -> list[str]:
        with os.scandir(self.runs) as entries:
            return [
                e.name
                for e in entries
                if RUN_ID.fullmatch(e.name) and e.is_dir(follow_symlinks=False)
            ]

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        """The index, in step with the folders; one that cannot be read is made again.

        Without room on the disk it is made in memory, so that a store always opens.
        """
        path: Path | str = self.root / "index.sqlite"
        try:
            self._brought(path)
        except DiskFullError:
            path = ":memory:"
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
            self._set_aside(self.root / "index.sqlite")
            self._brought(path)
        with database(path, SCHEMA) as db:
            if path == ":memory:":
                self._step(db)
            yield db

    def _brought(self, path: Path | str) -> None:
        with database(path, SCHEMA) as db:
            self._step(db)

    def _set_aside(self, path: Path) -> None:
        for tail in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{tail}").replace(f"{path}.spoilt{tail}")

    def _step(self, db: sqlite3.Connection) -> None:
        """Bring the index in step with the folders (another process may have added some)."""
        known = {r["id"] for r in db.execute("SELECT id, damaged, method FROM runs")}
        there = set(self._ids())
        for run_id in there - known:
            self._insert(db, run_id)
        for run_id in known - there:
            db.execute("DELETE FROM runs WHERE id=?", (run_id,))

    def _insert(self, db: sqlite3.Connection, run_id: str) -> None:
        db.execute(
            "INSERT OR REPLACE INTO runs VALUES (:id, :spec_hash, :created, :method, "
            ":model, :task, :fields, :summary, :bytes, :failed_checks, :damaged, :tags, "
            ":note)",
            self._describe(run_id),
        )

    def _describe(self, run_id: str) -> dict[str, Any]:
        folder = self.runs / run_id
        labels = self._labels(run_id)
        row: dict[str, Any] = {
            "id": run_id,
            "spec_hash": None,
            "created": _mtime(folder),
            "method": "",
            "model": "",
            "task": "",
            "fields": "{}",
            "summary": "{}",
            "bytes": 0,
            "failed_checks": 0,
            "damaged": None,
            "tags": json.dumps(labels["tags"]),
            "note": labels["note"],
        }
        try:
            manifest = read_manifest(folder)
            spec = read_spec(folder, manifest)
            size = sum(f["bytes"] for f in manifest["files"].values())
            found = (folder / "data.nc").stat().st_size
            if found != manifest["files"]["data.nc"]["bytes"]:
                raise DamagedError(
                    f"data.nc of this run has {found:,} bytes, expected "
                    f"{manifest['files']['data.nc']['bytes']:,}."
                )
        except FileNotFoundError:
            return {**row, "damaged": "data.nc of this run is missing."}
        except DamagedError as error:
            return {**row, "damaged": str(error)}
        provenance = manifest["provenance"]
        task = spec.get("task") or {}
        return {
            **row,
            "spec_hash": spec_hash(spec),
            "created": provenance.get("created") or row["created"],
            "method": str(spec.get("method", "")),
            "model": str((spec.get("model") or {}).get("ref") or ""),
            "task": str(task.get("ref") or task.get("name") or ""),
            "fields": json.dumps(spec.get("fields") or {}),
            "summary": json.dumps(
                {
                    k: provenance[k]
                    for k in (
                        "method_title",
                        "wall_time_s",
                        "device",
                        "knobs",
                        "seed",
                        "model_id",
                        "task_name",
                        "task_size",
                    )
                    if k in provenance
                }
            ),
            "bytes": size,
            "failed_checks": sum(not c.get("passed", True) for c in manifest["checks"]),
        }

    def _mark(self, run_id: str, reason: str) -> None:
        with self._index() as db:
            db.execute("UPDATE runs SET damaged=? WHERE id=?", (reason, run_id))

    def rebuild(self) -> list[RunRow]:
        """Make the index again from the folders, holding every file against its hash."""
        sweep_halves(self.runs, older=0.0)
        self._set_aside(self.root / "index.sqlite")
        with self._index() as db, transaction(db):
            for run_id in self._ids():
                try:
                    verify_run(self.runs / run_id)
                    db.execute("UPDATE runs SET damaged=NULL WHERE id=?", (run_id,))
                except DamagedError as error:
                    db.execute("UPDATE runs SET damaged=? WHERE id=?", (str(error), run_id))
        return self.list()


def _mtime(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _row(row: sqlite3.Row) -> RunRow:
    data = dict(row)
    for key in ("fields", "summary"):
        data[key] = json.loads(data[key])
    data["tags"] = tuple(json.loads(data["tags"]))
    return RunRow(**data)
