"""The jobs table is the truth: states, claims, liveness. No worker process here."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from interp.jobs import Queue, job_of, table
from interp.jobs.asking import allowed_model, allowed_task
from interp.jobs.queue import error_of
from interp.jobs.table import claim, identity_of, is_alive, jobs_db
from interp.store import Store
from interp.terms import InterpError, TaskError, UnsafeError, UsageError

JOB = {"method": "toy", "fields": {"rows": 3}, "model": "zoo:toy", "task": "ioi:n=2"}


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "store")


def dead_identity() -> str:
    """A process that has been and gone."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = identity_of(process.pid)
    process.communicate(b"\n")
    return who


# -- submitting --------------------------------------------------------------------------------


def test_a_job_waits_in_its_full_form(queue):
    job = queue.show(queue.submit(JOB))
    assert job.state == "queued" and job.alive and not job.resumable and job.share == 0.0
    assert job.job["model"] == {
        "ref": "zoo:toy",
        "backend": None,
        "device": "cpu",
        "dtype": "float32",
    }
    assert job.job["task"] == {"ref": "ioi:n=2"} and job_of(job.job) == job.job
    json.dumps(job.to_json())


def test_the_same_job_is_not_taken_twice_while_it_waits(queue):
    first = queue.submit(JOB)
    assert queue.submit(dict(reversed(JOB.items()))) == first
    assert queue.submit({**JOB, "seed": 1}) != first
    queue.cancel(first)
    assert queue.submit(JOB) != first


@pytest.mark.parametrize(
    ("job", "match"),
    [
        ({}, "names its method"),
        ([], "JSON object"),
        ({"method": "toy"}, "names its model"),
        ({**JOB, "modle": 1}, "'modle'.*Did you mean"),
        ({**JOB, "model": {"ref": "zoo:x", "devise": "cpu"}}, "'devise'"),
        ({**JOB, "model": {"ref": "zoo:x", "device": "tpu; rm -rf"}}, "no device"),
        ({**JOB, "model": {"ref": "zoo:x", "dtype": "int4"}}, "no dtype"),
        ({**JOB, "model": {"ref": "zoo:x", "backend": "pickle"}}, "no backend"),
        ({**JOB, "task": 3}, "task is a ref"),
        ({**JOB, "seed": -1}, "seed was given"),
        ({**JOB, "seed": True}, "seed was given"),
        ({**JOB, "fields": [1]}, "fields were given"),
        ({**JOB, "memory": "lots"}, "Memory was given"),
        ({**JOB, "task": {"inline": {"x": "y" * 2**24}}}, "at most"),
    ],
)
def test_a_job_that_does_not_fit_is_refused_in_a_sentence(queue, job, match):
    with pytest.raises(UsageError, match=match):
        queue.submit(job)
    assert queue.list() == []


def test_names_are_held_against_the_catalogue_once_there_is_one(queue):
    (queue.store.root / "catalogue.json").write_text(
        json.dumps({"methods": {"toy": {"schema": {"properties": {"rows": {}}}}}})
    )
    with pytest.raises(UsageError, match="no method 'toi'.*Did you mean 'toy'"):
        queue.submit({**JOB, "method": "toi"})
    with pytest.raises(UsageError, match="'rosw'.*Did you mean 'rows'"):
        queue.submit({**JOB, "fields": {"rosw": 1}})
    queue.submit(JOB)


def test_an_unknown_or_short_id_is_a_usage_error(queue):
    job = queue.submit(JOB)
    assert queue.show(job[:8]).id == job
    for wrong in ("", "x" * 32, "0" * 32, job[:3], "../../etc", "%", "____"):
        for ask in (queue.show, queue.cancel, queue.resume, queue.delete, queue.partial):
            with pytest.raises(UsageError):
                ask(wrong)


# -- states ------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once_and_can_be_resumed(queue):
    job = queue.submit(JOB)
    assert queue.cancel(job).state == "cancelled" and queue.show(job).resumable
    assert claim(queue.store, identity_of()) is None
    assert queue.resume(job).state == "queued" and not queue.show(job).cancel_requested
    assert claim(queue.store, identity_of()).id == job


def test_only_what_is_over_can_be_resumed_or_deleted(queue):
    job = queue.submit(JOB)
    with pytest.raises(UsageError, match="is queued"):
        queue.resume(job)
    with pytest.raises(UsageError, match="Cancel it first"):
        queue.delete(job)
    queue.cancel(job)
    queue.delete(job)
    assert queue.list() == []


def test_higher_priority_first_then_the_older(queue):
    jobs = [queue.submit({**JOB, "seed": i}, priority=p) for i, p in enumerate((0, 0, 5))]
    taken = [claim(queue.store, identity_of()).id for _ in jobs]
    assert taken == [jobs[2], jobs[0], jobs[1]] and claim(queue.store, identity_of()) is None


def test_listing_is_newest_first_and_by_state(queue):
    jobs = [queue.submit({**JOB, "seed": i}) for i in range(3)]
    queue.cancel(jobs[1])
    assert [j.id for j in queue.list()] == jobs[::-1]
    assert [j.id for j in queue.list(("cancelled",))] == [jobs[1]]
    assert len(queue.list(limit=2)) == 2
    with pytest.raises(UsageError, match="state"):
        queue.list(("done'; DROP TABLE jobs; --",))


def _race(root, barrier, out):
    barrier.wait()
    taken = []
    while (job := claim(Store(root), identity_of())) is not None:
        taken.append(job.id)
    out.put(taken)


def test_of_two_workers_one_claims_each_job(queue):
    jobs = {queue.submit({**JOB, "seed": i}) for i in range(30)}
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(2), context.Queue()
    both = [context.Process(target=_race, args=(queue.store.root, barrier, out)) for _ in "ab"]
    for process in both:
        process.start()
    taken = [out.get(timeout=120) for _ in both]
    for process in both:
        process.join(60)
    assert len(taken[0]) + len(taken[1]) == 30 and {*taken[0], *taken[1]} == jobs


def test_a_planted_row_that_is_no_json_is_listed_and_fails_when_taken(queue):
    with jobs_db(queue.store) as db:
        db.execute(
            "INSERT INTO jobs (id, spec_json, state, created) VALUES (?, ?, 'queued', 0)",
            ("a" * 32, "\x80\x04cposix\nsystem\n"),
        )
    assert queue.list()[0].job == {}
    taken = claim(queue.store, identity_of())
    with pytest.raises(UsageError):
        job_of(taken.job)


# -- who is alive ------------------------------------------------------------------------------


def test_a_process_is_known_by_more_than_its_number():
    me = identity_of()
    assert is_alive(me) is True and is_alive(dead_identity()) is False
    other = json.loads(me)
    assert is_alive(json.dumps({**other, "born": "1"})) is False  # its number, another process
    assert is_alive(json.dumps({**other, "place": "elsewhere"})) is None
    for spoilt in (None, "", "{}", "[1]", '{"pid": "x"}'):
        assert is_alive(spoilt) is False


def test_a_job_whose_process_is_gone_is_interrupted_when_somebody_looks(queue):
    job = queue.submit(JOB)
    claim(queue.store, dead_identity())
    with jobs_db(queue.store) as db:
        db.execute("UPDATE jobs SET done=61, total=100")
    seen = queue.show(job)
    assert seen.state == "interrupted" and seen.message == "interrupted at 61%" and seen.resumable


def test_a_worker_that_is_silent_but_there_is_found_so_twice(queue, monkeypatch):
    clock = [time.monotonic()]
    monkeypatch.setattr(table, "now", lambda: clock[0])
    job = queue.submit(JOB)
    claim(queue.store, identity_of())
    seen: dict[str, float] = {}
    clock[0] += 14.0
    assert table.sweep(queue.store, seen) == []
    clock[0] += 2.0
    assert table.sweep(queue.store, seen) == []  # once: a locked database may have silenced it
    clock[0] += 3.0
    assert table.sweep(queue.store, seen) == [job]


def test_a_beat_in_between_clears_the_suspicion(queue, monkeypatch):
    clock = [time.monotonic()]
    monkeypatch.setattr(table, "now", lambda: clock[0])
    queue.submit(JOB)
    claim(queue.store, identity_of())
    seen: dict[str, float] = {}
    clock[0] += 16.0
    table.sweep(queue.store, seen)
    with jobs_db(queue.store) as db:
        db.execute("UPDATE jobs SET heartbeat=?", (clock[0],))
    clock[0] += 4.0
    assert table.sweep(queue.store, seen) == [] and seen == {}


def test_a_clock_set_back_or_forward_changes_nothing(queue, monkeypatch):
    job = queue.submit(JOB)
    claim(queue.store, identity_of())
    real = time.time()
    for shifted in (real - 10**6, real + 10**6):
        monkeypatch.setattr(time, "time", lambda shifted=shifted: shifted)
        assert queue.show(job).state == "running"
        assert table.sweep(queue.store, {}) == []
    assert queue.show(job).silent_s < 5.0


def test_no_page_sees_a_process_number(queue):
    queue.submit(JOB)
    claim(queue.store, identity_of())
    shown = json.dumps([j.to_json() for j in queue.list()])
    assert str(os.getpid()) not in shown and "worker" not in queue.list()[0].to_json()


def test_a_locked_table_is_waited_for(queue):
    job = queue.submit(JOB)
    holder = sqlite3.connect(
        queue.store.root / "jobs.sqlite", isolation_level=None, check_same_thread=False
    )
    holder.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, lambda: holder.execute("COMMIT"))
    timer.start()
    assert queue.cancel(job).state == "cancelled"
    timer.join()
    holder.close()


# -- without a worker --------------------------------------------------------------------------


def test_asking_without_a_worker_says_so(queue):
    assert queue.worker() is None and queue.catalogue() == {}
    with pytest.raises(InterpError, match="No worker serves this store.*interp app"):
        queue.request("ping", timeout=0.2)
    with jobs_db(queue.store) as db:
        assert db.execute("SELECT COUNT(*) FROM requests").fetchone()[0] == 0


def test_errors_travel_as_what_they_were():
    back = error_of({"kind": "TaskError", "message": "m", "remedy": "r", "rows": [[2, "why"]]})
    assert isinstance(back, TaskError) and back.rows == ((2, "why"),) and back.remedy == "r"
    assert isinstance(error_of({"kind": "UnsafeError", "message": "m"}), UnsafeError)
    for odd in ("annotations", "near_misses", "DiskFullError", "os", "", None, "Exception"):
        assert type(error_of({"kind": odd, "message": "m"})) is InterpError


# -- what a worker may open --------------------------------------------------------------------


def test_a_worker_opens_shipped_models_hub_ids_and_what_lies_under_its_roots(tmp_path):
    root = tmp_path / "models"
    (root / "sub" / "mine").mkdir(parents=True)
    (tmp_path / "models-secret").mkdir()
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    roots = (root,)
    assert allowed_model("zoo:ioi", roots) == "zoo:ioi"
    assert allowed_model("openai/gpt2@main", roots) == "openai/gpt2@main"
    assert allowed_model("sub/mine", roots) == str(root / "sub" / "mine")
    assert allowed_model(str(root / "sub" / "mine"), roots) == str(root / "sub" / "mine")
    hostile = [
        "/etc",
        "../outside",
        "..",
        ".",
        "",
        str(tmp_path / "outside"),
        str(tmp_path / "models-secret"),
        "../models-secret",
        "link",
        "sub/../../outside",
        "//etc//passwd",
        "C:\\windows",
        "..\\outside",
        "%2e%2e/outside",
        "file:///etc",
        "http://127.0.0.1/x",
        "a;b",
        "a\x00b",
        "zoo:../../x",
        "~root",
        "x/y/z",
        "-rf",
    ]
    for ref in hostile:
        with pytest.raises(UnsafeError):
            allowed_model(ref, roots)


def test_a_root_goes_by_its_own_name_and_two_folders_of_one_name_by_more_of_their_paths(tmp_path):
    roots = (tmp_path / "a" / "hf", tmp_path / "b", tmp_path / "c")
    for folder in (roots[0], roots[1] / "hf", roots[2] / "hf"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert allowed_model("a/hf", roots) == str(roots[0])
    assert allowed_model("b/hf", roots) == str(roots[1] / "hf")
    assert allowed_model("c/hf", roots) == str(roots[2] / "hf")
    assert allowed_model("hf", roots[:1]) == str(roots[0])
    (roots[0] / "config.json").unlink()
    for ref in ("./", str(tmp_path), str(roots[0])):
        with pytest.raises(UnsafeError):
            allowed_model(ref, roots[:1])


def test_a_worker_opens_no_task_by_a_path():
    assert allowed_task({"ref": "ioi:n=4"}) == {"ref": "ioi:n=4"}
    assert allowed_task({"inline": {"type": "Texts"}}) == {"inline": {"type": "Texts"}}
    assert allowed_task(None) is None
    for ref in ("/etc/passwd", "../x.jsonl", "pairs.csv::n=3", ".\\x.csv"):
        with pytest.raises(UnsafeError, match="no file by its path"):
            allowed_task({"ref": ref})
    with pytest.raises(UsageError, match="no task 'ioo'.*'ioi'"):
        allowed_task({"ref": "ioo"})
