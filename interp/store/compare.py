"""Two runs side by side: what differs in spec, provenance and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from interp.store.records import Record


@dataclass(frozen=True)
class ArrayDifference:
    """How one array differs between two runs.

    Args:
        name: of the variable.
        max_abs: largest absolute difference over the cells that both have, or None.
        correlation: Pearson's, over those cells; None where it is undefined.
        cells: how many cells both have.
        units: of the variable.
        reason: why it could not be compared, or which part of it was.
    """

    name: str
    max_abs: float | None = None
    correlation: float | None = None
    cells: int = 0
    units: str = ""
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The difference of run b from run a.

    Args:
        spec: (path, value in a, value in b) where the specs differ; likewise ``provenance``.
        provenance: see ``spec``.
        arrays: one line a variable.
        difference: b minus a for each variable both have, same axes and units.
    """

    spec: list[tuple[str, Any, Any]]
    provenance: list[tuple[str, Any, Any]]
    arrays: list[ArrayDifference]
    difference: xr.Dataset = field(repr=False)

    @property
    def same(self) -> bool:
        """Whether both have the same arrays, and these are equal cell for cell."""
        return all(a.max_abs == 0.0 and not a.reason for a in self.arrays)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without the difference itself."""
        return {
            "same": self.same,
            "spec": [list(x) for x in self.spec],
            "provenance": [list(x) for x in self.provenance],
            "arrays": [vars(a) for a in self.arrays],
        }


def compare(a: Record, b: Record) -> Comparison:
    """Compare two runs (records or results)."""
    import xarray as xr

    lines, parts = [], {}
    for name in dict.fromkeys([*map(str, a.data.data_vars), *map(str, b.data.data_vars)]):
        line, part = _compare_array(name, a.data, b.data)
        lines.append(line)
        if part is not None:
            parts[name] = part
    return Comparison(
        spec=list(_differences(a.spec, b.spec)),
        provenance=list(_differences(a.provenance, b.provenance)),
        arrays=lines,
        difference=xr.Dataset(parts, attrs={"title": "difference, b minus a"}),
    )


_ABSENT = "(absent)"


def _differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}, key=str):
            deeper = f"{path}.{key}" if path else str(key)
            yield from _differences(a.get(key, _ABSENT), b.get(key, _ABSENT), deeper)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if list(a) != list(b):
            yield path, list(a), list(b)
    elif a != b:
        yield path, a, b


def _compare_array(
    name: str, a: xr.Dataset, b: xr.Dataset
) -> tuple[ArrayDifference, xr.DataArray | None]:
    import xarray as xr

    if name not in a or name not in b:
        return ArrayDifference(name, reason=f"only in run {'a' if name in a else 'b'}"), None
    left, right = a[name], b[name]
    units = str(left.attrs.get("units", ""))
    if set(left.dims) != set(right.dims):
        return ArrayDifference(
            name,
            units=units,
            reason=(
                f"axes differ: {', '.join(map(str, left.dims))} and "
                f"{', '.join(map(str, right.dims))}"
            ),
        ), None
    if left.dtype.kind not in "fiub" or right.dtype.kind not in "fiub":
        equal = left.shape == right.shape and bool((left.values == right.values).all())
        line = (
            ArrayDifference(name, 0.0, None, left.size, units)
            if equal
            else (ArrayDifference(name, units=units, reason="texts differ"))
        )
        return line, None
    try:
        x, y = xr.align(left, right.transpose(*left.dims), join="inner")
    except ValueError:
        return ArrayDifference(
            name, units=units, reason=(f"sizes differ: {list(left.shape)} and {list(right.shape)}")
        ), None
    if left.size == right.size == 0:
        return ArrayDifference(name, 0.0, None, 0, units), None
    if x.size == 0:
        return ArrayDifference(name, units=units, reason="no cell in common"), None
    part = (y.astype("f8") - x.astype("f8")).assign_attrs(
        {
            **left.attrs,
            "signed": 1,
            "long_name": f"difference of {left.attrs.get('long_name', name)}",
        }
    )
    reason = (
        ""
        if x.shape == left.shape == right.shape
        else (f"compared where both have cells: {list(x.shape)}")
    )
    return _measure(name, x.values.astype("f8"), y.values.astype("f8"), units, reason), part


def _measure(name: str, x: np.ndarray, y: np.ndarray, units: str, reason: str) -> ArrayDifference:
    both = np.isfinite(x) & np.isfinite(y)
    unequal = np.isfinite(x) != np.isfinite(y)
    if unequal.any():
        reason = "; ".join(
            filter(None, [reason, f"{int(unequal.sum())} cells are undefined in one run only"])
        )
    x, y = x[both], y[both]
    if not x.size and not unequal.any():
        return ArrayDifference(name, 0.0, None, 0, units, reason)
    if not x.size:
        return ArrayDifference(name, units=units, reason=reason or "no defined cell in common")
    correlation = None
    if x.size > 1 and x.std() > 0 and y.std() > 0:
        correlation = float(np.corrcoef(x, y)[0, 1])
    return ArrayDifference(
        name, float(np.abs(y - x).max()), correlation, int(x.size), units, reason
    )
