"""A run on disk is what was measured, bit for bit, and nothing else."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

from interp.store import Store, canonical, read_run, spec_hash, write_run
from interp.terms import DamagedError, UnsafeError, UsageError
from tests.store.makers import TEXTS, forged, manifest, record, rewrite


def test_every_value_comes_back_bit_for_bit(tmp_path):
    wrote = record()
    read = read_run(write_run(tmp_path / "run", wrote))
    assert list(read.data.variables) == list(wrote.data.variables)
    assert set(read.data.coords) == set(wrote.data.coords)
    for name, variable in wrote.data.variables.items():
        other = read.data.variables[name]
        assert other.dims == variable.dims and other.shape == variable.shape
        if variable.dtype.kind in "fiub":
            assert other.dtype == variable.dtype, name
            assert other.values.tobytes() == variable.values.tobytes(), name
        else:
            assert other.values.tolist() == variable.values.tolist(), name


def test_attrs_that_netcdf_cannot_hold_come_back_too(tmp_path):
    read = read_run(write_run(tmp_path / "run", record()))
    attrs = read.data["effect"].attrs
    assert attrs["dict"] == {"a": [None, True]} and attrs["none"] is None
    assert attrs["nul"] == "a\x00b" and attrs["one"] == [3] and len(attrs["long"]) == 70_000
    assert read.data.attrs["direction"] == "denoising"


def test_tokens_checks_and_provenance_come_back(tmp_path):
    wrote = record()
    read = read_run(write_run(tmp_path / "run", wrote))
    assert read.tokens == wrote.tokens and read.spec == wrote.spec
    assert [c.name for c in read.checks] == ["logits", "floor", "bound"]
    assert np.isnan(read.checks[1].value) and read.checks[2].value == float("inf")
    assert [c.passed for c in read.checks] == [True, True, False]


def test_data_nc_holds_numbers_and_the_manifest_holds_the_texts(tmp_path):
    import h5py

    folder = write_run(tmp_path / "run", record())
    with h5py.File(folder / "data.nc") as file:
        assert {file[k].dtype.kind for k in file} <= set("fiu")
    assert b"onerror" not in (folder / "data.nc").read_bytes()
    assert manifest(folder)["layout"]["texts"]["words"]["values"] == TEXTS


def test_only_the_owner_may_read_a_run(tmp_path):
    folder = write_run(tmp_path / "a" / "run", record())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    store = Store(tmp_path / "store")
    store.add(record())
    for path in store.root.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_saved_run_is_never_written_over(tmp_path):
    folder = write_run(tmp_path / "run", record())
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UsageError, match="never written over"):
        write_run(folder, record(1))
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_is_no_number_and_no_text_is_refused_by_name(tmp_path):
    import xarray as xr

    wrote = record()
    bad = xr.Dataset({"odd": (("prompt",), np.array([{}, []], dtype=object))})
    with pytest.raises(UsageError, match="'odd'"):
        write_run(tmp_path / "run", type(wrote)(wrote.spec, bad, {}))
    with pytest.raises(UsageError, match="complex"):
        write_run(
            tmp_path / "run",
            type(wrote)(wrote.spec, xr.Dataset({"z": (("prompt",), np.array([1j]))}), {}),
        )
    assert list(tmp_path.iterdir()) == []


# -- the hash of a spec ------------------------------------------------------------------------


def test_the_hash_changes_with_what_decides_the_numbers_and_with_nothing_else():
    base = record().spec
    same = {
        **base,
        "model": {**base["model"], "ref": "/elsewhere"},
        "task": {"ref": "t:n=1", "hash": "t"},
    }
    assert spec_hash(base) == spec_hash(same)
    for part, value in (
        ("method", "other"),
        ("version", 2),
        ("fields", {"seed": 1}),
        ("task", None),
        ("models", {"zoo:b": "h"}),
    ):
        assert spec_hash({**base, part: value}) != spec_hash(base), part
    for part in ("weight_hash", "backend", "dtype"):
        changed = {**base, "model": {**base["model"], part: "other"}}
        assert spec_hash(changed) != spec_hash(base), part


def test_canonical_json_does_not_depend_on_order_or_on_numpy():
    assert canonical({"b": np.float32(1.0), "a": (np.int64(2),)}) == b'{"a":[2],"b":1.0}'
    assert canonical([float("nan"), float("inf")]) == b'["nan","inf"]'


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spec.json", "manifest.json", "data.nc"])
def test_any_flipped_byte_is_found(tmp_path, name):
    folder = write_run(tmp_path / "run", record())
    path = folder / name
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(place) % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            read_run(folder)
    path.write_bytes(whole)
    read_run(folder)


@pytest.mark.parametrize("name", ["spec.json", "manifest.json", "data.nc"])
def test_a_cut_or_missing_file_is_named(tmp_path, name):
    folder = write_run(tmp_path / "run", record())
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedError, match=name):
        read_run(folder)
    path.unlink()
    with pytest.raises(DamagedError, match=name):
        read_run(folder)


def test_the_error_of_a_changed_file_names_both_hashes(tmp_path):
    folder = write_run(tmp_path / "run", record())
    expected = manifest(folder)["files"]["data.nc"]["sha256"][:16]
    (folder / "data.nc").write_bytes(b"other")
    with pytest.raises(DamagedError, match=f"expected {expected}"):
        read_run(folder)


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path):
    folder = write_run(tmp_path / "run", record())
    secret = tmp_path / "secret"
    (folder / "spec.json").rename(secret)
    (folder / "spec.json").symlink_to(secret)
    with pytest.raises(DamagedError, match="spec.json"):
        read_run(folder)


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    folder = write_run(tmp_path / "run", record())
    (folder / "data.nc").unlink()
    os.mkfifo(folder / "data.nc")
    with pytest.raises(DamagedError, match="ordinary file"):
        read_run(folder)


def test_a_later_format_is_refused_with_what_to_do(tmp_path):
    folder = write_run(tmp_path / "run", record())
    rewrite(folder, {**manifest(folder), "format": 2})
    with pytest.raises(DamagedError, match="newer version"):
        read_run(folder)


LIES = [
    (part, value)
    for part in ("layout", "provenance", "checks", "files")
    for value in (None, [], {"x": 1}, "text", [[1]])
    if (part, value) not in (("provenance", []), ("checks", []), ("provenance", {"x": 1}))
]


@pytest.mark.parametrize(("part", "value"), LIES)
def test_a_manifest_that_lies_about_its_parts_is_damage_not_a_crash(tmp_path, part, value):
    folder = write_run(tmp_path / "run", record())
    rewrite(folder, {**manifest(folder), part: value})
    with pytest.raises((DamagedError, UnsafeError)):
        read_run(folder)


def test_a_deeply_nested_manifest_is_damage(tmp_path):
    folder = write_run(tmp_path / "run", record())
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(DamagedError):
        read_run(folder)


def test_no_run_at_all_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no saved run"):
        read_run(tmp_path / "nothing")


def test_forged_is_readable_when_it_is_honest(tmp_path):
    from interp.store.arrays import pack

    packed = pack(record().data[["effect"]])
    folder = forged(
        tmp_path / "run",
        packed.image,
        packed.layout["arrays"],
        packed.layout["dims"],
        coords=packed.layout["coords"],
    )
    assert "effect" in read_run(folder).data
