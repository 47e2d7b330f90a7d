"""A real worker process with a toy method: progress, cancel, requests, kills, resumes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from interp.jobs import Keeper, Queue
from interp.jobs.answers import next_of
from interp.jobs.table import Ask, claim, identity_of, jobs_db
from interp.run import run
from interp.store import Store
from interp.terms import InterpError, PromptPairs, TaskError, UnsafeError, UsageError, task_to_json
from tests.jobs.toy import Toy, ToyModel

TOY = (sys.executable, str(Path(__file__).with_name("toy.py")))
PAIRS = PromptPairs.from_tokens([[0, 1, 10]], [[0, 9, 10]], [1], [9])


@contextlib.contextmanager
def served(root):
    """A store with a worker that knows the toy."""
    keeper = Keeper(Store(root), command=TOY).begin()
    try:
        assert keeper.ready(120), keeper.trouble
        yield Queue(keeper.store), keeper
    finally:
        keeper.stop()
        assert keeper._child is None


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with served(tmp_path_factory.mktemp("jobs") / "store") as (queue, keeper):
        yield queue, keeper


@pytest.fixture
def queue(shared) -> Queue:
    return shared[0]


def toy(**fields):
    return {"method": "toy", "fields": fields, "model": "zoo:toy"}


def until(true, timeout=60.0):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def worker_pid(queue) -> int:
    with jobs_db(queue.store) as db:
        row = db.execute("SELECT identity FROM worker").fetchone()
    return json.loads(row[0])["pid"] if row is not None else 0


# -- one job -----------------------------------------------------------------------------------


def test_a_job_is_done_and_its_run_equals_one_of_this_process(queue):
    job = queue.wait(queue.submit({**toy(rows=5, seed=1), "task": task_to_json(PAIRS)}), 60)
    assert job.state == "done" and job.share == 1.0 and job.error is None and job.attempts == 1
    stored = queue.store.get(job.run_id)
    here = run(Toy(rows=5, seed=1), ToyModel(), PAIRS)
    assert job.spec_hash == here.spec_hash
    assert stored.data["effect"].values.tobytes() == here.data["effect"].values.tobytes()
    assert not list((queue.store.root / "chunks").iterdir())


def test_a_known_run_is_found_instead_of_measured(queue):
    first = queue.wait(queue.submit(toy(rows=2, seed=2)), 60)
    second = queue.wait(queue.submit(toy(rows=2, seed=2)), 60)
    assert second.run_id == first.run_id and second.message == "found in the store"
    third = queue.wait(queue.submit({**toy(rows=2, seed=2), "fresh": True}), 60)
    assert third.run_id != first.run_id


def test_progress_is_shown_and_partial_results_fill_while_somebody_looks(queue):
    job = queue.submit(toy(rows=20, pause=0.1, seed=3))
    shares, filled = set(), set()
    while (seen := queue.show(job)).alive:
        shares.add(seen.share)
        partial = queue.partial(job)
        if partial is not None:
            filled.add(int(np.isfinite(partial["effect"].values).sum()))
        time.sleep(0.05)
    assert seen.state == "done" and len(shares) >= 5 and len(filled) >= 2
    assert 0 < min(filled) < 60


def test_nothing_partial_is_written_while_nobody_looks(queue):
    job = queue.submit(toy(rows=15, pause=0.1, seed=4))
    queue.wait(job, 60)
    assert not (queue.store.root / "jobs" / job).exists()


def test_cancel_stops_at_the_next_chunk_keeps_what_is_finished_and_the_model(queue):
    before = worker_pid(queue)
    job = queue.submit(toy(rows=100, pause=0.1, seed=5))
    until(lambda: queue.show(job).done >= 3)
    began = time.monotonic()
    assert queue.cancel(job).message == "stopping after this chunk"
    over = queue.wait(job, 30)
    assert over.state == "cancelled" and time.monotonic() - began < 2.0 and over.run_id is None
    kept = np.isfinite(queue.partial(job)["effect"].values).sum() // 3
    assert kept == over.done >= 3
    assert worker_pid(queue) == before


def test_a_cancelled_job_resumes_from_its_chunks(queue):
    job = queue.submit(toy(rows=12, pause=0.1, seed=6))
    until(lambda: queue.show(job).done >= 4)
    queue.cancel(job)
    done = queue.wait(job, 30).done
    began = time.monotonic()
    queue.resume(job)
    over = queue.wait(job, 60)
    assert over.state == "done" and over.attempts == 2
    assert time.monotonic() - began < 0.1 * (12 - done) + 2.0
    here = run(Toy(rows=12, pause=0.1, seed=6), ToyModel())
    data = queue.store.get(over.run_id).data["effect"].values
    assert data.tobytes() == here.data["effect"].values.tobytes()


# -- what fails --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [("oom", "does not fit into the memory"), ("bug", "went wrong inside interp (ZeroDivision")],
)
def test_a_fault_fails_that_job_in_a_sentence_and_the_next_one_runs(queue, fault, said):
    before = worker_pid(queue)
    job = queue.wait(queue.submit(toy(fault=fault, seed=7)), 60)
    assert job.state == "failed" and said in job.error
    assert "/secret" not in job.error and "Traceback" not in job.error
    assert queue.wait(queue.submit(toy(rows=2, seed=8)), 60).state == "done"
    assert worker_pid(queue) == before


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"method": "toy", "fields": {"rows": 0}}, "rows was given as 0"),
        ({"method": "toy", "task": "ioo"}, "no task 'ioo'"),
        ({"method": "toy", "task": "/etc/passwd"}, "no file by its path"),
        ({"method": "toy", "model": "/etc"}, "neither shipped"),
        ({"method": "activation_patching"}, "no task was given"),
    ],
)
def test_a_job_that_cannot_run_says_why(queue, job, said):
    over = queue.wait(queue.submit({"model": "zoo:toy", **job}), 60)
    assert over.state == "failed" and said in over.error and over.finished


def test_a_planted_row_fails_and_the_worker_goes_on(queue):
    with jobs_db(queue.store) as db:
        db.execute(
            "INSERT INTO jobs (id, spec_json, state, created) VALUES (?, ?, 'queued', 0)",
            ("b" * 32, "\x80\x04cposix\nsystem\n"),
        )
    assert queue.wait("b" * 32, 30).state == "failed"
    assert queue.request("ping", timeout=30) == {"pong": True}


def test_a_full_disk_fails_the_job_with_both_sizes(tmp_path):
    root = tmp_path / "store"
    code = TOY[1]
    full = tmp_path / "full.py"
    full.write_text(
        f"import sys; sys.path.insert(0, {str(Path(code).parent)!r})\n"
        "import toy\nfrom interp.store import Store\nfrom interp.terms import DiskFullError\n"
        "def add(self, record):\n    raise DiskFullError(needed=123456, free=789)\n"
        "Store.add = add\nsys.exit(toy.main())\n"
    )
    earlier = Store(root).add(run(Toy(), ToyModel()).record)
    keeper = Keeper(Store(root), command=(sys.executable, str(full))).begin()
    try:
        queue = Queue(root)
        job = queue.wait(queue.submit(toy(rows=3)), 120)
    finally:
        keeper.stop()
    assert job.state == "failed"
    assert "123,456 bytes are needed and 789 are free" in job.error
    assert [r.id for r in Store(root).list()] == [earlier]
    Store(root).get(earlier)
    assert len(list(root.glob("chunks/*/row-*"))) == 3  # asked again, it need not be measured


# -- short requests ----------------------------------------------------------------------------


def test_the_catalogue_says_what_pages_are_built_from(queue):
    catalogue = queue.catalogue()
    entry = catalogue["methods"]["toy"]
    assert entry["title"] == "Toy sweep" and entry["needs"] == ["resid_pre"]
    assert entry["accepts"] == ["PromptPairs", "Texts", "none"]
    assert entry["schema"]["properties"]["rows"]["maximum"] == 1000
    assert catalogue["tasks"]["ioi"]["schema"]["properties"]["n"]["minimum"] == 1
    assert catalogue["metrics"]["logit_diff"]["title"] and catalogue["versions"]["torch"]
    assert any("ioi" in json.dumps(m) for m in catalogue["models"])


def test_requests_are_answered_when_idle(queue):
    assert queue.request("ping") == {"pong": True}
    result = queue.measure("toy", {"rows": 2, "seed": 9}, model="zoo:toy", task=task_to_json(PAIRS))
    here = run(Toy(rows=2, seed=9), ToyModel(), PAIRS)
    assert result.spec_hash == here.spec_hash and result.tokens == here.tokens
    assert result.run_id is None and result.passed
    np.testing.assert_array_equal(result.data["effect"], here.data["effect"])
    kept = queue.measure("toy", {"rows": 2, "seed": 9}, model="zoo:toy", keep=True)
    assert queue.store.get(kept.run_id).spec == kept.spec


def test_a_request_waits_no_longer_than_a_chunk_of_a_long_job(queue):
    job = queue.submit(toy(rows=40, pause=0.2, seed=10))
    until(lambda: queue.show(job).done >= 1)
    waits = []
    for _ in range(4):
        began = time.monotonic()
        queue.measure("toy", {"rows": 1}, model="zoo:toy", timeout=20)
        waits.append(time.monotonic() - began)
    assert queue.show(job).state == "running"
    queue.cancel(job)
    queue.wait(job, 20)
    assert sorted(waits)[1] < 0.2 + 0.5, waits


def test_a_quick_request_waits_for_no_slow_one(queue):
    """Three that measure two seconds each are asked first; a ping gets in between their chunks."""
    began, waits = time.monotonic(), []
    with ThreadPoolExecutor(3) as slow:
        asked = [
            slow.submit(
                queue.measure, "toy", {"rows": 10, "pause": 0.2, "seed": k}, model="zoo:toy"
            )
            for k in range(3)
        ]
        time.sleep(0.5)
        for _ in range(3):
            before = time.monotonic()
            assert queue.request("ping", timeout=20) == {"pong": True}
            waits.append(time.monotonic() - before)
        assert not any(a.done() for a in asked) or time.monotonic() - began > 2.0
        found = [a.result() for a in asked]
    assert sorted(waits)[1] < 0.2 + 0.5, waits
    for k, result in enumerate(found):
        here = run(Toy(rows=10, pause=0.0, seed=k), ToyModel())
        np.testing.assert_array_equal(result.data["effect"], here.data["effect"])


def test_who_is_served_next():
    """The oldest; one that measures gives way to quick ones of the same moment, not for ever."""
    slow, quick = Ask("s", "run_method", {}, 10.0), Ask("q", "ping", {}, 11.0)
    later, late = Ask("p", "decode", {}, 10.5), Ask("l", "ping", {}, 12.5)
    assert next_of([slow, quick]) is quick and next_of([slow, quick, later]) is later
    assert next_of([slow, late]) is slow
    assert next_of([slow, late], quick=True) is late and next_of([slow], quick=True) is None
    assert next_of([]) is None


def test_a_request_in_the_middle_changes_no_number_of_the_job(queue):
    job = queue.submit(toy(rows=12, pause=0.1, seed=11))
    until(lambda: queue.show(job).done >= 2)
    queue.measure("toy", {"rows": 3, "seed": 99}, model="zoo:toy")
    over = queue.wait(job, 60)
    here = run(Toy(rows=12, pause=0.1, seed=11), ToyModel())
    data = queue.store.get(over.run_id).data["effect"].values
    assert data.tobytes() == here.data["effect"].values.tobytes()


def test_a_request_that_takes_too_long_is_given_up_on_both_sides(queue):
    with pytest.raises(InterpError):
        queue.measure("toy", {"rows": 100, "pause": 0.1}, model="zoo:toy", timeout=0.6)
    began = time.monotonic()
    assert queue.request("ping", timeout=20) == {"pong": True}
    assert time.monotonic() - began < 3.0


def test_pairs_are_built_by_the_worker_and_come_back_whole(queue):
    made = queue.request(
        "make_pairs",
        {
            "model": "zoo:toy",
            "clean": ["Mary the"],
            "corrupt": ["John the"],
            "right": [" Mary"],
            "wrong": [" John"],
        },
    )
    assert made["task"]["clean"] == [[0, 1, 10]] and made["size"] == 1
    assert made["tokens"]["clean"] == [["<s>", " Mary", " the"]]
    told = queue.request("tokenize", {"model": "zoo:toy", "text": "Mary John"})
    assert told == {"ids": [0, 1, 9], "texts": ["<s>", " Mary", " John"], "default_bos": True}
    told = queue.request("decode", {"model": "zoo:toy", "ids": [2]})
    assert told["texts"] == ["</script><img src=x onerror=alert(1)>"]
    task = queue.request("load_task", {"model": "zoo:toy", "task": made["task"]})
    assert task["hash"] == made["hash"]


def test_bad_prompts_come_back_by_row(queue):
    with pytest.raises(TaskError) as caught:
        queue.request(
            "make_pairs",
            {
                "model": "zoo:toy",
                "tokens": True,
                "clean": [[1], [1]],
                "corrupt": [[2], [1]],
                "right": [[1], [1]],
            },
        )
    assert caught.value.rows[0][0] == 2 and "same tokens" in caught.value.rows[0][1]


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        ("format_disk", {}, UsageError),
        ("run_method", {}, UsageError),
        ("run_method", {"method": "toy", "model": "/etc/x"}, UnsafeError),
        ("describe_model", {"model": "../x"}, UnsafeError),
        ("tokenize", {"model": "zoo:toy"}, UsageError),
        ("load_task", {"model": "zoo:toy", "task": "/etc/passwd"}, UnsafeError),
        ("decode", {"model": "zoo:toy", "ids": ["x"]}, InterpError),
        (
            "run_method",
            {"method": "toy", "model": "zoo:toy", "fields": {"fault": "bug"}},
            InterpError,
        ),
    ],
)
def test_a_bad_request_is_an_error_of_its_kind_and_ends_nothing(queue, kind, payload, error):
    with pytest.raises(error) as caught:
        queue.request(kind, payload, timeout=30)
    assert "Traceback" not in str(caught.value) and "/secret" not in str(caught.value)
    assert queue.request("ping", timeout=30) == {"pong": True}


def test_what_is_known_of_an_opened_model_joins_the_catalogue(queue):
    described = queue.request("describe_model", {"model": "zoo:toy"})
    capabilities = {c["name"]: c for c in described["capabilities"]}
    assert capabilities["resid_pre"]["ok"] and capabilities["pattern"]["reason"]
    assert described["shape"]["n_layers"] == 2 and described["checks"][0]["passed"]
    assert queue.catalogue()["described"]["zoo:toy"] == described


# -- two apps, one store -----------------------------------------------------------------------


def test_a_second_app_shares_the_worker_and_leaving_does_not_stop_it(shared):
    queue, keeper = shared
    before = worker_pid(queue)
    second = Keeper(Store(queue.store.root), command=TOY).begin()
    assert second.ready(60) and second.alive() and second._child is None
    time.sleep(1.2)
    assert second.starts == 0 and worker_pid(queue) == before
    Queue(queue.store.root).request("ping", timeout=30)
    second.stop()
    assert queue.request("ping", timeout=30) == {"pong": True}
    with jobs_db(queue.store) as db:  # one process: both keepers are the same client
        db.execute("INSERT OR REPLACE INTO clients VALUES (?)", (keeper.me,))


def test_a_second_worker_on_the_same_store_leaves_at_once(queue):
    ended = subprocess.run([*TOY, "--store", str(queue.store.root)], timeout=120)
    assert ended.returncode == 75
    assert queue.request("ping", timeout=30) == {"pong": True}


def test_the_log_and_everything_beside_it_is_for_the_owner_alone(queue):
    for path in queue.store.root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            assert not path.stat().st_mode & 0o077, path


# -- kills (each with a worker of its own) -----------------------------------------------------


@pytest.mark.parametrize(
    "at",
    [1, pytest.param(3, marks=pytest.mark.slow), 5, pytest.param(7, marks=pytest.mark.slow), 9],
)
def test_kill_9_at_five_points_costs_at_most_a_chunk_and_no_bit(tmp_path_factory, at, kills):
    queue, keeper = kills
    job = queue.submit(toy(rows=10, pause=0.15, seed=100 + at))
    until(lambda: queue.show(job).done >= at)
    os.kill(worker_pid(queue), signal.SIGKILL)
    began = time.monotonic()
    until(lambda: queue.show(job).state == "interrupted", 20)
    assert time.monotonic() - began < 20.0
    done = queue.show(job).done
    kept = len(list(queue.store.root.glob("chunks/*/row-*.npz")))
    assert kept >= done >= at  # a finished chunk is on the disk before it is counted
    queue.resume(job)
    over = queue.wait(job, 120)
    assert over.state == "done" and over.attempts == 2
    facts = queue.store.get(over.run_id)
    here = run(Toy(rows=10, pause=0.15, seed=100 + at), ToyModel())
    assert facts.data["effect"].values.tobytes() == here.data["effect"].values.tobytes()


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    with served(tmp_path_factory.mktemp("kills") / "store") as (queue, keeper):
        yield queue, keeper


def test_a_job_that_kills_its_worker_is_interrupted_and_not_tried_again_by_itself(kills):
    queue, keeper = kills
    job = queue.submit(toy(fault="die", seed=200))
    until(lambda: queue.show(job).state == "interrupted", 60)
    assert keeper.ready(60) and queue.request("ping", timeout=60) == {"pong": True}
    assert queue.show(job).state == "interrupted" and queue.show(job).attempts == 1
    assert "status -9" in keeper.trouble


def test_a_lost_device_interrupts_the_job_and_starts_the_worker_again(kills):
    queue, keeper = kills
    before = worker_pid(queue)
    job = queue.submit(toy(fault="lost", seed=201))
    until(lambda: queue.show(job).state == "interrupted", 60)
    assert "device" in queue.show(job).message
    until(lambda: worker_pid(queue) not in (0, before), 60)
    assert queue.wait(queue.submit(toy(rows=1, seed=202)), 60).state == "done"


def test_a_job_that_does_not_answer_can_be_killed(kills):
    queue, keeper = kills
    job = queue.submit(toy(rows=2, pause=300, seed=203))
    until(lambda: queue.show(job).state == "running", 60)
    until(lambda: queue.show(job).message == "measuring", 60)
    assert queue.kill(job).state == "interrupted"
    assert queue.wait(queue.submit(toy(rows=1, seed=204)), 60).state == "done"


def test_a_worker_that_was_asked_to_stop_interrupts_its_job_at_the_next_chunk(kills):
    queue, keeper = kills
    job = queue.submit(toy(rows=100, pause=0.1, seed=205))
    until(lambda: queue.show(job).done >= 2, 60)
    os.kill(worker_pid(queue), signal.SIGTERM)
    until(lambda: queue.show(job).state == "interrupted", 10)
    assert queue.show(job).message == "the worker was stopped"
    queue.delete(job)


def test_a_worker_that_lost_its_row_writes_nothing_over_the_new_owner(kills):
    queue, keeper = kills
    keeper.ready(60)
    job = queue.submit(toy(rows=30, pause=0.1, seed=206))
    until(lambda: queue.show(job).done >= 2, 60)
    with jobs_db(queue.store) as db:
        db.execute("UPDATE jobs SET worker=? WHERE id=?", (identity_of(), job))
    until(lambda: queue.worker() is not None and queue.worker()["job"] is None, 30)
    assert queue.show(job).state == "running"  # still the other one's
    with jobs_db(queue.store) as db:
        db.execute("UPDATE jobs SET state='cancelled', worker=NULL WHERE id=?", (job,))


def test_a_worker_that_hangs_is_ended_so_that_another_can_start(tmp_path, monkeypatch):
    keeper = Keeper(Store(tmp_path / "store"), command=TOY)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    keeper._child = child
    monkeypatch.setattr(keeper, "_row", lambda: (identity_of(child.pid), 19.0))
    keeper.look()
    assert child.poll() is None
    monkeypatch.setattr(keeper, "_row", lambda: (identity_of(child.pid), 21.0))
    keeper.look()
    assert child.poll() == -signal.SIGKILL and "silent for 21 s" in keeper.trouble


def test_a_worker_that_dies_before_it_serves_is_started_ever_more_slowly(tmp_path):
    keeper = Keeper(Store(tmp_path / "store"), command=(sys.executable, "-c", "exit(3)"))
    starts = []
    end = time.monotonic() + 4.0
    while time.monotonic() < end:
        keeper.look()
        starts.append(keeper.starts)
        time.sleep(0.05)
    keeper.stop()
    assert 1 <= max(starts) <= 3 and "status 3" in keeper.trouble


def test_an_idle_worker_without_apps_ends_by_itself(tmp_path):
    root = tmp_path / "store"
    process = subprocess.Popen([*TOY, "--store", str(root), "--linger", "0.5"])
    assert process.wait(120) == 0
    assert Queue(root).worker() is None
    assert claim(Store(root), identity_of()) is None
