"""SQLite as two processes need it: WAL, patient locks, files that only the owner reads."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from interp.store.files import full_disk

PATIENCE_S = 30.0


@contextlib.contextmanager
def database(path: Path, schema: str, *, patience: float = PATIENCE_S
             ) -> Iterator[sqlite3.Connection]:
    """A short-lived connection in autocommit mode; waits for locks, closes at the end.

    Args:
        path: the file; made (0600) where it is missing.
        schema: ``CREATE … IF NOT EXISTS`` statements.
        patience: seconds to wait for another writer.

    Raises:
        DiskFullError: SQLite found no room.
        sqlite3.DatabaseError: the file is no database, or stayed locked.
    """
    fresh = not path.exists() or path.stat().st_size == 0
    if fresh:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        if fresh:
            _prepare(connection, patience)
        connection.execute("PRAGMA synchronous=NORMAL")
        if fresh or not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            connection.executescript(schema)
        yield connection
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error) and _no_room(path):
            raise full_disk(path.parent, 65536) from error
        raise
    finally:
        connection.close()


def _no_room(path: Path) -> bool:
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
