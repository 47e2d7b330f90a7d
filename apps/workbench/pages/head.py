"""A head: where it looks on the clean and the corrupt prompt, and what patching it does."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, callback, dcc, html

from apps.workbench.bench import bench
from apps.workbench.cell import bar_line
from apps.workbench.frame import CONFIG, graph, tall
from apps.workbench.panels import number
from apps.workbench.tell import empty, link, notice, page, shown, tell
from apps.workbench.tokens import token
from interp import figures

dash.register_page(__name__, path="/head", title="Head · interp")

SIDES = [
    {"value": "clean", "label": "clean"},
    {"value": "corrupt", "label": "corrupt"},
    {"value": "difference", "label": "clean − corrupt"},
]


@shown
def layout(
    run: str = "",
    model: str = "",
    task: str = "",
    layer: str = "0",
    head: str = "",
    prompt: str = "0",
    side: str = "clean",
    **query: Any,
) -> Any:
    """The controls, the head's pattern, the heads beside it."""
    notices = []
    if run:
        spec = bench().result(bench().store.resolve(run)).spec
        model, task = bench().model_of(spec), bench().task_of(spec)
    model, task = model or "zoo:ioi", task or bench().default_task()
    shape = bench().shape(model)
    at, more = picked(shape, {"layer": layer, "head": head or "0", "prompt": prompt})
    notices += more
    side = side if side in {s["value"] for s in SIDES} else "clean"
    store = {"model": model, "task": task, "run": run}
    return page(
        "Head",
        "Where it looks from each position, and what it does to the answer when its "
        "output is patched.",
        *(notice(words, kind="warn") for words in notices),
        html.Div(
            [
                html.Div(controls(shape, at, side), className="card stack"),
                html.Div(id="head-out", className="stack"),
            ],
            className="two",
        ),
        dcc.Store(id="head-what", data=store),
        actions=[dcc.Link("Back to the run", href=link(f"/run/{run}"), className="button")]
        if run
        else (),
    )


def picked(shape: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Layer, head and prompt of a link; a sentence for what the model does not have."""
    most = {"layer": shape["n_layers"], "head": shape["n_heads"], "prompt": 10_000}
    out, notices = {}, []
    for name, text in given.items():
        good = str(text).isdigit() and int(text) < most[name]
        out[name] = int(text) if good else 0
        if not good:
            notices.append(f"There is no {name} {str(text)[:20]} here; {name} 0 is shown.")
    return out, notices


def controls(shape: dict[str, Any], at: dict[str, int], side: str) -> list[Any]:
    """Layer, head, prompt, side."""

    def choice(name: str, n: int, first: int = 0) -> Any:
        return dmc.Select(
            label=name,
            id=f"head-{name}",
            value=str(min(at[name], n - 1)),
            size="sm",
            allowDeselect=False,
            searchable=n > 12,
            data=[{"value": str(i), "label": str(i + first)} for i in range(n)],
        )

    group = shape["n_heads"] // max(shape["n_kv_heads"], 1)
    words = f"{shape['n_heads']} heads a layer" + (
        f", groups of {group} share keys and values" if group > 1 else ""
    )
    return [
        html.Div(
            [choice("layer", shape["n_layers"]), choice("head", shape["n_heads"])],
            className="halves",
        ),
        dmc.NumberInput(
            label="prompt",
            id="head-prompt",
            value=at["prompt"] + 1,
            min=1,
            size="sm",
            allowDecimal=False,
        ),
        html.Div(
            [
                html.Label("which run", id="head-side-label", className="faint"),
                dmc.SegmentedControl(
                    id="head-side", data=SIDES, value=side, fullWidth=True, size="xs"
                ),
            ]
        ),
        html.P(words, className="faint"),
    ]


@callback(
    Output("head-out", "children"),
    Input("head-layer", "value"),
    Input("head-head", "value"),
    Input("head-prompt", "value"),
    Input("head-side", "value"),
    Input("scheme", "data"),
    State("head-what", "data"),
)
def show(layer: str, head: str, prompt: Any, side: str, scheme: str, what: Any) -> Any:
    """The pattern of the head, of all heads of its layer, and what it writes."""
    at = (int(layer or 0), int(head or 0), max(int(prompt or 1) - 1, 0))
    try:
        return head_view(at, side, scheme == "dark", what)
    except Exception as error:  # told in the place of the head
        return tell(error)


def head_view(at: tuple[int, int, int], side: str, dark: bool, what: Any) -> list[Any]:
    """One head large, its layer small, its words and its effect."""
    layer, head, row = at
    model, task = what["model"], what["task"]
    pairs = bench().pairs(model, task)
    words = pairs.corrupt_text if side == "corrupt" else pairs.clean_text
    words = list(map(str, (words or pairs.clean)[row]))
    array = side_of(bench().patterns(model, task, layer, row), side)
    one = array.isel(head=head).to_dataset(name="pattern")
    tokens = {"clean": [words]}
    big = figures.figures_of(one, tokens=tokens, dark=dark)["pattern"]
    small = figures.figures_of(
        array.to_dataset(name="pattern"),
        tokens=tokens,
        dark=dark,
        title=f"All heads of layer {layer}",
    )["pattern"]
    for figure in (big, small):
        figure.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return [
        html.Section(
            [
                html.H2(f"Head {layer}.{head}, {side}"),
                strongest(one["pattern"], words),
                graph({"type": "head-graph", "n": 0}, big, opens=False),
            ],
            className="card",
        ),
        html.Div(
            [scoring(at, side, words, what), writing(at, side, words, what)], className="halves"
        ),
        html.Div([effects(what, layer, head), edges(what, layer, head)], className="halves"),
        html.Section(
            [
                dcc.Graph(figure=small, config=CONFIG, responsive=True, style=tall(small)),
                heads_row(layer, array.sizes["head"], head),
            ],
            className="card",
        ),
    ]


def side_of(pattern: Any, side: str) -> Any:
    """The pattern on one side, or the difference of the two: [head, query, key]."""
    if side != "difference":
        return pattern.sel(side=side, drop=True)
    array = pattern.sel(side="clean", drop=True) - pattern.sel(side="corrupt", drop=True)
    return array.assign_attrs(
        {**pattern.attrs, "signed": 1, "long_name": "attention pattern, clean − corrupt"}
    )


def strongest(pattern: Any, words: list[str]) -> html.Div:
    """Where the last position looks most."""
    last = pattern.isel(query=-1).values
    best = sorted(range(len(last)), key=lambda i: -abs(float(last[i])))[:4]
    parts: list[Any] = [html.Span("The last position looks at", className="muted")]
    for i in best:
        parts += [token(words[i]), html.Span(number(float(last[i])), className="num faint")]
    return html.Div(parts, className="row")


def scoring(at: tuple[int, int, int], side: str, words: list[str], what: Any) -> html.Section:
    """Which earlier writes make the score of the position it looks at most from the last one."""
    layer, head, row = at
    side = "corrupt" if side == "corrupt" else "clean"
    data = bench().head(what["model"], what["task"], layer, head, row).sel(side=side)
    best = int(data["pattern"].isel(query=-1).values.argmax())
    score = float(data["score"].values[best])
    parts = [
        terms(words_, data[name].isel(key=best))
        for words_, name in (
            ([html.Span("written where it looks,", className="faint"), token(words[best])],
             "key_terms"),
            ([html.Span("written where it looks from,", className="faint"), token(words[-1])],
             "query_terms"),
        )
    ]  # fmt: skip
    return html.Section(
        [
            html.H2("Why it looks there (QK)"),
            html.Div(
                [
                    html.Span("score of", className="muted"),
                    token(words[best]),
                    html.Span("from the last position", className="muted"),
                    html.Span(number(score), className="num"),
                ],
                className="row",
            ),
            *parts,
            html.P(
                "Each list adds up to the score, before a soft cap; the other side and the norms' "
                "scales are held.",
                className="faint",
            ),
        ],
        className="card stack",
    )


def terms(label: list[Any], array: Any) -> html.Div:
    """The largest parts of a score by writer, as bars from zero."""
    values = array.values
    order = sorted(range(len(values)), key=lambda i: -abs(float(values[i])))[:6]
    top = max((abs(float(values[i])) for i in order), default=0.0) or 1.0
    names = [str(n) for n in array.coords["component"].values]
    bars = [bar_line(names[i], float(values[i]), top) for i in order]
    return html.Div(
        [html.Div(label, className="row"), html.Div(bars, className="strip")],
        className="stack tight",
    )


def edges(what: dict[str, Any], layer: int, head: int) -> html.Section:
    """The way on: which components feed this head, and where it writes to, measured."""
    common = {"model": what["model"], "task": what["task"]}
    name = f"L{layer}H{head}"
    into = link("/method/path_patching", receivers=name, **common)
    out = link("/method/path_patching", senders=name, **common)
    return html.Section(
        [
            html.H2("Edges of this head"),
            html.P(
                "Patch single edges: what reaches this head's queries, keys and values, and what "
                "it feeds.",
                className="muted",
            ),
            html.Div(
                [
                    dcc.Link("Edges into it", href=into, className="button"),
                    dcc.Link("Edges out of it", href=out, className="button"),
                ],
                className="row",
            ),
        ],
        className="card stack",
    )


def writing(at: tuple[int, int, int], side: str, words: list[str], what: Any) -> html.Section:
    """Tokens promoted from the positions it looks at most, and by the head at the last."""
    layer, head, row = at
    side = "corrupt" if side == "corrupt" else "clean"
    data = bench().head(what["model"], what["task"], layer, head, row).sel(side=side)
    looked = data["pattern"].isel(query=-1).values
    best = sorted(range(len(words)), key=lambda i: -float(looked[i]))[:3]
    names = bench().texts(
        what["model"],
        {
            *map(int, data["direct_id"].values.ravel()),
            *map(int, data["promoted_id"].values.ravel()),
        },
    )
    lines = [
        promoted(
            [html.Span(f"looking at {i} alone ", className="faint"), token(words[i])],
            data["promoted_id"].isel(key=i),
            data["promoted_logit"].isel(key=i),
            names,
        )
        for i in best
    ]
    return html.Section(
        [
            html.H2("What it writes (OV)"),
            promoted(
                [html.Span("at the last position", className="faint")],
                data["direct_id"],
                data["direct_logit"],
                names,
            ),
            *lines,
            html.P(
                "Through the final norm with the scale of the last position held fixed.",
                className="faint",
            ),
        ],
        className="card stack",
    )


def promoted(label: list[Any], ids: Any, logits: Any, names: dict[int, str]) -> html.Div:
    """The tokens that a write raises most, with the logit it adds."""
    chips: list[Any] = []
    for i, v in list(zip(ids.values, logits.values, strict=True))[:5]:
        chips += [token(names[int(i)]), html.Span(f"{float(v):+.2f}", className="num faint")]
    return html.Div(
        [html.Div(label, className="row"), html.Div(chips, className="row")],
        className="stack tight",
    )


def heads_row(layer: int, n: int, head: int) -> html.Div:
    """Every head of the layer as a button."""
    return html.Div(
        [
            html.Button(
                f"{layer}.{h}",
                className=f"button{' go' if h == head else ''}",
                id={"type": "head-go", "head": h},
            )
            for h in range(n)
        ],
        className="row",
    )


def effects(what: dict[str, Any], layer: int, head: int) -> Any:
    """What patching this head did, in the stored runs of this model and task."""
    rows = bench().head_effects(what["model"], what["task"], layer, head)
    if not rows:
        return html.Section(
            [
                html.H2("Effect of this head"),
                empty(
                    "Not measured yet",
                    "Patch every head's output once to see which matter.",
                    dcc.Link(
                        "Patch all heads",
                        className="button",
                        href=link("/patching", model=what["model"], task=what["task"], site="z"),
                    ),
                ),
            ],
            className="card",
        )
    lines = [
        html.Tr(
            [
                html.Td(dcc.Link(words, href=link(f"/run/{run}"))),
                html.Td(number(value), className="n"),
            ]
        )
        for run, words, value in rows
    ]
    return html.Section(
        [html.H2("Effect of this head"), html.Table(html.Tbody(lines), className="plain")],
        className="card",
    )


@callback(
    Output("head-head", "value"),
    Input({"type": "head-go", "head": ALL}, "n_clicks"),
    prevent_initial_call=True,
)
def go(clicks: list[Any]) -> Any:
    """Another head of the layer."""
    asked = dash.ctx.triggered_id
    return str(asked["head"]) if isinstance(asked, dict) and any(clicks) else dash.no_update
