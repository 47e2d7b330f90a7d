"""What the figures show: sign, undefined, inert, noise, size, both themes."""

import json

import numpy as np
import pytest
import xarray as xr

from interp.figures import escape, figures_of, glyphs, table_of, theme
from interp.figures.draw import MOST_BYTES
from interp.figures.grids import MOST_CELLS, rectangles
from interp.figures.palette import DARK, LIGHT, SERIES, SERIES_DARK
from interp.terms import UsageError
from tests.figures.arrays import HOSTILE, array, patch_grid, tokens


def cells(figure):
    return next(t for t in figure.data if (t.meta or {}).get("role") == "cells")


def roles(figure):
    return [t.meta["role"] for t in figure.data if t.meta]


def test_signed_values_lie_symmetrically_around_the_middle_of_a_diverging_scale():
    trace = cells(figures_of(patch_grid())["effect"])
    assert trace.zmin == -trace.zmax == pytest.approx(-0.9)
    assert trace.zmid is None
    assert trace.colorscale[2][0] == 0.5 and trace.colorscale[2][1] == "#f7f7f7"


def test_unsigned_values_get_cividis():
    data = xr.Dataset({"v": array(np.eye(3), ("layer", "head"), signed=0)})
    trace = cells(figures_of(data)["v"])
    assert trace.zmin == 0 and trace.zmax == 1
    assert trace.colorscale[0][1].lower() == "#00224e"


def test_the_colour_bar_names_the_unit_always():
    for units, said in (("nats", "nats"), ("1", "no unit"), ("", "no unit")):
        data = xr.Dataset({"v": array(np.eye(3), ("layer", "head"), units=units)})
        assert cells(figures_of(data)["v"]).colorbar.title.text == said


def test_undefined_cells_are_hatched_and_inert_ones_dotted():
    figure = figures_of(patch_grid(), tokens=tokens())["effect"]
    assert {"undefined", "inert", "fade"} <= set(roles(figure))
    hatch = next(t for t in figure.data if (t.meta or {}).get("role") == "undefined")
    assert hatch.marker.pattern.shape == "/"
    assert sum(w * h for w, h in zip(hatch.width, hatch.y, strict=True)) == 2
    dots = next(t for t in figure.data if (t.meta or {}).get("role") == "inert")
    assert sum(w * h for w, h in zip(dots.width, dots.y, strict=True)) == 5
    for word in ("hatched", "dotted", "noise floor"):
        assert word in figure.layout.title.subtitle.text


def test_a_grid_without_marks_has_one_trace():
    data = xr.Dataset({"v": array(np.eye(3), ("layer", "head"))})
    assert len(figures_of(data)["v"].data) == 1


def test_rectangles_cover_the_true_cells_and_no_others():
    rng = np.random.default_rng(1)
    for _ in range(20):
        where = rng.random((7, 9)) < 0.4
        covered = np.zeros_like(where)
        for top, left, height, width in rectangles(where):
            assert not covered[top : top + height, left : left + width].any()
            covered[top : top + height, left : left + width] = True
        assert np.array_equal(covered, where)


def test_hover_sentences_come_from_customdata_and_templates_hold_no_token():
    figure = figures_of(patch_grid(), tokens=tokens())["effect"]
    trace = cells(figure)
    assert trace.hovertemplate == "%{customdata}<extra></extra>"
    said = trace.customdata[1, 3]
    assert "layer 1" in said and "position 3 %{z}" in said and "0.9 ± 0.18" in said
    assert "[0.8, 1]" in said
    hostile = trace.customdata[0, 1]
    assert "<img" not in hostile and "&lt;/script&gt;" in hostile and "undefined" in hostile


def test_a_cell_says_its_p_and_that_of_the_whole_grid():
    data = patch_grid()
    for name, size in (("p_value", 0.012), ("p_fwer", 0.34)):
        data[name] = data["effect"].copy(data=np.full(data["effect"].shape, size))
        data[name].attrs.update(signed=0, long_name=name)
    figures = figures_of(data)
    said = cells(figures["effect"]).customdata[1, 3]
    assert "· p 0.012" in said and "· over the grid 0.34" in said
    assert "over the grid" not in cells(figures["p_value"]).customdata[1, 3]
    assert "over the grid" not in cells(figures_of(patch_grid())["effect"]).customdata[1, 3]


def test_labels_equal_the_tokens():
    figure = figures_of(patch_grid(), tokens=tokens())["effect"]
    text = figure.layout.xaxis.ticktext
    assert len(text) == len(HOSTILE)
    assert text[0] == "&lt;s&gt;" and text[3] == "%{z}" and text[10] == "␣the …"
    assert "differ" in figure.layout.title.subtitle.text
    assert list(figure.layout.xaxis.tickvals) == list(range(len(HOSTILE)))


def test_a_picked_prompt_lends_its_own_tokens():
    n = len(HOSTILE)
    data = xr.Dataset({"v": array(np.ones((2, 3, n)), ("prompt", "layer", "position"))})
    figure = figures_of(data, tokens=tokens(), selection={"prompt": 1})["v"]
    assert figure.layout.xaxis.ticktext[10] == "␣a"
    assert "prompt 2 of 2" in figure.layout.title.subtitle.text


def test_chosen_positions_keep_their_own_tokens():
    data = xr.Dataset(
        {"v": array(np.ones((2, 2)), ("layer", "position"), {"layer": [4, 7], "position": [3, 9]})}
    )
    layout = figures_of(data, tokens=tokens())["v"].layout
    assert list(layout.xaxis.ticktext) == ["%{z}", "␣the"]
    assert list(layout.yaxis.ticktext) == ["4", "7"]


def test_titles_and_stamps_are_text():
    data = xr.Dataset({"v": array(np.eye(3), ("layer", "head"), long_name="<i>x</i>")})
    figure = figures_of(data, title="<b>t</b>", stamp="m · <u>s</u>")["v"]
    assert figure.layout.title.text == "&lt;b&gt;t&lt;/b&gt;: &lt;i&gt;x&lt;/i&gt;"
    assert "&lt;u&gt;s&lt;/u&gt;" in figure.layout.xaxis.title.text


def test_the_stamp_stands_on_every_kind_of_figure():
    for dims in (
        (),
        ("layer",),
        ("layer", "head"),
        ("src", "dst"),
        ("bound", "layer"),
        ("head", "query", "key"),
        ("row", "column"),
        ("epoch",),
    ):
        values = np.random.default_rng(0).random([3] * len(dims))
        figure = figures_of(xr.Dataset({"v": array(values, dims)}), stamp="the stamp")["v"]
        assert "the stamp" in figure.to_json(), dims


def test_numbers_travel_as_float32_and_stay_under_three_megabytes():
    data = xr.Dataset(
        {"v": array(np.random.default_rng(0).normal(size=(144, 1700)), ("head", "position"))}
    )
    figure = figures_of(data)["v"]
    assert cells(figure).z.dtype == np.float32
    assert len(figure.to_json()) <= MOST_BYTES
    body = json.loads(figure.to_json())["data"][0]["z"]
    assert body["dtype"] == "f4"


def test_too_many_cells_are_pooled_by_the_largest_absolute_value_and_said():
    values = np.random.default_rng(0).normal(size=(144, 2500))
    values[100, 1234] = -40
    figure = figures_of(xr.Dataset({"v": array(values, ("head", "position"))}))["v"]
    z = cells(figure).z
    assert z.size <= MOST_CELLS and z.min() == -40
    assert "pooled" in figure.layout.title.subtitle.text
    assert len(figure.to_json()) <= MOST_BYTES


def test_a_shared_scale_is_one_for_all_of_a_unit_and_a_robust_one_marks_what_lies_beyond():
    big = np.ones((10, 20)) * 0.1
    big[0, 0] = 50.0
    data = xr.Dataset(
        {"a": array(big, ("layer", "head")), "b": array(np.eye(3), ("layer_a", "layer_b"))}
    )
    assert cells(figures_of(data)["b"]).zmax == 1
    shared = figures_of(data, scale="shared")
    assert cells(shared["a"]).zmax == cells(shared["b"]).zmax == 50
    robust = figures_of(data, scale="robust")["a"]
    assert cells(robust).zmax == pytest.approx(0.1)
    assert "clipped" in roles(robust)


def test_bars_carry_their_errors_and_mark_what_is_undefined():
    data = xr.Dataset(
        {"v": array([1.0, np.nan, 3.0], ("layer",)), "v_se": array([0.1, 0.1, 0.2], ("layer",))}
    )
    figure = figures_of(data)["v"]
    assert list(figure.data[0].error_y.array) == [0.1, 0.1, 0.2]
    assert figure.data[1].customdata[0].endswith("<b>undefined</b>")


def test_lines_differ_by_dash_and_marker_as_well_as_colour():
    data = xr.Dataset({"v": array(np.ones((4, 3)), ("epoch", "layer"), {"epoch": [0, 5, 10, 99]})})
    lines = figures_of(data)["v"].data
    assert list(lines[0].x) == [0, 5, 10, 99]
    assert len({t.line.dash for t in lines}) == len({t.marker.symbol for t in lines}) == 3


def test_a_graph_draws_at_most_500_edges_and_the_table_has_the_rest():
    n = 40
    values = np.triu(np.random.default_rng(0).normal(size=(n, n)), 1)
    names = [f"a{i}.h0" for i in range(n)]
    data = xr.Dataset({"v": array(values, ("src", "dst"), {"src": names, "dst": names})})
    figure = figures_of(data)["v"]
    drawn = sum(len(t.x) // 3 for t in figure.data if t.mode == "lines")
    assert drawn == 500
    assert "500 largest of 780" in figure.layout.title.subtitle.text
    assert table_of(data).total == n * n


def test_negative_edges_are_dashed():
    data = xr.Dataset(
        {"v": array([[1.0, -1.0]], ("src", "dst"), {"src": ["embed"], "dst": ["m0", "logits"]})}
    )
    dashes = {t.line.dash for t in figures_of(data)["v"].data if t.mode == "lines"}
    assert dashes == {"solid", "dash"}


def test_words_in_cells_are_the_tokens_of_the_ids():
    ids = np.array([[1, 3], [6, 9]])
    data = xr.Dataset(
        {
            "t": array(ids, ("position", "top"), token_ids=1, shade="p", signed=0),
            "p": array(np.ones((2, 2)), ("position", "top"), signed=0),
        }
    )
    trace = cells(figures_of(data, tokens=tokens())["t"])
    assert trace.texttemplate == "%{text}"
    text = np.asarray(trace.text)
    assert text[0, 1] == "%{z}" and text[1, 0] == "∅" and "<" not in text[0, 0]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("tone", [LIGHT, DARK], ids=["light", "dark"])
def test_text_contrast_is_at_least_four_and_a_half(tone):
    for name in ("text", "quiet"):
        a, b = sorted((luminance(tone[name]), luminance(tone["paper"])))
        assert (b + 0.05) / (a + 0.05) >= 4.5


def test_line_colours_stand_out_in_both_themes():
    for colours, tone in ((SERIES, LIGHT), (SERIES_DARK, DARK)):
        for colour in colours:
            a, b = sorted((luminance(colour), luminance(tone["paper"])))
            assert (b + 0.05) / (a + 0.05) >= 2.2, colour


def test_the_dark_theme_and_back_is_the_light_figure():
    for dims in (("layer", "position"), ("epoch", "layer"), ("src", "dst"), ()):
        values = np.random.default_rng(0).random([4] * len(dims))
        figure = figures_of(xr.Dataset({"v": array(values, dims)}), stamp="s")["v"]
        dark = theme(figure, dark=True)
        assert dark.layout.paper_bgcolor == DARK["paper"] != figure.layout.paper_bgcolor
        again = json.loads(theme(dark, dark=False).to_json())
        assert again == json.loads(figure.to_json()) != json.loads(dark.to_json())


def test_an_unknown_palette_scale_or_array_is_refused():
    data = xr.Dataset({"v": array(np.eye(2), ("layer", "head"))})
    for wrong in ({"palette": "RdYlGn"}, {"scale": "log"}, {"only": "w"}):
        with pytest.raises(UsageError):
            figures_of(data, **wrong)


def test_the_table_twin_holds_the_same_numbers_as_plain_text():
    data = patch_grid()
    table = table_of(data, "effect", tokens=tokens(), largest_first=True, limit=5)
    assert table.columns == ("layer", "position", "value", "± se", "note")
    assert table.rows[0][:3] == ("1", "3 %{z}", pytest.approx(0.9))
    assert table.total == 4 * len(HOSTILE) and len(table.rows) == 5
    whole = table_of(data, "effect", tokens=tokens())
    assert whole.rows[1][1] == f"1 {glyphs(HOSTILE[1])}" and whole.rows[1][-1] == "undefined"
    assert {r[-1] for r in whole.rows} == {"", "undefined", "inert", "under the noise floor"}
    assert "&lt;" not in str(whole.rows[1]), escape("<")


def test_arrays_of_token_ids_are_recognised_by_their_unit_and_shaded_by_their_score():
    dims = ("side", "prompt", "position", "top")
    ids = np.arange(2 * 1 * 2 * 3).reshape(2, 1, 2, 3)
    data = xr.Dataset(
        {
            "token_id": array(ids, dims, units="token", signed=0),
            "probability": array(ids / 12, dims, signed=0),
        },
        coords={"side": ["clean", "corrupt"]},
    )
    figure = figures_of(data, tokens=tokens(), selection={"side": "corrupt"})["token_id"]
    assert figure.layout.meta["kind"] == "words"
    trace = cells(figure)
    assert np.allclose(trace.z, ids[1, 0] / 12)
    assert np.asarray(trace.text)[0, 2] == "$$x$$".replace("$", "&#36;")
    assert table_of(data, "token_id", tokens=tokens()).rows[7][4] == "\\u0000"


def test_a_row_of_token_ids_without_rank_is_words_too():
    data = xr.Dataset({"v": array(np.array([9, 10]), ("position",), units="token", signed=0)})
    figure = figures_of(data, tokens=tokens())["v"]
    assert figure.layout.meta["kind"] == "words" and cells(figure).showscale is False
    assert list(np.asarray(cells(figure).text)[0]) == ["␣the", "␣the"]


def test_a_cell_is_inert_only_where_it_is_for_every_prompt():
    inert = np.zeros((2, 3, 4), np.int8)
    inert[0, 1, 1] = inert[:, 2, 2] = 1
    data = xr.Dataset(
        {
            "v": array(np.ones((3, 4)), ("layer", "position")),
            "inert": array(inert, ("prompt", "layer", "position"), signed=0),
        }
    )
    dots = next(t for t in figures_of(data)["v"].data if (t.meta or {}).get("role") == "inert")
    assert (list(dots.x), list(dots.base), list(dots.width)) == ([2], [1.5], [1])


def test_lines_and_bars_take_the_colours_of_the_theme():
    for dims in (("epoch", "layer"), ("layer",)):
        data = xr.Dataset({"v": array(np.ones([3] * len(dims)), dims)})
        for dark, colours in ((False, SERIES), (True, SERIES_DARK)):
            trace = figures_of(data, dark=dark)["v"].data[0]
            part = trace.line if trace.type == "scatter" else trace.marker
            assert part.color == colours[0]
