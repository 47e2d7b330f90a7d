"""Depth in the workbench: maps of all modes on one scale, relative depth, a cell's positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("dash", reason="the workbench is an extra")

from apps.workbench.bench import Bench
from interp.methods.depth.arrays import attrs, dataset, depth_coords
from interp.store import Record, Store
from interp.terms import Check
from tests.apps.fakes import FakeQueue, fresh_app, spec

MODES = ("current", "future", "local")


def skip_map(**fields: Any) -> Record:
    """A skip map of three layers and six tokens."""
    dice = np.random.default_rng(0)
    shape = (1, 3, 3, 3)
    scale = {"low": 0.0, "high": 1.0}
    arrays = {
        "effect": (("part", "mode", "stat", "layer_skipped", "layer"),
                   dice.random((*shape, 3)), attrs("change of contributions", **scale)),
        "output": (("part", "mode", "stat", "layer_skipped"), dice.random(shape),
                   attrs("change of the output")),
        "depth_score": (("part", "mode", "stat", "readout"), dice.random((1, 3, 3, 2)),
                        attrs("depth score", "layer")),
        "prompt_output": (("part", "mode", "prompt", "layer_skipped", "position"),
                          dice.random((1, 3, 2, 3, 6)), attrs("change of the output")),
    }  # fmt: skip
    coords = {
        "part": ["layer"], "mode": list(MODES), "stat": ["max", "mean", "q95"],
        "readout": ["output", "effect"], **depth_coords(3, "layer_skipped", "layer"),
        "prompt": [0, 1], "position": np.arange(6),
    }  # fmt: skip
    said = {**spec(), "method": "skip_map", "fields": {"modes": list(MODES), **fields}}
    tokens = {"clean": [list("abcdef")] * 2}
    check = Check("null_row", "change in a row that skips nothing", 0.0, 1e-2)
    return Record(said, dataset(arrays, coords, {}), {"seed": 0}, [check], tokens)


@pytest.fixture
def bench(tmp_path: Any) -> Bench:
    store = Store(tmp_path)
    return Bench(store, queue=FakeQueue(store))


@pytest.fixture
def pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Any:
    fresh_app(bench)
    from apps.workbench.pages import depth

    monkeypatch.setattr(depth, "bench", lambda: bench)
    monkeypatch.setattr(depth, "dark_now", lambda: False)
    monkeypatch.setattr(depth, "link", lambda path, **_: path)
    return depth


def figures_in(parts: Any) -> list[Any]:
    """Every figure under some components."""
    found: list[Any] = []
    todo = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    while todo:
        part = todo.pop(0)
        figure = getattr(part, "figure", None)
        found += [figure] if figure is not None else []
        children = getattr(part, "children", None) or []
        todo += children if isinstance(children, (list, tuple)) else [children]
    return found


def test_maps_of_all_modes_have_one_scale(bench: Bench, pages: Any) -> None:
    run = bench.store.add(skip_map())
    made = figures_in(pages.body(run, "layer", "max", False, False))
    maps = [f for f in made if f.layout.meta["variable"] == "effect"]
    assert [f.layout.meta["selection"]["mode"] for f in maps] == list(MODES)
    assert {(f.data[0].zmin, f.data[0].zmax) for f in maps} == {(0.0, 1.0)}
    bars = [f for f in made if f.layout.meta["variable"] == "output"]
    assert len({tuple(f.layout.yaxis.range) for f in bars}) == 1


def test_layers_may_be_told_by_their_share_of_the_depth(bench: Bench, pages: Any) -> None:
    run = bench.store.add(skip_map())
    plain, shares = (
        figures_in(pages.body(run, "layer", "max", relative, False))[0]
        for relative in (False, True)
    )
    assert list(plain.layout.xaxis.ticktext) == ["0", "1", "2"]
    assert list(shares.layout.xaxis.ticktext) == ["0.00", "0.33", "0.67"]


def test_a_cell_shows_the_positions_of_the_skipped_layer(bench: Bench, pages: Any) -> None:
    record = skip_map()
    run = bench.store.add(record)
    (figure,) = figures_in(pages.positions(run, "layer", "future", 2))
    want = record.data["prompt_output"].values[0, 1, 0, 2]
    assert np.allclose(np.asarray(figure.data[0].y, float), want, atol=1e-6)


def test_without_a_map_the_page_leads_to_one(pages: Any) -> None:
    assert "No skip map yet" in str(pages.layout())


def test_only_runs_of_the_same_model_and_task_stand_beside(pages: Any) -> None:
    one, other = spec(), {**spec(), "task": {"hash": "ee"}}
    assert pages.same(one, spec()) and not pages.same(one, other)
