"""Axis labels: tokens on positions, coordinates elsewhere, always on numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.figures.choose import kind_of, labels_of, spoken_labels
from interp.figures.text import LONGEST_LABEL, glyphs, number, plain, shown, thin, token_axis

if TYPE_CHECKING:
    import xarray as xr

TITLES = {
    "kv_head": "key/value head",
    "layer_skipped": "layer skipped",
    "layer_a": "layer of A",
    "layer_b": "layer of B",
    "label_b": "other label",
    "src": "from",
    "dst": "to",
    "kl_direction": "KL direction",
    "top": "rank",
    "d_model": "residual coordinate",
    "d_head": "head coordinate",
    "measure": "measured or estimated",
    "stat": "over tokens",
    "drop": "left out",
    "part": "part",
}

ONE_BASED = ("prompt", "top")
"""Axes counted from 1 for people (their links and arrays count from 0)."""


@dataclass(frozen=True)
class Axis:
    """One axis of a figure.

    Args:
        name: the dimension.
        title: words for people.
        names: for every entry its hover name, escaped for plotly (``position 7 ␣Mary``).
        layout: keyword arguments of the plotly axis.
        note: what the reader should know about the labels, or empty.
        values: the numbers it is plotted against (0…n-1 unless ``numeric``).
        labels: for every entry its tick label, escaped for plotly.
        raw: for every entry its plain label (for tables, HTML).
    """

    name: str
    title: str
    names: list[str]
    layout: dict[str, Any]
    note: str
    values: list[float]
    labels: list[str]
    raw: list[str]


def title_of(name: str) -> str:
    """Words for an axis."""
    return TITLES.get(name, name.replace("_", " "))


def entry_name(name: str, label: Any) -> str:
    """``prompt 3``, ``metric logit_diff``: one entry of an axis, plain text."""
    if name in ONE_BASED and isinstance(label, int):
        return f"{title_of(name)} {label + 1}"
    if isinstance(label, float):
        label = number(label)
    return f"{title_of(name)} {label}"


def axis_of(
    array: xr.DataArray,
    name: str,
    tokens: Mapping[str, Any] | None = None,
    picked: Mapping[str, Any] | None = None,
    relative: bool = False,
) -> Axis:
    """Label one axis of an array.

    Args:
        array: whose axis it is.
        name: the dimension.
        tokens: ``{"clean": [[text…]…], "corrupt": …}``, raw.
        picked: the selectors' entries, so that a picked prompt lends its own tokens.
        relative: layers by their share of the depth, where the array has it beside them.
    """
    labels = labels_of(array, name)
    shares = _shares(array, name) if relative else None
    if shares is not None:
        return _relative(name, shares)
    words = _words(array, name, labels, tokens, picked or {})
    if words is not None:
        return _token(name, labels, *words)
    labels = spoken_labels(array, name)
    values: list[float] = list(range(len(labels)))
    raw = [number(v) if isinstance(v, float) else str(v) for v in labels]
    if name in ONE_BASED and all(isinstance(v, int) for v in labels):
        raw = [str(v + 1) for v in labels]
    ticks = thin(len(labels), 12 if kind_of(name) == "image" else 32)
    text = [plain(r if len(r) <= 32 else r[:31] + "…") for r in raw]
    wide = max((len(t) for t in text), default=0) * len(ticks)
    layout = {
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [text[i] for i in ticks],
        "range": [-0.5, len(labels) - 0.5],
        "automargin": True,
        "tickangle": -45 if wide > 90 else 0,
    }
    title = title_of(name)
    names = [plain(r) if name == "bound" else f"{plain(title)} {plain(r)}" for r in raw]
    return Axis(name, title, names, layout, "", values, text, raw)


def _shares(array: xr.DataArray, name: str) -> list[float] | None:
    """The relative depth beside a layer axis (``depth…``), or None."""
    if kind_of(name) != "layer":
        return None
    for coord in array.coords:
        if str(coord).startswith("depth") and array.coords[coord].dims == (name,):
            return [float(v) for v in array.coords[coord].values]
    return None


def _relative(name: str, shares: list[float]) -> Axis:
    """A layer axis labelled by share of the depth; entries stand where they stood."""
    raw = [f"{v:.2f}" for v in shares]
    ticks = thin(len(raw), 16)
    layout = {
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [raw[i] for i in ticks],
        "range": [-0.5, len(raw) - 0.5],
        "automargin": True,
        "tickangle": 0,
    }
    title = f"{title_of(name)} (share of the depth)"
    names = [f"{plain(title_of(name))} {i} of depth {r}" for i, r in enumerate(raw)]
    return Axis(name, title, names, layout, "", list(range(len(raw))), raw, raw)


def _token(
    name: str, labels: list[Any], texts: list[str | None], marks: list[bool], note: str
) -> Axis:
    axis = token_axis(texts, marks=marks if any(marks) else None)
    names = [
        f"{title_of(name)} {label} {text}".rstrip()
        for label, text in zip(labels, axis.names, strict=True)
    ]
    short = [
        str(k) if t is None else shown(t, LONGEST_LABEL) for k, t in zip(labels, texts, strict=True)
    ]
    return Axis(
        name,
        title_of(name),
        names,
        axis.layout(),
        note,
        list(axis.x),
        short,
        [
            f"{k} {glyphs(t)}" if t is not None else str(k)
            for k, t in zip(labels, texts, strict=True)
        ],
    )


def _words(
    array: xr.DataArray,
    name: str,
    labels: list[Any],
    tokens: Mapping[str, Any] | None,
    picked: Mapping[str, Any],
) -> tuple[list[str | None], list[bool], str] | None:
    """Texts of the positions of an axis, where several prompts disagree, and a note."""
    if kind_of(name) != "position" or name == "slot" or not tokens:
        return None
    if not all(isinstance(v, int) for v in labels):
        return None
    side = side_of(tokens, picked, array)
    rows = [list(r) for r in tokens.get(side) or ()]
    if not rows:
        return None
    prompt = picked.get("prompt")
    if isinstance(prompt, int) and prompt < len(rows):
        rows = [rows[prompt]]
    return _common(rows, labels)


def side_of(tokens: Mapping[str, Any], picked: Mapping[str, Any], array: xr.DataArray) -> str:
    """Which prompts label the axis: the picked side, the one the axis names, clean, or any."""
    side = picked.get("side")
    if side is not None and tokens.get(side):
        return str(side)
    named = [array[d].attrs.get("tokens") for d in array.dims if d in array.coords]
    if told := next((n for n in named if n and tokens.get(n)), None):
        return str(told)
    for known in ("clean", "texts", "tokens", "prompt"):
        if tokens.get(known):
            return known
    return "clean"


def _common(
    rows: Sequence[Sequence[str]], labels: list[int]
) -> tuple[list[str | None], list[bool], str]:
    texts, marks = [], []
    for p in labels:
        there = [r[p] for r in rows if -len(r) <= p < len(r)]
        texts.append(str(there[0]) if there else None)
        marks.append(len(set(there)) > 1)
    note = "tokens of prompt 1; … where prompts differ" if any(marks) else ""
    return texts, marks, note
