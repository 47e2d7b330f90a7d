"""Patching: the pair in sight, the sweep chosen, its cost known, the grid filling while it runs."""

from __future__ import annotations

from typing import Any

import dash
from dash import Input, Output, callback, html

from apps.workbench.bench import bench
from apps.workbench.pages.method import starting
from apps.workbench.tell import notice, page, shown, tell
from apps.workbench.tokens import answers, token_rows
from apps.workbench.workform import work, work_id

METHOD = "activation_patching"

dash.register_page(__name__, path="/patching", title="Patching · interp")


@shown
def layout(**query: Any) -> Any:
    """The pair, the form, the grid."""
    entry = bench().method(METHOD) or {}
    start, notices = starting(entry, query)
    return page(
        "Patching",
        entry.get("question") or "Which activations carry what differs between two prompts?",
        *(notice(words, kind="warn") for words in notices),
        html.Div(
            html.P("The first pair of the task is shown here.", className="faint"),
            id="patching-pair",
            className="card",
        ),
        work(METHOD, **start),
    )


@callback(
    Output("patching-pair", "children"),
    Input(work_id("model", METHOD), "value"),
    Input(work_id("task", METHOD), "value"),
)
def show_pair(model: str | None, task: str | None) -> Any:
    """The first pair of the task, as this model reads it."""
    if not model or not task:
        return html.P("Choose a model and a task.", className="faint")
    try:
        return pair_rows(bench().pairs(model, task))
    except Exception as error:  # told in the place of the pair
        return tell(error)


def pair_rows(pairs: Any, row: int = 0) -> Any:
    """One pair of a task: both token rows, right and wrong."""
    ids = (pairs.clean[row], pairs.corrupt[row])
    texts = (pairs.clean_text or pairs.clean, pairs.corrupt_text or pairs.corrupt)
    same = [a == b for a, b in zip(*ids, strict=False)]
    same += [False] * (max(map(len, ids)) - len(same))
    words = [list(map(str, t[row])) for t in texts]
    named = html.Div(
        [
            html.Span(f"Pair {row + 1} of {len(pairs)}", className="faint"),
            html.Span("right", className="faint"),
            *answers(pairs.answer_text, pairs.right[row]),
            html.Span("wrong" if pairs.wrong[row] else "", className="faint"),
            *answers(pairs.answer_text, pairs.wrong[row]),
        ],
        className="row",
    )
    return [token_rows(*words, bos=pairs.bos, same=same), named]
