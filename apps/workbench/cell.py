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
    elif len(plan.axes) == 2 and plan.kind in ("grid", "square", "image", "words"):
        place = {plan.axes[0]: y, plan.axes[1]: x}
    else:
        return {}
    return {a: i for a, i in place.items() if 0 <= i < array.sizes[a]}


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
    bars = [prompt_bar(i, v, top or 1.0) for i, v in enumerate(column)]
    title = f"{array.attrs.get('long_name', name)}, each prompt"
    return html.Details(
        [html.Summary(title), html.Div(bars, className="strip")],
        className="more",
        open=len(bars) <= 12,
    )


def prompt_bar(index: int, value: float, top: float) -> html.Div:
    """One prompt's value, left of the middle where it is negative."""
    share = 0.0 if np.isnan(value) else 50 * abs(value) / top
    side = {"right": "50%"} if value < 0 else {"left": "50%"}
    bar = html.Div(
        html.Div(style={"width": f"{share:.1f}%", **side}, className="neg" if value < 0 else "pos"),
        className="two-sided",
    )
    return html.Div(
        [
            html.Span(str(index + 1), className="faint num"),
            bar,
            html.Span(number(value), className="v num"),
        ],
        className="prompt-bar",
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
    if bench().can_verify(result):
        out.append(
            html.Button("Verify with one plain forward", className="button", id=part("verify", run))
        )
    keep = {a: int(i) for a, i in place.items()}
    return html.Div([html.Div(out, className="row"), dcc.Store(id=part("place", run), data=keep)])


def verdict(found: Any, expected: float, model: str) -> html.Div:
    """The cell measured again by itself, and what the model says there."""
    again = float(found.data["effect"].values)
    good = abs(again - expected) <= 1e-3 * max(1.0, abs(expected))
    said = f"One plain forward gives {again:.6g}; the grid says {expected:.6g}."
    parts: list[Any] = [notice(said, kind="ok" if good else "warn")]
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
        return verdict(
            found, float(result.data["effect"].isel(place).values), bench().model_of(result.spec)
        )
    except Exception as error:  # shown in the drawer
        return tell(error)
