"""The one frame every result stands in: figure, table, trust panel, provenance, export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import (
    ALL,
    MATCH,
    ClientsideFunction,
    Input,
    Output,
    State,
    callback,
    clientside_callback,
    dcc,
    html,
    no_update,
)
from flask import request

import interp
from apps.workbench.bench import bench
from apps.workbench.panels import (
    export_panel,
    failed_note,
    part,
    provenance_panel,
    table,
    trust_panel,
    trust_pill,
)
from apps.workbench.tell import link, notice, query_of, tell
from apps.workbench.views import PALETTES, SCALES, View
from interp import figures

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": [
        "select2d",
        "lasso2d",
        "zoomIn2d",
        "zoomOut2d",
        "autoScale2d",
        "sendChartToCloud",
    ],
    "toImageButtonOptions": {"format": "svg", "scale": 2},
}
"""plotly's own buttons, without the one that would send the figure to a server of its makers."""
OPENED = ("grid", "square", "image", "words", "bars", "scatter")
"""Kinds of figures whose cells open."""
KEYS = (
    "Tab to the grid, then ",
    "arrows",
    " move, ",
    "Enter",
    " opens the cell, ",
    "Esc",
    " leaves.",
)


def dark_now() -> bool:
    """Whether the browser last said that it is dark (a cookie the page sets)."""
    return request.cookies.get("interp_scheme") == "dark"


def frame(
    result: Any, run: str, view: View | None = None, *, heading: str = "", linked: bool = True
) -> html.Div:
    """A whole result.

    Args:
        result: an ``interp.Result``.
        run: the id of the stored run; names the pieces and the links.
        view: what is selected.
        heading: words above; the method's title if empty.
        linked: show the link to the run's own page.
    """
    view = view or View()
    failed = [c for c in result.checks if not c.passed]
    amber = " amber" if failed else ""
    name = heading or title_of(result)
    head = [html.H2(name), trust_pill(result.checks)]
    if linked:
        head.append(dcc.Link("Open this run", href=link(f"/run/{run}"), className="button"))
    warned = html.Div([failed_note(failed)], style={"padding": "6px 18px 0"}) if failed else None
    return html.Div(
        [
            html.Div(head, className="frame-head"),
            warned,
            html.Div(tabs(result, run, view, failed), className="frame-tabs"),
            dmc.Drawer(
                html.Div(id=part("cell", run)),
                id=part("drawer", run),
                position="right",
                size="md",
                title="Cell",
                closeButtonProps={"aria-label": "Close"},
            ),
            dcc.Store(id=part("query", run)),
            html.Div(id=part("kept", run), hidden=True),
        ],
        className=f"card flush frame{amber}",
    )


def title_of(result: Any) -> str:
    """The method's title and what it was run on."""
    spec = result.spec
    entry = bench().method(spec["method"]) or {}
    task = spec.get("task")
    model = bench().model_of(spec)
    parts = [str(entry.get("title") or spec["method"]), *([model] if model != "none" else [])]
    parts += [str(task.get("ref") or "own pairs")] if task else []
    return " · ".join(parts)


def tabs(result: Any, run: str, view: View, failed: list[Any]) -> dmc.Tabs:
    """The five tabs."""
    trust = f"Trust ({len(failed)} to look at)" if failed else "Trust"
    names = {
        "figure": "Figure",
        "table": "Table",
        "trust": trust,
        "provenance": "Provenance",
        "export": "Export",
    }
    bodies = {
        "figure": figure_panel(result, run, view),
        "table": html.Div(id=part("table", run)),
        "trust": trust_panel(result),
        "provenance": provenance_panel(result, run),
        "export": export_panel(result, run),
    }
    return dmc.Tabs(
        [
            dmc.TabsList([dmc.TabsTab(names[k], value=k) for k in names]),
            *(dmc.TabsPanel(bodies[k], value=k, pt=12) for k in names),
        ],
        value=view.tab,
        id=part("tabs", run),
    )


# -- figure ---------------------------------------------------------------------------------


def figure_panel(result: Any, run: str, view: View) -> html.Div:
    """What to show, the figure with its keyboard layer, and how to use the keys."""
    names = figures.drawn_names(result.data)
    if not names:
        return html.Div(notice("This result has no array that can be drawn; see the table."))
    var = view.var if view.var in names else names[0]
    return html.Div(
        [
            html.Div(
                [
                    choose_var(result.data, names, var, run),
                    *choose_axes(result.data, run, view, var),
                    *choose_looks(run, view, coloured(result.data, var)),
                ],
                className="row",
                style={"alignItems": "flex-end", "marginBottom": "8px"},
            ),
            graph(
                part("graph", run),
                draw(result, var, dict(view.place), dark_now(), view.palette, view.scale),
                opens=figures.plan_of(result.data[var]).kind in OPENED,
            ),
        ],
    )


def choose_var(data: Any, names: list[str], var: str, run: str) -> dmc.Select:
    """Which array is drawn."""
    options = [{"value": n, "label": str(data[n].attrs.get("long_name") or n)} for n in names]
    return dmc.Select(
        label="Show",
        data=options,
        value=var,
        id=part("var", run),
        w=300,
        allowDeselect=False,
        size="xs",
    )


def choose_axes(data: Any, run: str, view: View, var: str) -> list[Any]:
    """One picker for each axis that is not drawn; those of other arrays wait unseen."""
    out = []
    used = figures.plan_of(data[var]).selectors
    for axis, entries in figures.selectors_of(data).items():
        words = [{"value": str(i), "label": entry(axis, e)} for i, e in enumerate(entries)]
        out.append(
            dmc.Select(
                label=axis.replace("_", " "),
                data=words,
                value=str(view.place.get(axis, 0)),
                id=part("pick", run, axis=axis),
                w=150,
                allowDeselect=False,
                searchable=len(words) > 12,
                size="xs",
                style={} if axis in used else {"display": "none"},
            )
        )
    return out


def coloured(data: Any, var: str) -> bool:
    """Whether an array is drawn in colours that stand for numbers."""
    return figures.plan_of(data[var]).kind in ("grid", "square", "image")


def choose_looks(run: str, view: View, seen: bool) -> list[Any]:
    """Pickers of the palette and of where its colours end; unseen where nothing is coloured."""
    picks = (("palette", "Colours", PALETTES), ("scale", "Scale", SCALES))
    return [
        dmc.Select(
            label=label,
            data=[{"value": k, "label": words} for k, words in known.items()],
            value=getattr(view, kind),
            id=part(kind, run),
            w=150,
            allowDeselect=False,
            size="xs",
            style={} if seen else {"display": "none"},
        )
        for kind, label, known in picks
    ]


def entry(axis: str, label: Any) -> str:
    """One entry of an axis for people; prompts are counted from 1."""
    if axis == "prompt" and isinstance(label, int):
        return f"prompt {label + 1}"
    return f"{axis} {label}" if isinstance(label, (int, float)) else str(label)


def tall(figure: Any) -> dict[str, str]:
    """The style that gives a graph the height its figure asks for."""
    asked = getattr(getattr(figure, "layout", None), "height", None)
    return {"height": f"{int(asked or 450)}px"}


def graph(ident: dict[str, Any], figure: Any, *, opens: bool = True) -> html.Div:
    """A figure and the focusable grid over it.

    Args:
        ident: the id of the graph.
        figure: what it shows.
        opens: whether Enter opens a cell.
    """
    target = json.dumps(ident, sort_keys=True, separators=(",", ":"))
    cell = html.Div(html.Div(role="gridcell"), role="row", className="sr-only")
    spoken = ((figure.layout.meta or {}).get("alt") or "figure") if figure is not None else ""
    layer = html.Div(
        [html.Div(className="cursor"), cell],
        className="grid-layer",
        role="grid",
        tabIndex=0,
        **{
            "aria-label": f"{spoken} Arrows move" + (", Enter opens the cell." if opens else "."),
            "data-target": target,
        },
    )
    words = KEYS if opens else (*KEYS[:2], " move, ", *KEYS[5:])
    hints = [html.Kbd(w) if i % 2 else w for i, w in enumerate(words)]
    return html.Div(
        [
            html.Div(
                [
                    dcc.Graph(
                        id=ident, figure=figure, config=CONFIG, responsive=True, style=tall(figure)
                    ),
                    layer,
                ],
                className="figure",
            ),
            html.Div(hints, className="keys"),
        ]
    )


def draw(
    result: Any,
    var: str,
    place: Mapping[str, Any],
    dark: bool,
    palette: str = "RdBu",
    scale: Any = "own",
) -> Any:
    """The figure of one array at the picked entries, in the theme."""
    entries = figures.selectors_of(result.data)
    picked = {
        a: entries[a][int(i)]
        for a, i in place.items()
        if a in entries and str(i).isdigit() and int(i) < len(entries[a])
    }
    made = figures.figures_of(
        result.data,
        tokens=result.tokens,
        stamp=result.stamp,
        selection=picked,
        only=var,
        dark=dark,
        palette=palette,
        scale=scale,
        window=figures.WINDOW,
    )
    made[var].update_xaxes(ticklabeloverflow="allow")
    return made[var].update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")


# -- callbacks ------------------------------------------------------------------------------


@callback(
    Output(part("graph", MATCH), "figure"),
    Output(part("graph", MATCH), "style"),
    Output(part("query", MATCH), "data"),
    Output(part("pick", MATCH, axis=ALL), "style"),
    Output(part("palette", MATCH), "style"),
    Output(part("scale", MATCH), "style"),
    Input(part("var", MATCH), "value"),
    Input(part("pick", MATCH, axis=ALL), "value"),
    Input(part("palette", MATCH), "value"),
    Input(part("scale", MATCH), "value"),
    Input(part("tabs", MATCH), "value"),
    Input("scheme", "data"),
    State(part("pick", MATCH, axis=ALL), "id"),
    State(part("tabs", MATCH), "id"),
    prevent_initial_call=True,
)
def redraw(
    var: str,
    picks: list[str],
    palette: str,
    scale: str,
    tab: str,
    scheme: str,
    axes: list[Any],
    own: Any,
) -> Any:
    """The figure again when what is shown, or the theme, changes; and the link to it."""
    place = {a["axis"]: int(p) for a, p in zip(axes, picks, strict=True) if str(p).isdigit()}
    result = bench().result(own["run"])
    query = View(var, tab, {k: v for k, v in place.items() if v}, palette, scale).query()
    used = figures.plan_of(result.data[var]).selectors
    shown = [{} if a["axis"] in used else {"display": "none"} for a in axes]
    looks = {} if coloured(result.data, var) else {"display": "none"}
    figure = draw(result, var, place, scheme == "dark", palette, scale)
    return figure, tall(figure), query_of(**query), shown, looks, looks


@callback(
    Output(part("table", MATCH), "children"),
    Input(part("tabs", MATCH), "value"),
    Input(part("var", MATCH), "value"),
    State(part("tabs", MATCH), "id"),
)
def fill_table(tab: str, var: str, own: Any) -> Any:
    """The table, while it is looked at."""
    if tab != "table":
        return no_update
    try:
        return table(bench().result(own["run"]), var)
    except interp.InterpError as error:
        return tell(error)


clientside_callback(
    ClientsideFunction("workbench", "rememberView"),
    Output(part("kept", MATCH), "children"),
    Input(part("query", MATCH), "data"),
    prevent_initial_call=True,
)
