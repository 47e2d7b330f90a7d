"""A run as one folder, written once: ``spec.json``, ``manifest.json``, ``data.nc``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.store.arrays import pack, unpack
from interp.store.files import (
    canonical,
    disk_room,
    full_disk,
    make_folder,
    read_bytes,
    sync_folder,
    write_file,
)
from interp.store.structure import MAX_BYTES
from interp.terms import Check, DamagedError, UsageError

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
MAX_TEXT = 256 * 2**20
HALF = ".half-"
FILES = ("spec.json", "manifest.json", "data.nc")


@dataclass(frozen=True, eq=False)
class Record:
    """What is kept of a run.

    Args:
        spec: ``format, method, version, fields, model, task`` (see ``spec_hash``).
        data: named arrays with units.
        provenance: where the numbers come from.
        checks: the trust panel.
        tokens: ``{"clean": [[text…]…], "corrupt": …, "answers": {id: text}}``, raw texts, or None.
    """

    spec: dict[str, Any]
    data: xr.Dataset
    provenance: dict[str, Any]
    checks: Sequence[Check] = ()
    tokens: dict[str, Any] | None = None


def spec_hash(spec: Mapping[str, Any]) -> str:
    """sha256 of what decides the numbers.

    Method, version and fields; of the model the weight hash, backend and dtype; of the task its
    hash. Names under which model and task were found do not count where a hash stands, so the
    same weights in another folder, or a task given inline, are the same run.
    """
    model = dict(spec.get("model") or {})
    if model.get("weight_hash"):
        model.pop("ref", None)
    task = spec.get("task")
    if task and task.get("hash"):
        task = {"hash": task["hash"]}
    kept = {k: spec.get(k) for k in ("format", "method", "version", "fields", "models", "results")}
    return hashlib.sha256(canonical({**kept, "model": model, "task": task})).hexdigest()


def _check_from(data: Mapping[str, Any]) -> Check:
    return Check.from_json(
        {
            k: float(v) if k in ("value", "tolerance") and isinstance(v, str) else v
            for k, v in data.items()
        }
    )


def _manifest(record: Record, layout: dict[str, Any], files: dict[str, bytes]) -> bytes:
    body = {
        "format": FORMAT,
        "files": {
            name: {"sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image)}
            for name, image in files.items()
        },
        "spec_hash": spec_hash(record.spec),
        "layout": layout,
        "provenance": record.provenance,
        "checks": [c.to_json() for c in record.checks],
        "tokens": record.tokens,
    }
    return canonical({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()})


def write_run(folder: str | Path, record: Record) -> Path:
    """Write a run as a new folder: temporary name, fsync, rename.

    Raises:
        UsageError: the folder exists and is not empty.
        DiskFullError: it does not fit; nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} exists already and is not empty; a saved run is never written over.",
            remedy="Choose another folder, or delete this one first.",
        )
    packed = pack(record.data)
    files = {"spec.json": canonical(record.spec), "data.nc": packed.image}
    files["manifest.json"] = _manifest(record, packed.layout, files)
    needed = sum(map(len, files.values()))
    make_folder(folder.parent)
    with _half(folder.parent, needed) as half:
        if shutil.disk_usage(folder.parent).free < needed:
            raise full_disk(folder.parent, needed)
        for name, image in files.items():
            with disk_room(half, needed):
                write_file(half / name, image)
        with disk_room(half, needed):
            sync_folder(half)
            half.rename(folder)
            sync_folder(folder.parent)
    return folder


@contextlib.contextmanager
def _half(parent: Path, needed: int) -> Iterator[Path]:
    """A half-written folder, locked while its writer lives, gone when the writing failed."""
    half = parent / f"{HALF}{secrets.token_hex(8)}"
    with disk_room(parent, needed):
        half.mkdir(mode=0o700)
    try:
        with _held(half):
            yield half
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


@contextlib.contextmanager
def _held(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the system's lock on a folder; it falls with the process. Yields whether it is held."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(fd)


def sweep_halves(parent: Path, older: float = 10.0) -> int:
    """Remove half-written folders whose writer is gone. Returns how many."""
    count = 0
    for half in parent.glob(f"{HALF}*"):
        try:
            if time.time() - half.stat().st_mtime < older:
                continue
            with _held(half, wait=False) as mine:
                if mine:
                    shutil.rmtree(half, ignore_errors=True)
                    count += 1
        except FileNotFoundError:
            continue
    return count


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest, after checking that it is whole.

    Raises:
        DamagedError: missing, cut, altered, or of a later format.
    """
    image = read_bytes(Path(folder) / "manifest.json", MAX_TEXT)
    try:
        body = json.loads(image)
        claimed = body.pop("sha256")
        whole = canonical({**body, "sha256": claimed}) == image
        found = hashlib.sha256(canonical(body)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            "manifest.json of this run is cut or altered: it is no manifest."
        ) from error
    if not whole or claimed != found:
        raise DamagedError(
            f"manifest.json of this run was altered: its hash is {found[:16]}…, expected "
            f"{str(claimed)[:16]}…."
        )
    if body.get("format") != FORMAT:
        raise DamagedError(
            f"This run has format {body.get('format')!r}; this version of interp reads {FORMAT}.",
            remedy="Open it with a newer version.",
        )
    return body


def _checked(folder: Path, name: str, manifest: Mapping[str, Any], limit: int) -> bytes:
    image = read_bytes(folder / name, limit)
    found = hashlib.sha256(image).hexdigest()
    try:
        expected = str(manifest["files"][name]["sha256"])
    except (KeyError, TypeError) as error:
        raise DamagedError(f"The manifest of this run does not name {name}.") from error
    if found != expected:
        raise DamagedError(
            f"{name} of this run was cut or altered: its hash is {found[:16]}…, expected "
            f"{expected[:16]}…."
        )
    return image


def read_spec(folder: str | Path, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The spec, checked against the manifest."""
    folder = Path(folder)
    manifest = read_manifest(folder) if manifest is None else manifest
    try:
        return dict(json.loads(_checked(folder, "spec.json", manifest, MAX_TEXT)))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError("spec.json of this run is no JSON object.") from error


def verify_run(folder: str | Path) -> dict[str, Any]:
    """Hold every file against the manifest; returns the manifest.

    Raises:
        DamagedError: naming the file, the expected and the found hash.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, limit in (("spec.json", MAX_TEXT), ("data.nc", MAX_BYTES)):
        _checked(folder, name, manifest, limit)
    return manifest


def read_run(folder: str | Path) -> Record:
    """Open a saved run: hashes first, then the structure of ``data.nc``, then its numbers.

    Raises:
        UsageError: there is no run.
        DamagedError: a file is missing, cut or altered; the file and both hashes are named.
        UnsafeError: ``data.nc`` holds something other than the manifest's arrays.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            f"There is no saved run at {folder}.", remedy="Give the folder that holds spec.json."
        )
    manifest = read_manifest(folder)
    spec = read_spec(folder, manifest)
    image = _checked(folder, "data.nc", manifest, MAX_BYTES)
    try:
        return Record(
            spec=spec,
            data=unpack(image, manifest["layout"]),
            provenance=dict(manifest["provenance"]),
            checks=[_check_from(c) for c in manifest["checks"]],
            tokens=_tokens(manifest.get("tokens")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(
            f"manifest.json of this run lacks a part: {type(error).__name__} {error}."
        ) from error


def _tokens(tokens: dict[str, Any] | None) -> dict[str, Any] | None:
    """JSON has no integer keys; the answers' ids come back as integers."""
    if tokens and isinstance(tokens.get("answers"), dict):
        answers = {
            int(k) if k.lstrip("-").isdigit() else k: v for k, v in tokens["answers"].items()
        }
        return {**tokens, "answers": answers}
    return tokens
