"""A link that leads nowhere: the nearest pages instead."""

from __future__ import annotations

from typing import Any

import dash
from dash import dcc

from apps.workbench.tell import empty, link, page, shown

dash.register_page(__name__, path="/404", title="Not found · interp")


@shown
def layout(**_query: Any) -> Any:
    """What to do instead."""
    return page(
        "There is no such page",
        "The link may be old, or lack its end.",
        empty(
            "Nothing here",
            "These pages are.",
            dcc.Link("Home", href=link("/"), className="button"),
            dcc.Link("Pair builder", href=link("/pair"), className="button"),
            dcc.Link("Runs & jobs", href=link("/runs"), className="button"),
        ),
    )
