"""The first page: a grid that this installation's own worker computed, and where to go on."""

from __future__ import annotations

from typing import Any

import dash
from dash import Input, Output, State, callback, dcc, html, no_update

import interp
from apps.workbench import cell  # noqa: F401  (its callbacks open the drawer)
from apps.workbench.bench import bench
from apps.workbench.frame import frame
from apps.workbench.listing import run_lines
from apps.workbench.live import live
from apps.workbench.tell import empty, link, page, shown

dash.register_page(__name__, path="/", title="interp")

RANDOM = "zoo:random-"

STEPS = (
    (
        "/pair",
        "Build a pair",
        "Two prompts that differ in one thing, aligned token by token and "
        "checked before anything is measured.",
    ),
    (
        "/patching",
        "Patch",
        "Put one run's activations into the other, everywhere, and see what moves the answer.",
    ),
    (
        "/models",
        "Look at the models",
        "What each model is, what it can do, and why it cannot do the rest.",
    ),
)


@shown
def layout(**_query: Any) -> Any:
    """The welcome grid, the next steps, the last runs."""
    return page(
        "Where does the model keep the answer?",
        "The shipped model reads a sentence with two names, “When Mary and John went to the "
        "store, John gave a drink to”, and says who receives. Each cell below puts one "
        "activation of the clean run into the corrupt run: 1 means that alone restores the "
        "answer, 0 that nothing moved. Open a cell to see why.",
        welcome(),
        html.Div(
            [
                html.Section([html.H2("Go on from here"), steps()], className="stack"),
                html.Section(
                    [
                        html.H2("Last runs"),
                        html.Div(last_runs(), id="home-runs"),
                        dcc.Store(id="home-newest", data=newest()),
                    ],
                    className="stack",
                ),
            ],
            className="halves",
        ),
        html.Section(
            [html.H2("Shipped models, and what each is good for"), zoo()], className="stack"
        ),
    )


def zoo() -> html.Div:
    """Every shipped model with its question; the hard random ones stand on the models page."""
    rows = [r for r in interp.list_models(dictionaries=True) if not r.ref.startswith(RANDOM)]
    body = [
        html.Tr(
            [
                html.Td(r.ref if r.origin == "dictionary" else one_model(r.ref)),
                html.Td(r.question),
                html.Td(r.title, className="faint"),
            ]
        )
        for r in rows
    ]
    head = html.Tr([html.Th("Model"), html.Th("Good for"), html.Th("What it is")])
    return html.Div(
        html.Table([html.Thead(head), html.Tbody(body)], className="plain", id="home-zoo"),
        className="card",
    )


def one_model(ref: str) -> dcc.Link:
    """The way to a model's page."""
    return dcc.Link(ref, href=link("/models", ref=ref))


def welcome() -> Any:
    """The first grid: stored, or on its way, or the reason why not."""
    run, job = bench().welcome_state()
    if bench().first and not run and not job:  # its run was deleted: it is computed again
        bench().welcome()
        run, job = bench().welcome_state()
    if run:
        return frame(bench().result(run), run)
    if job:
        return live(job, heading="Computing your first grid")
    return empty(
        "No grid yet",
        "The worker is not running, so nothing could be computed.",
        dcc.Link("Runs & jobs", href=link("/runs"), className="button"),
    )


def steps() -> html.Div:
    """Three ways on."""
    return html.Div(
        [
            dcc.Link(
                [html.H3(name), html.P(words, className="muted")], href=link(path), className="card"
            )
            for path, name, words in STEPS
        ],
        className="stack",
    )


def newest() -> str:
    """The id of the newest run, or nothing."""
    rows = bench().store.list(limit=1)
    return rows[0].id if rows else ""


@callback(
    Output("home-runs", "children"),
    Output("home-newest", "data"),
    Input("pulse", "n_intervals"),
    State("home-newest", "data"),
    prevent_initial_call=True,
)
def look_again(_beats: Any, known: str) -> Any:
    """The list again when there is a newer run."""
    now = newest()
    return (no_update, no_update) if now == known else (last_runs(), now)


def last_runs() -> Any:
    """The newest runs as links."""
    rows = bench().store.list(limit=6)
    if not rows:
        return empty("Nothing measured yet", "Finished runs are listed here.")
    return run_lines(rows)
