"""Two runs side by side: what differs, and by how much."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from interp.store import Record, compare
from tests.store.makers import record

ATTRS = {"units": "logit", "long_name": "effect", "signed": 1}


def with_data(values, layers=(0, 1, 2), name="effect") -> Record:
    data = xr.Dataset(
        {name: (("layer",), np.asarray(values, "f8"), ATTRS)}, coords={"layer": list(layers)}
    )
    base = record()
    return Record(base.spec, data, base.provenance)


def test_a_run_is_the_same_as_itself():
    found = compare(record(), record())
    assert found.same and found.spec == [] and found.provenance == []
    assert all(a.max_abs == 0.0 for a in found.arrays)
    assert not compare(record(0), record(1)).same


def test_differences_are_named_by_their_path():
    found = compare(record(0), record(1, wall_time_s=2.0))
    assert ("fields.seed", 0, 1) in found.spec
    assert ("wall_time_s", 1.0, 2.0) in found.provenance
    json.dumps(found.to_json())


def test_largest_difference_and_correlation_are_those_worked_by_hand():
    found = compare(with_data([1.0, 2.0, 3.0]), with_data([2.0, 4.0, 3.0]))
    line = found.arrays[0]
    assert line.max_abs == 2.0 and line.cells == 3 and line.units == "logit"
    # x - mean = (-1, 0, 1); y - mean = (-1, 1, 0): r = 1 / (sqrt 2 sqrt 2)
    assert line.correlation == pytest.approx(0.5)
    assert found.difference["effect"].values.tolist() == [1.0, 2.0, 0.0]
    assert found.difference["effect"].attrs["signed"] == 1
    assert not found.same


def test_cells_are_matched_by_their_coordinate_not_by_their_place():
    found = compare(with_data([1.0, 2.0, 3.0]), with_data([3.0, 9.0], layers=(2, 3)))
    assert found.arrays[0].max_abs == 0.0 and found.arrays[0].cells == 1
    assert "both have cells" in found.arrays[0].reason


def test_what_cannot_be_compared_says_why():
    other = with_data([1.0], layers=[0], name="other")
    reasons = {a.name: a.reason for a in compare(with_data([1, 2, 3]), other).arrays}
    assert reasons == {"effect": "only in run a", "other": "only in run b"}
    flat = Record(other.spec, xr.Dataset({"effect": (("head",), np.ones(3), ATTRS)}), {})
    assert "axes differ" in compare(with_data([1, 2, 3]), flat).arrays[0].reason
    nan = compare(with_data([1, np.nan, 3]), with_data([1, 2, 3])).arrays[0]
    assert nan.max_abs == 0.0 and "undefined in one run only" in nan.reason
