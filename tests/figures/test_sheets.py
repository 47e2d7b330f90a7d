"""Sheets of pictures and waterfalls: one scale, escaped words, sums that come out."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from interp.figures import figures_of, plan_of, selectors_of

SAYS = {"units": "logit", "long_name": "votes", "signed": 1}


def scene(labels=("<b>a</b>", "b", "%{z}"), **attrs):
    rng = np.random.default_rng(0)
    n = len(labels)
    return xr.Dataset(
        {
            "vote": (
                ("prompt", "label", "channel", "row", "column"), rng.normal(size=(2, n, 1, 3, 4)),
                {**SAYS, "sheet": "label", "beside": "input", "panel": "score", **attrs},
            ),
            "steps": (("prompt", "label", "component"), rng.normal(size=(2, n, 3)),
                      {**SAYS, "waterfall": "start"}),
            "start": (("prompt", "label"), rng.normal(size=(2, n)), SAYS),
            "score": (("prompt", "label"), rng.normal(size=(2, n)), SAYS),
            "input": (("prompt", "channel", "row", "column"), rng.random((2, 1, 3, 4)),
                      {**SAYS, "signed": 0}),
        },
        coords={"label": list(labels), "component": ["x", "y", "<i>z</i>"]},
    )  # fmt: skip


def test_a_sheet_stands_on_one_zero_centred_scale_with_x_beside_it():
    data = scene()
    figure = figures_of(data)["vote"]
    grey, *pictures = figure.data
    assert len(pictures) == 3 and grey.colorscale[0][1] == "#000000"
    top = float(np.abs(data["vote"][0]).max())
    assert {(t.zmin, t.zmax) for t in pictures} == {(-top, top)}
    assert np.allclose(pictures[1].z, data["vote"][0, 1, 0])
    assert np.allclose(grey.z, data["input"][0, 0])
    assert sum(bool(t.showscale) for t in figure.data) == 1


def test_another_prompt_is_another_sheet():
    data = scene()
    figure = figures_of(data, selection={"prompt": 1})["vote"]
    assert np.allclose(figure.data[1].z, data["vote"][1, 0, 0])
    assert np.allclose(figure.data[0].z, data["input"][1, 0])
    assert "prompt" in selectors_of(data)


def test_words_are_escaped_and_a_pixel_tells_every_pictures_value():
    figure = figures_of(scene())["vote"]
    titles = [a.text for a in figure.layout.annotations]
    assert any("&lt;b&gt;a" in t for t in titles) and not any("<b>a" in t for t in titles)
    assert all("score" in t for t in titles if "x₀" not in t)
    spoken = figure.data[2].customdata[0][0]
    assert "<b>a" not in spoken and spoken.count("<br>") == 3


def test_too_many_pictures_are_shown_one_at_a_time():
    data = scene(tuple(f"l{i}" for i in range(40)))
    assert plan_of(data["vote"]).kind == "image" and "label" in plan_of(data["vote"]).selectors
    assert plan_of(scene(("one",))["vote"]).kind == "image"


def test_outputs_that_are_pictures_are_drawn_as_such():
    array = xr.DataArray(
        np.zeros((2, 3, 5, 5)), dims=("prompt", "mode", "row_out", "column_out"), attrs=SAYS
    )
    assert plan_of(array).kind == "image"
    assert plan_of(array.assign_attrs(sheet="mode")).axes == ("row_out", "column_out", "mode")


@pytest.mark.parametrize("hole", [False, True])
def test_a_waterfall_ends_where_its_steps_lead(hole):
    data = scene()
    if hole:
        data["steps"][0, 0, 1] = np.nan
    figure = figures_of(data)["steps"]
    bars = {}
    for trace in figure.data:
        if trace.type == "bar":
            bars |= {int(x): (float(b), float(y)) for x, b, y in
                     zip(trace.x, trace.base, trace.y, strict=True)}  # fmt: skip
    total = float(data["start"][0, 0] + np.nansum(data["steps"][0, 0]))
    assert bars[max(bars)] == pytest.approx((0.0, total), rel=1e-5)
    assert len(bars) == (4 if hole else 5)
    for k in range(1, max(bars)):
        before = sum(bars[k - 1]) if k > 1 else bars[0][1]
        assert bars[k][0] == pytest.approx(before, rel=1e-5, abs=1e-6)
    assert "&lt;i&gt;z" in figure.layout.xaxis.ticktext[-2]
