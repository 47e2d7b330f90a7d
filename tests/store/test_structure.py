"""An HDF5 file that is anything but plain arrays is refused before a number is read (case 6)."""

from __future__ import annotations

import io

import h5py
import numpy as np
import pytest
import xarray as xr

from interp.store import read_run, structure
from interp.store.arrays import unpack
from interp.terms import UnsafeError
from tests.store.makers import forged

FOUR = {"x": {"dims": ["layer"], "shape": [4], "stored": "<f4", "dtype": "<f4"}}
DIMS = {"layer": 4}


def image_of(make) -> bytes:
    """The bytes of an HDF5 file that ``make`` fills."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        make(file)
    return buffer.getvalue()


def external(file):
    file.create_dataset("x", (4,), "<f4", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "<f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def external_link(file):
    file["x"] = h5py.ExternalLink("/tmp/other.h5", "/x")


def soft_link(file):
    file["y"] = np.zeros(4, "<f4")
    file["x"] = h5py.SoftLink("/y")


def vlen(file):
    data = file.create_dataset("x", (4,), h5py.vlen_dtype(np.float32))
    data[0] = np.zeros(3, "f4")


def text(file):
    file.create_dataset("x", data=["a", "b", "c", "d"], dtype=h5py.string_dtype())


def references(file):
    file.create_dataset("y", data=np.zeros(4, "<f4"))
    data = file.create_dataset("x", (4,), h5py.ref_dtype)
    data[0] = file["y"].ref


def compound(file):
    file.create_dataset("x", data=np.zeros(4, [("a", "f4")]))


def opaque(file):
    file.create_dataset("x", data=np.zeros(4, "V8"))


def compressed(file):
    file.create_dataset("x", data=np.zeros(4, "<f4"), chunks=(4,), compression="gzip")


def chunked(file):
    file.create_dataset("x", (4,), "<f4", chunks=(2,))


def group(file):
    file.create_group("x")


def named_type(file):
    file["x"] = np.dtype("f4")


def empty(file):
    file.create_dataset("x", (4,), "<f4")  # declared, never written: no bytes behind it


def other_shape(file):
    file.create_dataset("x", data=np.zeros(5, "<f4"))


def other_type(file):
    file.create_dataset("x", data=np.zeros(4, "<f8"))


def stranger(file):
    file.create_dataset("x", data=np.zeros(4, "<f4"))
    file.create_dataset("stranger", data=np.zeros(4, "<f4"))


def missing(file):
    file.attrs["a"] = 1


def reference_attribute(file):
    data = file.create_dataset("x", data=np.zeros(4, "<f4"))
    data.attrs["sneaky"] = data.ref


def compound_attribute(file):
    file.attrs["sneaky"] = np.zeros(1, [("a", "f4")])
    file.create_dataset("x", data=np.zeros(4, "<f4"))


HOSTILE = [
    external,
    virtual,
    external_link,
    soft_link,
    vlen,
    text,
    references,
    compound,
    opaque,
    compressed,
    chunked,
    group,
    named_type,
    empty,
    other_shape,
    other_type,
    stranger,
    missing,
    reference_attribute,
    compound_attribute,
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda f: f.__name__)
def test_anything_but_the_manifests_arrays_is_refused_before_a_number_is_read(
    tmp_path, monkeypatch, make
):
    folder = forged(tmp_path / "run", image_of(make), FOUR, DIMS)
    read = lambda *a, **k: pytest.fail("a number was read")  # noqa: E731
    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    monkeypatch.setattr(xr, "open_dataset", read)
    with pytest.raises(UnsafeError, match=r"data\.nc"):
        read_run(folder)


def test_the_plain_array_beside_the_hostile_ones_is_accepted(tmp_path):
    image = image_of(lambda f: f.create_dataset("x", data=np.arange(4, dtype="<f4")))
    structure.read_arrays(image, FOUR, DIMS)


def test_a_kilobyte_that_declares_a_trillion_numbers_is_refused(tmp_path):
    def huge(file):
        file.create_dataset("x", (10**6, 10**6), "<f4")

    image = image_of(huge)
    assert len(image) < 10_000
    arrays = {"x": {**FOUR["x"], "shape": [10**6, 10**6], "dims": ["layer", "position"]}}
    with pytest.raises(UnsafeError):
        structure.read_arrays(image, arrays, {"layer": 10**6, "position": 10**6})


def test_a_declared_axis_of_a_trillion_is_refused():
    def huge(file):
        file.create_dataset("layer", (10**12,), ">f4")

    with pytest.raises(UnsafeError, match="declares more"):
        structure.read_arrays(image_of(huge), {}, {"layer": 10**12})


def test_the_size_cap_counts_all_arrays_together():
    image = image_of(lambda f: [f.create_dataset(n, data=np.zeros(4, "<f4")) for n in "xy"])
    arrays = {"x": FOUR["x"], "y": FOUR["x"]}
    structure.read_arrays(image, arrays, DIMS, limit=32)
    with pytest.raises(UnsafeError, match="declares more"):
        structure.read_arrays(image, arrays, DIMS, limit=31)


def test_a_larger_data_nc_than_the_cap_is_not_read(tmp_path, monkeypatch):
    from interp.store import records
    from interp.terms import DamagedError

    image = image_of(lambda f: f.create_dataset("x", data=np.arange(4, dtype="<f4")))
    folder = forged(tmp_path / "run", image, FOUR, DIMS)
    monkeypatch.setattr(records, "MAX_BYTES", 100)
    with pytest.raises(DamagedError, match="at most 100"):
        read_run(folder)


@pytest.mark.parametrize("image", [b"", b"CDF\x01", structure.SIGNATURE, structure.SIGNATURE * 99])
def test_no_hdf5_at_all_is_refused(image):
    with pytest.raises(UnsafeError):
        structure.read_arrays(image, FOUR, DIMS)


def test_damaged_headers_never_crash():
    image = bytearray(image_of(lambda f: f.create_dataset("x", data=np.arange(4, dtype="<f4"))))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(image)
        for place in rng.integers(8, len(image), 3):
            changed[place] = int(rng.integers(256))
        try:
            structure.read_arrays(bytes(changed), FOUR, DIMS)
        except UnsafeError:
            refused += 1
    assert refused > 20


def test_scale_and_fill_attributes_do_not_change_the_numbers():
    def scaled(file):
        data = file.create_dataset("x", data=np.arange(4, dtype="<f4"))
        data.attrs["scale_factor"] = 100.0
        data.attrs["_FillValue"] = np.float32(2.0)
        data.attrs["units"] = "days since 1970-01-01"

    layout = {"arrays": FOUR, "dims": DIMS, "texts": {}, "attrs": {}, "order": ["x"], "coords": []}
    assert unpack(image_of(scaled), layout)["x"].values.tolist() == [0.0, 1.0, 2.0, 3.0]
