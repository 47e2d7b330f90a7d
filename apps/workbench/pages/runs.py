"""Runs and jobs: filter, follow, cancel, resume, tag, and pick two to compare."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, callback, ctx, dcc, html, no_update

from apps.workbench.bench import bench
from apps.workbench.labels import label_editor
from apps.workbench.listing import failing, knobs, when
from apps.workbench.live import PILLS, SETTLED, WORDS
from apps.workbench.panels import rows_grid
from apps.workbench.tell import empty, link, notice, page, shown

dash.register_page(__name__, path="/runs", title="Runs & jobs · interp")

COLUMNS = [
    {"field": "what", "headerName": "Method", "minWidth": 150, "flex": 2},
    {"field": "model", "headerName": "Model", "flex": 1, "minWidth": 90},
    {"field": "task", "headerName": "Task", "flex": 2, "minWidth": 130},
    {"field": "knobs", "headerName": "Knobs", "flex": 2, "minWidth": 110},
    {"field": "when", "headerName": "When", "flex": 1, "minWidth": 100},
    {"field": "trust", "headerName": "Trust", "flex": 1, "minWidth": 118},
    {"field": "tags", "headerName": "Tags", "flex": 1, "minWidth": 80},
    {"field": "note", "headerName": "Note", "flex": 1, "minWidth": 90},
]


@shown
def layout(tag: str = "", text: str = "", **_query: Any) -> Any:
    """Jobs above, stored runs below."""
    return page(
        "Runs & jobs",
        "Jobs are at work or waiting; runs are finished and never change.",
        html.Section(
            [
                html.H2("Jobs"),
                html.Div(jobs_table(), id="jobs"),
                dcc.Interval(id="jobs-beat", interval=1000),
            ],
            className="card",
        ),
        html.Section(
            [
                html.H2("Stored runs"),
                html.Div(
                    [
                        dmc.TextInput(
                            label="Find",
                            id="runs-text",
                            value=text,
                            debounce=300,
                            w=280,
                            placeholder="method, model, task, tag, note, id",
                        ),
                        dmc.Select(
                            label="Tag",
                            id="runs-tag",
                            value=tag or None,
                            clearable=True,
                            data=sorted({t for r in bench().store.list() for t in r.tags}),
                            w=180,
                            placeholder="any",
                        ),
                    ],
                    className="row",
                    style={"alignItems": "flex-end"},
                ),
                html.Div(runs_grid(text, tag), id="runs-box"),
                html.Div(
                    html.Span(
                        "Select a run to open, label or delete it; two to compare.",
                        className="faint",
                    ),
                    id="runs-chosen",
                ),
            ],
            className="card stack",
        ),
        dcc.Store(id="runs-changed"),
    )


def runs_grid(text: str = "", tag: str = "") -> Any:
    """The runs that fit the filter."""
    rows = bench().store.list(text=text or None, tag=tag or None, limit=500)
    if not rows:
        words = "No run fits this filter." if text or tag else "Finished runs are listed here."
        return empty("Nothing here", words)
    lines = [
        {
            "id": r.id,
            "what": bench().method_title(r.method),
            "model": bench().listed_name(r.model),
            "task": r.task,
            "knobs": knobs(r),
            "when": when(r.created),
            "tags": ", ".join(r.tags),
            "note": r.note,
            "trust": "damaged"
            if r.damaged
            else failing(r.failed_checks)
            if r.failed_checks
            else "checks hold",
        }
        for r in rows
    ]
    chosen = {"rowSelection": {"mode": "multiRow", "enableClickSelection": True}}
    return rows_grid(
        lines, COLUMNS, id="runs-grid", filter=False, getRowId="params.data.id", options=chosen
    )


def jobs_table() -> Any:
    """Jobs that are not over, and the last that ended otherwise than well."""
    rows = [r for r in bench().jobs() if r["state"] != "done"][:30]
    if not rows:
        return empty(
            "No job at work", "A run that you start from a page shows here while it lasts."
        )
    head = html.Tr([html.Th(t) for t in ("Job", "State", "Progress", "")])
    return html.Table(
        [html.Thead(head), html.Tbody([job_line(r) for r in rows])], className="plain"
    )


def job_line(row: dict[str, Any]) -> html.Tr:
    """One job with its progress and what can be done with it."""
    done, total = float(row.get("done") or 0), float(row.get("total") or 0)
    share = 100 * done / total if total else 0.0
    state = row["state"]
    bar = html.Div(
        html.Div(html.Div(style={"width": f"{share:.0f}%"}), className="track"),
        className="live",
        style={"width": "140px"},
    )
    does, words = ("resume", "Resume") if state in SETTLED else ("cancel", "Cancel")
    button = html.Button(
        words,
        id={"type": "job-do", "job": row["id"], "does": does},
        className="button",
        **{"aria-label": f"{words} {row['id'][:8]}"},
    )
    error = html.Div(str(row["error"]), className="faint") if row.get("error") else None
    return html.Tr(
        [
            html.Td([dcc.Link(bench().job_title(row), href=link(f"/job/{row['id']}")), error]),
            html.Td(html.Span(WORDS.get(state, state), className=f"pill {PILLS.get(state, '')}")),
            html.Td([bar, html.Span(f"{share:.0f} %", className="faint num")]),
            html.Td(button),
        ]
    )


def chosen_panel(ids: list[str]) -> Any:
    """What can be done with the selected runs."""
    if not ids:
        return html.Span(
            "Select a run to open, label or delete it; two to compare.", className="faint"
        )
    if len(ids) == 2:
        return dcc.Link(
            "Compare the two", className="button go", href=link("/compare", a=ids[0], b=ids[1])
        )
    if len(ids) > 2:
        return html.Span(f"{len(ids)} runs are selected; choose two to compare.", className="faint")
    row = bench().store.row(ids[0])
    buttons = [
        dcc.Link("Open", href=link(f"/run/{row.id}"), className="button go"),
        dcc.ConfirmDialogProvider(
            html.Button("Delete this run", className="button"),
            id={"type": "run-delete", "run": row.id},
            message="Delete this run? Its folder is removed, and nothing brings it back.",
        ),
    ]
    return html.Div([html.Div(buttons, className="row"), label_editor(row)], className="stack")


@callback(
    Output("jobs", "children"),
    Output("jobs-beat", "disabled"),
    Input("jobs-beat", "n_intervals"),
    Input("runs-changed", "data"),
)
def beat(_beats: Any, _changed: Any) -> Any:
    """The jobs as they are; the beat stops when none lives."""
    alive = any(r["state"] not in SETTLED for r in bench().jobs())
    return jobs_table(), not alive


@callback(
    Output("runs-changed", "data"),
    Input({"type": "job-do", "job": ALL, "does": ALL}, "n_clicks"),
    State("runs-changed", "data"),
    prevent_initial_call=True,
)
def do(_clicks: Any, before: Any) -> Any:
    """Cancel or resume a job."""
    if not isinstance(ctx.triggered_id, dict) or not any(t["value"] for t in ctx.triggered):
        return no_update
    job = ctx.triggered_id["job"]
    (bench().cancel if ctx.triggered_id["does"] == "cancel" else bench().resume)(job)
    return (before or 0) + 1


@callback(
    Output("runs-box", "children"),
    Input("runs-text", "value"),
    Input("runs-tag", "value"),
    prevent_initial_call=True,
)
def narrow(text: str | None, tag: str | None) -> Any:
    """The list under another filter."""
    return runs_grid(text or "", tag or "")


@callback(
    Output("runs-chosen", "children"), Input("runs-grid", "selectedRows"), prevent_initial_call=True
)
def chosen(rows: list[dict[str, Any]] | None) -> Any:
    """What the selection allows."""
    return chosen_panel([r["id"] for r in rows or []])


@callback(
    Output("runs-box", "children", allow_duplicate=True),
    Output("runs-chosen", "children", allow_duplicate=True),
    Input({"type": "run-delete", "run": ALL}, "submit_n_clicks"),
    State("runs-text", "value"),
    State("runs-tag", "value"),
    prevent_initial_call=True,
)
def delete(clicks: list[Any], text: str | None, tag: str | None) -> Any:
    """Delete the selected run for good."""
    if not any(clicks) or not isinstance(ctx.triggered_id, dict):
        return no_update, no_update
    bench().delete_run(ctx.triggered_id["run"])
    return runs_grid(text or "", tag or ""), notice("The run was deleted.", kind="ok")
