"""Tensors: the only door to safetensors files. Headers are read without torch.

A header is checked before anything else looks at the file: its length, its JSON, and that the
pieces lie inside the file one after the other.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.terms import UnsafeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_HEADER = 100_000_000
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of an element by the format's dtype names."""

NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's dtype names in the format's."""


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of one tensor, without its data.

    Args:
        name: the tensor's name.
        shape: its sizes.
        dtype: the format's name, as ``F32``.
        start: first byte of its data in the file.
        stop: the byte after its last.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_headers(path: str | Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor in a safetensors file; no torch, no data read.

    Raises:
        UsageError: no such file.
        UnsafeError: a file that is cut short, or whose header does not fit its data.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", remedy="Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(path, "it ends before its header does")
        try:
            listed = json.loads(file.read(length))
        except ValueError as error:
            raise _damaged(path, "its header is no JSON") from error
    headers: dict[str, TensorHeader] = {}
    at = 8 + length
    try:
        entries = [(n, e) for n, e in listed.items() if n != "__metadata__"]
        for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"][0]):
            start, stop = (8 + length + int(o) for o in entry["data_offsets"])
            shape = tuple(int(s) for s in entry["shape"])
            header = TensorHeader(str(name), shape, str(entry["dtype"]), start, stop)
            width = SIZES.get(header.dtype)
            wrong = width is not None and stop - start != header.numel * width
            if start != at or stop < start or wrong or any(s < 0 for s in shape):
                raise _damaged(path, f"{name!r} does not lie where its header says")
            headers[header.name], at = header, stop
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise _damaged(path, "its header does not describe tensors") from error
    if at != size:
        raise _damaged(path, f"{at} bytes are described and {size} are there")
    return headers


def _damaged(path: Path, why: str) -> UnsafeError:
    return UnsafeError(
        f"{path.name} is no intact safetensors file: {why}.",
        remedy="Copy or download it again.",
    )


def read_tensors(
    path: str | Path, names: Iterable[str] | None = None, *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name (all of them unless ``names`` are given).

    Raises:
        UsageError: no such file, or a name that is not in it.
        UnsafeError: a damaged file.
    """
    from safetensors import safe_open

    headers = read_headers(path)
    wanted = list(headers) if names is None else list(names)
    missing = [n for n in wanted if n not in headers]
    if missing:
        raise UsageError(
            f"{Path(path).name} holds no tensor {missing[0]!r}.",
            remedy=f"It holds: {', '.join(list(headers)[:10])}.",
        )
    with safe_open(str(path), framework="pt", device=device) as file:
        return {name: file.get_tensor(name) for name in wanted}


def write_tensors(
    path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors (torch or numpy) to a safetensors file, whole or not at all; returns the path.

    Tensors that share memory are written each in full.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(path)
    plain = {
        name: torch.as_tensor(value).detach().cpu().contiguous().clone()
        for name, value in tensors.items()
    }
    temporary = path.with_name(path.name + ".part")
    try:
        save_file(plain, str(temporary), metadata={"format": "pt", **(metadata or {})})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def hash_files(paths: Iterable[str | Path]) -> str:
    """sha256 over names, shapes, dtypes and bytes of every tensor in these files together.

    The split into files and the order inside them do not matter. Known files (same path, size
    and time of change) are not read again in this process.
    """
    keys = []
    for path in paths:
        real = Path(path).resolve()
        stat = real.stat()
        keys.append((str(real), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    entries: dict[str, str] = {}
    for key in keys:
        entries.update(_file_entries(*key))
    return _combine(entries.items())


@lru_cache(maxsize=64)
def _file_entries(path: str, size: int, mtime_ns: int, inode: int) -> dict[str, str]:
    headers = read_headers(path)
    if not headers:
        return {}
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        view = memoryview(raw)
        try:
            with ThreadPoolExecutor() as pool:
                sums = list(
                    pool.map(
                        lambda h: hashlib.sha256(view[h.start : h.stop]).hexdigest(),
                        headers.values(),
                    )
                )
        finally:
            view.release()
    return {
        h.name: f"{h.dtype}{list(h.shape)}{s}" for h, s in zip(headers.values(), sums, strict=True)
    }


def hash_module(module: nn.Module) -> str:
    """The same hash of a live module's weights, under the module's own names.

    It equals ``hash_files`` of the saved checkpoint wherever saving renames nothing.
    """
    return _combine((name, _entry(tensor)) for name, tensor in saved_tensors(module))


def saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as a checkpoint holds them: tied ones once, under the first name."""
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _entry(tensor: Tensor) -> str:
    import torch

    plain = tensor.detach().cpu().contiguous()
    dtype = str(plain.dtype).removeprefix("torch.")
    data: Any = plain.view(-1).view(torch.uint8).numpy() if plain.numel() else b""
    return f"{NAMES.get(dtype, dtype)}{list(plain.shape)}{hashlib.sha256(data).hexdigest()}"


def _combine(entries: Iterable[tuple[str, str]]) -> str:
    text = json.dumps(sorted(entries), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
