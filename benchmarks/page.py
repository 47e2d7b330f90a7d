"""The tables of docs/performance.md, written from ``benchmarks/results``.

``python -m benchmarks.page`` fills each block between ``<!-- results: NAME -->`` and
``<!-- end of results -->``, so that no figure of the page is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import RESULTS, describe, table  # noqa: E402

PAGE = RESULTS.parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
NOTHING = "Not measured yet in this tree."


def _read(name: str, folder: Path) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}×"


def patching(folder: Path) -> str:
    """One row a sweep: our time beside TransformerLens and the fastest rival."""
    head = [
        "sweep", "dtype", "tokens (shared)", "cells", "interp", "TransformerLens", "fastest rival",
        "÷ ideal", "of matmul peak",
    ]  # fmt: skip
    rows, said = [], []
    for path in sorted(folder.glob("patching-gpt2-*.json")):
        for sweep in json.loads(path.read_text(encoding="utf-8"))["sweeps"]:
            ours = next(r for r in sweep["rows"] if r["name"] == "interp")
            shared = {"plain": 0, "shared": 10}[sweep["case"]]
            rows.append([
                sweep["sweep"], sweep["dtype"], f"{sweep['tokens']} ({shared})",
                str(sweep["cells"]), f"{ours['seconds']:.2f} s",
                _ratio(ours["times_faster_than_transformer_lens"]),
                _ratio(ours["times_faster_than_fastest_rival"]),
                f"{ours['flops'] / sweep['ideal_flops']:.2f}",
                f"{100 * ours['share_of_peak']:.0f} %",
            ])  # fmt: skip
            said.append(describe(sweep["machine"]))
    if not rows:
        return NOTHING
    machines = "\n".join(f"- {m}" for m in dict.fromkeys(said))
    return (
        "GPT-2-small's shape, random weights, 8 pairs; how many times faster `interp.run` is, "
        f"statistics and checks included.\n\n{table(head, rows)}\n\n{machines}"
    )


def scaling(folder: Path) -> str:
    """Cost against layers, positions, pairs and width."""
    data = _read("scaling-cpu-float32", folder)
    if data is None:
        return NOTHING
    head = ["grown", "value", "seconds", "TFLOP", "÷ ideal", "loop ÷ ours", "of matmul peak"]
    rows = [
        [
            r["grown"], str(r[r["grown"]]), f"{r['seconds']:.2f}", f"{r['counted'] / 1e12:.3f}",
            f"{r['counted'] / r['ideal']:.2f}", f"{r['naive'] / r['counted']:.1f}",
            f"{100 * r['of_peak']:.0f} %",
        ]
        for r in data["rows"]
    ]  # fmt: skip
    usual = "resid_pre × position; 12 layers, 20 positions, 4 pairs, width 512 but for one."
    return f"{usual}\n\n{table(head, rows)}\n\n{describe(data['machine'])}"


BLOCKS: dict[str, Callable[[Path], str]] = {"patching": patching, "scaling": scaling}


def filled(text: str, folder: Path = RESULTS) -> str:
    """A page with its marked blocks written anew from a folder of results."""
    return BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]](folder)}\n{m[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page."""
    del argv
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
