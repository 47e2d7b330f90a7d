"""The form that runs a method: fields, estimate, Run, and the job or result beside it.

The pages of the methods and the Patching page are this form; the fields come from the schema that
the worker published, so a method that is added needs no line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dash_mantine_components as dmc
from dash import (
    ALL,
    MATCH,
    ClientsideFunction,
    Input,
    Output,
    State,
    callback,
    clientside_callback,
    dcc,
    html,
    no_update,
)

from apps.workbench import cell  # noqa: F401  (its callbacks open the drawer)
from apps.workbench.bench import bench
from apps.workbench.choose import direction_sentence, machine_picker, model_picker
from apps.workbench.controls import control_id, form_of, typed
from apps.workbench.listing import size
from apps.workbench.live import live
from apps.workbench.tell import empty, link, notice, query_of, tell
from interp import forms


def work_id(kind: str, method: str) -> dict[str, str]:
    """The id of one piece of a method's form."""
    return {"type": f"work-{kind}", "method": method}


def work(
    method: str,
    *,
    model: str = "",
    task: str = "",
    job: str = "",
    values: dict[str, Any] | None = None,
) -> html.Div:
    """The form on the left, what it gives on the right.

    Args:
        method: registry key.
        model: the model's ref to start with.
        task: the task's ref, or ``pairs:<key>`` for prompts that were built here.
        job: a job to show.
        values: knobs to start with.
    """
    entry = bench().method(method)
    if entry is None:
        return empty(
            "The methods are not there yet",
            "The worker publishes them when it starts; this page fills then.",
        )
    left = html.Form(
        [
            html.Div(model_picker_of(method, model)),
            task_picker(method, entry, task),
            html.Div(
                form_of(method, forms.fields_of(entry["schema"]), values),
                id=work_id("fields", method),
            ),
            html.Div(id=work_id("sentence", method)),
            html.Div(id=work_id("estimate", method), role="status"),
            html.Div(
                [
                    html.Button(
                        "Run", id=work_id("run", method), className="button go", type="button"
                    )
                ],
                className="row",
            ),
            html.Div(id=work_id("said", method)),
        ],
        className="card stack",
        **{"aria-label": "What to run"},
    )
    shown = (
        live(job)
        if job
        else empty(
            "Nothing run yet",
            "Choose on the left, read the estimate, and press Run. The grid fills "
            "while it is measured, and can be cancelled at any time.",
        )
    )
    return html.Div(
        [
            left,
            html.Div(shown, id=work_id("out", method), className="stack work-out"),
            dcc.Store(id=work_id("kept", method)),
            html.Div(id=work_id("memo", method), hidden=True),
        ],
        className="two",
    )


def model_picker_of(method: str, model: str) -> list[Any]:
    """The model and the machine, with ids of this form."""
    pick: Any = model_picker(method, model)
    pick.id = work_id("model", method)
    machine: Any = machine_picker(method)
    for control, kind in zip(
        machine.children[1].children, ("backend", "dtype", "device"), strict=True
    ):
        control.id = work_id(kind, method)
    return [pick, machine]


def task_picker(method: str, entry: dict[str, Any], task: str) -> html.Div:
    """The tasks that fit the method's type, and the pair builder beside."""
    options = bench().task_options(entry.get("accepts") or ())
    known = {o["value"] for o in options}
    if task and task not in known:
        options = [{"value": task, "label": bench().task_title(task)}, *options]
    value = task or (options[0]["value"] if options else None)
    more = dcc.Link("Build a pair of your own", href=link("/pair"), className="faint")
    if not options:
        more = notice(
            "This method takes no task."
            if "none" in (entry.get("accepts") or ())
            else "No task of this kind is here yet."
        )
    pick = dmc.Select(
        label="Task",
        data=options,
        value=value,
        id=work_id("task", method),
        searchable=True,
        size="sm",
        allowDeselect=False,
        disabled=not options,
    )
    return html.Div([pick, more], className="stack tight")


def machine_of(backend: Any, dtype: Any, device: Any) -> dict[str, Any]:
    """Back-end, dtype and device as they go into a job; empty ones left out."""
    given = {"backend": backend, "dtype": dtype, "device": (device or "").strip() or None}
    return {k: v for k, v in given.items() if v}


def asked(method: str, ids: Any, values: Any, flags: Any) -> forms.Parsed:
    """The form's values, read, with an error by field."""
    fields = forms.fields_of((bench().method(method) or {}).get("schema") or {})
    return forms.parse_values(fields, typed(ids, values, flags))


KNOBS = control_id(MATCH, ALL)


@callback(
    Output(work_id("sentence", MATCH), "children"),
    Output(work_id("estimate", MATCH), "children"),
    Input(work_id("model", MATCH), "value"),
    Input(work_id("task", MATCH), "value"),
    Input(KNOBS, "value"),
    Input(KNOBS, "checked"),
    State(KNOBS, "id"),
    State(work_id("model", MATCH), "id"),
)
def foresee(model: str, task: str, values: Any, flags: Any, ids: Any, own: Any) -> Any:
    """The direction in words, and what the run will cost, before it is started."""
    read = asked(own["method"], ids, values, flags)
    now = typed(ids, values, flags)
    sentence = (
        direction_sentence(now["direction"], now.get("with_")) if "direction" in now else None
    )
    if read.errors:
        return sentence, notice("; ".join(read.errors.values()), kind="warn")
    try:
        found = bench().estimate(own["method"], read.values, model, task)
    except Exception as error:  # an estimate that cannot be had is said in its place
        return sentence, tell(error)
    return sentence, estimate_line(found)


def estimate_line(found: dict[str, Any]) -> Any:
    """Cells, memory and time in one line, or why the run is refused."""
    if not found.get("known"):
        return html.P(
            "This method does not know its cost beforehand; it can be cancelled at any time.",
            className="faint",
        )
    if found.get("refused"):
        return notice(str(found["refused"]), kind="bad", remedy=str(found.get("remedy") or ""))
    parts = [
        html.Div([html.B(words(found[key])), html.Span(name)])
        for key, name, words in COSTS
        if found.get(key) is not None
    ]
    return html.Div(parts, className="figures", role="group", **{"aria-label": "estimate"})


def seconds(value: float) -> str:
    """A time for a person."""
    if value < 1:
        return "< 1 s"
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min"


def operations(value: float) -> str:
    """Floating-point operations for a person."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e6:.3g} MFLOP"


COSTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("cells", "cells", lambda v: f"{v:,.0f}"),
    ("prompts", "pairs", lambda v: f"{v:,.0f}"),
    ("rows", "patched runs", lambda v: f"{v:,.0f}"),
    ("flops", "operations", operations),
    ("naive_flops", "one whole run a cell", operations),
    ("bytes", "memory", size),
    ("seconds", "time", seconds),
)


@callback(
    Output(work_id("out", MATCH), "children"),
    Output(work_id("said", MATCH), "children"),
    Output(work_id("fields", MATCH), "children"),
    Output(work_id("kept", MATCH), "data"),
    Input(work_id("run", MATCH), "n_clicks"),
    State(work_id("model", MATCH), "value"),
    State(work_id("task", MATCH), "value"),
    State(work_id("backend", MATCH), "value"),
    State(work_id("dtype", MATCH), "value"),
    State(work_id("device", MATCH), "value"),
    State(KNOBS, "value"),
    State(KNOBS, "checked"),
    State(KNOBS, "id"),
    State(work_id("run", MATCH), "id"),
    prevent_initial_call=True,
)
def start(
    clicks: Any,
    model: str,
    task: str,
    backend: str,
    dtype: str,
    device: str,
    values: Any,
    flags: Any,
    ids: Any,
    own: Any,
) -> Any:
    """Submit the run and follow it, or say under each field what does not fit."""
    if not clicks:
        return (no_update,) * 4
    method, read = own["method"], asked(own["method"], ids, values, flags)
    fields = forms.fields_of((bench().method(method) or {}).get("schema", {}))
    form = form_of(method, fields, typed(ids, values, flags), read.errors)
    if read.errors:
        return (
            no_update,
            notice("Some values do not fit; see the form.", kind="warn"),
            form,
            no_update,
        )
    try:
        job = bench().submit(method, read.values, model, task, machine_of(backend, dtype, device))
    except Exception as error:  # told where the person looks
        return no_update, tell(error), no_update, no_update
    query = query_of(model=model, task=task, job=job)
    return live(job), None, no_update, query


clientside_callback(
    ClientsideFunction("workbench", "rememberJob"),
    Output(work_id("memo", MATCH), "children"),
    Input(work_id("kept", MATCH), "data"),
    prevent_initial_call=True,
)
