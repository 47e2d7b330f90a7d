"""Fair timing: one process, interleaved, medians, the machine's matmul rate beside each time."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "pyvene", "numpy")


@dataclass
class Timing:
    """Times of one contender, one entry a round.

    Args:
        wall: seconds by the clock.
        cpu: seconds of processor time, all threads.
        scale: what a round stands for (a sample of 1 in 4 cells has scale 4).
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    scale: float = 1.0

    @property
    def median(self) -> float:
        """Median wall seconds of the whole piece of work."""
        return self.scale * statistics.median(self.wall)

    @property
    def best(self) -> float:
        """Smallest wall seconds of the whole piece of work."""
        return self.scale * min(self.wall)

    @property
    def cpu_median(self) -> float:
        """Median processor seconds of the whole piece of work."""
        return self.scale * statistics.median(self.cpu)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def stopwatch(timing: Timing, device: torch.device) -> Iterator[None]:
    """Add one round to a timing."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    synchronize(device)
    timing.wall.append(time.perf_counter() - wall)
    timing.cpu.append(time.process_time() - cpu)


def interleave(
    contenders: dict[str, tuple[Callable[[], Any], float]],
    rounds: int,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Timing]:
    """Run every contender once a round, so that a noisy minute hits them all.

    Args:
        contenders: name -> (the work, what it stands for; see ``Timing.scale``).
        rounds: how often.
        device: where the work runs.
        say: told after each piece of work.
    """
    timings = {name: Timing(scale=scale) for name, (_, scale) in contenders.items()}
    for number in range(rounds):
        for name, (work, _) in contenders.items():
            with stopwatch(timings[name], device):
                work()
            say(f"round {number + 1}/{rounds}  {name}: {timings[name].wall[-1]:.2f} s")
    return timings


def matmul_rate(dtype: torch.dtype, device: torch.device, seconds: float = 0.4) -> float:
    """The best FLOP/s of plain matrix products of the shapes a transformer uses.

    Args:
        dtype: of the operands.
        device: where.
        seconds: spent on each shape.
    """
    big = device.type == "cuda"
    shapes = [(8192, 8192, 8192), (4096, 16384, 4096)] if big else [
        (1024, 1024, 1024), (2048, 768, 3072), (2048, 3072, 768),
    ]  # fmt: skip
    best = 0.0
    for m, k, n in shapes:
        a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        a, b = a.to(dtype), b.to(dtype)
        for _ in range(2):
            a @ b
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            timing = Timing()
            repeats = 10 if big else 2
            with stopwatch(timing, device):
                for _ in range(repeats):
                    a @ b
            best = max(best, 2.0 * m * k * n * repeats / timing.wall[0])
    return best


def flops_of(work: Callable[[], Any]) -> float:
    """Floating-point operations of a piece of work, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_bytes(work: Callable[[], Any], device: torch.device) -> float:
    """Bytes a piece of work adds at its peak: the allocator's on CUDA, else the process's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return float(max(peak, process.memory_info().rss) - before)


def _processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the platform's word for it will do
    return platform.processor() or platform.machine()


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on, without names of hosts or people."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    out: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": versions,
        "revision": _revision(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if device.type == "cuda":
        out["gpu"] = torch.cuda.get_device_name(device)
        out["gpu_memory_gib"] = round(
            torch.cuda.get_device_properties(device).total_memory / 2**30, 1
        )
    return out


def describe(facts: dict[str, Any]) -> str:
    """One line about the machine."""
    gpu = f"{facts['gpu']}, " if "gpu" in facts else ""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{gpu}{facts['processor']}, {facts['threads']} of {facts['cores']} threads, "
        f"{facts['memory_gib']} GiB, load {facts['load_at_start']} at start; Python "
        f"{facts['python']}; {packages}; interp {facts['revision']}, {facts['date']}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, data: dict[str, Any], text: str, folder: Path = RESULTS) -> Path:
    """Write ``NAME.json`` and ``NAME.md`` into a folder; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"

    def plain(value: Any) -> Any:
        return asdict(value) if isinstance(value, Timing) else str(value)

    path.write_text(json.dumps(data, indent=1, default=plain) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text.rstrip() + "\n", encoding="utf-8")
    return path
