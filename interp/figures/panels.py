"""Panels: what stands beside and above the pictures of a sheet, and before the steps of a fall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from interp.figures.axes import axis_of, title_of
from interp.figures.choose import Plan, narrow, spoken_labels
from interp.figures.sheets import sheet, waterfall
from interp.figures.text import number

if TYPE_CHECKING:
    import xarray as xr

SIGNS = {"singular_value": "σ", "residual": "r", "logit": "f", "row_sum": "sum"}
"""Arrays whose numbers stand above a picture -> what they are called there."""


def sheet_of(
    view: Any, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]
) -> Any:  # fmt: skip
    """Pictures along an axis.

    The array's attributes may name a picture to stand beside them (``beside``) and arrays whose
    numbers stand in the titles (``panel``).
    """
    y, x, along = plan.axes
    array = array.transpose(along, y, x)
    said, entries = array.attrs, axis_of(array, along, view.tokens, picked)
    titles = [f"{along} {n}" if n.isdigit() else n for n in entries.raw]
    numbers = [_numbers(view, panel, along, picked) for panel in str(said.get("panel", "")).split()]
    for i in range(len(titles)):
        line = ", ".join(f"{word} {number(values[i], 2)}" for word, values in numbers)
        titles[i] += f"\n{line}" if line else ""
    figure = sheet(
        np.asarray(array.values, dtype=float), titles, axis_of(array, y), axis_of(array, x),
        signed=bool(said.get("signed", 0)), units=str(said.get("units", "")),
        beside=_beside(view, said.get("beside"), (y, x), picked), beside_title="x₀",
        palette=view.palette,
    )  # fmt: skip
    return figure, [], (x, y)


def _numbers(
    view: Any, panel: str, along: str, picked: dict[str, Any]
) -> tuple[str, list[float]]:  # fmt: skip
    """What a number is called, and one for each picture."""
    other, _ = narrow(view.data[panel], {a: v for a, v in picked.items() if a != along})
    return SIGNS.get(panel, title_of(panel)), [float(v) for v in other.values]


def _beside(
    view: Any, name: Any, axes: tuple[str, str], picked: dict[str, Any]
) -> np.ndarray | None:
    """The picture beside the others: the same prompt, the first of everything else."""
    if name not in view.data:
        return None
    array, _ = narrow(view.data[name], picked)
    rest = {d: 0 for d in array.dims if d not in axes}
    array = array.isel(rest)
    if set(array.dims) != set(axes):
        return None
    return np.asarray(array.transpose(*axes).values, dtype=float)


def waterfall_of(
    view: Any, name: str, array: xr.DataArray, plan: Plan, picked: dict[str, Any]
) -> Any:  # fmt: skip
    """Steps along ``component`` from the array that ``waterfall`` names to their sum."""
    start, _ = narrow(view.data[array.attrs["waterfall"]], picked)
    names = [str(v) for v in spoken_labels(array, "component")]
    steps = np.asarray(array.values, dtype=float)
    figure = waterfall(float(start.values), steps, names, str(array.attrs.get("units", "")))
    return figure, ["hatched bars take away"], ("component", "")
