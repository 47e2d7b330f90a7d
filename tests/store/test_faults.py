"""Full disks and killed writers: earlier runs stay whole, and nothing half is ever seen."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from interp.store import Store, database, files, index, spec_hash
from interp.terms import DiskFullError
from tests.store.makers import record


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    store.add(record(0))
    return store


def fail_at(monkeypatch, calls: int, name: str = "fsync", number: int = errno.ENOSPC) -> list[int]:
    """Let the ``calls``-th call of ``os.<name>`` fail; returns the list it counts in."""
    real, seen = getattr(os, name), []

    def counted(*args, **kwargs):
        seen.append(1)
        if len(seen) == calls:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, counted)
    return seen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", range(1, 6))
def test_a_full_disk_at_each_write_says_both_sizes_and_loses_nothing(
    store, monkeypatch, call, number
):
    before = {p: p.read_bytes() for p in store.runs.rglob("*") if p.is_file()}
    fail_at(monkeypatch, call, number=number)
    with pytest.raises(DiskFullError) as caught:
        store.add(record(1))
    monkeypatch.undo()
    assert caught.value.needed > 1000 and caught.value.free > 0
    assert f"{caught.value.needed:,} bytes are needed" in str(caught.value)
    again = Store(store.root)
    whole = [r for r in again.list() if not r.damaged]
    assert {p: p.read_bytes() for p in before} == before
    assert not list(store.runs.glob(".half-*"))
    # The last write is the rename's own: by then the run is whole and may be kept.
    assert len(whole) == len(again.list()) and len(whole) <= 2
    for row in whole:
        again.get(row.id)


def test_a_full_disk_is_foreseen_before_the_first_byte(store, monkeypatch):
    from interp.store import records

    usage = records.shutil.disk_usage(store.root)
    monkeypatch.setattr(records.shutil, "disk_usage", lambda p: usage._replace(free=10))
    with pytest.raises(DiskFullError) as caught:
        store.add(record(1))
    assert caught.value.free == 10 and len(store.list()) == 1


def test_another_fault_of_the_disk_is_not_called_full(store, monkeypatch):
    fail_at(monkeypatch, 1, number=errno.EIO)
    with pytest.raises(OSError, match="[Ii]nput/output"):
        store.add(record(1))
    monkeypatch.undo()
    assert len(store.list()) == 1 and not list(store.runs.glob(".half-*"))


def test_an_index_without_room_never_loses_a_run(store, monkeypatch):
    def full(path, schema, **_):
        if path == ":memory:":
            return database(path, schema)
        raise DiskFullError(needed=1, free=0)

    monkeypatch.setattr(index, "database", full)
    run = store.add(record(1))
    assert {r.id for r in store.list()} == {run, store.find(spec_hash(record(0).spec))}
    monkeypatch.undo()
    assert run in {r.id for r in store.list()}


def test_a_replaced_file_keeps_its_old_content_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "labels.json"
    files.replace_file(path, b"old")
    fail_at(monkeypatch, 1)
    with pytest.raises(DiskFullError):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["labels.json"]


def test_a_chunk_that_does_not_fit_leaves_the_earlier_ones(store, monkeypatch):
    import numpy as np

    chunks = store.chunks("c" * 64)
    chunks.save("one", {"x": np.ones(3)})
    fail_at(monkeypatch, 1)
    with pytest.raises(DiskFullError):
        chunks.save("two", {"x": np.ones(3)})
    monkeypatch.undo()
    assert chunks.load("one") is not None and chunks.load("two") is None


KILLED = textwrap.dedent("""
    import os, sys
    from interp.store import Store, database, files, index, spec_hash, records
    from tests.store.makers import record

    store, at = Store(sys.argv[1]), int(sys.argv[2])
    real, seen = os.fsync, []

    def fsync(fd):
        real(fd)
        seen.append(1)
        if len(seen) == at:
            os.kill(os.getpid(), 9)

    os.fsync = fsync
    store.add(record(1))
""")


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_a_writer_killed_between_write_and_rename_leaves_no_half_run(store, at):
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root), str(at)], cwd=Path.cwd(), timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    rows = Store(store.root).list()
    assert not any(r.damaged for r in rows)
    assert len(rows) == (1 if at < 5 else 2)  # the fifth comes after the rename
    for row in rows:
        store.get(row.id)
    assert len(store.rebuild()) == len(rows)
    assert not list(store.runs.glob(".half-*"))
