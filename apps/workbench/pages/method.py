"""``/method/<name>``: a page for every method of the catalogue, from its schema alone."""

from __future__ import annotations

from typing import Any

import dash
from dash import dcc, html

from apps.workbench.bench import bench
from apps.workbench.tell import empty, link, notice, page, shown
from apps.workbench.workform import work

dash.register_page(__name__, path_template="/method/<name>", title="Method · interp")


@shown
def layout(name: str = "", **query: Any) -> Any:
    """The method's question and its form."""
    entry = bench().method(name)
    if entry is None:
        known = bench().listed_methods()
        links = [
            dcc.Link(e.get("title") or k, href=link(f"/method/{k}"), className="button")
            for k, e in known.items()
        ]
        words = (
            "There is no method of that name here."
            if known
            else "The worker has not published its methods yet; load the page again in a moment."
        )
        return page("Method", words, empty("No such method", "These are here.", *links))
    start, notices = starting(entry, query)
    return page(
        entry.get("title") or name,
        entry.get("question") or "",
        *(notice(words, kind="warn") for words in notices),
        work(name, **start),
        sources(entry),
    )


def starting(entry: dict[str, Any], query: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Model, task, job and knobs of a link; a sentence for each part that means nothing."""
    start: dict[str, Any] = {"model": "", "task": "", "job": ""}
    values: dict[str, Any] = {}
    notices = []
    if query.get("run"):
        spec = bench().result(str(query.pop("run"))).spec
        start["model"], start["task"] = bench().model_of(spec), bench().task_of(spec)
        values = dict(spec.get("fields") or {})
    known = (entry.get("schema") or {}).get("properties") or {}
    for key, value in query.items():
        text = str(value[0] if isinstance(value, list) else value)[:500]
        if key in start:
            start[key] = text
        elif key in known:
            values[key] = text
        else:
            notices.append(f"{str(key)[:24]} means nothing here; it was left out.")
    return {**start, "values": values}, notices[:3]


def sources(entry: dict[str, Any]) -> Any:
    """Where the method was published."""
    if not entry.get("citations"):
        return None
    return html.P(["Sources: ", ", ".join(entry["citations"])], className="faint")
