"""Attribution in the workbench: which cell a click on an agreement means, and what is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("dash", reason="the workbench is an extra")

from apps.workbench.bench import Bench, cell_fields
from apps.workbench.cell import cell_at, claims, named_cell
from interp.store import Record, Store
from interp.terms import Check
from tests.apps.fakes import FakeQueue, fresh_app, record, spec


def agreement(exact: str, estimate: str) -> Record:
    """An agreement of a 2 × 3 grid, with its worst cells and its scatter."""
    says = {"units": "logit", "signed": 1, "long_name": "x"}
    rng = np.random.default_rng(0)
    measured, estimated = rng.normal(size=(2, 2, 3))
    order = np.argsort(-np.abs(estimated - measured).ravel())[:3]
    layer, position = np.unravel_index(order, (2, 3))
    every = np.unravel_index(np.arange(6), (2, 3))
    data = xr.Dataset(
        {
            "measured": (("layer", "position"), measured, says),
            "estimated": (("layer", "position"), estimated, says),
            "difference": (("layer", "position"), estimated - measured, says),
            "disagreement": (("top",), (estimated - measured).ravel()[order], says),
            "scatter": (("measure", "cell"), np.stack([measured.ravel(), estimated.ravel()]), says),
        },
        coords={
            "layer": [4, 5],
            "position": [0, 1, 2],
            "top": [0, 1, 2],
            "top_layer": ("top", layer + 4),
            "top_position": ("top", position),
            "cell": np.arange(6),
            "cell_layer": ("cell", every[0] + 4),
            "cell_position": ("cell", every[1]),
            "measure": ["measured", "estimated"],
        },
        attrs={"exact_run": exact, "estimate_run": estimate, "mean_gap": 2.0},
    )
    said = {**spec(), "method": "agreement", "task": None}
    said["fields"] = {"exact": exact, "estimate": estimate}
    return Record(said, data, {"seed": 0}, [Check("cells", "cells", 6.0, 3.0, at_least=True)], None)


@pytest.fixture
def bench(tmp_path: Any) -> Bench:
    store = Store(tmp_path)
    return Bench(store, queue=FakeQueue(store))


def test_a_listed_cell_and_a_dot_of_the_scatter_are_cells_of_the_grid(bench: Bench) -> None:
    data = agreement("a", "b").data
    for i in range(3):
        place = named_cell(data, cell_at(data["disagreement"], {"x": i, "y": 0.1}))
        assert float(data["difference"].isel(place)) == float(data["disagreement"][i])
    for i in range(6):
        point = {"curveNumber": 1, "pointIndex": i, "x": 0.1, "y": 0.2}
        place = named_cell(data, cell_at(data["scatter"], point))
        assert float(data["estimated"].isel(place)) == float(data["scatter"][1, i])
    assert cell_at(data["scatter"], {"curveNumber": 0, "pointIndex": 0, "x": 0, "y": 0}) == {}
    assert named_cell(data, {"layer": 1, "position": 2}) == {"layer": 1, "position": 2}


def test_a_disagreeing_cell_is_measured_with_the_exact_runs_knobs(bench: Bench) -> None:
    exact = bench.store.add(record(direction="noising", site="mlp_out"))
    other = bench.store.add(record(seed=1))
    run = bench.store.add(agreement(exact, other))
    result = bench.result(run)
    assert bench.can_verify(result)
    asked: dict[str, Any] = {}
    bench.measure = lambda method, fields, model, task: asked.update(  # type: ignore[method-assign]
        method=method, fields=fields, model=model, task=task
    )
    bench.verify_cell(result, {"layer": 5, "position": 2})
    assert asked["method"] == "verify_cell" and asked["model"] == "zoo:ioi"
    assert asked["task"] == "ioi:n=6,seed=0"
    wanted = {"site": "mlp_out", "direction": "noising", "layer": 5, "position": 2}
    assert wanted.items() <= asked["fields"].items()
    said = claims(result.data, {"layer": 1, "position": 2})
    assert said == {
        "the grid says": float(result.data["measured"][1, 2]) / 2,
        "the estimate says": float(result.data["estimated"][1, 2]) / 2,
    }


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ({"layer": 2, "kv_head": 1}, {"layer": 2, "head": 1, "position": None}),
        ({"neuron": "L2N17", "position": 3}, {"layer": 2, "neuron": 17, "position": 3}),
        ({"layer": 1, "neuron": 9}, {"layer": 1, "neuron": 9}),
        ({"feature": "F12", "slot": "IO"}, {"feature": 12, "position": "IO"}),
        (
            {"layer": 0, "head": 1, "query": 5, "key": 2},
            {"head": 1, "position": 5, "key_position": 2},
        ),
    ],
)
def test_a_place_of_any_grid_is_told_to_the_plain_forward(
    place: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert wanted.items() <= cell_fields(place).items()


def test_only_patches_that_one_forward_makes_are_offered_for_it(bench: Bench) -> None:
    for fields, can in (({}, True), ({"with_": "mean"}, False), ({"mode": "add"}, False)):
        assert bench.can_verify(bench.result(bench.store.add(record(**fields)))) is can


def test_the_page_lays_estimates_beside_what_was_measured(bench: Bench) -> None:
    exact = bench.store.add(record(site="resid_pre"))
    found = record(site="resid_pre", seed=1)
    data = found.data.rename({"effect": "attribution", "effect_se": "attribution_se"})
    said = {**found.spec, "method": "attribution_patching"}
    estimate = bench.store.add(Record(said, data, found.provenance, found.checks, found.tokens))
    app = fresh_app(bench)
    from apps.workbench.pages import attribution as room

    with app.dash.server.test_request_context("/"):
        assert room.chosen(exact, "") == estimate
        made = room.side_by_side(bench.result(exact), bench.result(estimate))
        limits = [
            next(t for t in f.data if (t.meta or {}).get("role") == "cells").zmax for f in made
        ]
        assert limits[0] == limits[1] > 0.9
        words = str(room.body(exact, estimate))
        assert "Hold them against each other" in words
        run = bench.store.add(agreement(exact, estimate))
        assert room.agreement_of(exact, estimate) == run
        assert "How they agree" in str(room.body(exact, estimate))
        elsewhere = record(site="mlp_out", seed=3)
        elsewhere.data.attrs["site"] = "mlp_out"
        assert room.chosen(bench.store.add(elsewhere), estimate) is None
        assert "AtP" in str(room.estimating(exact)[0])
