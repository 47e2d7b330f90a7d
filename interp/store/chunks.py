"""Finished parts of a run that is not finished: one file a chunk, so that a resume goes on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interp.store.files import canonical, make_folder, replace_file

PLAIN_KEY = re.compile(r"[A-Za-z0-9_=,.-]{1,80}")


class Chunks:
    """The chunk folder of one spec, held by one process at a time.

    Args:
        folder: made where it is missing.

    Attributes:
        mine: whether this process holds the folder. Where another does, nothing is read or
            written, so that two partitions of one run never mix.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)
        self.mine = True
        self._lock: int | None = None
        self.written = self.loaded = 0
        with contextlib.suppress(ImportError):
            import fcntl

            self._lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.mine = False

    def _path(self, key: str) -> Path:
        plain = PLAIN_KEY.fullmatch(key) and not key.startswith(".")
        name = key if plain else hashlib.sha256(key.encode()).hexdigest()
        return self.folder / f"{name}.npz"

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays under a key: temporary name, fsync, rename.

        Raises:
            DiskFullError: it does not fit; chunks written before stay.
            TypeError: an array of Python objects.
        """
        if not self.mine:
            return
        named = {f"a{i}": np.asarray(v) for i, v in enumerate(arrays.values())}
        if any(v.dtype.hasobject for v in named.values()):
            raise TypeError(f"chunk {key!r} holds Python objects; wanted numbers")
        names = np.frombuffer(canonical([key, list(map(str, arrays))]), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, names=names, **named)  # type: ignore[arg-type]
        replace_file(self._path(key), buffer.getvalue())
        self.written += 1

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """What was kept under a key, or None; a damaged file counts as none and is removed."""
        if not self.mine:
            return None
        path = self._path(key)
        try:
            with np.load(io.BytesIO(path.read_bytes())) as held:
                owner, names = json.loads(bytes(held["names"]))
                arrays = {name: held[f"a{i}"] for i, name in enumerate(names)}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
            return None
        if owner != key:
            return None
        self.loaded += 1
        return arrays

    def keep_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep what a method noted about itself, so that a resumed run still says it."""
        if self.mine:
            replace_file(self.folder / "facts.json", canonical(dict(facts)))

    def facts(self) -> dict[str, Any]:
        """What an earlier try noted."""
        try:
            return dict(json.loads((self.folder / "facts.json").read_bytes())) if self.mine else {}
        except (OSError, ValueError, TypeError):
            return {}

    def clear(self) -> None:
        """Forget what an earlier try left."""
        for path in self.folder.iterdir() if self.mine else ():
            path.unlink(missing_ok=True)

    def close(self, *, discard: bool = False) -> None:
        """Let go of the folder; ``discard`` removes it, for a run that is safely stored."""
        if discard and self.mine:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def sweep_chunks(parent: Path, older: float) -> int:
    """Remove chunk folders nobody has written to for ``older`` seconds. Returns how many."""
    count = 0
    for folder in parent.iterdir() if parent.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > older:
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
    return count
