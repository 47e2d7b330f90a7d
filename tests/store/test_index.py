"""The folders are the truth; the index lists them and can be lost."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import threading

import numpy as np
import pytest

from interp.store import Store, spec_hash
from interp.terms import DamagedError, UsageError
from tests.store.makers import record


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_a_run_is_found_by_its_hash_and_listed_newest_first(store):
    old, new = store.add(record(0)), store.add(record(1))
    assert [r.id for r in store.list()] == [new, old]
    assert store.find(spec_hash(record(0).spec)) == old
    assert store.find("0" * 64) is None
    row = store.row(new)
    assert (row.method, row.model, row.task) == ("toy", "zoo:toy", "by hand")
    assert row.fields == {"seed": 1} and row.failed_checks == 1 and row.bytes > 1000
    json.dumps(row.to_json())


def test_of_two_runs_with_one_hash_the_newer_is_found(store):
    store.add(record(0, created=1.0))
    newer = store.add(record(0, created=2.0))
    assert store.find(spec_hash(record(0).spec)) == newer


def test_filters_name_exactly_what_they_keep(store):
    a, b = store.add(record(0, "x")), store.add(record(1, "y"))
    store.tag(a, "kept")
    store.note(b, "the one with Mary")
    assert [r.id for r in store.list(tag="kept")] == [a]
    assert [r.id for r in store.list(text="mary")] == [b]
    assert store.list(method="other") == [] and len(store.list(limit=1)) == 1


def test_tags_and_notes_outlive_the_index(store):
    run = store.add(record())
    assert store.tag(run, "b", "a") == ("a", "b")
    assert store.tag(run, remove=["a"]) == ("b",)
    store.note(run, "why <b>")
    (store.root / "index.sqlite").unlink()
    row = Store(store.root).row(run)
    assert row.tags == ("b",) and row.note == "why <b>"
    with pytest.raises(UsageError):
        store.tag(run, " ")


def test_an_id_may_be_shortened_until_it_is_ambiguous(store):
    ids = {store.add(record(i)) for i in range(3)}
    for run in ids:
        assert store.resolve(run[:12]) == run
    for wrong in ("zzzz", "", "../../etc", "0" * 32, "abc", "%2e%2e", ids.copy().pop() + "/"):
        with pytest.raises(UsageError):
            store.resolve(wrong)


def test_a_deleted_run_is_gone_from_list_and_disk(store):
    run = store.add(record())
    store.tag(run, "x")
    store.delete(run)
    assert store.list() == [] and list(store.runs.iterdir()) == []
    assert list(store.labels.iterdir()) == []
    with pytest.raises(UsageError):
        store.get(run)


def test_a_lost_index_is_made_again_from_the_folders(store):
    ids = {store.add(record(i)) for i in range(3)}
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    again = Store(store.root)
    assert {r.id for r in again.list()} == ids
    assert again.find(spec_hash(record(1).spec)) in ids


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 99, b"SQLite format 3\x00" + b"x" * 4096]
)
def test_a_spoilt_index_is_put_aside_and_made_again(store, content):
    run = store.add(record())
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    (store.root / "index.sqlite").write_bytes(content)
    assert [r.id for r in Store(store.root).list()] == [run]
    assert (store.root / "index.sqlite.spoilt").exists()


def test_a_run_that_another_process_added_is_listed_without_being_told(store):
    other = Store(store.root)
    store.list()
    run = other.add(record())
    assert [r.id for r in store.list()] == [run]


def test_a_flipped_byte_marks_that_run_and_leaves_the_others(store):
    whole, broken = store.add(record(0)), store.add(record(1))
    path = store.path(broken) / "data.nc"
    image = bytearray(path.read_bytes())
    image[-1] ^= 1
    path.write_bytes(image)
    with pytest.raises(DamagedError, match=f"Run {broken[:8]} is damaged"):
        store.get(broken)
    rows = {r.id: r for r in store.list()}
    assert rows[broken].damaged and not rows[whole].damaged
    assert store.find(spec_hash(record(1).spec)) is None
    store.get(whole)


@pytest.mark.parametrize("name", ["manifest.json", "spec.json", "data.nc"])
def test_a_missing_or_cut_file_marks_that_run_when_the_index_is_rebuilt(store, name):
    whole = store.add(record(0))
    missing, cut = store.add(record(1)), store.add(record(2))
    (store.path(missing) / name).unlink()
    path = store.path(cut) / name
    path.write_bytes(path.read_bytes()[:50])
    rows = {r.id: r for r in store.rebuild()}
    assert set(rows) == {whole, missing, cut}
    assert name in rows[missing].damaged and name in rows[cut].damaged
    assert rows[whole].damaged is None


def test_a_rebuild_holds_every_byte_against_its_hash(store):
    run = store.add(record())
    path = store.path(run) / "data.nc"
    image = bytearray(path.read_bytes())
    image[len(image) // 2] ^= 16
    path.write_bytes(image)
    assert store.list()[0].damaged is None  # same size: only its hash tells
    assert store.rebuild()[0].damaged


def test_half_written_folders_are_never_listed_and_swept(store):
    run = store.add(record())
    half = store.runs / ".half-0123456789abcdef"
    half.mkdir()
    (half / "spec.json").write_bytes(b"{}")
    (store.runs / "notes.txt").write_text("not a run")
    assert [r.id for r in Store(store.root).list()] == [run]
    assert [r.id for r in store.rebuild()] == [run]
    assert not half.exists()


def test_a_half_whose_writer_lives_is_not_swept(store):
    from interp.store.records import _held, sweep_halves

    half = store.runs / ".half-0123456789abcdef"
    half.mkdir()
    with _held(half):
        assert sweep_halves(store.runs, older=0.0) == 0 and half.exists()
    assert sweep_halves(store.runs, older=0.0) == 1 and not half.exists()


def _add_many(root, first, n):
    for i in range(n):
        Store(root).add(record(first + i))


def test_two_processes_add_to_one_store_and_lose_nothing(store):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_add_many, args=(store.root, 100 * k, 8)) for k in (1, 2)]
    for other in others:
        other.start()
    for i in range(8):
        store.add(record(i))
        store.list()
    for other in others:
        other.join(120)
        assert other.exitcode == 0
    assert len(store.list()) == 24
    assert {r.fields["seed"] for r in store.list()} == {
        *range(8),
        *range(100, 108),
        *range(200, 208),
    }


def test_a_locked_index_is_waited_for(store):
    run = store.add(record())
    holder = sqlite3.connect(
        store.root / "index.sqlite", isolation_level=None, check_same_thread=False
    )
    holder.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: holder.execute("COMMIT"))
    timer.start()
    store.tag(run, "waited")
    timer.join()
    holder.close()
    assert store.row(run).tags == ("waited",)


def test_the_default_store_is_where_interp_home_says(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_HOME", str(tmp_path / "home"))
    assert Store().root == tmp_path / "home"
    monkeypatch.delenv("INTERP_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().root == tmp_path / ".local" / "share" / "interp"


# -- chunks ------------------------------------------------------------------------------------


def test_chunks_come_back_bit_for_bit_and_a_damaged_one_counts_as_none(store):
    chunks = store.chunks("a" * 64)
    arrays = {
        "x": np.array([[1.5, np.nan]], "f4"),
        "n": np.arange(3),
        "any name/at all": np.ones(()),
    }
    for key in ("plain-1", "../../escape", "ünï\x00"):
        chunks.save(key, arrays)
        read = chunks.load(key)
        assert read is not None and list(read) == list(arrays)
        assert all(read[k].tobytes() == arrays[k].tobytes() for k in arrays)
    assert {p.parent for p in store.root.rglob("*.npz")} == {chunks.folder}
    path = chunks.folder / "plain-1.npz"
    image = bytearray(path.read_bytes())
    image[len(image) // 2] ^= 1
    path.write_bytes(image)
    assert chunks.load("plain-1") is None and chunks.load("never") is None
    assert not path.exists()


def test_chunks_of_python_objects_are_refused(store):
    with pytest.raises(TypeError, match="Python objects"):
        store.chunks("a").save("k", {"x": np.array([{}], dtype=object)})


def test_two_runs_of_one_spec_do_not_mix_their_chunks(store):
    first = store.chunks("a" * 64)
    second = store.chunks("a" * 64)
    first.save("c", {"x": np.ones(1)})
    assert first.mine and not second.mine and second.load("c") is None
    second.save("c", {"x": np.zeros(1)})
    assert first.load("c")["x"] == 1.0
    second.close(discard=True)
    assert first.load("c") is not None
    first.close()
    assert store.chunks("a" * 64).load("c") is not None
