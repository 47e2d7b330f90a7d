"""Linear interpreters: pick or draw a digit; see its votes, the remainder, and singular images."""

from __future__ import annotations

from typing import Any

import dash
import dash_mantine_components as dmc
import numpy as np
from dash import ALL, Input, Output, State, callback, ctx, dcc, html, no_update

from apps.workbench.bench import PATIENCE, bench
from apps.workbench.drawing import PIXELS, board, follow_board, read_pixels, thumbnail
from apps.workbench.frame import graph
from apps.workbench.panels import number, trust_pill
from apps.workbench.tell import empty, link, notice, page, shown, tell
from interp import figures

METHOD = "linear_interpreter"
NETWORKS = {
    "zoo:digits-cnn": "reads digits, with biases",
    "zoo:digits-cnn-nobias": "reads digits, without biases",
    "zoo:digits-cnn-bn": "reads digits, with batch norm",
    "zoo:digits-mlp": "reads digits, a perceptron",
    "zoo:digits-denoise": "takes noise off, by convolutions",
    "zoo:digits-autoencoder": "takes noise off, through 16 units",
}
NOISY = ("zoo:digits-denoise", "zoo:digits-autoencoder")
SHOWN = 12
LARGEST = "the largest"
MEANS = [{"value": v, "label": w} for v, w in (("linear", "follows x"), ("frozen", "constant"))]

dash.register_page(
    __name__, path="/interpreter", title="Linear interpreter · interp", name="Linear interpreter"
)


@shown
def layout(model: str = "zoo:digits-cnn", digit: str = "0", **query: Any) -> Any:
    """The board, the pictures to pick from, and what the network does with it."""
    notices = [f"{k[:24]} means nothing here; it was left out." for k in list(query)[:2]]
    if model not in NETWORKS:
        notices.append(f"{model[:40]} does not read digits; zoo:digits-cnn is shown.")
        model = "zoo:digits-cnn"
    if bench().method(METHOD) is None:
        return page("Linear interpreter", QUESTION, empty(
            "Not yet", "The worker has not published this method; load the page in a moment.",
        ))  # fmt: skip
    pictures, labels = samples(model)
    at = int(digit) if digit.isdigit() and int(digit) < len(pictures) else 0
    return page(
        "Linear interpreter",
        QUESTION,
        *(notice(words, kind="warn") for words in notices),
        html.Div([
            html.Div(controls(model, pictures, labels, at), className="card stack"),
            html.Div(id="digit-out", className="stack"),
        ], className="two"),
        dcc.Store(id="digit-samples", data=[list(map(float, p)) for p in pictures]),
    )  # fmt: skip


QUESTION = (
    "At one picture a network is a matrix and a remainder: every pixel votes for every output, and "
    "the rest comes from biases. Pick a digit or draw one."
)


def samples(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits that the network never saw, ``[picture, 64]``, and what they are."""
    noise = ",noise=0.3" if model in NOISY else ""
    task = bench().pairs(model, f"digits:n={SHOWN},seed=2{noise}")
    return task.inputs.reshape(len(task), -1), task.labels


def controls(model: str, pictures: np.ndarray, labels: np.ndarray, at: int) -> list[Any]:
    """Network, board, pictures."""
    strip = [
        html.Button(
            thumbnail(p.tolist()), id={"type": "digit-pick", "n": n}, className="thumb-button",
            **{"aria-label": f"picture {n + 1}, a {label}"},
        )
        for n, (p, label) in enumerate(zip(pictures, labels, strict=True))
    ]  # fmt: skip
    return [
        dmc.Select(
            label="network", id="digit-model", value=model, size="sm", allowDeselect=False,
            data=[{"value": k, "label": f"{k.removeprefix('zoo:')}: {w}"}
                  for k, w in NETWORKS.items()],
        ),
        board("digit-pixels", pictures[at].tolist()),
        html.P("Paint with the pointer, wipe with Shift; arrows move, Space turns a pixel on or "
               "off.", className="faint"),
        html.Div([
            html.Button("Clear", id="digit-clear", className="button"),
            html.Button("Invert", id="digit-invert", className="button"),
        ], className="row"),
        html.Label("digits it never saw", className="faint"),
        html.Div(strip, className="thumbs"),
        html.Div([
            html.Label("a norm's mean", className="faint", id="digit-mean-label"),
            dmc.SegmentedControl(id="digit-mean", data=MEANS, value="linear", size="xs"),
        ]),
        dmc.Select(
            label="whose score is told", id="digit-label", value=LARGEST, size="sm",
            allowDeselect=False, data=[LARGEST, *map(str, range(10))],
        ),
        dcc.Link("All knobs, and whole sets of digits",
                 href=link(f"/method/{METHOD}", model=model, task="digits:n=8,seed=0")),
    ]  # fmt: skip


follow_board("digit-pixels")


@callback(
    Output("digit-pixels", "data"),
    Input({"type": "digit-pick", "n": ALL}, "n_clicks"),
    Input("digit-clear", "n_clicks"),
    Input("digit-invert", "n_clicks"),
    State("digit-pixels", "data"),
    State("digit-samples", "data"),
    prevent_initial_call=True,
)
def change(_picks: Any, _clear: Any, _invert: Any, now: Any, kept: Any) -> Any:
    """Another picture on the board."""
    if not any(t["value"] for t in ctx.triggered):
        return no_update
    if ctx.triggered_id == "digit-clear":
        return [0.0] * PIXELS
    if ctx.triggered_id == "digit-invert":
        return [1.0 - v for v in read_pixels(now)]
    triggered: Any = ctx.triggered_id
    return kept[int(triggered["n"])]


@callback(
    Output("digit-out", "children"),
    Input("digit-pixels", "data"),
    Input("digit-model", "value"),
    Input("digit-mean", "value"),
    Input("digit-label", "value"),
    Input("scheme", "data"),
)
def explain(pixels: Any, model: str, mean: str, label: str, scheme: str) -> Any:
    """Votes, remainder and singular images of what is on the board."""
    try:
        values = read_pixels(pixels)
        if not any(values):
            return empty("An empty board", "Draw a digit, or pick one.")
        return view(values, str(model), str(mean), str(label), scheme == "dark")
    except Exception as error:  # told in the place of the answer
        return tell(error)


def measured(values: list[float], model: str, tour: str, mean: str) -> Any:
    """One tour of this picture, by the worker; not kept."""
    bench().check_model(model)
    flat = model == "zoo:digits-mlp"
    inputs = np.array(values).reshape((1, PIXELS) if flat else (1, 1, 8, 8))
    whole = {
        "type": "LabelledInputs",
        "inputs": {"dtype": "<f8", "values": inputs.tolist()},
        "labels": {"dtype": "<i8", "values": [0]},
        "label_text": [[k, str(k)] for k in range(10)],
        "name": "a digit from the board",
    }
    fields = {"tour": tour, "mean": mean, **({"image": [8, 8]} if flat else {})}
    task = {"ref": None, "inline": whole}
    return bench().queue.measure(METHOD, fields, model=model, task=task, timeout=PATIENCE)


def view(values: list[float], model: str, mean: str, label: str, dark: bool) -> list[Any]:
    """The three cards."""
    votes, svd = (measured(values, model, tour, mean) for tour in ("votes", "svd"))
    return [
        html.Section([
            html.Div([html.H2("Votes"), trust_pill([*votes.checks, *svd.checks])],
                     className="frame-head"),
            html.P(sentence(votes.data, model), className="sentence"),
            drawn(votes, "vote", dark),
        ], className="card"),
        html.Section([
            html.H2("From nothing to the score"),
            falls(votes, label, dark),
        ], className="card"),
        html.Section([
            html.H2("Singular images"),
            html.P(spectrum(svd.data), className="sentence"),
            html.Div([drawn(svd, "eigen_input", dark),
                      drawn(svd, best_of(svd.data), dark)], className="stack"),
        ], className="card"),
    ]  # fmt: skip


def best_of(data: Any) -> str:
    """Eigen-outputs as pictures where they are; else the spectrum."""
    return "eigen_output" if "row_out" in data["eigen_output"].dims else "singular_value"


def drawn(result: Any, name: str, dark: bool, **selection: Any) -> Any:
    """One figure of a result."""
    data = result.data.isel(prompt=0, drop=True)
    made = figures.figures_of(data, only=name, dark=dark, selection=selection or None)
    figure = made[name].update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    place = "-".join(map(str, selection.values()))
    return graph({"type": "digit-graph", "n": f"{name}{place}"}, figure, opens=False)


def sentence(data: Any, model: str) -> str:
    """What the network says, and how much of it comes from pixels."""
    f, r, votes = (data[n].isel(prompt=0) for n in ("logit", "residual", "linear"))
    if model in NOISY:
        share = float(abs(r).sum() / abs(f).sum())
        return (
            f"Each picture shows which pixels make one pixel of the output; the remainder is "
            f"{100 * share:.0f} % of these three."
        )
    best = int(f.values.argmax())
    label = str(data["label"].values[best])
    return (
        f"The network says {label}: {number(float(f[best]))} in all, of which the pixels vote "
        f"{number(float(votes[best]))} and the remainder adds {number(float(r[best]))}."
    )


def spectrum(data: Any) -> str:
    """Rank and spread in words."""
    rank, spread = (float(data[n].isel(prompt=0)) for n in ("rank", "spread"))
    top, sure = (float(data[n].isel(prompt=0).values[0]) for n in ("singular_value", "certificate"))
    return (
        f"Rank {rank:.0f}; about {spread:.1f} directions share the work. σ₁ = {number(top)}, with "
        f"a true singular value within {sure:.1e} of it."
    )


def place_of(data: Any, wanted: str) -> int:
    """Whose score is told: the one that was asked for where it is there, else the largest."""
    labels = [str(v) for v in data["label"].values]
    if wanted in labels:
        return labels.index(wanted)
    return 0 if labels[0].startswith("row") else int(data["logit"].values[0].argmax())


def falls(result: Any, wanted: str, dark: bool) -> Any:
    """From nothing to one output: pixels together, then each source of the remainder."""
    label = result.data["label"].values[place_of(result.data, wanted)]
    return drawn(result, "residual_by_source", dark, label=label)
