"""A stored run under its own link: ``/run/<id>?v=1&var=…``; the query holds the view."""

from __future__ import annotations

from typing import Any

import dash
from dash import dcc, html

from apps.workbench import cell  # noqa: F401  (its callbacks open the drawer)
from apps.workbench.bench import bench
from apps.workbench.frame import frame, title_of
from apps.workbench.labels import label_editor
from apps.workbench.listing import when
from apps.workbench.tell import link, notice, page, shown
from apps.workbench.views import read_view

dash.register_page(__name__, path_template="/run/<run_id>", title="Run · interp")


@shown
def layout(run_id: str = "", **query: Any) -> Any:
    """The result, its labels, and what the link asked for that is not there."""
    full = bench().store.resolve(run_id)
    result = bench().result(full)
    view, notices = read_view(query, result.data)
    row = bench().store.row(full)
    actions = [
        dcc.Link(
            "Run it again, changed",
            className="button",
            href=link("/method/" + result.spec["method"], run=full),
        ),
        dcc.Link("Compare", href=link("/compare", a=full), className="button"),
        *beside(result, full),
    ]
    return page(
        title_of(result),
        f"Run {full[:8]}, {when(row.created)}.",
        *(notice(words, kind="warn") for words in notices),
        frame(result, full, view, heading="Result", linked=False),
        html.Section([html.H2("Tags and note"), label_editor(row)], className="card stack"),
        actions=actions,
    )


def beside(result: Any, run: str) -> list[Any]:
    """What a patch grid is held against: its estimates, and the other direction."""
    if result.spec["method"] != "activation_patching":
        return []
    now = str(result.data.attrs.get("direction", "denoising"))
    other = "noising" if now == "denoising" else "denoising"
    back = link("/patching", run=run, direction=other)
    return [
        dcc.Link("Attribution beside", href=link("/attribution", exact=run), className="button"),
        dcc.Link(f"The other direction ({other})", href=back, className="button"),
    ]
