"""What may stand in ``data.nc``: checked with h5py's low-level calls before a number is read.

An HDF5 file can name other files (external storage, virtual datasets, links), hold objects of any
type, and declare a trillion numbers in a kilobyte. Our own writer makes none of these, so anything
but plain numeric arrays in one flat group, laid out as the manifest says, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.terms import UnsafeError

MAX_BYTES = 4 * 2**30
"""Largest ``data.nc``, and largest sum of its declared arrays, that is opened."""

DIMENSION_REFERENCES = {"DIMENSION_LIST", "REFERENCE_LIST"}
SIGNATURE = b"\x89HDF\r\n\x1a\n"


def read_arrays(
    image: bytes,
    arrays: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, int],
    limit: int = MAX_BYTES,
) -> dict[str, np.ndarray]:
    """The numbers of an HDF5 image, refused if it is anything but the arrays the manifest names.

    Args:
        image: the file's bytes.
        arrays: name -> ``{"shape": […], "stored": dtype text}``, from the manifest.
        dims: axis -> size, from the manifest.
        limit: bytes that the arrays may declare together.

    Returns:
        Name -> values; nothing is read before everything has been checked.

    Raises:
        UnsafeError: with the name of the object and what was wrong.
    """
    import h5py

    if not image.startswith(SIGNATURE):
        raise UnsafeError("data.nc is no HDF5 file.")
    try:
        with h5py.File(io.BytesIO(image), "r") as file:
            _check_attributes("/", file)
            found = _check_root(file, arrays, dims, limit)
            missing = sorted(set(arrays) - found)
            if missing:
                raise UnsafeError(f"data.nc lacks {', '.join(missing)}, which the manifest names.")
            stored: Any = file
            return {name: np.asarray(stored[name][()]) for name in arrays}
    except UnsafeError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UnsafeError(f"data.nc cannot be read as HDF5: {_short(error)}.") from error


def _short(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0][:200] if text else type(error).__name__


def _check_root(
    file: Any, arrays: Mapping[str, Any], dims: Mapping[str, int], limit: int
) -> set[str]:
    from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]

    found: set[str] = set()
    total = 0
    names: list[bytes] = []
    file.id.links.iterate(names.append)
    for name in names:
        text = name.decode("utf-8", "replace")
        if file.id.links.get_info(name).type != h5l.TYPE_HARD:
            raise UnsafeError(f"data.nc: {text!r} is a link; only arrays may stand there.")
        if h5o.get_info(file.id, name).type != h5o.TYPE_DATASET:
            raise UnsafeError(f"data.nc: {text!r} is a group or a named type; wanted an array.")
        dataset = file[text]
        _check_storage(text, dataset)
        if text in arrays:
            wanted = arrays[text]
            _check_numbers(text, dataset, wanted["shape"], np.dtype(wanted["stored"]))
            found.add(text)
        elif text in dims:
            _check_dimension(text, dataset, dims[text])
        else:
            raise UnsafeError(f"data.nc holds {text!r}, which the manifest does not name.")
        total += dataset.dtype.itemsize * int(np.prod(dataset.shape, dtype=object))
        if total > limit:
            raise UnsafeError(f"data.nc declares more than {limit:,} bytes of arrays.")
        _check_attributes(text, dataset)
    return found


def _check_storage(name: str, dataset: Any) -> None:
    """No other file, no virtual dataset, no filter: bytes that lie in this file as they are."""
    from h5py import h5d, h5t  # pyright: ignore[reportAttributeAccessIssue]

    plist = dataset.id.get_create_plist()
    if plist.get_external_count():
        raise UnsafeError(f"data.nc: {name!r} keeps its numbers in another file.")
    if plist.get_layout() not in (h5d.CONTIGUOUS, h5d.COMPACT) or plist.get_nfilters():
        raise UnsafeError(f"data.nc: {name!r} is virtual, chunked or compressed.")
    if dataset.id.get_type().get_class() not in (h5t.INTEGER, h5t.FLOAT):
        raise UnsafeError(f"data.nc: {name!r} holds objects, references or text; wanted numbers.")


def _check_numbers(name: str, dataset: Any, shape: Any, dtype: np.dtype) -> None:
    if list(dataset.shape) != list(shape) or dataset.dtype != dtype:
        raise UnsafeError(
            f"data.nc: {name!r} is {list(dataset.shape)} of {dataset.dtype}; the manifest says "
            f"{list(shape)} of {dtype}."
        )
    declared = dtype.itemsize * int(np.prod(dataset.shape, dtype=object))
    if dataset.id.get_storage_size() != declared:
        raise UnsafeError(
            f"data.nc: {name!r} declares {declared:,} bytes and holds "
            f"{dataset.id.get_storage_size():,}."
        )


def _check_dimension(name: str, dataset: Any, size: int) -> None:
    if tuple(dataset.shape) != (size,):
        raise UnsafeError(
            f"data.nc: axis {name!r} has size {list(dataset.shape)}; the manifest says {size}."
        )


def _check_attributes(name: str, item: Any) -> None:
    """Texts and numbers only; references only where netCDF ties axes to arrays."""
    from h5py import h5a, h5t  # pyright: ignore[reportAttributeAccessIssue]

    plain = (h5t.INTEGER, h5t.FLOAT, h5t.STRING)
    for index in range(h5a.get_num_attrs(item.id)):
        attribute = h5a.open(item.id, index=index)
        key = attribute.name.decode("utf-8", "replace")
        if attribute.get_type().get_class() in plain or key in DIMENSION_REFERENCES:
            continue
        raise UnsafeError(f"data.nc: attribute {key!r} of {name!r} is no text, number or list.")
