"""A result in other programs' forms: CSV, JSON, netCDF."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.store import canonical, replace_file, to_netcdf

if TYPE_CHECKING:
    import xarray as xr

    from interp.results.result import Result

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def safe_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: texts that could be get an apostrophe."""
    if isinstance(value, str):
        value = value.replace("\x00", "\\0")
        return f"'{value}" if value.startswith(FORMULA) else value
    return value


def write_csv(result: Result, path: Path) -> Path:
    """Long form: variable, one column an axis, value. Metadata in ``path`` with suffix .json."""
    axes = list(dict.fromkeys(str(d) for v in result.data.data_vars.values() for d in v.dims))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["variable", *map(safe_cell, axes), "value"])
    for name, array in result.data.data_vars.items():
        writer.writerows(_rows(str(name), array, axes))
    replace_file(path, buffer.getvalue().encode("utf-8", "backslashreplace"))
    replace_file(path.with_suffix(".json"), canonical(_metadata(result)))
    return path


def _rows(name: str, array: xr.DataArray, axes: list[str]) -> Iterator[list[Any]]:
    labels = {
        str(d): (array[d].values if d in array.coords else np.arange(n)).tolist()
        for d, n in array.sizes.items()
    }
    places = {a: i for i, a in enumerate(map(str, array.dims))}
    flat = array.values.ravel().tolist()
    for index, value in zip(np.ndindex(*array.shape), flat, strict=True):
        cells = [safe_cell(labels[a][index[places[a]]]) if a in places else "" for a in axes]
        if isinstance(value, float) and math.isnan(value):
            value = ""
        yield [safe_cell(name), *cells, safe_cell(value)]


def _metadata(result: Result) -> dict[str, Any]:
    return {
        "spec": result.spec,
        "spec_hash": result.spec_hash,
        "run_id": result.run_id,
        "provenance": result.provenance,
        "checks": [c.to_json() for c in result.checks],
        "tokens": result.tokens,
        "variables": {
            str(k): {"axes": list(map(str, v.dims)), **dict(v.attrs)}
            for k, v in result.data.data_vars.items()
        },
    }


def json_of(result: Result) -> str:
    """One document with everything; undefined numbers are null."""
    data = result.data
    return json.dumps(
        {
            **json.loads(canonical(_metadata(result))),
            "coords": {str(k): _array(v) for k, v in data.coords.items()},
            "data": {str(k): _array(v) for k, v in data.data_vars.items()},
        },
        ensure_ascii=True,
    )


def _array(array: xr.DataArray) -> dict[str, Any]:
    attrs = json.loads(canonical(dict(array.attrs)))
    return {
        "axes": list(map(str, array.dims)),
        "shape": list(array.shape),
        **attrs,
        "values": _finite(array.values.tolist()),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_netcdf(result: Result, path: Path) -> Path:
    """The arrays with their texts, readable by any netCDF tool."""
    replace_file(path, to_netcdf(result.data))
    return path
