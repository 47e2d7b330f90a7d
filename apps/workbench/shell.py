"""The shell every page stands in: the rail with its links, the notices, the page."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ClientsideFunction, Input, Output, callback, clientside_callback, dcc, html

from apps.workbench.bench import bench
from apps.workbench.frame import dark_now
from apps.workbench.tell import link

PLACES = (
    ("/", "Home"),
    ("/models", "Models"),
    ("/pair", "Pair builder"),
    ("/patching", "Patching"),
    ("/head", "Head"),
    ("/attribution", "Attribution"),
    ("/depth", "Depth"),
    ("/interpreter", "Linear interpreter"),
    ("/runs", "Runs & jobs"),
)
THEME = {
    "fontFamily": "var(--font)",
    "fontFamilyMonospace": "var(--mono)",
    "primaryColor": "ink",
    "primaryShade": {"light": 7, "dark": 5},
    "defaultRadius": 6,
    "cursorType": "pointer",
    "colors": {
        "ink": [
            "#eef5fb",
            "#dcebf7",
            "#b9d6ee",
            "#93c0e5",
            "#6db3ee",
            "#4a97d6",
            "#2f7cc0",
            "#1c5d99",
            "#174e82",
            "#103a62",
        ],
    },
}


def mark() -> html.Span:
    """The mark: a three by three patch grid with one hot cell."""
    cells = [html.I(className=c) for c in ("", "b", "", "", "a", "c", "", "b", "a")]
    return html.Span(cells, className="mark", **{"aria-hidden": "true"})


def rail(prefix: str) -> html.Nav:
    """The links to the pages and methods, the worker's state and the theme switch."""
    return html.Nav(
        [
            dcc.Link(
                [mark(), html.Span([html.B("interp"), html.Small("patch, look, check")])],
                href=prefix,
                className="brand",
            ),
            *(place(prefix.rstrip("/") + path, name) for path, name in PLACES),
            html.H2("Methods"),
            html.Div(id="rail-methods", className="stack", style={"gap": "2px"}),
            html.Div(
                [
                    html.Span(id="worker", className="worker", role="status"),
                    dmc.ColorSchemeToggle(
                        lightIcon=html.Span("☀"),
                        darkIcon=html.Span("☾"),
                        variant="subtle",
                        color="gray",
                        size="md",
                        id="theme",
                        **{"aria-label": "Switch between light and dark"},
                    ),
                ],
                className="foot",
            ),
        ],
        className="rail",
        **{"aria-label": "Workbench"},
    )


def place(href: str, name: str) -> dcc.Link:
    """One link of the rail."""
    return dcc.Link(name, href=href, className="nav")


def shell(prefix: str) -> Any:
    """The layout around every page."""
    return dmc.MantineProvider(
        [
            html.A("Skip to the page", href="#main", className="skip"),
            html.Div(
                [
                    rail(prefix),
                    html.Main(dash.page_container, id="main", className="main", tabIndex=-1),
                ],
                className="shell",
            ),
            html.Div(id="notices", className="notices"),
            html.Div(id="announce", className="sr-only", **{"aria-live": "polite"}),
            html.Div(id="here", hidden=True),
            dcc.Store(id="scheme", data="dark" if dark_now() else "light"),
            dcc.Interval(id="pulse", interval=5000),
        ],
        theme=THEME,
        defaultColorScheme="auto",
    )


clientside_callback(
    ClientsideFunction("workbench", "arrived"),
    Output("here", "children"),
    Input("_pages_location", "pathname"),
    Input("rail-methods", "children"),
)


@callback(
    Output("worker", "children"), Output("rail-methods", "children"), Input("pulse", "n_intervals")
)
def show_worker(_beats: int | None) -> Any:
    """The worker's state, and the methods it published."""
    state, words = bench().worker_state()
    links = [
        place(link(f"/method/{key}"), entry.get("title") or key)
        for key, entry in bench().listed_methods().items()
    ]
    if not links:
        links = [html.Span("The worker has not published any yet.", className="faint")]
    return [html.Span(className=f"dot {state}"), words], links
