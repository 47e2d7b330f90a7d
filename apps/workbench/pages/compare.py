"""Two runs side by side: what differs in spec and provenance, and where the numbers do."""

from __future__ import annotations

import json
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, callback, dcc, html

from apps.workbench.bench import bench
from apps.workbench.frame import CONFIG, dark_now, tall
from apps.workbench.listing import when
from apps.workbench.panels import number
from apps.workbench.tell import empty, link, notice, page, shown
from interp import figures

dash.register_page(__name__, path="/compare", title="Compare · interp")


@shown
def layout(a: str = "", b: str = "", **_query: Any) -> Any:
    """Two pickers and the difference."""
    rows = bench().store.list(limit=200)
    options = [
        {
            "value": r.id,
            "label": " · ".join(
                (
                    bench().method_title(r.method),
                    bench().listed_name(r.model),
                    r.task,
                    when(r.created),
                    r.id[:6],
                )
            ),
        }
        for r in rows
        if not r.damaged
    ]
    known = {o["value"] for o in options}
    picks = [
        dmc.Select(
            label=f"Run {name}",
            data=options,
            value=value if value in known else None,
            id=f"compare-{name.lower()}",
            searchable=True,
            w="100%",
        )
        for name, value in (("A", a), ("B", b))
    ]
    return page(
        "Compare two runs",
        "The difference is B minus A, over the cells that both have.",
        html.Div(html.Div(picks, className="halves"), className="card"),
        html.Div(
            difference(a, b) if {a, b} <= known else pick_two(),
            id="compare-body",
            className="stack",
        ),
    )


def pick_two() -> html.Div:
    """What stands there until two are picked."""
    return empty("Pick two runs", "Any two of the store; those of one method say most.")


def difference(a: str, b: str) -> list[Any]:
    """Spec, provenance, arrays."""
    left, right = bench().result(a), bench().result(b)
    found = bench().compare(left, right)
    out: list[Any] = []
    if found.same:
        out.append(notice("Every number that both have is equal.", kind="ok"))
    lines = [
        html.Tr(
            [
                html.Td(x.name),
                html.Td("" if x.max_abs is None else number(x.max_abs), className="n"),
                html.Td("" if x.correlation is None else number(x.correlation), className="n"),
                html.Td(f"{x.cells:,}", className="n"),
                html.Td(x.reason),
            ]
        )
        for x in found.arrays
    ]
    head = html.Tr(
        [
            html.Th(t, className=c)
            for t, c in (
                ("Array", ""),
                ("largest |B − A|", "n"),
                ("correlation", "n"),
                ("cells", "n"),
                ("", ""),
            )
        ]
    )
    out.append(
        html.Section(
            [
                html.H2("Numbers"),
                html.Div(
                    html.Table([html.Thead(head), html.Tbody(lines)], className="plain"),
                    className="scroll",
                ),
            ],
            className="card",
        )
    )
    for title, rows in (("Spec", found.spec), ("Provenance", found.provenance)):
        out.append(html.Section([html.H2(title), differences(rows)], className="card"))
    names = figures.drawn_names(found.difference)
    if names:
        made = figures.figures_of(
            found.difference, tokens=left.tokens, only=names[0], dark=dark_now()
        )[names[0]]
        out.insert(
            0,
            html.Section(
                [
                    html.H2("Where they differ"),
                    dcc.Graph(
                        figure=made.update_layout(paper_bgcolor="rgba(0,0,0,0)"),
                        config=CONFIG,
                        style=tall(made),
                        responsive=True,
                    ),
                ],
                className="card",
            ),
        )
    out.append(
        html.Div(
            [
                dcc.Link("Open A", href=link(f"/run/{a}"), className="button"),
                dcc.Link("Open B", href=link(f"/run/{b}"), className="button"),
            ],
            className="row",
        )
    )
    return out


def differences(rows: list[tuple[str, Any, Any]]) -> Any:
    """Paths that differ with both values."""
    if not rows:
        return html.P("No difference.", className="muted")
    body = [
        html.Tr(
            [
                html.Td(path),
                html.Td(short(x), className="mono"),
                html.Td(short(y), className="mono"),
            ]
        )
        for path, x, y in rows[:60]
    ]
    head = html.Tr([html.Th(t) for t in ("", "A", "B")])
    return html.Div(
        html.Table([html.Thead(head), html.Tbody(body)], className="plain"), className="scroll"
    )


def short(value: Any) -> str:
    """A value in at most 120 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"


@callback(
    Output("compare-body", "children"),
    Input("compare-a", "value"),
    Input("compare-b", "value"),
    prevent_initial_call=True,
)
def pick(a: str | None, b: str | None) -> Any:
    """The difference of the two picked."""
    return difference(a, b) if a and b else pick_two()
