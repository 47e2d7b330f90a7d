"""The first page: its grid is shown, missed when it is deleted, and computed again."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("dash", reason="the workbench is an extra")

from apps.workbench.bench import Bench
from interp.store import Store
from tests.apps.fakes import FakeQueue, fresh_app


def finished(bench: Bench) -> str:
    """The first page's run, once its job is done."""
    for _ in range(200):
        run, _ = bench.welcome_state()
        if run:
            return run
        time.sleep(0.02)
    raise AssertionError("the first grid was never computed")


def test_a_deleted_first_grid_is_computed_again_and_the_page_stays(tmp_path) -> None:
    store = Store(tmp_path / "store")
    bench = Bench(store, queue=FakeQueue(store, pace=0.01))
    app = fresh_app(bench)
    from apps.workbench.pages import home

    bench.welcome()
    first = finished(bench)
    bench.delete_run(first)
    assert bench.welcome_state() == (None, None)
    with app.dash.server.test_request_context("/"):
        home.welcome()
    assert finished(bench) != first
    with app.dash.server.test_request_context("/"):
        assert "No grid yet" not in str(home.welcome())
