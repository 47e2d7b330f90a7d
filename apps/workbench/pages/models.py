"""Models: the shipped ones, the folders of the roots, a hub id; what each is and can do."""

from __future__ import annotations

import re
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import Input, Output, State, callback, dcc, html, no_update

from apps.workbench.bench import bench
from apps.workbench.choose import BACKENDS, DTYPES
from apps.workbench.listing import run_lines, size
from apps.workbench.panels import check_line, facts_list
from apps.workbench.tell import empty, link, notice, page, shown, tell

dash.register_page(__name__, path="/models", title="Models · interp")

RANDOM = "zoo:random-"
HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.-]{1,64})?")


@shown
def layout(ref: str = "", backend: str = BACKENDS[0], dtype: str = DTYPES[0], **_query: Any) -> Any:
    """The models that are here, and one of them opened."""
    rows = bench().models()
    cards = [model_card(row) for row in rows if not row["ref"].startswith(RANDOM)]
    random = [model_card(row) for row in rows if row["ref"].startswith(RANDOM)]
    hub = html.Form(
        [
            dmc.TextInput(
                label="From the hub",
                id="models-hub",
                placeholder="gpt2, EleutherAI/…",
                description="an id, optionally @revision; it must be in the local cache "
                "unless this computer is online",
                size="sm",
                w=340,
            ),
            html.Button("Open", id="models-open", className="button", type="button"),
            html.Div(id="models-said"),
        ],
        className="row",
        style={"alignItems": "flex-end"},
    )
    return page(
        "Models",
        "Shipped models have a known answer and a card. Folders come from the roots "
        "given with --models.",
        html.Div(cards, className="cards")
        if cards
        else empty("No model here", "Start the workbench with --models DIR to offer your own."),
        html.Details(
            [
                html.Summary(f"Random models for testing methods ({len(random)})"),
                html.Div(random, className="cards"),
            ],
            className="more",
            open=ref.startswith(RANDOM),
        ),
        html.Div(hub, className="card"),
        html.Div(dmc.Skeleton(height=220), id="models-one", className="stack") if ref else None,
        dcc.Store(
            id="models-ref", data={"ref": ref, "backend": backend, "dtype": dtype} if ref else None
        ),
    )


def model_card(row: dict[str, Any]) -> Any:
    """One model in a few words."""
    facts = " · ".join(str(x) for x in (row.get("architecture"), size(row.get("size_bytes"))) if x)
    if not row.get("ok", True):
        return html.Div(
            [html.H3(row["title"]), notice(row.get("reason") or "It does not open.", kind="warn")],
            className="card",
        )
    return dcc.Link(
        [
            html.H3(row.get("title") or row["ref"]),
            html.P(row.get("question") or "", className="muted"),
            html.Div(
                [html.Span(row["ref"], className="pill"), html.Span(facts, className="faint")],
                className="row",
                style={"marginTop": "8px"},
            ),
        ],
        href=link("/models", ref=row["ref"]),
        className="card",
    )


@callback(Output("models-one", "children"), Input("models-ref", "data"))
def describe(what: dict[str, str] | None) -> Any:
    """The model's card, self-checks and capabilities, from the worker."""
    if not what:
        return no_update
    try:
        return model_view(
            what["ref"], bench().describe(what["ref"], what["backend"], what["dtype"])
        )
    except Exception as error:  # told in the place of the model
        return tell(error)


@callback(
    Output("models-said", "children"),
    Input("models-open", "n_clicks"),
    State("models-hub", "value"),
    prevent_initial_call=True,
)
def hub(clicks: int | None, text: str | None) -> Any:
    """A hub id, held against its pattern before anything looks for it."""
    if not clicks:
        return no_update
    wanted = (text or "").strip()
    if not HUB.fullmatch(wanted) or ".." in wanted:
        return notice(
            "That is no id of a model.",
            kind="warn",
            remedy="Write it as name or owner/name, as in gpt2.",
        )
    return dcc.Link(f"Open {wanted}", href=link("/models", ref=wanted), className="button go")


def model_view(ref: str, found: dict[str, Any]) -> list[Any]:
    """Everything known of a model."""
    shape = found.get("shape") or {}
    figures = [
        (k, shape.get(f))
        for k, f in (
            ("layers", "n_layers"),
            ("heads", "n_heads"),
            ("KV heads", "n_kv_heads"),
            ("width", "d_model"),
            ("head width", "d_head"),
            ("neurons", "d_mlp"),
            ("vocabulary", "vocab"),
            ("context", "n_ctx"),
            ("parameters", "n_params"),
        )
    ]
    card = html.Section(
        [
            html.Div(
                [
                    html.H2(ref),
                    html.Span(shape.get("architecture") or "", className="pill"),
                    dcc.Link("Patch it", href=link("/patching", model=ref), className="button go"),
                    dcc.Link("Build a pair", href=link("/pair", model=ref), className="button"),
                ],
                className="row",
            ),
            html.Div(
                [
                    html.Div([html.B(f"{v:,}" if isinstance(v, int) else str(v)), html.Span(k)])
                    for k, v in figures
                    if v
                ],
                className="figures",
            ),
            facts_list(
                {
                    k: found[k]
                    for k in (
                        "id",
                        "weight_hash",
                        "backend",
                        "dtype",
                        "device",
                        "tokenizer",
                        "default_bos",
                    )
                    if k in found
                }
            ),
            story(bench().card(ref)),
        ],
        className="card stack",
    )
    checks = [check_line(c) for c in bench().checks_of(found)]
    return [
        card,
        html.Div(
            [
                html.Section(
                    [
                        html.H2("Self-checks of the adapter"),
                        html.Div(checks or notice("None was made.")),
                    ],
                    className="card",
                ),
                html.Section([html.H2("What it can do"), capabilities(found)], className="card"),
            ],
            className="halves",
        ),
        html.Section(
            [html.H2("Methods on this model"), method_table(ref, found)], className="card"
        ),
        html.Section([html.H2("Last runs on it"), last_runs(ref)], className="stack"),
    ]


TOLD = ("name", "title", "question", "architecture", "size_bytes")
"""Parts of a card that stand above it already."""


def story(facts: dict[str, Any]) -> Any:
    """A shipped model's card: what it learned from, how good it is, how it does it."""
    parts = [
        html.Div([html.H3(key.replace("_", " ")), told(value)], className="stack tight")
        for key, value in facts.items()
        if key not in TOLD and value not in (None, {}, [])
    ]
    if not parts:
        return None
    return html.Details(
        [
            html.Summary("Card: data, accuracy, mechanism"),
            html.Div(parts, className="stack", style={"gap": "16px"}),
        ],
        className="more",
        open=True,
    )


def told(value: Any) -> Any:
    """A part of a card: a table of equal rows, names with values, or a sentence."""
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        keys = list(dict.fromkeys(k for row in value.values() for k in row))
        head = html.Tr([html.Th(""), *(html.Th(k.replace("_", " ")) for k in keys)])
        rows = [
            html.Tr([html.Td(name), *(html.Td(brief(row.get(k))) for k in keys)])
            for name, row in value.items()
        ]
        return html.Div(
            html.Table([html.Thead(head), html.Tbody(rows)], className="plain"),
            className="scroll",
            tabIndex=0,
            role="region",
            **{"aria-label": "table of the card"},
        )
    if isinstance(value, dict):
        flat = {k: brief(v) for k, v in value.items() if not isinstance(v, dict)}
        deeper = [
            html.Div([html.Span(k.replace("_", " "), className="faint"), told(v)])
            for k, v in value.items()
            if isinstance(v, dict)
        ]
        shown = (
            facts_list(flat)
            if len(flat) <= 5
            else html.P(
                " · ".join(f"{k.replace('_', ' ')} {v}" for k, v in flat.items()), className="muted"
            )
        )
        return html.Div([shown, *deeper], className="stack tight")
    return html.P(brief(value), className="muted")


def brief(value: Any) -> str:
    """A value of a card in a few words."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {brief(v)}" for k, v in value.items())
    if isinstance(value, list):
        pairs = all(isinstance(v, list) for v in value)
        return ", ".join(".".join(map(brief, v)) if pairs else brief(v) for v in value)
    return str(value)


def capabilities(found: dict[str, Any]) -> Any:
    """Every site and feature, each 'no' with its reason."""
    rows = [
        html.Tr(
            [
                html.Td(c["name"]),
                html.Td(yes(c["ok"])),
                html.Td(c.get("reason") or "", className="faint"),
            ]
        )
        for c in sorted(found.get("capabilities") or (), key=lambda c: c["ok"])
    ]
    return html.Div(
        html.Table(html.Tbody(rows), className="plain"),
        className="scroll",
        style={"maxHeight": "420px"},
        tabIndex=0,
        role="region",
        **{"aria-label": "capabilities"},
    )


def yes(ok: bool) -> html.Span:
    """Yes or no, in word and colour."""
    return html.Span("yes" if ok else "no", className="pill ok" if ok else "pill warn")


def method_table(ref: str, found: dict[str, Any]) -> Any:
    """Which methods run on this model, and why the others do not."""
    able = {c["name"]: c for c in found.get("capabilities") or ()}
    rows = []
    for key, entry in bench().listed_methods().items():
        lacking = [able[n] for n in entry.get("needs") or () if n in able and not able[n]["ok"]]
        why = "; ".join(f"{c['name']}: {c.get('reason')}" for c in lacking)
        rows.append(
            html.Tr(
                [
                    html.Td(
                        dcc.Link(entry.get("title") or key, href=link(f"/method/{key}", model=ref))
                    ),
                    html.Td(yes(not lacking)),
                    html.Td(why, className="faint"),
                ]
            )
        )
    return (
        html.Table(html.Tbody(rows), className="plain")
        if rows
        else html.P("The worker has published no methods yet.", className="faint")
    )


def last_runs(ref: str) -> Any:
    """The newest runs on this model."""
    rows = bench().store.list(model=bench().stored_name(ref), limit=5)
    return run_lines(rows) if rows else empty("No run yet", "Runs on this model show here.")
