"""Tags and a note on a run: a person's own words beside the measured ones."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import MATCH, Input, Output, State, callback, html, no_update

from apps.workbench.bench import bench
from apps.workbench.tell import notice


def tag_id(kind: str, run: str) -> dict[str, str]:
    """The id of one piece of the editor."""
    return {"type": f"label-{kind}", "run": run}


def label_editor(row: Any) -> html.Div:
    """Tags, a note, and a button that keeps them."""
    return html.Div(
        [
            dmc.TagsInput(
                label="Tags",
                value=list(row.tags),
                id=tag_id("tags", row.id),
                description="Enter adds one; the list of runs can be filtered by them",
                maxTags=20,
                w=420,
            ),
            dmc.Textarea(
                label="Note",
                value=row.note,
                id=tag_id("note", row.id),
                autosize=True,
                minRows=2,
                maxRows=10,
            ),
            html.Div(
                [
                    html.Button("Keep", id=tag_id("keep", row.id), className="button"),
                    html.Span(id=tag_id("said", row.id), role="status", className="muted"),
                ],
                className="row",
            ),
        ],
        className="stack",
    )


@callback(
    Output(tag_id("said", MATCH), "children"),
    Input(tag_id("keep", MATCH), "n_clicks"),
    State(tag_id("tags", MATCH), "value"),
    State(tag_id("note", MATCH), "value"),
    State(tag_id("keep", MATCH), "id"),
    prevent_initial_call=True,
)
def keep(clicks: int | None, tags: list[str] | None, note: str | None, own: Any) -> Any:
    """Write tags and note to the store."""
    if not clicks:
        return no_update
    store, wanted = bench().store, [str(t) for t in tags or []]
    had = store.row(own["run"]).tags
    try:
        store.tag(own["run"], *wanted, remove=[t for t in had if t not in wanted])
        store.note(own["run"], str(note or ""))
    except ValueError as error:
        return notice(str(error), kind="bad")
    return "Kept."
