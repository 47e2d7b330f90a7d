"""A checked pair: aligned rows, what each check says and how to mend it, what the model answers."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from apps.workbench.bench import bench
from apps.workbench.pages.patching import pair_rows
from apps.workbench.panels import check_line, number
from apps.workbench.tell import link, notice
from apps.workbench.tokens import likely

MOST_SHOWN = 8


def pair_view(model: str, source: dict[str, Any], bos: bool | None) -> list[Any]:
    """Everything about the pairs of a source, for a model.

    Args:
        model: the model's ref.
        source: ``ref``, ``rows`` or ``text`` (see the Pair builder).
        bos: whether to put a beginning-of-sequence token in front; None does as the model does.
    """
    found = bench().check_pair(model, source, bos)
    pairs = found.pairs
    use = link("/patching", model=model, task=found.task)
    head = html.Div(
        [
            html.H2(pairs.name),
            html.Span(f"{len(pairs)} pairs" if len(pairs) > 1 else "1 pair", className="pill"),
            dcc.Link("Patch this", href=use, className="button go"),
        ],
        className="row",
    )
    return [
        html.Section([head, *pair_rows(pairs)], className="card stack"),
        html.Section([html.H2("Can the model do this?"), baseline(found, model)], className="card"),
        html.Section([html.H2("Checks"), *pair_checks(pairs)], className="card"),
        others(pairs),
    ]


def baseline(found: Any, model: str) -> Any:
    """The metrics on both prompts, and the likely next tokens of the first pair."""
    if found.said is None:
        return notice("The worker has no method for this.", kind="warn")
    data, pairs = found.said.data, found.pairs
    names = [n for n in data.data_vars if data[n].dims == ("side", "prompt")]
    lines = [
        html.Tr(
            [
                html.Td(str(data[n].attrs.get("long_name") or n)),
                *(
                    html.Td(number(float(data[n].sel(side=s).mean())), className="n")
                    for s in ("clean", "corrupt")
                ),
                html.Td(str(data[n].attrs.get("units", "")).replace("1", ""), className="faint"),
            ]
        )
        for n in names
    ]
    head = html.Tr(
        [
            html.Th("mean over the pairs"),
            html.Th("clean", className="n"),
            html.Th("corrupt", className="n"),
            html.Th(""),
        ]
    )
    right, wrong = (
        set(bench().texts(model, getattr(pairs, k)[0]).values()) for k in ("right", "wrong")
    )
    sides = [
        html.Div(
            [html.H3(f"Next token, {side}, pair 1"), likely(rows[:6], list(right), list(wrong))],
            className="stack tight",
        )
        for side, rows in bench().top_tokens(model, data).items()
    ]
    return html.Div(
        [
            *(check_line(c) for c in own_checks(found)),
            html.Table([html.Thead(head), html.Tbody(lines)], className="plain"),
            html.Div(sides, className="halves", style={"marginTop": "12px"}),
        ]
    )


def own_checks(found: Any) -> list[Any]:
    """The checks of the pair itself (those of the adapter stand on the model's page)."""
    return [c for c in found.said.checks if c.name in ("baseline_accuracy", "metric_gap")]


def pair_checks(pairs: Any) -> list[Any]:
    """Each check of the pair with what to do where it fails."""
    aligned = pairs.aligned()
    first = pairs.first_difference()
    lines = [
        ("ok", "Clean and corrupt have equal token lengths in every pair.", "")
        if not pairs.span_map
        else ("ok", "Lengths differ; a span map says which positions correspond.", ""),
        (
            "ok",
            "Every pair differs somewhere.",
            f"first at position {int(first.min())}"
            + (f" to {int(first.max())}" if first.min() != first.max() else ""),
        ),
        ("ok", "All prompts have the same length, so positions compare between pairs.", "")
        if aligned
        else (
            "said",
            "Prompts have different lengths.",
            "Averages over pairs use named slots instead of positions, or take one template only.",
        ),
        (
            "ok" if pairs.bos else "said",
            "A beginning-of-sequence token stands in front."
            if pairs.bos
            else "No beginning-of-sequence token.",
            "" if pairs.bos else "Right for models that were trained without one.",
        ),
    ]
    return [check_row(*line) for line in lines]


def check_row(kind: str, words: str, more: str) -> html.Div:
    """One check as sign, sentence and remedy."""
    sign = {"ok": "✓", "bad": "!", "said": "·"}[kind]
    return html.Div(
        [
            html.Span(sign, className="sign", **{"aria-hidden": "true"}),
            html.Span(words),
            html.Span({"ok": "holds", "bad": "look here", "said": "note"}[kind], className="value"),
            html.Span(more, className="why") if more else None,
        ],
        className=f"check {kind}",
    )


def others(pairs: Any) -> Any:
    """Further pairs of the task, folded."""
    if len(pairs) < 2:
        return None
    rows = [html.Div(pair_rows(pairs, i)) for i in range(1, min(len(pairs), MOST_SHOWN))]
    more = (
        notice(f"{len(pairs) - MOST_SHOWN} more are not shown.")
        if len(pairs) > MOST_SHOWN
        else None
    )
    return html.Details(
        [html.Summary("More pairs of this task"), html.Div([*rows, more], className="stack")],
        className="card more",
    )
