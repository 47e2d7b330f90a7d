"""The pickers that several pages share: model with back-end and dtype, and the task in words."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import html

from apps.workbench.bench import bench

BACKENDS = ("transformer_lens", "nnsight", "torch_module")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def model_picker(page: str, value: str | None) -> dmc.Select:
    """One of the models that are here: shipped ones and folders of the ``--models`` roots."""
    options = bench().model_options()
    if value and value not in {o["value"] for o in options}:
        options = [*options, {"value": value, "label": value}]
    return dmc.Select(
        label="Model",
        data=options,
        value=value or "zoo:ioi",
        id=f"{page}-model",
        searchable=True,
        allowDeselect=False,
        size="sm",
        nothingFoundMessage="No such model here",
    )


def machine_picker(page: str) -> html.Details:
    """Back-end, dtype and device, folded."""
    picks = [
        dmc.Select(
            label="Back-end",
            data=list(BACKENDS),
            value=BACKENDS[0],
            allowDeselect=False,
            id=f"{page}-backend",
            size="sm",
            description="the library that drives the model",
        ),
        dmc.Select(
            label="dtype",
            data=list(DTYPES),
            value=DTYPES[0],
            allowDeselect=False,
            id=f"{page}-dtype",
            size="sm",
        ),
        dmc.TextInput(
            label="Device",
            value="",
            placeholder="chosen by the worker",
            size="sm",
            id=f"{page}-device",
            description="cpu, cuda, cuda:1",
        ),
    ]
    return html.Details(
        [html.Summary("Back-end, dtype, device"), html.Div(picks, className="stack")],
        className="more",
    )


def direction_sentence(direction: str | None, with_: str | None = "source") -> html.P:
    """The direction of patching as a sentence."""
    words = {
        "zero": "zeros",
        "mean": "the mean over the task",
        "resample": "another prompt's activation",
    }
    if with_ in words:
        return html.P(
            [
                "Each cell puts ",
                html.B(words[with_]),
                " into the ",
                html.B("clean" if direction == "noising" else "corrupt"),
                " run.",
            ],
            className="sentence",
        )
    if direction == "noising":
        parts = [
            "Each cell puts a ",
            html.B("corrupt"),
            " activation into the ",
            html.B("clean"),
            " run: what is needed for the answer?",
        ]
    else:
        parts = [
            "Each cell puts a ",
            html.B("clean"),
            " activation into the ",
            html.B("corrupt"),
            " run: what is enough to restore the answer?",
        ]
    return html.P(parts, className="sentence")
