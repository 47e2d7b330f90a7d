"""A board of 8 × 8 pixels on which a digit is drawn, and small pictures to pick from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import ClientsideFunction, Input, Output, clientside_callback, dcc, html

SIDE = 8
PIXELS = SIDE * SIDE


def board(ident: str, values: Sequence[float]) -> html.Div:
    """A board whose numbers live in the store ``ident``.

    A pointer paints, with Shift it wipes; arrows move between pixels, Space turns one on or off.

    Args:
        ident: the id of the store.
        values: 64 numbers from 0 to 1, row by row.
    """
    rows = [
        html.Div(
            [
                html.Button(
                    className="pixel", role="gridcell", tabIndex=0 if (i, j) == (0, 0) else -1,
                    **{"aria-label": f"row {i + 1}, column {j + 1}", "data-n": str(i * SIDE + j)},
                )
                for j in range(SIDE)
            ],
            role="row", className="board-row",
        )
        for i in range(SIDE)
    ]  # fmt: skip
    grid = html.Div(
        rows, className="board", role="grid", id=f"{ident}-board",
        **{"aria-label": "The digit, 8 rows and 8 columns", "data-store": ident},
    )  # fmt: skip
    return html.Div([
        grid, dcc.Store(id=ident, data=list(values)), html.Div(id=f"{ident}-painted", hidden=True),
    ])  # fmt: skip


def follow_board(ident: str) -> None:
    """The board shows what its store holds."""
    clientside_callback(
        ClientsideFunction("workbench", "paint"),
        Output(f"{ident}-painted", "children"),
        Input(ident, "data"),
        Input(f"{ident}-board", "id"),
    )


def thumbnail(values: Sequence[float]) -> html.Span:
    """A small picture of 64 numbers."""
    cells = [html.I(style={"opacity": f"{min(max(v, 0), 1):.2f}"}) for v in values]
    return html.Span(cells, className="thumb", **{"aria-hidden": "true"})


def read_pixels(values: Any) -> list[float]:
    """64 numbers from 0 to 1 from what a page sent.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(values, list) or len(values) != PIXELS:
        raise ValueError(f"A drawing has {PIXELS} pixels.")
    return [min(max(float(v), 0.0), 1.0) for v in values]
