"""View state in a link: what a result page shows, read leniently and written shortly.

``/run/<id>?v=1&var=effect&layer=9&head=6&prompt=0``. Unknown keys and bad values fall back with a
notice; a link never breaks a page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
TABS = ("figure", "table", "trust", "provenance", "export")
PLACES = (
    "layer",
    "head",
    "kv_head",
    "position",
    "prompt",
    "query",
    "key",
    "neuron",
    "metric",
    "side",
    "slot",
    "kl_direction",
    "row",
    "col",
    "boundary",
    "layer_skipped",
    "part",
    "mode",
    "stat",
    "times",
    "target",
    "score",
    "ranking",
    "seed",
)
LONGEST = 300
PALETTES = {"RdBu": "red and blue", "PuOr": "purple and orange"}
SCALES = {"own": "own", "shared": "shared by unit", "robust": "robust (99 %)"}


@dataclass(frozen=True)
class View:
    """What is on screen.

    Args:
        var: the variable shown, None for the first.
        tab: one of ``TABS``.
        place: axis -> entry that is selected.
        palette: colours of signed numbers, one of ``PALETTES``.
        scale: where the colours end, one of ``SCALES``.
    """

    var: str | None = None
    tab: str = "figure"
    place: Mapping[str, int | str] = field(default_factory=dict)
    palette: str = "RdBu"
    scale: str = "own"

    def query(self) -> dict[str, Any]:
        """The keys of the link, defaults left out."""
        out: dict[str, Any] = {"v": VERSION}
        if self.var:
            out["var"] = self.var
        if self.tab != "figure":
            out["tab"] = self.tab
        if self.palette != "RdBu":
            out["palette"] = self.palette
        if self.scale != "own":
            out["scale"] = self.scale
        return out | dict(self.place)


def read_view(query: Mapping[str, Any], known: Any = None) -> tuple[View, list[str]]:
    """The view of a query, and a sentence for each part that could not be used.

    Args:
        query: the link's keys and values (a list where a key stood twice).
        known: the dataset whose variables and axes the values must fit, or None.
    """
    notices: list[str] = []
    var, tab, place = None, "figure", {}
    looks = {"palette": "RdBu", "scale": "own"}
    for key, value in query.items():
        text = value[0] if isinstance(value, list) else str(value)
        if key == "v":
            if text != str(VERSION):
                notices.append("This link was written by another version of the workbench.")
        elif key == "var" and (known is None or text in known.data_vars):
            var = text
        elif key == "tab" and text in TABS:
            tab = text
        elif (key, text) in {*(("palette", p) for p in PALETTES), *(("scale", s) for s in SCALES)}:
            looks[key] = text
        elif key in PLACES and (entry := _entry(key, text, known)) is not None:
            place[key] = entry
        else:
            what = "has no such view" if key in (*PLACES, "var", "tab") else "means nothing here"
            notices.append(f"{_short(key)}={_short(text)} {what}; it was left out.")
    return View(var, tab, place, **looks), notices[:5]


def _entry(key: str, text: str, known: Any) -> int | str | None:
    if re.fullmatch(r"\d{1,6}", text):
        entry: int | str = int(text)
    elif re.fullmatch(r"[A-Za-z_][\w-]{0,40}", text) and key in (
        "metric",
        "side",
        "slot",
        "kl_direction",
    ):
        return text
    else:
        return None
    if known is not None and key in known.sizes and entry >= known.sizes[key]:
        return None
    return entry


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= 24 else text[:23] + "…"
