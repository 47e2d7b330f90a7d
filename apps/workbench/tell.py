"""How the page says things: notices, errors, empty states. Plain text in, components out."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from dash import ctx, dcc, html
from dash.exceptions import MissingCallbackContextException
from flask import current_app

import interp

LOG = logging.getLogger("interp.workbench")


def notice(text: str, *, kind: str = "", remedy: str = "", role: str = "status") -> html.Div:
    """One sentence in a box.

    Args:
        text: the sentence.
        kind: ``"warn"``, ``"bad"``, ``"ok"`` or nothing.
        remedy: what to do, on a line of its own.
        role: aria role.
    """
    parts: list[Any] = [text]
    if remedy:
        parts.append(html.Span(remedy, className="remedy"))
    return html.Div(parts, className=f"note {kind}".strip(), role=role)


def tell(error: BaseException) -> html.Div:
    """An error as the person sees it: given, wanted, remedy; a reference for what is ours."""
    if isinstance(error, interp.InterpError):
        return notice(error.message, kind="bad", remedy=error.remedy, role="alert")
    reference = secrets.token_hex(4)
    LOG.error("page failed (reference %s)", reference, exc_info=error)
    return notice(
        f"Something went wrong here (reference {reference}).",
        kind="bad",
        role="alert",
        remedy="The log of the workbench has the details; the other pages go on working.",
    )


def empty(title: str, text: str, *actions: Any) -> html.Div:
    """What stands where nothing is yet."""
    body = [html.H3(title), html.P(text)]
    if actions:
        body.append(
            html.Div(
                list(actions),
                className="row",
                style={"justifyContent": "center", "marginTop": "12px"},
            )
        )
    return html.Div(body, className="empty")


def page(title: str, lede: str, *children: Any, actions: Any = ()) -> html.Div:
    """The head of a page and what follows."""
    head = html.Div(
        [
            html.Div([html.H1(title), html.P(lede, className="lede") if lede else None]),
            html.Div(list(actions), className="row"),
        ],
        className="head",
    )
    return html.Div([head, *children], className="page")


def shown(layout: Callable[..., Any]) -> Callable[..., Any]:
    """A page's layout that turns a failure into a sentence instead of an empty page."""

    @wraps(layout)
    def safe(**query: Any) -> Any:
        try:
            return layout(**{**query, **named_in_path()})
        except Exception as error:  # the page must come up whatever the link says
            return page(
                "This page could not be shown",
                "",
                tell(error),
                dcc.Link("Back to the first page", href=link("/"), className="button"),
            )

    return safe


PLACES = {"run": "run_id", "job": "job_id", "method": "name"}


def named_in_path() -> dict[str, str]:
    """What the path itself names, so that a key of the query never stands in for it."""
    try:
        path = str(ctx.inputs.get("_pages_location.pathname", ""))
    except MissingCallbackContextException:  # a layout that is called by itself
        return {}
    match = re.search(r"/(run|job|method)/([^/]+)/?$", path)
    return {PLACES[match[1]]: match[2]} if match else {}


def query_of(**query: Any) -> str:
    """``?a=1&b=2`` without the empty values; the empty text where none is left."""
    kept = {k: v for k, v in query.items() if v is not None and v != ""}
    return f"?{urlencode(kept)}" if kept else ""


def link(path: str, **query: Any) -> str:
    """A path inside the workbench, under its prefix, with the query's empty values left out."""
    return current_app.config["PREFIX"].rstrip("/") + path + query_of(**query)
