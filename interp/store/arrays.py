"""A dataset in two parts: numbers for ``data.nc``, and texts and attrs for the manifest."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.store.files import plain
from interp.store.structure import read_arrays
from interp.terms import DamagedError, UsageError

if TYPE_CHECKING:
    import xarray as xr

RESERVED = {
    "_FillValue",
    "missing_value",
    "coordinates",
    "dtype",
    "scale_factor",
    "add_offset",
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "grid_mapping",
    "bounds",
    "_NCProperties",
}
LONG_TEXT = 8000


@dataclass(frozen=True)
class Packed:
    """A dataset as it goes to disk.

    Args:
        image: bytes of ``data.nc``: numeric arrays, and those attrs that netCDF can hold.
        layout: for the manifest: ``dims``, ``arrays``, ``texts``, ``attrs``, ``order``,
            ``coords``.
    """

    image: bytes
    layout: dict[str, Any]


def pack(data: xr.Dataset) -> Packed:
    """Split a dataset; every value comes back bit for bit with ``unpack``.

    Raises:
        UsageError: a variable that is neither numbers nor text.
    """
    import xarray as xr

    arrays: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for name, variable in data.variables.items():
        key = _name(name)
        values = np.asarray(variable.values)
        entry = {"dims": [_name(d) for d in variable.dims], "shape": list(values.shape)}
        if values.dtype.kind in "UOTS":
            texts[key] = {**entry, "values": _texts(key, values)}
            continue
        stored = _stored(key, values)
        if 0 in values.shape:
            texts[key] = {**entry, "dtype": values.dtype.str, "values": []}
            continue
        arrays[key] = {
            **entry,
            "dtype": values.dtype.newbyteorder("=").str,
            "stored": stored.dtype.str,
        }
        kept[key] = xr.Variable(variable.dims, stored, _simple(variable.attrs))
    small = xr.Dataset(
        {k: v for k, v in kept.items() if k not in data.coords},
        coords={k: v for k, v in kept.items() if k in data.coords},
        attrs=_simple(data.attrs),
    )
    encoding = {k: {"_FillValue": None} for k in kept}
    image = bytes(small.to_netcdf(None, engine="h5netcdf", encoding=encoding))
    layout = {
        "dims": {_name(k): int(v) for k, v in data.sizes.items()},
        "arrays": arrays,
        "texts": texts,
        "attrs": {
            "": plain(dict(data.attrs)),
            **{_name(k): plain(dict(v.attrs)) for k, v in data.variables.items() if v.attrs},
        },
        "order": [_name(k) for k in data.variables],
        "coords": [_name(k) for k in data.coords],
    }
    return Packed(image, layout)


def _name(name: Any) -> str:
    text = str(name)
    if not text or any(c in text for c in "/\x00") or text.startswith("."):
        raise UsageError(f"A variable or axis is called {text!r}, which cannot be stored.")
    return text


def _texts(name: str, values: np.ndarray) -> list[str]:
    flat = values.ravel().tolist()
    if any(not isinstance(v, (str, bytes)) for v in flat):
        raise UsageError(f"{name!r} holds Python objects; wanted numbers or texts.")
    return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in flat]


def _stored(name: str, values: np.ndarray) -> np.ndarray:
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype("i1")
    if kind == "f" and size == 2:
        return values.astype("<f4")
    if kind not in "fiu" or size > 8:
        raise UsageError(f"{name!r} holds {values.dtype}; wanted real numbers, truths or texts.")
    return values.astype(values.dtype.newbyteorder("<"))


def _simple(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """The attrs netCDF can hold: short texts, numbers, lists of numbers."""
    out: dict[str, Any] = {}
    for key, value in attrs.items():
        if str(key) in RESERVED or "/" in str(key) or "\x00" in str(key) or not str(key):
            continue
        value = plain(value)
        if isinstance(value, bool):
            value = int(value)
        if isinstance(value, str):
            if value and "\x00" not in value and len(value) <= LONG_TEXT and _encodes(value):
                out[str(key)] = value
        elif isinstance(value, (int, float)):
            if not isinstance(value, int) or abs(value) < 2**63:
                out[str(key)] = value
        elif (
            isinstance(value, list)
            and 0 < len(value) <= 1000
            and all(
                isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 2**62
                for v in value
            )
        ):
            out[str(key)] = value
    return out


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unpack(image: bytes, layout: Mapping[str, Any]) -> xr.Dataset:
    """The dataset again, after the structural check of the image.

    Raises:
        UnsafeError: the image is not what the layout says.
        DamagedError: the layout itself cannot be read.
    """
    import xarray as xr

    try:
        values = read_arrays(image, layout["arrays"], layout["dims"])
        variables = {k: _variable(k, values, layout) for k in layout["order"]}
        coords = set(layout["coords"])
        return xr.Dataset(
            {k: v for k, v in variables.items() if k not in coords},
            coords={k: v for k, v in variables.items() if k in coords},
            attrs=layout["attrs"].get("", {}),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(
            f"The manifest does not describe its arrays: {type(error).__name__} {error}."
        ) from error


def _variable(
    name: str, arrays: Mapping[str, np.ndarray], layout: Mapping[str, Any]
) -> xr.Variable:
    import xarray as xr

    attrs = layout["attrs"].get(name, {})
    if name in layout["arrays"]:
        entry = layout["arrays"][name]
        dtype = np.dtype(entry["dtype"])
        if dtype.kind not in "fiub":
            raise DamagedError(f"The manifest gives {name!r} the type {dtype}; wanted numbers.")
        values = arrays[name].astype(dtype, copy=False)
        return xr.Variable(entry["dims"], values, attrs)
    entry = layout["texts"][name]
    if math.prod(entry["shape"]) != len(entry["values"]):
        raise DamagedError(f"{name!r} has {len(entry['values'])} texts for {entry['shape']}.")
    dtype = np.dtype(entry["dtype"]) if "dtype" in entry else np.dtype(object)
    values = np.empty(len(entry["values"]), dtype=dtype)
    values[:] = entry["values"]
    if dtype.hasobject and not _only_as_objects(values.tolist()):
        values = values.astype(str)
    return xr.Variable(entry["dims"], values.reshape(entry["shape"]), attrs)


def _only_as_objects(texts: list[str]) -> bool:
    """numpy's own text type cuts a NUL at the end; xarray takes no lone surrogate in objects."""
    return any(t.endswith("\x00") for t in texts) and all(map(_encodes, texts))


def to_netcdf(data: xr.Dataset) -> bytes:
    """One netCDF file that any tool reads: texts written out, attrs where netCDF can hold them."""
    import xarray as xr

    kept = {}
    for name, variable in data.variables.items():
        key = _name(name)
        values = np.asarray(variable.values)
        if values.dtype.kind in "UOTS":
            shown = [
                t.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()
                for t in _texts(key, values)
            ]
            values = np.array(shown, dtype=object).reshape(values.shape)
        else:
            values = _stored(key, values)
        kept[key] = xr.Variable(variable.dims, values, _simple(variable.attrs))
    coords = set(map(str, data.coords))
    whole = xr.Dataset(
        {k: v for k, v in kept.items() if k not in coords},
        coords={k: v for k, v in kept.items() if k in coords},
        attrs=_simple(data.attrs),
    )
    return bytes(whole.to_netcdf(None, engine="h5netcdf"))


def dataset_to_json(data: xr.Dataset) -> dict[str, Any]:
    """A dataset as plain JSON: ``data.nc`` in base64 beside its layout."""
    packed = pack(data)
    return {"image": base64.b64encode(packed.image).decode(), "layout": packed.layout}


def dataset_from_json(data: Mapping[str, Any]) -> xr.Dataset:
    """The inverse of ``dataset_to_json``, with the same checks as for a file."""
    return unpack(base64.b64decode(data["image"], validate=True), data["layout"])
