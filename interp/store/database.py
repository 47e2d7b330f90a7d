"""SQLite as two processes need it: WAL, patient locks, files that only the owner reads."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from interp.store.files import disk_room, full_disk

PATIENCE_S = 30.0


@contextlib.contextmanager
def database(
    path: Path | str, schema: str, *, patience: float = PATIENCE_S
) -> Iterator[sqlite3.Connection]:
    """A short-lived connection in autocommit mode; waits for locks, closes at the end.

    Args:
        path: the file; made (0600) where it is missing. ``":memory:"`` is gone at the end.
        schema: ``CREATE … IF NOT EXISTS`` statements.
        patience: seconds to wait for another writer.

    Raises:
        DiskFullError: SQLite found no room.
        sqlite3.DatabaseError: the file is no database, or stayed locked.
    """
    file = None if path == ":memory:" else Path(path)
    fresh = file is None or not file.exists() or file.stat().st_size == 0
    if file is not None and fresh:
        with disk_room(file.parent, 65536):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        if file is not None and fresh:
            _prepare(connection, patience)
        connection.execute("PRAGMA synchronous=NORMAL")
        if fresh or not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            connection.executescript(schema)
        yield connection
    except sqlite3.OperationalError as error:
        if file is not None and ("full" in str(error) or _no_room(file)):
            raise full_disk(file.parent, 65536) from error
        raise
    finally:
        connection.close()


def _no_room(path: Path) -> bool:
    """SQLite has several words for a disk without room (it cannot make its side files)."""
    return os.statvfs(path.parent).f_bavail == 0 if hasattr(os, "statvfs") else False


def _prepare(connection: sqlite3.Connection, patience: float) -> None:
    """Switch to WAL; the switch itself does not wait for locks, so it is tried again."""
    end = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, with the write lock taken at the start."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
