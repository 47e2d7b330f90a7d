"""Tokens on the page: glyphs for what cannot be seen, two aligned rows, bars of likely tokens.

HTML components take plain text, so nothing is escaped here (plotly's labels are the figures' own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import html

from interp import figures

UNSEEN = "␣⏎⇥␍∅"


def token(text: str, kind: str = "", title: str = "") -> html.Span:
    """One token as a chip; invisible characters as fainter glyphs.

    Args:
        text: the raw text of the token.
        kind: further classes: ``"diff clean"``, ``"diff corrupt"``, ``"bos"``.
        title: what the pointer shows.
    """
    seen = figures.glyphs(text)
    parts = [html.Span(c, className="g") if c in UNSEEN else c for c in seen]
    return html.Span(html.Bdi(parts), className=f"tok {kind}".strip(), title=title or None)


def token_rows(
    clean: Sequence[str],
    corrupt: Sequence[str],
    *,
    bos: bool = False,
    same: Sequence[bool] | None = None,
) -> html.Div:
    """The two prompts of a pair, one above the other, their differences marked.

    Args:
        clean: text of each token; likewise ``corrupt``.
        corrupt: see ``clean``.
        bos: whether position 0 is a beginning-of-sequence token.
        same: per position whether the tokens are equal; compared by text where it is None.
    """
    width = max(len(clean), len(corrupt))
    if same is None:
        same = [
            i < len(clean) and i < len(corrupt) and clean[i] == corrupt[i] for i in range(width)
        ]
    head = html.Tr([html.Th("position"), *(html.Td(str(i), className="pos") for i in range(width))])
    rows = [head]
    for name, texts in (("clean", clean), ("corrupt", corrupt)):
        cells = []
        for i in range(width):
            kind = "" if same[i] else f"diff {name}"
            if bos and i == 0:
                kind += " bos"
            where = f"position {i}" + ("" if same[i] else ", differs")
            cells.append(html.Td(token(texts[i], kind, where) if i < len(texts) else None))
        rows.append(html.Tr([html.Th(name, scope="row"), *cells]))
    apart = sum(not s for s in same)
    caption = f"{len(clean)} and {len(corrupt)} tokens, {apart} of them different"
    table = html.Table([html.Caption(caption, className="sr-only"), html.Tbody(rows)])
    return html.Div(
        table,
        className="tokens",
        tabIndex=0,
        role="group",
        **{"aria-label": f"Aligned tokens: {caption}"},
    )


def likely(
    rows: Sequence[tuple[str, float]],
    right: Sequence[str] = (),
    wrong: Sequence[str] = (),
) -> html.Div:
    """Likely next tokens with their probabilities as bars; right and wrong answers marked."""
    bars = []
    for text, prob in rows:
        mark = "right" if text in right else "wrong" if text in wrong else ""
        said = f" {mark}" if mark else ""
        bars.append(
            html.Div(
                [
                    token(text),
                    html.Div(
                        html.Div(className="fill", style={"width": f"{100 * prob:.1f}%"}),
                        className="track",
                    ),
                    html.Span(f"{100 * prob:.1f} %", className="v"),
                    html.Span(said, className="faint"),
                ],
                className=f"bar {mark}".strip(),
            )
        )
    return html.Div(bars, className="stack tight")


def answers(names: Mapping[Any, str], ids: Sequence[Any]) -> list[Any]:
    """Chips for answer tokens, by their ids."""
    return [token(names.get(i, names.get(str(i), str(i)))) for i in ids]
