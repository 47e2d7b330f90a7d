"""Figures as files and page parts: JSON for a page, PNG or SVG where a browser is found."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "brave-browser",
)
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Picture:
    """A picture, or why there is none.

    Args:
        image: the file's bytes, empty where there is none.
        reason: why there is none.
    """

    image: bytes = b""
    reason: str = ""


@functools.cache
def plotly_script() -> str:
    """plotly.js as one script, for a page that fetches nothing."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def figure_json(figure: go.Figure) -> str:
    """A figure as JSON that may stand in a ``<script>`` of any page: no ``<``, ``>``, ``&``."""
    text = str(figure.to_json())
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def browser() -> str | None:
    """The browser that kaleido would drive, or None."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if shutil.which(named) else None
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def picture(
    figure: go.Figure, format_: str = "png", *, width: int = 960, scale: float = 2.0
) -> Picture:
    """A figure as a picture file, light theme as it stands.

    Args:
        figure: what to draw.
        format_: ``png``, ``svg`` or ``pdf``.
        width: pixels.
        scale: pixels of a PNG for each of ``width``.

    Returns:
        the picture, or the reason why there is none (no kaleido, no browser, a browser that
        fails): a report goes on without it and says so.
    """
    if format_ not in FORMATS:
        return Picture(reason=f"{format_!r} is no picture format; known: {', '.join(FORMATS)}")
    if importlib.util.find_spec("kaleido") is None:
        return Picture(reason="kaleido is not installed (pip install 'interp[kaleido]')")
    if browser() is None:
        return Picture(reason="no browser was found (install Chromium, or set BROWSER_PATH)")
    previous = os.environ.get("BROWSER_PATH")
    os.environ["BROWSER_PATH"] = str(browser())
    try:
        layout: Any = figure.layout
        height = int(layout.height or 450)
        return Picture(figure.to_image(format_, width=width, height=height, scale=scale))
    except (RuntimeError, ValueError, OSError) as error:
        return Picture(reason=f"the browser failed: {str(error).strip().splitlines()[-1][:200]}")
    finally:
        if previous is None:
            os.environ.pop("BROWSER_PATH", None)
        else:
            os.environ["BROWSER_PATH"] = previous
