"""Class statistics of neural collapse, beside the straightforward reference.

``python -m benchmarks.collapse [--labels 20000] [--width 256] [--json]``. Timed is accumulation:
counts and sums by class of one batch (first pass), and deviations from the class means (second
pass), which a measurement does for every batch. The references: a loop over classes with a mask,
and a one-hot matrix product, as they stand in public code for this metric. All agree with a
float64 count before a time is compared; the bytes that each adds at its peak stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.timing import (  # noqa: E402
    RESULTS,
    describe,
    interleave,
    machine,
    table,
    write,
)
from interp.methods.collapse.accumulators import (  # noqa: E402
    MeanCounter,
    OnePass,
    SpreadCounter,
    means_of,
)
from interp.methods.collapse.pairs import distance_to_target  # noqa: E402
from interp.methods.collapse.quantities import Measured  # noqa: E402


def loop_sums(h: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sums and counts by a loop over all classes with a mask (the textbook code)."""
    sums = torch.zeros(k, h.shape[1], dtype=h.dtype, device=h.device)
    counts = torch.zeros(k, dtype=torch.long, device=h.device)
    for label in range(k):
        rows = y == label
        counts[label] = rows.sum()
        if counts[label]:
            sums[label] = h[rows].sum(0)
    return sums, counts


def one_hot_sums(h: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sums and counts by a one-hot matrix product."""
    marks = torch.nn.functional.one_hot(y, k)
    return marks.T.to(h.dtype) @ h, marks.sum(0)


def loop_within(h: Tensor, y: Tensor, means: Tensor) -> Tensor:
    """Σ (h − μ)(h − μ)ᵀ by a loop over the classes, then its trace."""
    total = torch.zeros(h.shape[1], h.shape[1], dtype=h.dtype, device=h.device)
    for label in range(len(means)):
        away = h[y == label] - means[label]
        total += away.T @ away
    return total.trace()


def problem(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """One batch of random rows with random labels."""
    dice = torch.Generator().manual_seed(args.seed)
    h = torch.randn(args.rows, args.width, generator=dice)
    y = torch.randint(args.labels, (args.rows,), generator=dice)
    return h.to(args.device), y.to(args.device)


def agreement(h: Tensor, y: Tensor, k: int) -> float:
    """Largest relative difference of the sums from a float64 count by hand."""
    wide, _ = one_hot_sums(h.double(), y, k) if k <= 2000 else loop_sums(h.double(), y, k)
    counter = MeanCounter(k, h.shape[1], h.device)
    counter.add(h, y)
    return float((counter.sums - wide).abs().max() / wide.std())


def first_pass(args: argparse.Namespace, h: Tensor, y: Tensor, say: Any) -> dict[str, Any]:
    """Seconds a batch of every contender."""
    k = args.labels
    counter, once = MeanCounter(k, args.width, args.device), OnePass(k, args.width, args.device)
    work: dict[str, tuple[Callable[[], Any], float]] = {
        "interp": (lambda: [counter.add(h, y) for _ in range(5)], 0.2),
        "interp, one pass": (lambda: once.add(h, y), 1.0),
        "one-hot product": (lambda: one_hot_sums(h, y, k), 1.0),
        "loop over classes": (lambda: loop_sums(h, y, k), 1.0),
    }
    counter.add(h, y)
    once.add(h, y)
    timings = interleave(work, args.rounds, torch.device(args.device), say)
    return {name: t.median for name, t in timings.items()}


def second_pass(args: argparse.Namespace, h: Tensor, y: Tensor, say: Any) -> dict[str, Any]:
    """Seconds a batch of deviations from given means; nearest means are timed apart."""
    k = args.labels
    counter = MeanCounter(k, args.width, args.device)
    counter.add(h, y)
    dice = torch.Generator().manual_seed(1)
    spread = torch.randn(k, args.width, generator=dice, dtype=torch.float64).to(args.device)
    means = means_of(torch.ones(k, dtype=torch.long, device=args.device), spread)
    plain, near = SpreadCounter(means, nearest=False), SpreadCounter(means)
    work: dict[str, tuple[Callable[[], Any], float]] = {
        "interp": (lambda: plain.add(h, y), 1.0),
        "interp, with nearest means": (lambda: near.add(h, y), 1.0),
        "loop over classes": (lambda: loop_within(h, y, spread.to(h.dtype)), 1.0),
    }
    timings = interleave(work, args.rounds, torch.device(args.device), say)
    return {name: t.median for name, t in timings.items()}


def finish(args: argparse.Namespace, h: Tensor, y: Tensor) -> dict[str, float]:
    """Seconds from accumulators to metrics, once a measurement."""
    import time

    k = args.labels
    dice = torch.Generator().manual_seed(2)
    means = torch.randn(k, args.width, generator=dice, dtype=torch.float64).to(args.device)
    begun = time.perf_counter()
    known = means_of(torch.full((k,), 2, device=args.device), means)
    svd = time.perf_counter() - begun
    counter = SpreadCounter(known, nearest=False)
    counter.add(h, y)
    begun = time.perf_counter()
    Measured(counter.moments()).values(("nc1", "nc1_quotient", "cdnv", "nc2_angles"))
    pairs = time.perf_counter() - begun
    begun = time.perf_counter()
    distance_to_target(known.centred, known.centred, "etf")
    return {
        "centred means and directions": svd,
        "NC1 and pairs of classes": pairs,
        "NC2 against a frame": time.perf_counter() - begun,
    }


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        prog="interp bench collapse", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--labels", type=int, default=20_000, help="classes")
    parser.add_argument("--width", type=int, default=256, help="features")
    parser.add_argument("--rows", type=int, default=1024, help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="times each contender runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, default=None,
                        help="also write the result into this folder")  # fmt: skip
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure and tell."""
    args = parse(words)
    facts = machine(torch.device(args.device))
    h, y = problem(args)

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    error = agreement(h, y, args.labels)
    first, second = first_pass(args, h, y, say), second_pass(args, h, y, say)
    data: dict[str, Any] = {
        "labels": args.labels, "width": args.width, "rows": args.rows, "error": error,
        "agrees": error < 1e-6, "first_pass_s": first, "second_pass_s": second,
        "finish_s": finish(args, h, y), "machine": facts,
    }  # fmt: skip
    if data["agrees"]:
        data["first_pass_ratio"] = {n: s / first["interp"] for n, s in first.items()}
        data["second_pass_ratio"] = {n: s / second["interp"] for n, s in second.items()}
    text = told(data)
    if args.write is not None:
        write(f"collapse-{args.device}", data, text, args.write)
    sys.stdout.write((json.dumps(data, indent=1) if args.json else text) + "\n")
    return 0 if data["agrees"] else 1


def told(data: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"# Neural collapse: {data['labels']:,} classes × {data['width']} features, batches of "
        f"{data['rows']:,} rows", "", describe(data["machine"]), "",
        f"Sums against a float64 count: largest difference {data['error']:.1e} standard "
        "deviations. Milliseconds a batch, medians.", "",
    ]  # fmt: skip
    rows = []
    for name, key in (("first pass (means)", "first_pass"), ("second pass (spread)",
                                                            "second_pass")):  # fmt: skip
        for who, seconds in data[f"{key}_s"].items():
            ratio = data.get(f"{key}_ratio", {}).get(who)
            shown = "the answers differ" if ratio is None else f"{ratio:,.1f}×"
            rows.append([name, who, f"{1000 * seconds:,.2f}", shown])
    lines += [table(["what", "contender", "ms a batch", "to interp"], rows), ""]
    finish_rows = [[n, f"{s:.2f}"] for n, s in data["finish_s"].items()]
    lines += ["Once a measurement:", "", table(["what", "seconds"], finish_rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
