"""The table twin of a figure: the same numbers in rows, for screen readers, reports and export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.figures.axes import axis_of, title_of
from interp.figures.choose import drawn_names, holds_tokens, narrow, noise_floor
from interp.figures.text import glyphs

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Table:
    """Rows of plain text and numbers (nothing escaped).

    Args:
        title: what the numbers are, with their unit.
        columns: the axes, then ``value``, ``± se`` where there is one, and ``note``.
        rows: one a cell.
        total: rows there are in all; ``rows`` may be fewer.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    total: int


def table_of(
    data: xr.Dataset,
    name: str | None = None,
    *,
    tokens: Mapping[str, Any] | None = None,
    selection: Mapping[str, Any] | None = None,
    largest_first: bool = False,
    limit: int | None = None,
) -> Table:
    """One array as rows.

    Args:
        data: the dataset.
        name: which array (default: the first that is drawn).
        tokens: raw texts, as in ``figures_of``.
        selection: entries to keep of some axes.
        largest_first: by absolute value, undefined last; else in the array's order.
        limit: at most so many rows.
    """
    name = name or drawn_names(data)[0]
    array, picked = narrow(data[name], selection or {})
    axes = [axis_of(array, str(d), tokens, picked) for d in array.dims]
    values = array.values
    flat = values.reshape(-1)
    order = np.arange(flat.size)
    if largest_first and array.dtype.kind in "iufb":
        size = np.abs(flat.astype(float))
        order = np.argsort(-np.where(np.isfinite(size), size, -1), kind="stable")
    order = order[:limit]
    error = _like(data, f"{name}_se", array, picked)
    inert = _like(data, "inert", array, picked)
    floor = noise_floor(data, name)
    answers = (tokens or {}).get("answers") or {} if holds_tokens(array) else None
    rows = []
    for k in order:
        at = np.unravel_index(int(k), values.shape) if values.shape else ()
        row: list[Any] = [a.raw[i] for a, i in zip(axes, at, strict=True)]
        row.append(_value(flat[k], answers))
        if error is not None:
            spread = float(error[at])
            row.append(spread if np.isfinite(spread) else "")
        row.append(_note(flat[k], inert[at] if inert is not None else False, floor))
        rows.append(tuple(glyphs_of(c) for c in row))
    columns = [title_of(str(d)) for d in array.dims] + ["value"]
    columns += ["± se"] if error is not None else []
    units = array.attrs.get("units", "")
    title = str(array.attrs.get("long_name", name))
    title += "" if units in ("", "1") else f" ({units})"
    return Table(title, (*columns, "note"), tuple(rows), int(flat.size))


def glyphs_of(cell: Any) -> Any:
    """Controls and line breaks made visible; spaces inside a cell stay."""
    if not isinstance(cell, str):
        return cell
    return "".join(c if c == " " else glyphs(c) for c in cell)


def _value(value: Any, answers: Mapping[Any, str] | None) -> Any:
    if answers is not None:
        text = answers.get(int(value), answers.get(str(int(value))))
        return f"#{int(value)}" if text is None else glyphs(text)
    if isinstance(value, (str, bytes)):
        return value.decode() if isinstance(value, bytes) else value
    return value.item() if hasattr(value, "item") else value


def _like(
    data: xr.Dataset, name: str, array: xr.DataArray, picked: Mapping[str, Any]
) -> np.ndarray | None:
    if name not in data:
        return None
    helper, _ = narrow(data[name], {a: v for a, v in picked.items() if a in data[name].dims})
    if set(helper.dims) - set(array.dims):
        return None
    return helper.broadcast_like(array).transpose(*array.dims).values


def _note(value: Any, inert: Any, floor: float) -> str:
    if not np.issubdtype(np.asarray(value).dtype, np.number):
        return ""
    if not np.isfinite(float(value)):
        return "undefined"
    if bool(inert):
        return "inert"
    return "under the noise floor" if abs(float(value)) < floor else ""
