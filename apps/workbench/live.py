"""A running job on the page: progress, cancel, the grid as it fills, and the result at the end."""

from __future__ import annotations

import time
from typing import Any

from dash import MATCH, Input, Output, State, callback, ctx, dcc, html, no_update

from apps.workbench.bench import bench
from apps.workbench.frame import CONFIG, dark_now, frame, tall
from apps.workbench.tell import notice, tell
from interp import figures

BEAT = 1000
"""Milliseconds between two looks, and only while the job lives."""
SETTLED = ("done", "failed", "cancelled", "interrupted")
WORDS = {
    "queued": "Waiting for the worker",
    "running": "Running",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "interrupted": "Interrupted",
}
PILLS = {
    "done": "ok",
    "failed": "bad",
    "cancelled": "warn",
    "interrupted": "warn",
    "running": "live",
    "queued": "",
}


def piece(kind: str, job: str) -> dict[str, str]:
    """The id of one piece of a job's panel."""
    return {"type": f"live-{kind}", "job": job}


def live(job_id: str, *, heading: str = "") -> html.Div:
    """A panel that follows a job until it ends, and then shows its result.

    Args:
        job_id: the job.
        heading: words above while it runs.
    """
    row = bench().job(job_id)
    if row is None:
        return notice(
            "There is no such job in this store.",
            kind="warn",
            remedy="It may have been deleted; the list of runs has what is kept.",
        )
    over = row["state"] in SETTLED
    head = html.Div(
        [html.H2(heading or bench().job_title(row)), html.Span(id=piece("pill", job_id))],
        className="frame-head",
    )
    buttons = html.Div(
        [
            html.Button("Cancel", id=piece("cancel", job_id), className="button", hidden=over),
            html.Button("Resume", id=piece("resume", job_id), className="button", hidden=True),
            html.Button(
                "Stop the worker and mark this interrupted",
                id=piece("kill", job_id),
                className="button",
                hidden=True,
            ),
        ],
        className="row",
    )
    waiting = html.Div(
        [
            head,
            html.Div(
                [
                    html.Div(status(row), id=piece("status", job_id)),
                    buttons,
                    html.Div(
                        dcc.Graph(id=piece("figure", job_id), config=CONFIG, responsive=True),
                        id=piece("box", job_id),
                        hidden=True,
                        className="figure",
                    ),
                ],
                className="stack live",
                style={"padding": "4px 18px 18px"},
            ),
        ],
        className="card flush",
        id=piece("waiting", job_id),
    )
    return html.Div(
        [
            waiting,
            html.Div(id=piece("result", job_id)),
            dcc.Interval(id=piece("beat", job_id), interval=BEAT),
        ],
        className="stack",
    )


def status(row: dict[str, Any]) -> html.Div:
    """Progress as a bar and a sentence."""
    done, total = float(row.get("done") or 0), float(row.get("total") or 0)
    share = min(100.0, 100 * done / total) if total else 0.0
    state = row["state"]
    words = [str(WORDS.get(state, state))]
    if state in ("running", "interrupted", "cancelled") and total:
        words.append(f"{share:.0f} %")
    if state == "running" and (left := remaining(row, share)):
        words.append(left)
    if row.get("message") and state == "running":
        words.append(str(row["message"]))
    if row.get("stalled"):
        words.append(f"no progress for {row['still_s']:.0f} s")
    bar = html.Div(
        html.Div(style={"width": f"{share:.1f}%"}),
        className="track",
        role="progressbar",
        **{
            "aria-valuenow": f"{share:.0f}",
            "aria-valuemin": "0",
            "aria-valuemax": "100",
            "aria-label": "progress",
        },
    )
    parts: list[Any] = [bar, html.P(" · ".join(words), className="muted num")]
    if row.get("error"):
        parts.append(notice(str(row["error"]), kind="bad" if state == "failed" else "warn"))
    elif state in ("cancelled", "interrupted"):
        parts.append(notice("What was finished is kept; Resume goes on from there.", kind="warn"))
    return html.Div(parts, className="stack tight")


def remaining(row: dict[str, Any], share: float) -> str:
    """About how long it still takes, from what it took so far."""
    started = row.get("started")
    if not started or share < 3:
        return ""
    passed = time.time() - float(started)
    left = passed * (100 - share) / share
    return f"about {left / 60:.0f} min left" if left > 90 else f"about {max(left, 1):.0f} s left"


@callback(
    Output(piece("status", MATCH), "children"),
    Output(piece("pill", MATCH), "children"),
    Output(piece("pill", MATCH), "className"),
    Output(piece("beat", MATCH), "disabled"),
    Output(piece("figure", MATCH), "figure"),
    Output(piece("figure", MATCH), "style"),
    Output(piece("box", MATCH), "hidden"),
    Output(piece("result", MATCH), "children"),
    Output(piece("waiting", MATCH), "hidden"),
    Output(piece("cancel", MATCH), "hidden"),
    Output(piece("resume", MATCH), "hidden"),
    Output(piece("kill", MATCH), "hidden"),
    Input(piece("beat", MATCH), "n_intervals"),
    State(piece("beat", MATCH), "id"),
)
def follow(_beats: Any, own: dict[str, str]) -> Any:
    """One look at the job: its progress, what is drawn of it so far, its result at the end."""
    row = bench().job(own["job"])
    if row is None:
        return (no_update,) * 3 + (True,) + (no_update,) * 8
    state = row["state"]
    over, done = state in SETTLED, state == "done"
    figure = no_update if done else partial_figure(own["job"])
    result = finished(row) if done else no_update
    return (
        status(row),
        WORDS.get(state, state),
        f"pill {PILLS.get(state, '')}",
        over,
        figure,
        no_update if figure is no_update else tall(figure),
        no_update if figure is no_update else False,
        result,
        done,
        over,
        state not in ("cancelled", "interrupted", "failed"),
        not row.get("stalled"),
    )


def partial_figure(job_id: str) -> Any:
    """The grid as far as it is finished, or no change."""
    found = bench().partial(job_id)
    names = figures.drawn_names(found) if found is not None else []
    if not names:
        return no_update
    tokens = bench().known_tokens((bench().job(job_id) or {}).get("job") or {})
    made = figures.figures_of(found, tokens=tokens, only=names[0], dark=dark_now())
    return made[names[0]].update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")


def finished(row: dict[str, Any]) -> Any:
    """The frame of a job's run."""
    try:
        return frame(bench().result(row["run_id"]), row["run_id"])
    except Exception as error:  # shown in the place of the result
        return tell(error)


@callback(
    Output(piece("status", MATCH), "children", allow_duplicate=True),
    Output(piece("beat", MATCH), "disabled", allow_duplicate=True),
    Input(piece("cancel", MATCH), "n_clicks"),
    Input(piece("resume", MATCH), "n_clicks"),
    Input(piece("kill", MATCH), "n_clicks"),
    State(piece("beat", MATCH), "id"),
    prevent_initial_call=True,
)
def steer(_cancel: Any, _resume: Any, _kill: Any, own: dict[str, str]) -> Any:
    """Cancel, resume or kill the job."""
    if not any(t["value"] for t in ctx.triggered):
        return no_update, no_update
    asked = str((ctx.triggered_id or {}).get("type")).removeprefix("live-")
    {"cancel": bench().cancel, "resume": bench().resume, "kill": bench().kill}[asked](own["job"])
    return status(bench().job(own["job"]) or {"state": "queued"}), False
