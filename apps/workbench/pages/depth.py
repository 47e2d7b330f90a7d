"""Depth: skip maps side by side on one scale, a cell's positions, and what else is known of it."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
import numpy as np
from dash import ALL, Input, Output, State, callback, ctx, dcc, html, no_update

from apps.workbench.bench import bench
from apps.workbench.frame import dark_now, frame, graph
from apps.workbench.listing import when
from apps.workbench.tell import empty, link, notice, page, shown, tell
from interp import figures

dash.register_page(__name__, path="/depth", title="Depth · interp", name="Depth")

QUESTION = (
    "Skip a layer and see what every later layer, and the output, lose: for the same tokens, for "
    "later tokens, and directly. Open a cell for its positions."
)
BESIDE = {
    "layer_statistics": "What each layer adds",
    "logit_lens": "The lens",
    "residual_erasure": "Until when each token is needed",
    "depth_gradients": "Integrated gradients",
    "layer_importance": "Rankings and the loss",
    "layer_programs": "Other orders",
    "residual_expansion": "Orders and windows",
    "block_jacobian": "Jacobians",
}
STATS = ("max", "mean", "q95")


@shown
def layout(run: str = "", **_query: Any) -> Any:
    """A picker, the switches, the maps and what stands beside them."""
    rows = [r for r in bench().store.list(method="skip_map", limit=200) if not r.damaged]
    known = {r.id for r in rows}
    chosen = run if run in known else (rows[0].id if rows else "")
    if not rows:
        go = dcc.Link("Measure a skip map", href=link("/method/skip_map"), className="button go")
        return page("Depth", QUESTION, empty("No skip map yet", "Measure one first.", go))
    lost = [] if not run or run in known else [f"{run[:12]} is no skip map; the newest is shown."]
    parts = bench().result(chosen).data["part"].values.tolist()
    controls = html.Div([
        dmc.Select(
            label="Skip map", id="depth-run", value=chosen, searchable=True, w="100%",
            data=[{"value": r.id, "label": words(r)} for r in rows], allowDeselect=False,
        ),
        html.Div([
            choice("depth-part", "what is skipped", parts),
            choice("depth-stat", "over tokens", STATS),
            dmc.Switch(label="layers as shares of the depth", id="depth-relative", checked=False),
        ], className="row"),
    ], className="card stack")  # fmt: skip
    return page(
        "Depth",
        QUESTION,
        *(notice(w, kind="warn") for w in lost),
        controls,
        html.Div(body(chosen, parts[0], "max", False, dark_now()), id="depth-body",
                 className="stack"),
        html.Div(id="depth-cell", className="stack", **{"aria-live": "polite"}),
    )  # fmt: skip


def choice(ident: str, title: str, entries: Any) -> html.Div:
    """A few words of which one holds."""
    return html.Div([
        html.Label(title, className="faint"),
        dmc.SegmentedControl(id=ident, data=list(entries), value=entries[0], size="xs"),
    ])  # fmt: skip


def words(row: Any) -> str:
    """A run in one line."""
    fields = row.fields
    modes = ", ".join(fields.get("modes") or ("current",))
    parts = [modes, fields.get("with_", "zero"), bench().listed_name(row.model), row.task or ""]
    return " · ".join([*filter(None, parts), when(row.created), row.id[:6]])


def body(run: str, part: str, stat: str, relative: bool, dark: bool) -> list[Any]:
    """Maps and outputs of every mode, and the runs beside."""
    result = bench().result(run)
    modes = result.data["mode"].values.tolist()
    part = part if part in result.data["part"].values else result.data["part"].values[0]
    maps = [
        html.Div([
            html.H2(mode.capitalize()),
            graph(
                {"type": "depth-map", "mode": mode},
                drawn(result, "effect", dark, relative, part=part, mode=mode, stat=stat),
            ),
            graph(
                {"type": "depth-output", "mode": mode},
                drawn(result, "output", dark, relative, part=part, mode=mode, stat=stat),
                opens=False,
            ),
        ], className="card stack")
        for mode in modes
    ]  # fmt: skip
    row = {
        "display": "grid", "gap": "14px",
        "gridTemplateColumns": "repeat(auto-fit, minmax(min(360px, 100%), 1fr))",
    }  # fmt: skip
    return [html.Div(maps, style=row), score_card(result), html.Div(beside(run))]


def drawn(result: Any, name: str, dark: bool, relative: bool, **selection: Any) -> Any:
    """One figure; effects share the scale 0 to 1, outputs 0 to √2."""
    made = figures.figures_of(
        result.data, tokens=result.tokens, selection=selection, only=name, dark=dark,
        relative=relative,
    )[name]  # fmt: skip
    if name == "output":
        made.update_yaxes(range=[0, float(np.sqrt(2))])
    made.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return made


def score_card(result: Any) -> html.Div:
    """Depth scores of every mode with their interval."""
    data = result.data
    head = ["", "depth score of the output", "95 % interval over prompts", "of later layers"]
    rows = []
    for p, part in enumerate(data["part"].values):
        for m, mode in enumerate(data["mode"].values):
            scores = data["depth_score"].sel(part=part, mode=mode, stat="max").values
            ends = data.get("depth_score_by_prompt_ci")
            span = "" if ends is None else " to ".join(f"{v:.2f}" for v in ends.values[:, p, m])
            rows.append([f"{part}, {mode}", f"{scores[0]:.2f}", span, f"{scores[1]:.2f}"])
    table = html.Table([
        html.Thead(html.Tr([html.Th(h) for h in head])),
        html.Tbody([html.Tr([html.Td(c) for c in r]) for r in rows]),
    ])  # fmt: skip
    note = (
        "Layers count from 0. Where a token reads another at the end, the current score is not "
        "monotone in how deep a computation is: read depth from the future mode."
    )
    return html.Div([html.H2("Depth score"), table, html.P(note, className="faint")],
                    className="card stack")  # fmt: skip


def beside(run: str) -> list[Any]:
    """Other depth runs of this model and task, or the way to them."""
    own = bench().result(run).spec
    where = {"model": bench().model_of(own), "task": bench().task_of(own)}
    out: list[Any] = [html.H2("The same model and task")]
    buttons = []
    for method, title in BESIDE.items():
        found = next((r for r in bench().store.list(method=method, limit=200)
                      if not r.damaged and same(own, bench().result(r.id).spec)), None)  # fmt: skip
        if found is not None and method == "layer_statistics":
            out.append(frame(bench().result(found.id), found.id, heading=title))
        to = link(f"/run/{found.id}") if found else link(f"/method/{method}", **where)
        buttons.append(dcc.Link(title if found else f"{title} (measure)", href=to,
                                className="button"))  # fmt: skip
    return [html.Div([out[0], html.Div(buttons, className="row")], className="card stack"),
            *out[1:]]  # fmt: skip


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two specs are of one model and task."""
    tasks = [(s.get("task") or {}).get("hash") for s in (one, two)]
    return one["model"]["weight_hash"] == two["model"]["weight_hash"] and tasks[0] == tasks[1]


@callback(
    Output("depth-body", "children"),
    Input("depth-run", "value"),
    Input("depth-part", "value"),
    Input("depth-stat", "value"),
    Input("depth-relative", "checked"),
    Input("scheme", "data"),
    prevent_initial_call=True,
)
def redraw(run: str, part: str, stat: str, relative: bool, scheme: str) -> Any:
    """The maps again when a choice changes."""
    try:
        return body(run, part, stat, bool(relative), scheme == "dark")
    except Exception as error:  # told in the place of the maps
        return tell(error)


@callback(
    Output("depth-cell", "children"),
    Input({"type": "depth-map", "mode": ALL}, "clickData"),
    State("depth-run", "value"),
    State("depth-part", "value"),
    State("depth-relative", "checked"),
    prevent_initial_call=True,
)
def open_cell(_clicks: Any, run: str, part: str, relative: bool) -> Any:
    """The output's change at every position of every prompt when the clicked layer is skipped."""
    hit = ctx.triggered[0]["value"] if ctx.triggered else None
    if not hit or not isinstance(ctx.triggered_id, dict):
        return no_update
    try:
        return positions(run, part, ctx.triggered_id["mode"], int(round(hit["points"][0]["x"])))
    except Exception as error:  # told in the place of the cell
        return tell(error)


def positions(run: str, part: str, mode: str, layer: int) -> Any:
    """A map of prompts and positions."""
    result = bench().result(run)
    if "prompt_output" not in result.data:
        return notice("This run keeps no positions; measure it with keep_prompts.")
    one = result.data[["prompt_output"]].sel(part=part, mode=mode).isel(layer_skipped=layer)
    title = f"Layer {layer} skipped ({part}, {mode}): the output at every position"
    made = figures.figures_of(one, tokens=result.tokens, only="prompt_output", dark=dark_now())
    made = made["prompt_output"]
    made.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    whole = one["prompt_output"].values
    table = [[f"{v:.3f}" if np.isfinite(v) else "" for v in row] for row in whole[:12]]
    rows = html.Tbody([
        html.Tr([html.Th(f"prompt {i + 1}"), *(html.Td(v) for v in row)])
        for i, row in enumerate(table)
    ])  # fmt: skip
    return html.Div([
        html.H2(title), graph({"type": "depth-positions"}, made, opens=False),
        html.Div(html.Table(rows), className="scroll"),
    ], className="card stack")  # fmt: skip
