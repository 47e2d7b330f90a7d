"""What a run must know of the machine: free memory, versions, the code's revision, peak memory."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from typing import Any

from interp.terms import UsageError

SHARE = 0.6
"""Part of the free memory that a run may use when nobody says otherwise."""

UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
PACKAGES = ("interp", "torch", "transformers", "numpy", "xarray")
BACKEND_PACKAGES = {"transformer_lens": "transformer-lens", "nnsight": "nnsight"}


def parse_bytes(size: int | float | str) -> int:
    """Bytes from a number or from text such as ``8GiB`` or ``500M``.

    Raises:
        UsageError: no such size, or none above zero.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", size.lower())
        if match is None or match[2] not in UNITS:
            raise UsageError(
                f"Memory was given as {size!r}.",
                remedy="Write a number of bytes, or e.g. 8GiB or 500MB.",
            )
        size = float(match[1]) * UNITS[match[2]]
    if size <= 0:
        raise UsageError(f"Memory was given as {size}; wanted more than nothing.")
    return int(size)


def free_memory(device: str = "cpu") -> int:
    """Bytes free on a device now; in a container no more than it is allowed."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        allowed = int((group / "memory.max").read_text())
        free = min(free, allowed - int((group / "memory.current").read_text()))
    return max(int(free), 2**20)


def default_memory(device: str) -> int:
    """What a run may use when nobody says otherwise."""
    return int(free_memory(device) * SHARE)


class PeakMemory:
    """The largest memory of this process (or of the CUDA device) inside the block; blocks nest."""

    _open: list[PeakMemory] = []

    def __init__(self, device: str) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        for outer in self._open:
            outer._look()
        self._open.append(self)
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(torch.device(self.device))
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        for open_ in self._open:
            open_._look()
        self._open.remove(self)

    def _look(self) -> None:
        found = _peak_cuda(self.device) if self.device.startswith("cuda") else _peak_here()
        if found is not None:
            self.bytes = max(found, self.bytes or 0)


def _peak_cuda(device: str) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated(torch.device(device)))


def _peak_here() -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return None


def versions(backend: str = "") -> dict[str, str]:
    """Versions of what the numbers depend on."""
    wanted = (*PACKAGES, *filter(None, [BACKEND_PACKAGES.get(backend)]))
    found = {name: _version(name) for name in wanted}
    return {"python": platform.python_version(), **{k: v for k, v in found.items() if v}}


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def git_revision() -> str | None:
    """The commit of the checkout that this code runs from, read without running git."""
    for folder in Path(__file__).resolve().parents[2:4]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return _head(folder / ".git")
    return None


def _head(git: Path) -> str:
    if git.is_file():
        git = (git.parent / git.read_text().split(":", 1)[1].strip()).resolve()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return _commit(head)
    name = head[5:]
    common = git / "commondir"
    roots = [git, *([git / common.read_text().strip()] if common.is_file() else [])]
    for root in roots:
        with contextlib.suppress(OSError):
            return _commit((root / name).read_text().strip())
    for root in roots:
        with contextlib.suppress(OSError):
            for line in (root / "packed-refs").read_text().splitlines():
                if line.endswith(f" {name}"):
                    return _commit(line.split()[0])
    raise ValueError("no commit")


def _commit(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40,64}", text):
        raise ValueError(text)
    return text


def facts_of_tensors(model: Any) -> tuple[str, str]:
    """Device and dtype of a model, as words: its own attributes, else its first parameter's."""
    device, dtype = getattr(model, "device", None), getattr(model, "dtype", None)
    if device is None or dtype is None:
        parameter = next(iter(model.module().parameters()), None)
        if parameter is not None:
            device = parameter.device if device is None else device
            dtype = parameter.dtype if dtype is None else dtype
    return str(device or "cpu"), str(dtype or "float32").removeprefix("torch.")
