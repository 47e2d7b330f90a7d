"""Pair builder: a task, two prompts, or a file; aligned, checked, and what the model says to it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import dash
import dash_mantine_components as dmc
from dash import ALL, Input, Output, State, callback, dcc, html, no_update

import interp
from apps.workbench.bench import bench
from apps.workbench.choose import direction_sentence, model_picker
from apps.workbench.controls import control_id, form_of, typed
from apps.workbench.pairview import pair_view
from apps.workbench.spans import proposed, read_spans, written
from apps.workbench.tell import empty, page, shown, tell
from interp import forms

dash.register_page(__name__, path="/pair", title="Pair builder · interp")

MOST_TEXT = 20_000
BOS = {"auto": None, "yes": True, "no": False}
EXAMPLE = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupt": "When Mary and John went to the store, Mary gave a drink to",
    "right": " Mary",
    "wrong": " John",
}


@shown
def layout(model: str = "", **_query: Any) -> Any:
    """Three ways to a pair on the left, the pair on the right."""
    left = html.Div(
        [
            model_picker("pair", model),
            dmc.Tabs(
                [
                    dmc.TabsList(
                        [
                            dmc.TabsTab("Task", value="task"),
                            dmc.TabsTab("Two prompts", value="text"),
                            dmc.TabsTab("File", value="file"),
                        ]
                    ),
                    dmc.TabsPanel(by_task(), value="task", pt=12),
                    dmc.TabsPanel(by_text(), value="text", pt=12),
                    dmc.TabsPanel(by_file(), value="file", pt=12),
                ],
                value="task",
                id="pair-mode",
            ),
            dmc.Select(
                label="Beginning-of-sequence token",
                id="pair-bos",
                size="sm",
                data=[
                    {"value": "auto", "label": "as the model does by default"},
                    {"value": "yes", "label": "put one in front"},
                    {"value": "no", "label": "none"},
                ],
                value="auto",
                allowDeselect=False,
            ),
            html.Button("Check this pair", id="pair-check", className="button go", type="button"),
        ],
        className="card stack",
    )
    first = empty(
        "No pair yet",
        "Press Check: the two prompts are aligned token by "
        "token, and the model is asked whether it can do this at all.",
    )
    right = html.Div(
        [
            html.P(id="pair-wait", className="faint", role="status"),
            html.Div(first, id="pair-out", className="stack"),
        ],
        className="stack",
    )
    return page(
        "Pair builder",
        "A pair is two prompts that differ in one thing. What the model does on the clean one, "
        "and not on the corrupt one, is what patching then looks for.",
        direction_sentence("denoising"),
        html.Div([left, right], className="two"),
    )


def by_task() -> html.Div:
    """A task family with its knobs."""
    families = interp.TASKS
    options = [{"value": k, "label": f.title} for k, f in families.items()]
    first = next(iter(families))
    return html.Div(
        [
            dmc.Select(
                label="Task",
                data=options,
                value=first,
                id="pair-task",
                allowDeselect=False,
                size="sm",
            ),
            html.Div(task_form(first), id="pair-knobs"),
        ],
        className="stack",
    )


def task_form(name: str) -> list[Any]:
    """A family's question and its knobs."""
    family = interp.TASKS[name]
    return [
        html.P(family.question, className="faint"),
        form_of("pair-task", forms.fields_of(family.schema())),
    ]


def by_text() -> html.Div:
    """Two prompts and their answers as text."""

    def text(name: str, label: str, **more: Any) -> Any:
        return dmc.Textarea(
            label=label,
            id=f"pair-{name}",
            value=EXAMPLE[name],
            autosize=True,
            minRows=2,
            maxRows=8,
            spellCheck=False,
            size="sm",
            **more,
        )

    def answer(name: str, label: str, words: str) -> Any:
        return dmc.TextInput(
            label=label,
            id=f"pair-{name}",
            value=EXAMPLE[name],
            size="sm",
            description=words,
            styles={"input": {"fontFamily": "var(--mono)"}},
        )

    return html.Div(
        [
            text("clean", "Clean prompt"),
            text("corrupt", "Corrupt prompt"),
            answer(
                "right",
                "Right answer",
                "with its leading space where the tokens have one; several apart by |",
            ),
            answer("wrong", "Wrong answer", "what the corrupt prompt should bring; may be empty"),
            dmc.Switch(
                label="Answers of several tokens",
                id="pair-span",
                checked=False,
                description="scored by the summed log-probability of the span",
            ),
            dmc.TextInput(
                label="Span map",
                id="pair-spans",
                value="",
                size="sm",
                placeholder="none",
                description="only where the lengths differ: positions of clean = of corrupt, as "
                "3-5 = 3-4; what stands before and after corresponds anyway",
                styles={"input": {"fontFamily": "var(--mono)"}},
            ),
        ],
        className="stack",
    )


def by_file() -> html.Div:
    """A table of pairs."""
    return html.Div(
        [
            dcc.Upload(
                html.Div(
                    ["Drop a JSONL or CSV file here, or ", html.U("choose one")], id="pair-named"
                ),
                id="pair-file",
                className="drop",
                max_size=10_000_000,
                multiple=False,
            ),
            html.P(
                "Columns clean, corrupt, right and, if you like, wrong, template and span_map "
                "(where lengths differ, [[[3, 6], [3, 5]]]). At most "
                "10 MB. The file stays on this computer.",
                className="faint",
            ),
            dmc.Switch(
                label="Leave out the rows that cannot be used", id="pair-skip", checked=False
            ),
        ],
        className="stack",
    )


@callback(Output("pair-knobs", "children"), Input("pair-task", "value"), prevent_initial_call=True)
def other_task(name: str | None) -> Any:
    """The knobs of the chosen family."""
    return task_form(name) if name in interp.TASKS else no_update


@callback(
    Output("pair-named", "children"), Input("pair-file", "filename"), prevent_initial_call=True
)
def named(name: str | None) -> Any:
    """Say which file was given."""
    return f"{name} is ready; press Check." if name else no_update


@callback(
    Output("pair-out", "children"),
    Input("pair-check", "n_clicks"),
    State("pair-mode", "value"),
    State("pair-model", "value"),
    State("pair-bos", "value"),
    State("pair-task", "value"),
    State(control_id("pair-task", ALL), "value"),
    State(control_id("pair-task", ALL), "checked"),
    State(control_id("pair-task", ALL), "id"),
    State("pair-clean", "value"),
    State("pair-corrupt", "value"),
    State("pair-right", "value"),
    State("pair-wrong", "value"),
    State("pair-span", "checked"),
    State("pair-spans", "value"),
    State("pair-file", "contents"),
    State("pair-file", "filename"),
    State("pair-skip", "checked"),
    prevent_initial_call=True,
    running=[
        (Output("pair-check", "disabled"), True, False),
        (Output("pair-out", "style"), {"opacity": 0.35}, {}),
        (Output("pair-out", "aria-busy"), "true", "false"),
        (Output("pair-wait", "children"), "Checking; what stands below is the pair before.", ""),
    ],
)
def check(
    clicks: Any,
    mode: str,
    model: str,
    bos: str,
    task: str,
    values: Any,
    flags: Any,
    ids: Any,
    clean: str,
    corrupt: str,
    right: str,
    wrong: str,
    span: bool,
    spans: str,
    contents: str,
    filename: str,
    skip: bool,
) -> Any:
    """Make the pair, align it, and ask the model."""
    if not clicks:
        return no_update
    try:
        source = {
            "task": lambda: task_source(task, typed(ids, values, flags)),
            "text": lambda: text_source(model, clean, corrupt, right, wrong, bool(span), spans),
            "file": lambda: file_source(contents, filename, bool(skip)),
        }[mode]()
        return pair_view(model, source, BOS.get(bos))
    except Exception as error:  # told in the place of the pair, with a way out where there is one
        texts = (clean, corrupt) if mode == "text" else None
        return [tell(error), span_offer(model, texts, BOS.get(bos))]


@callback(
    Output("pair-spans", "value"),
    Input({"type": "pair-accept", "spans": ALL}, "n_clicks"),
    State({"type": "pair-accept", "spans": ALL}, "id"),
    prevent_initial_call=True,
)
def accept(clicks: Any, offered: Any) -> Any:
    """Take over the span map that was offered."""
    return offered[0]["spans"] if any(clicks) else no_update


def span_offer(model: str, texts: Any, bos: bool | None) -> Any:
    """A span map to accept, where two prompts that were typed have unequal lengths."""
    if texts is None or not all(texts):
        return None
    try:
        split = [bench().tokens(model, str(t), bos) for t in texts]
    except interp.InterpError:
        return None
    found = proposed(*split)
    if len(split[0]) == len(split[1]) or not found:
        return None
    ((a, b), (c, d)) = found[0]
    return html.Div(
        [
            html.P(
                [
                    "They differ in ", html.Code("".join(split[0][a:b])), " against ",
                    html.Code("".join(split[1][c:d])), f": positions {written(found)}.",
                ]
            ),
            html.Button(
                "Accept this span map", type="button", className="button",
                id={"type": "pair-accept", "spans": written(found)},
            ),
            html.P("Then press Check again.", className="faint"),
        ],
        className="card stack tight",
    )  # fmt: skip


def task_source(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A family's ref from the form.

    Raises:
        UsageError: a knob that does not fit.
    """
    fields = forms.fields_of(interp.TASKS[name].schema())
    knobs = forms.parse_values(fields, given).or_raise("This task")
    kept = {
        f.name: knobs[f.name]
        for f in fields
        if f.name in knobs and (knobs[f.name] != f.default or f.name in ("n", "seed"))
    }
    words = ",".join(f"{k}={forms.text_of(v)}" for k, v in kept.items())
    return {"ref": f"{name}:{words}" if words else name}


def text_source(
    model: str,
    clean: Any,
    corrupt: Any,
    right: Any,
    wrong: Any,
    span: bool,
    spans: Any = "",
) -> dict[str, Any]:
    """Two prompts and their answers as columns of one row.

    Raises:
        InterpError: a prompt that is too long, or no ids where the model has no tokenizer.
    """
    texts = {"clean": str(clean or ""), "corrupt": str(corrupt or "")}
    if max(map(len, texts.values())) > MOST_TEXT:
        raise interp.InterpError(
            f"A prompt is longer than {MOST_TEXT:,} characters.",
            remedy="Shorten it, or give a file.",
        )
    answers = {"right": str(right or ""), "wrong": str(wrong or "")}
    form: dict[str, Any] = {"answer_form": "span" if span else "set", "name": "your own pair"}
    if str(spans or "").strip():
        form["span_map"] = [read_spans(str(spans))]
    if not bench().has_tokenizer(model):
        ids = {k: [token_ids(k, v)] for k, v in (texts | answers).items()}
        return {**ids, **form, "tokens": True}
    split = {k: [v if span else [p for p in v.split("|") if p]] for k, v in answers.items()}
    return {**{k: [v] for k, v in texts.items()}, **split, **form}


def token_ids(name: str, text: str) -> list[int]:
    """Token ids apart by spaces or commas.

    Raises:
        InterpError: something else.
    """
    words = text.replace(",", " ").split()
    if not all(w.isascii() and w.isdigit() and len(w) < 9 for w in words):
        raise interp.InterpError(
            f"This model has no tokenizer, and {name} was given as {text[:40]!r}.",
            remedy="Write token ids apart by spaces, as in 5 17 4.",
        )
    return [int(w) for w in words]


def file_source(contents: Any, filename: Any, skip: bool) -> dict[str, Any]:
    """An uploaded table as text.

    Raises:
        InterpError: no file, or no text.
    """
    if not contents:
        raise interp.InterpError("No file was given.", remedy="Drop one into the field.")
    try:
        text = base64.b64decode(str(contents).partition(",")[2], validate=True).decode("utf-8-sig")
    except (binascii.Error, UnicodeDecodeError):
        raise interp.InterpError(
            "The file is no UTF-8 text.", remedy="Save it as UTF-8 JSONL or CSV."
        ) from None
    form = "csv" if str(filename or "").lower().endswith(".csv") else "auto"
    return {"text": text, "form": form, "skip_bad": skip, "name": str(filename or "")[:80]}
