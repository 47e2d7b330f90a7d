"""Runs in a list: what, on which model and task, when, and whether its checks hold."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from apps.workbench.bench import bench
from apps.workbench.tell import link


def when(seconds: float | None) -> str:
    """A moment in words: minutes and hours while fresh, the date after."""
    if not seconds:
        return ""
    past = time.time() - float(seconds)
    if past < 60:
        return "just now"
    if past < 3600:
        return f"{past / 60:.0f} min ago"
    if past < 86400:
        return f"{past / 3600:.0f} h ago"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(seconds)))


def size(n: Any) -> str:
    """Bytes for a person."""
    if not n:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def knobs(row: Any) -> str:
    """The knobs of a run that are not at their defaults, and its site, in one line."""
    named = row.summary.get("knobs")
    kept = {k: v for k, v in row.fields.items() if k == "site" or named is None or k in named}
    return ", ".join(f"{k.strip('_')} {v}" for k, v in kept.items() if v not in (None, [], {}, ""))


def failing(n: int) -> str:
    """How many checks fail."""
    return "1 check fails" if n == 1 else f"{n} checks fail"


def checks_word(row: Any) -> html.Span:
    """Whether the trust panel of a run holds."""
    if row.damaged:
        return html.Span("damaged", className="pill bad", title=row.damaged)
    if row.failed_checks:
        return html.Span(failing(row.failed_checks), className="pill warn")
    return html.Span("checks hold", className="pill ok")


def run_lines(rows: Sequence[Any]) -> html.Div:
    """A compact table of runs, each a link to its page."""
    head = html.Tr([html.Th("Run"), html.Th("Model and task"), html.Th("When"), html.Th("Trust")])
    body = [
        html.Tr(
            [
                html.Td(dcc.Link(bench().method_title(r.method), href=link(f"/run/{r.id}"))),
                html.Td(
                    [
                        bench().listed_name(r.model),
                        html.Div(r.task, className="faint"),
                    ]
                ),
                html.Td(when(r.created), className="num"),
                html.Td(checks_word(r)),
            ]
        )
        for r in rows
    ]
    return html.Div(
        html.Table([html.Thead(head), html.Tbody(body)], className="plain"),
        className="card scroll",
        tabIndex=0,
        role="region",
        **{"aria-label": "runs"},
    )
