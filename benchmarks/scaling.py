"""What a sweep costs as layers, positions, pairs and width grow, beside the formula.

``python -m benchmarks.scaling [--quick] [--json]``. Each row changes one size of a random GPT-2:
counted FLOPs (from outside, by torch's counter), the engine's plan, the ideal of
docs/performance.md, one full forward a cell, seconds, and the share of the matmul peak.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.timing import (  # noqa: E402
    RESULTS,
    describe,
    flops_of,
    interleave,
    machine,
    matmul_rate,
    table,
    write,
)
from interp.engine import Cell, Sweep, sweep  # noqa: E402
from interp.models.blocks import ModelBlocks  # noqa: E402
from interp.models.families import shape_of  # noqa: E402
from interp.terms import Edit, PromptPairs, Site  # noqa: E402


@dataclass(frozen=True)
class Size:
    """One problem.

    Args:
        layers: blocks; positions: tokens a prompt; pairs: prompts; width: d_model.
    """

    layers: int = 12
    positions: int = 20
    pairs: int = 4
    width: int = 512


GROWN = {
    "layers": (6, 12, 24),
    "positions": (10, 20, 40),
    "pairs": (2, 4, 8),
    "width": (256, 512, 768),
}


class Quiet:
    """A context that only gives memory."""

    memory = 4 * 2**30

    def advance(self, done: float, total: float) -> None:
        """Nobody listens."""

    def cancelled(self) -> bool:
        """Never."""
        return False

    def save_chunk(self, key: str, arrays: Any) -> None:
        """Nothing is kept."""

    def load_chunk(self, key: str) -> None:
        """Nothing was kept."""

    def check(self, check: Any) -> None:
        """Nobody listens."""

    def partial(self, make: Any) -> None:
        """Nobody looks."""

    def note(self, key: str, value: Any) -> None:
        """Nobody listens."""


@dataclass(frozen=True)
class _Model:
    blocks: Any
    shape: Any
    sites: tuple[Any, ...] = ()


def problem(size: Size) -> tuple[Any, PromptPairs, list[Cell]]:
    """A random GPT-2 of this size, pairs without a shared prefix, every layer × position."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "n_layer": size.layers,
        "n_embd": size.width,
        "n_head": size.width // 64,
        "vocab_size": 50257,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    module = GPT2LMHeadModel(GPT2Config(**fields)).eval()
    rng = np.random.default_rng(0)
    clean, corrupt = rng.integers(0, 50257, (2, size.pairs, size.positions))
    answers = rng.permutation(50257)[: 2 * size.pairs].reshape(2, -1)
    pairs = PromptPairs.from_tokens(
        clean.tolist(), corrupt.tolist(), answers[0].tolist(), answers[1].tolist()
    )
    cells = [
        Cell((Edit(Site("resid_pre", layer=n, position=p)),))
        for n in range(size.layers)
        for p in range(size.positions)
    ]
    return _Model(ModelBlocks(module), shape_of(module)), pairs, cells


def ideal(size: Size) -> float:
    """Σ over cells of R(l, p), times the pairs (docs/performance.md)."""
    d, T, c = size.width, size.positions, 24 * size.width**2
    total = 0.0
    for p in range(T):
        full = (T - p) * c + 4 * d * sum(range(p + 1, T + 1))
        last = (T - p) * c / 6 + 5 * c / 6 + 4 * d * T
        total += sum((size.layers - 1 - n) * full + last for n in range(size.layers))
    return size.pairs * total


def measure(size: Size, rounds: int, peak: float) -> dict[str, Any]:
    """One row of the table."""
    model, pairs, cells = problem(size)

    def work() -> Sweep:
        return sweep(model, pairs, cells, Quiet())  # type: ignore[arg-type]

    found = work()  # first, so that measuring the device's rate is not counted
    counted = flops_of(work)
    timing = interleave({"interp": (work, 1.0)}, rounds, model.blocks.device)["interp"]
    return {
        **vars(size),
        "cells": len(cells),
        "counted": counted,
        "planned": found.flops,
        "ideal": ideal(size),
        "naive": found.naive,
        "seconds": timing.median,
        "cpu_seconds": timing.cpu_median,
        "of_peak": counted / timing.median / peak,
    }


def main(words: list[str] | None = None) -> int:
    """Measure every size and write the table."""
    parser = argparse.ArgumentParser(prog="interp bench scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: seconds")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    peak = matmul_rate(torch.float32, device)
    usual = Size(4, 8, 2, 64) if args.quick else Size()
    rows = []
    for name, values in GROWN.items():
        for value in values:
            if args.quick:
                value = value // 4 // 64 * 64 if name == "width" else max(2, value // 4)
            row = measure(replace(usual, **{name: value}), 1 if args.quick else args.rounds, peak)
            rows.append({"grown": name, **row})
            print(f"{name} {value}: {row['seconds']:.3f} s", file=sys.stderr)
    facts = machine(device)
    data = {"machine": facts, "peak": peak, "rows": rows}
    columns = [
        "grown",
        "layers",
        "positions",
        "pairs",
        "width",
        "seconds",
        "TFLOP",
        "÷ ideal",
        "loop ÷ ours",
        "of matmul peak",
    ]
    text = "# What a sweep costs (resid_pre, layer × position)\n\n" + describe(facts) + "\n\n"
    text += table(
        columns,
        [
            [
                r["grown"],
                str(r["layers"]),
                str(r["positions"]),
                str(r["pairs"]),
                str(r["width"]),
                f"{r['seconds']:.2f}",
                f"{r['counted'] / 1e12:.3f}",
                f"{r['counted'] / r['ideal']:.2f}",
                f"{r['naive'] / r['counted']:.1f}",
                f"{100 * r['of_peak']:.0f} %",
            ]
            for r in rows
        ],
    )
    path = write("scaling-cpu-float32", data, text, args.out)
    print(json.dumps(data) if args.json else f"{text}\nwritten: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
