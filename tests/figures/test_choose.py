"""The kinds of an array's axes decide its figure."""

import numpy as np
import pytest
import xarray as xr

from interp.figures import figures_of, plan_of, selectors_of
from interp.terms import UsageError
from interp.terms.axes import AXES
from tests.figures.arrays import array

KINDS = [
    (("layer", "position"), "grid", ("layer", "position")),
    (("position", "layer"), "grid", ("layer", "position")),
    (("layer", "head"), "grid", ("layer", "head")),
    (("head", "position"), "grid", ("head", "position")),
    (("layer", "neuron"), "grid", ("layer", "neuron")),
    (("feature", "position"), "grid", ("feature", "position")),
    (("boundary", "position"), "grid", ("boundary", "position")),
    (("layer", "slot"), "grid", ("layer", "slot")),
    (("layer", "head", "position"), "grid", ("position",)),
    (("query", "key"), "square", ("query", "key")),
    (("layer_a", "layer_b"), "square", ("layer_a", "layer_b")),
    (("boundary", "layer_skipped"), "square", ("boundary", "layer_skipped")),
    (("label", "label_b"), "square", ("label", "label_b")),
    (("head", "query", "key"), "patterns", ("query", "key", "head")),
    (("src", "dst"), "graph", ("src", "dst")),
    (("row", "column"), "image", ("row", "column")),
    (("epoch",), "curve", ("epoch",)),
    (("epsilon", "layer"), "curve", ("epsilon", "layer")),
    (("mix",), "curve", ("mix",)),
    (("bound",), "whiskers", ("bound",)),
    (("bound", "layer"), "whiskers", ("bound", "layer")),
    (("layer",), "bars", ("layer",)),
    (("prompt",), "bars", ("prompt",)),
    (("top",), "bars", ("top",)),
    (("statistic",), "bars", ("statistic",)),
    (("layer", "statistic"), "grid", ("layer", "statistic")),
    (("prompt", "label"), "grid", ("prompt", "label")),
    ((), "card", ()),
]


@pytest.mark.parametrize(
    ("dims", "kind", "axes"),
    KINDS,
    ids=lambda v: "-".join(v) or "none" if isinstance(v, tuple) else str(v),
)
def test_the_axes_choose_the_figure(dims, kind, axes):
    values = np.random.default_rng(0).random([3 + i for i in range(len(dims))])
    plan = plan_of(array(values, dims))
    assert (plan.kind, plan.axes) == (kind, axes)
    figure = figures_of(xr.Dataset({"v": array(values, dims)}))["v"]
    assert figure.layout.meta["kind"] == kind
    assert figure.layout.meta["alt"]


@pytest.mark.parametrize("axis", ["prompt", "metric", "kl_direction", "side"])
def test_a_selector_beside_a_grid_shows_one_entry_at_a_time(axis):
    values = np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    coords = {axis: ["a", "b"]} if axis != "prompt" else None
    data = xr.Dataset({"v": array(values, (axis, "layer", "position"), coords)})
    assert selectors_of(data) == {axis: ["a", "b"] if coords else [0, 1]}
    second = ["a", "b"][1] if coords else 1
    first = figures_of(data)["v"]
    other = figures_of(data, selection={axis: second})["v"]
    assert np.array_equal(first.data[0].z, values[0]) and np.array_equal(other.data[0].z, values[1])
    assert other.layout.meta["selection"] == {axis: second}


def test_every_axis_of_the_closed_list_is_drawn_alone():
    for axis in AXES:
        values = np.linspace(0.1, 1, 4)
        figure = figures_of(xr.Dataset({"v": array(values, (axis,))}))["v"]
        assert figure.layout.meta["kind"] in ("bars", "curve", "whiskers"), axis


def test_an_axis_a_method_adds_is_drawn_too():
    values = np.random.default_rng(0).random((3, 4, 2))
    figure = figures_of(xr.Dataset({"v": array(values, ("layer", "position", "gap"))}))["v"]
    assert figure.layout.meta["kind"] == "grid"
    assert figure.layout.meta["selection"] == {"gap": 0}


def test_helpers_of_an_array_get_no_figure_of_their_own():
    data = xr.Dataset(
        {
            "a": array([1.0], ("layer",)),
            "a_se": array([1.0], ("layer",)),
            "inert": array([0], ("layer",)),
            "b_se": array([1.0], ("layer",)),
        }
    )
    assert set(figures_of(data)) == {"a", "b_se"}


def test_an_entry_that_is_not_there_is_refused_with_those_that_are():
    data = xr.Dataset(
        {
            "v": array(
                np.ones((2, 3, 4)), ("metric", "layer", "head"), {"metric": ["logit_diff", "prob"]}
            )
        }
    )
    with pytest.raises(UsageError, match="logit_diff"):
        figures_of(data, selection={"metric": "logit_dif"})
    with pytest.raises(UsageError, match="layer"):
        figures_of(data, selection={"layr": 1})


def test_two_measures_of_the_same_cells_are_a_scatter_with_the_line_of_equals():
    values = np.array([[0.0, 1.0, 2.0, np.nan], [0.5, 1.0, 1.5, 1.0]])
    coords = {
        "measure": ["measured", "estimated"],
        "cell": range(4),
        "cell_name": ("cell", ["L0 @1", "L0 @<b>", "L1 @0", "L1 @1"]),
    }
    figure = figures_of(xr.Dataset({"v": array(values, ("measure", "cell"), coords)}))["v"]
    line, points = figure.data
    assert figure.layout.meta["kind"] == "scatter" and line.meta["role"] == "identity"
    assert list(line.x) == list(line.y) and line.x[0] < 0 and line.x[1] > 2
    assert list(points.x) == [0, 1, 2] and list(points.y) == [0.5, 1, 1.5]
    assert "L0 @&lt;b&gt;" in points.customdata[1] and "<b>0.5</b>" in points.customdata[0]
    assert figure.layout.xaxis.title.text.startswith("measured")
    assert figure.layout.yaxis.title.text.startswith("estimated")
