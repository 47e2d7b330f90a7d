"""Attribution beside effect: a measured grid and its estimates on one scale, and how they agree."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, callback, dcc, html, no_update

from apps.workbench import cell  # noqa: F401  (its callbacks open the drawer)
from apps.workbench.bench import bench
from apps.workbench.frame import CONFIG, dark_now, frame, tall
from apps.workbench.listing import when
from apps.workbench.live import live
from apps.workbench.tell import empty, link, notice, page, shown, tell
from interp import figures

dash.register_page(__name__, path="/attribution", title="Attribution · interp")

ALIKE = ("site", "direction", "metric", "at")
"""Knobs in which an estimate and what it estimates must be equal."""


@shown
def layout(exact: str = "", estimate: str = "", **_query: Any) -> Any:
    """Two pickers; the grids side by side; their agreement."""
    measured = measured_runs()
    known = {r.id for r in measured}
    exact = exact if exact in known else (measured[0].id if measured else "")
    first = dmc.Select(
        label="Measured (activation patching)",
        data=[{"value": r.id, "label": words(r)} for r in measured],
        value=exact or None,
        id="attribution-exact",
        searchable=True,
        w="100%",
    )
    second = dmc.Select(
        label="Estimated (attribution patching of the same grid)",
        data=options(exact),
        value=chosen(exact, estimate),
        id="attribution-estimate",
        searchable=True,
        w="100%",
    )
    return page(
        "Attribution beside effect",
        "A gradient estimates every cell at once; patching measures them. Where the two disagree, "
        "open the cell and measure it.",
        html.Div(html.Div([first, second], className="halves"), className="card"),
        html.Div(body(exact, chosen(exact, estimate)), id="attribution-body", className="stack"),
    )


def measured_runs() -> list[Any]:
    """Runs of activation patching that an estimate can be held against, newest first."""
    return [
        r
        for r in bench().store.list(method="activation_patching", limit=200)
        if not r.damaged
        and r.fields.get("with_", "source") == "source"
        and r.fields.get("window", 1) == 1
    ]


def words(row: Any) -> str:
    """A run in one line."""
    fields = row.fields
    rules = fields.get("rules")
    parts = [fields.get("site", "resid_pre"), rules if rules and rules != "none" else ""]
    parts += [f"IG {fields['ig_steps']}" if fields.get("ig_steps") else ""]
    parts += [fields.get("direction", ""), bench().listed_name(row.model), row.task or ""]
    return " · ".join([*filter(None, parts), when(row.created), row.id[:6]])


def estimates_of(exact: str) -> list[Any]:
    """Runs of attribution patching of the same thing, newest first."""
    if not exact:
        return []
    own = bench().result(exact)
    rows = bench().store.list(method="attribution_patching", limit=200)
    out = []
    for row in rows:
        if row.damaged:
            continue
        other = bench().result(row.id)
        same = all(own.data.attrs.get(k) == other.data.attrs.get(k) for k in ALIKE)
        tasks = [(r.spec.get("task") or {}).get("hash") for r in (own, other)]
        hashes = [r.spec["model"]["weight_hash"] for r in (own, other)]
        grids = same_grid(own.data["effect"], other.data["attribution"])
        if same and grids and tasks[0] == tasks[1] and hashes[0] == hashes[1]:
            out.append(row)
    return out


def same_grid(one: Any, two: Any) -> bool:
    """Whether two arrays have the same axes and entries; features may be other ones."""
    if set(one.dims) != set(two.dims):
        return False
    fixed = [d for d in one.dims if d != "feature"]
    return all(one[d].values.tolist() == two[d].values.tolist() for d in fixed)


def options(exact: str) -> list[dict[str, str]]:
    """The estimates of a measured run, for the picker."""
    return [{"value": r.id, "label": words(r)} for r in estimates_of(exact)]


def chosen(exact: str, estimate: str) -> str | None:
    """The estimate that was asked for where it fits, else the newest that does."""
    known = [o["value"] for o in options(exact)]
    return estimate if estimate in known else (known[0] if known else None)


def body(exact: str, estimate: str | None) -> list[Any]:
    """What stands under the pickers."""
    if not exact:
        to = link("/patching")
        return [
            empty(
                "Nothing measured yet",
                "Patch a grid first; its estimates are then held against it.",
                dcc.Link("Patch", href=to, className="button go"),
            )
        ]
    ways = html.Div(estimating(exact), className="row")
    if estimate is None:
        return [notice("This grid has no estimate yet. Two forward passes and one backward make "
                       "one."), ways]  # fmt: skip
    left, right = bench().result(exact), bench().result(estimate)
    found = agreement_of(exact, estimate)
    below: Any = (
        frame(bench().result(found), found, heading="How they agree") if found else asking()
    )
    return [
        html.Div(
            [
                grid(figure, title, run)
                for figure, title, run in zip(
                    side_by_side(left, right),
                    ("Measured", estimator(right)),
                    (exact, estimate),
                    strict=True,
                )
            ],
            className="halves",
        ),
        html.Div(below, id="attribution-agreement", className="stack"),
        ways,
    ]


def estimator(result: Any) -> str:
    """``Estimated: rules relp, denoising``."""
    attrs = result.data.attrs
    return f"Estimated: {attrs.get('estimator', '')}, {attrs.get('direction', '')}"


def side_by_side(left: Any, right: Any) -> list[Any]:
    """Both grids in colours of one scale."""
    unit = {"units": "share of the gap", "signed": 1}
    one = left.data["effect"].assign_attrs(unit, long_name="effect")
    two = right.data["attribution"].assign_attrs(unit, long_name="attribution")
    both = one.to_dataset(name="effect").assign(attribution=two.transpose(*one.dims))
    made = figures.figures_of(both, tokens=left.tokens, scale="shared", dark=dark_now())
    return [made["effect"], made["attribution"]]


def grid(figure: Any, title: str, run: str) -> html.Section:
    """One grid with the way to its run."""
    figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    head = [html.H2(title), dcc.Link("Open this run", href=link(f"/run/{run}"), className="button")]
    graph = dcc.Graph(figure=figure, config=CONFIG, responsive=True, style=tall(figure))
    return html.Section([html.Div(head, className="row"), graph], className="card stack tight")


def agreement_of(exact: str, estimate: str) -> str | None:
    """The stored agreement of the two, or None."""
    for row in bench().store.list(method="agreement", limit=200):
        held = (row.fields.get("exact"), row.fields.get("estimate"))
        if held == (exact, estimate) and not row.damaged:
            return row.id
    return None


def asking() -> html.Div:
    """The button that holds them against each other."""
    return html.Div(
        [
            html.P(
                "Correlations, overlap of the largest cells and signs, with intervals; a scatter; "
                "the cells that disagree most, each with a button that measures it.",
                className="muted",
            ),
            html.Button(
                "Hold them against each other",
                id="attribution-hold",
                className="button go",
                type="button",
            ),
        ],
        className="card stack",
    )


def estimating(exact: str) -> list[Any]:
    """Ways to estimate this grid by another rule."""
    own = bench().result(exact)
    fields = own.spec.get("fields") or {}
    said = {k: fields[k] for k in (*ALIKE, "axes", "dictionary") if fields.get(k) is not None}
    where = {"model": bench().model_of(own.spec), "task": bench().task_of(own.spec), **said}
    out = []
    for rules, title in (("none", "Estimate it (AtP)"), ("relp", "Estimate it (RelP)")):
        to = link("/method/attribution_patching", rules=rules, **where)
        out.append(dcc.Link(title, href=to, className="button"))
    return out


@callback(
    Output("attribution-estimate", "data"),
    Output("attribution-estimate", "value"),
    Input("attribution-exact", "value"),
    prevent_initial_call=True,
)
def offer(exact: str | None) -> Any:
    """The estimates of the grid that was picked."""
    return options(exact or ""), chosen(exact or "", "")


@callback(
    Output("attribution-body", "children"),
    Input("attribution-estimate", "value"),
    Input("scheme", "data"),
    State("attribution-exact", "value"),
    prevent_initial_call=True,
)
def pick(estimate: str | None, _scheme: str, exact: str | None) -> Any:
    """Both grids again when another is picked."""
    try:
        return body(exact or "", estimate)
    except Exception as error:  # told in the place of the grids
        return tell(error)


@callback(
    Output("attribution-agreement", "children"),
    Input("attribution-hold", "n_clicks"),
    State("attribution-exact", "value"),
    State("attribution-estimate", "value"),
    prevent_initial_call=True,
)
def hold(clicks: int | None, exact: str, estimate: str) -> Any:
    """Start the agreement of the two that are shown."""
    if not clicks:
        return no_update
    try:
        model = bench().model_of(bench().result(exact).spec)
        fields = {"exact": exact, "estimate": estimate}
        return live(bench().submit("agreement", fields, model, None))
    except Exception as error:  # told in the place of the agreement
        return tell(error)
