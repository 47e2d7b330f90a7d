"""Writing to disk so that a reader sees a whole file or none, and a full disk gets a sentence."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.terms import DamagedError, DiskFullError

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def canonical(data: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII; NaN and infinities become text."""
    return json.dumps(
        plain(data), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def plain(value: Any) -> Any:
    """``value`` in JSON's own types; numpy scalars and arrays included."""
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain(v) for v in items]
    return str(value)


def make_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter (0700), with its parents."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk_room(path.parent, 4096):
            path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextlib.contextmanager
def disk_room(folder: Path, needed: int) -> Iterator[None]:
    """Turn 'no space left' inside the block into a DiskFullError with both sizes."""
    try:
        yield
    except DiskFullError as error:
        if error.needed >= needed:
            raise
        raise full_disk(folder, needed) from error  # the whole of it is what must fit
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise full_disk(folder, needed) from error


def full_disk(folder: Path, needed: int) -> DiskFullError:
    """The error for a write of ``needed`` bytes that did not fit."""
    while not folder.exists():
        folder = folder.parent
    return DiskFullError(needed=needed, free=shutil.disk_usage(folder).free)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file (0600) and wait until it is on the disk."""
    with disk_room(path.parent, len(data)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` in place of ``path`` in one step; on any fault the old file stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write_file(temporary, data)
        with disk_room(path.parent, len(data)):
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` last through a power cut (where the system can)."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of an ordinary file of at most ``limit`` bytes; no link is followed.

    Raises:
        DamagedError: it is missing, no ordinary file, or larger than the limit.
    """
    try:
        fd = os.open(
            path,
            os.O_RDONLY
            | getattr(os, "O_NOFOLLOW", 0)
            | getattr(os, "O_NONBLOCK", 0)
            | getattr(os, "O_BINARY", 0),
        )
    except OSError as error:
        raise DamagedError(
            f"{path.name} of this run cannot be read ({error.strerror}); wanted an ordinary file."
        ) from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{path.name} is no ordinary file.")
        if status.st_size > limit:
            raise DamagedError(
                f"{path.name} has {status.st_size:,} bytes; at most {limit:,} are read."
            )
        return file.read(limit + 1)
