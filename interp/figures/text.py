"""Text for plotly: glyphs for what cannot be seen, escapes for what plotly would swallow.

plotly reads labels as a little HTML of its own: ``<s>`` and ``<br>`` vanish from ticks, hover and
titles, and equal category names are merged into one. So every token axis is numeric, and every
text goes through here. HTML components (Dash, AG Grid) take plain text: they get ``glyphs`` only.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GLYPHS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
"""plotly's own entities; the dollar, since a page with MathJax would typeset ``$$``."""

MANY_TICKS = 64
"""Above this number of positions ticks are thinned."""

LONGEST_LABEL = 18
"""Characters of a tick label; the whole text stands in the hover."""


def glyphs(text: str) -> str:
    r"""A token as one can see it: ``␣Mary``, ``⏎``, ``∅``, ``\u202e``."""
    if text == "":
        return "∅"
    return "".join(_glyph(c) for c in text)


def _glyph(char: str) -> str:
    if char in GLYPHS:
        return GLYPHS[char]
    category = unicodedata.category(char)
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"):
        code = ord(char)
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return char


def escape(text: str) -> str:
    """``text`` as plotly shows it letter by letter."""
    return "".join(ESCAPES.get(c, c) for c in text)


def shown(text: str, longest: int | None = None) -> str:
    """Glyphs, cut to ``longest``, kept from turning a line around, escaped for plotly."""
    seen = glyphs(text)
    if longest is not None and len(seen) > longest:
        seen = seen[: longest - 1] + "…"
    if any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in seen):
        seen = f"\u2068{seen}\u2069"
    return escape(seen)


def plain(text: str) -> str:
    """House prose (titles, names) for plotly: escaped, control characters by code."""
    return escape("".join(c if c == " " else _glyph(c) for c in text))


def number(value: float, digits: int = 3) -> str:
    """A number for a person: ``0.42``, ``-1.2e-07``, ``undefined``."""
    if value is None or math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.{digits}g}"


def thin(n: int, most: int = MANY_TICKS) -> list[int]:
    """The indices that get a tick: all of them up to ``most``, else every k-th."""
    if n <= most:
        return list(range(n))
    step = math.ceil(n / most)
    for nice in (2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if nice >= step:
            step = nice
            break
    return list(range(0, n, step))


@dataclass(frozen=True)
class TokenAxis:
    """A numeric axis whose ticks are tokens.

    Args:
        x: 0…n-1, the numbers to plot against.
        tickvals: the positions that have a tick.
        ticktext: their labels, escaped for plotly.
        names: for every position its whole text with glyphs, escaped for plotly (for hover).
    """

    x: list[int]
    tickvals: list[int]
    ticktext: list[str]
    names: list[str]

    def layout(self) -> dict[str, Any]:
        """Keyword arguments of a plotly axis."""
        wide = max((len(t) for t in self.ticktext), default=0)
        turned = -90 if len(self.tickvals) > 32 else -45
        return {
            "tickmode": "array",
            "tickvals": self.tickvals,
            "ticktext": self.ticktext,
            "tickangle": turned if wide * len(self.tickvals) > 70 else 0,
            "range": [-0.5, len(self.x) - 0.5],
            "automargin": True,
        }


def token_axis(tokens: Sequence[str | None], *, marks: Sequence[bool] | None = None) -> TokenAxis:
    """The axis of a row of tokens: repeats stay apart, nothing is swallowed or merged.

    Args:
        tokens: raw text of each position; None where there is none.
        marks: positions whose label gets an ellipsis, since other prompts differ there.
    """
    n = len(tokens)
    ticks = thin(n)
    labels = ["" if t is None else shown(str(t), LONGEST_LABEL) for t in tokens]
    if marks is not None:
        labels = [f"{t} …" if m else t for t, m in zip(labels, marks, strict=True)]
    text = [labels[i] if len(ticks) == n else f"{i} {labels[i]}".rstrip() for i in ticks]
    names = ["" if t is None else shown(str(t)) for t in tokens]
    return TokenAxis(list(range(n)), ticks, text, names)
