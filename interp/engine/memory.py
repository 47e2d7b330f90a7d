"""Memory and time: how much may be used, how fast the device multiplies, what out of memory is."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import torch

SECONDS = 2.0
"""A chunk is planned to take about this long, so that progress moves and cancel is quick."""


def free_memory(device: torch.device) -> int:
    """Bytes free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    pages = os.sysconf("SC_AVPHYS_PAGES")
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return int(pages * os.sysconf("SC_PAGE_SIZE"))


def default_limit(device: torch.device) -> int:
    """Bytes the engine uses when nobody says: half of what is free."""
    return free_memory(device) // 2


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """FLOP/s of a matrix product of 2048 tokens by ``[width, 4 width]``, best of three."""
    width = max(64, min(width, 4096))
    a = torch.randn(2048, width, device=device, dtype=dtype)
    b = torch.randn(width, 4 * width, device=device, dtype=dtype)
    best = 0.0
    for _ in range(3):
        _wait(device)
        begin = time.perf_counter()
        _ = a @ b
        _wait(device)
        best = max(best, 2 * a.numel() * 4 * width / max(time.perf_counter() - begin, 1e-7))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def give_back(device: torch.device) -> None:
    """Return cached blocks to the device after running out of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
