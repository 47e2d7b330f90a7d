"""One cell of a grid, opened: its values, every prompt's, the check by one plain forward, links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from dash import ALL, MATCH, Input, Output, State, callback, dcc, html, no_update

from apps.workbench.bench import bench
from apps.workbench.panels import number, part
from apps.workbench.tell import link, notice, tell
from apps.workbench.tokens import likely, token
from interp import figures

MOST_PROMPTS = 64
SCATTERED = 1
"""The trace of a scatter that has the cells; the first is the line where both are equal."""
HEADS = ("head", "kv_head")


def cell_at(array: Any, point: Mapping[str, Any]) -> dict[str, int]:
    """Axis -> index of a clicked point, by the way the figure was drawn.

    Args:
        array: what is drawn.
        point: plotly's point, ``x`` and ``y`` as numbers.
    """
    plan = figures.plan_of(array)
    x, y = (int(round(float(point.get(k) or 0))) for k in ("x", "y"))
    if plan.stack:
        layer, head = plan.stack
        place = {layer: y // array.sizes[head], head: y % array.sizes[head], plan.axes[0]: x}
    elif plan.kind == "bars":
        place = {plan.axes[0]: x}
    elif plan.kind == "scatter" and point.get("curveNumber") == SCATTERED:
        place = {plan.axes[1]: int(point.get("pointIndex", point.get("pointNumber", -1)))}
    elif len(plan.axes) == 2 and plan.kind in ("grid", "square", "image", "words"):
        place = {plan.axes[0]: y, plan.axes[1]: x}
    else:
        return {}
    return {a: i for a, i in place.items() if 0 <= i < array.sizes[a]}


def named_cell(data: Any, place: dict[str, int]) -> dict[str, int]:
    """A cell of a list (the most disagreeing, the dots of a scatter) as its place in the grid.

    Args:
        data: has the grid's entries beside the list's axis, as ``top_layer`` on ``top``.
        place: axis -> index, of the list or of the grid.
    """
    for axis in ("cell", "top"):
        if set(place) != {axis}:
            continue
        found = {}
        for name, coord in data.coords.items():
            own = str(name).removeprefix(f"{axis}_")
            if coord.dims == (axis,) and own != str(name) and own in data.dims:
                where = np.flatnonzero(data[own].values == coord.values[place[axis]])
                found |= {own: int(where[0])} if len(where) else {}
        return found
    return place


def cell_panel(result: Any, run: str, var: str, place: Mapping[str, int]) -> html.Div:
    """What the drawer shows of a cell."""
    return html.Div(
        [
            heading(result, place),
            values(result.data, place),
            prompts(result.data, var, place),
            ways(result, run, place),
            html.Div(id=part("verdict", run)),
        ],
        className="stack",
    )


def heading(result: Any, place: Mapping[str, int]) -> html.H2:
    """``layer 3 · head 1 · position 7 ␣Mary``."""
    parts: list[Any] = []
    for axis, index in place.items():
        label = label_of(result.data, axis, index)
        parts += [" · " if parts else "", f"{axis.replace('_', ' ')} {label}"]
        words = ((result.tokens or {}).get("clean") or [[]])[0]
        if axis in ("position", "query", "key") and isinstance(label, int) and label < len(words):
            parts += [" ", token(words[label])]
    return html.H2(parts)


def label_of(data: Any, axis: str, index: int) -> Any:
    """The entry of an axis as a plain value."""
    if axis in data.coords and data.coords[axis].ndim == 1:
        value = data.coords[axis].values[index]
        return value.item() if hasattr(value, "item") else value
    return index


def values(data: Any, place: Mapping[str, int]) -> html.Table:
    """Every array's number at this cell."""
    rows = []
    for name, array in data.data_vars.items():
        if set(array.dims) != set(place) or array.dtype.kind not in "biuf":
            continue
        value = float(array.isel(dict(place)).values)
        shown = ("yes" if value else "no") if array.dtype.kind == "b" else number(value)
        unit = str(array.attrs.get("units") or "")
        rows.append(
            html.Tr(
                [
                    html.Td(str(array.attrs.get("long_name") or name)),
                    html.Td(shown, className="n"),
                    html.Td("" if unit == "1" else unit, className="faint"),
                ]
            )
        )
    return html.Table(html.Tbody(rows), className="plain")


def prompts(data: Any, var: str, place: Mapping[str, int]) -> Any:
    """The same cell prompt by prompt, as bars from zero."""
    names = [
        n
        for n, a in data.data_vars.items()
        if set(a.dims) == {*place, "prompt"} and a.dtype.kind in "iuf"
    ]
    if not names:
        return None
    name = "effect_raw" if "effect_raw" in names else names[0]
    array = data[name].isel(dict(place))
    column = np.asarray(array.values, dtype=float)[:MOST_PROMPTS]
    top = float(np.nanmax(np.abs(column))) if np.isfinite(column).any() else 0.0
    bars = [bar_line(str(i + 1), float(v), top or 1.0) for i, v in enumerate(column)]
    title = f"{array.attrs.get('long_name', name)}, each prompt"
    return html.Details(
        [html.Summary(title), html.Div(bars, className="strip")],
        className="more",
        open=len(bars) <= 12,
    )


def bar_line(label: str, value: float, top: float) -> html.Div:
    """One value under its name, left of the middle where it is negative."""
    share = 0.0 if np.isnan(value) else 50 * abs(value) / top
    side = {"right": "50%"} if value < 0 else {"left": "50%"}
    bar = html.Div(
        html.Div(style={"width": f"{share:.1f}%", **side}, className="neg" if value < 0 else "pos"),
        className="two-sided",
    )
    return html.Div(
        [
            html.Span(label, className="faint num"),
            bar,
            html.Span(number(value), className="v num"),
        ],
        className="prompt-bar" if label.isdigit() else "prompt-bar named",
    )


def ways(result: Any, run: str, place: Mapping[str, int]) -> html.Div:
    """Where to go from a cell."""
    asked = {a: label_of(result.data, a, i) for a, i in place.items()}
    out: list[Any] = []
    head = next((asked[a] for a in HEADS if a in asked), None)
    if "layer" in asked:
        words = f"Open head {asked['layer']}.{head}" if head is not None else "Heads of this layer"
        out.append(
            dcc.Link(
                words,
                className="button go",
                href=link(
                    "/head",
                    run=run,
                    layer=asked["layer"],
                    head=head,
                    position=asked.get("position"),
                ),
            )
        )
    if "src" in place or "dst" in place:
        place = {}
    if place and bench().can_verify(result):
        words = "Measure with one plain forward"
        if "effect" in result.data:
            words = "Verify with one plain forward"
        out.append(html.Button(words, className="button", id=part("verify", run)))
    if result.spec["method"] == "agreement":
        for key, words in (("exact_run", "Measured run"), ("estimate_run", "Estimated run")):
            to = link(f"/run/{result.data.attrs[key]}")
            out.append(dcc.Link(words, className="button", href=to))
    out += pair_link(result)
    keep = {a: int(i) for a, i in place.items()}
    return html.Div([html.Div(out, className="row"), dcc.Store(id=part("place", run), data=keep)])


def pair_link(result: Any) -> list[Any]:
    """A link to what the model says to both prompts, where the run's prompts are known."""
    spec = bench().measured_by(result).spec
    if not (spec.get("task") or {}).get("ref"):
        return []
    to = link("/method/pair_check", model=bench().model_of(spec), task=bench().task_of(spec))
    return [dcc.Link("What it says to the pair", className="button", href=to)]


def claims(data: Any, place: Mapping[str, int]) -> dict[str, float]:
    """What a result says of a cell, as shares of the gap: name -> value, the measured first."""
    gap = float(data.attrs.get("mean_gap") or np.nan)
    found: dict[str, float] = {}
    for name, words, unit in (
        ("effect", "the grid says", 1.0),
        ("attribution", "the estimate says", 1.0),
        ("measured", "the grid says", gap),
        ("estimated", "the estimate says", gap),
    ):
        if name in data and set(data[name].dims) == set(place):
            found[words] = float(data[name].isel(dict(place)).values) / unit
    return found


def verdict(found: Any, said: Mapping[str, float], model: str) -> html.Div:
    """The cell measured by itself, beside what the result says, and what the model says there.

    Args:
        found: what one plain forward gave.
        said: words -> what the result says of the cell.
        model: whose tokens are shown.
    """
    again = float(found.data["effect"].values)
    measured = said.get("the grid says", np.nan)
    good = "the grid says" not in said or abs(again - measured) <= 1e-3 * max(1, abs(measured))
    told = "; ".join(f"{words} {number(value)}" for words, value in said.items())
    words = f"One plain forward gives {again:.6g}; {told}."
    parts: list[Any] = [notice(words, kind="ok" if good else "warn")]
    for side, rows in bench().top_tokens(model, found.data).items():
        parts.append(
            html.Div(
                [html.H3(f"Next token, {side}, prompt 1"), likely(rows[:5])],
                className="stack tight",
            )
        )
    return html.Div(parts, className="stack")


@callback(
    Output(part("drawer", MATCH), "opened"),
    Output(part("cell", MATCH), "children"),
    Input(part("graph", MATCH), "clickData"),
    State(part("var", MATCH), "value"),
    State(part("pick", MATCH, axis=ALL), "value"),
    State(part("pick", MATCH, axis=ALL), "id"),
    State(part("graph", MATCH), "id"),
    prevent_initial_call=True,
)
def open_cell(click: Any, var: str, picks: list[str], axes: list[Any], own: Any) -> Any:
    """Open the drawer on the clicked cell."""
    if not click or not click.get("points"):
        return no_update, no_update
    result = bench().result(own["run"])
    picked = {a["axis"]: int(p) for a, p in zip(axes, picks, strict=True)}
    array = result.data[var]
    place = cell_at(array, click["points"][0])
    place |= {a: i for a, i in picked.items() if a in array.dims and a not in place}
    place = named_cell(result.data, place)
    if not place:
        return no_update, no_update
    return True, cell_panel(result, own["run"], var, place)


@callback(
    Output(part("verdict", MATCH), "children"),
    Input(part("verify", MATCH), "n_clicks"),
    State(part("place", MATCH), "data"),
    State(part("verify", MATCH), "id"),
    prevent_initial_call=True,
    running=[(Output(part("verify", MATCH), "disabled"), True, False)],
)
def verify(clicks: int | None, place: dict[str, int], own: Any) -> Any:
    """Measure the cell again, by itself."""
    if not clicks:
        return no_update
    result = bench().result(own["run"])
    labels = {a: label_of(result.data, a, i) for a, i in place.items()}
    try:
        found = bench().verify_cell(result, labels)
        source = bench().measured_by(result)
        return verdict(found, claims(result.data, place), bench().model_of(source.spec))
    except Exception as error:  # shown in the drawer
        return tell(error)
