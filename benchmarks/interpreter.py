"""Linear interpreters: singular vectors without the matrix against the matrix; rows at once.

``python -m benchmarks.interpreter [--side 24] [--json]``. The network is ``zoo:digits-sr``, which
takes pictures of any size. Timed are the k largest singular triples of F by Lanczos on products
with F and Fᵀ, and by making all rows and a dense SVD; and rows of F by one vmapped backward pass
against a loop of backward passes. Answers are compared before a time is.
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

import numpy as np  # noqa: E402
import torch  # noqa: E402

import interp  # noqa: E402
from benchmarks.timing import RESULTS, describe, interleave, machine, table, write  # noqa: E402
from interp.engine.linear import Frozen, freeze, singular  # noqa: E402
from interp.tasks.scenes import coarse, pictures  # noqa: E402


def frozen_at(side: int, device: torch.device) -> Frozen:
    """``zoo:digits-sr`` at a scene of ``side × side`` pixels, in float64."""
    net = interp.load_model("zoo:digits-sr", dtype="float64", verify=False).module().to(device)
    sharp, _ = pictures(range(1100, 1104))
    tiles = np.block([[sharp[0], sharp[1]], [sharp[2], sharp[3]]])
    small = coarse(tiles)[:side, :side]
    return freeze(net, torch.tensor(small, device=device)[None, None])


def loop_rows(frozen: Frozen, chosen: list[int]) -> torch.Tensor:
    """Rows of F by one backward pass each."""
    return torch.stack([frozen.pull(v) for v in frozen.one_hots(chosen)])


def vectors(frozen: Frozen, k: int, rounds: int, say: Any) -> dict[str, Any]:
    """Seconds of both solvers and how far their answers are apart."""
    kept: dict[str, Any] = {}

    def by(solver: Any) -> Callable[[], Any]:
        def work() -> None:
            kept[solver] = singular(frozen, k, solver)

        return work

    work = {"lanczos": (by("lanczos"), 1.0), "dense": (by("dense"), 1.0)}
    times = interleave(work, rounds, frozen.x.device, say)
    dense, lanczos = kept["dense"], kept["lanczos"]
    top = float(dense.values[0])
    return {
        "entries": frozen.inputs * frozen.outputs, "inputs": frozen.inputs,
        "outputs": frozen.outputs, "k": k, "products": lanczos.products,
        "error": float(np.abs(lanczos.values / dense.values - 1).max()),
        "certificate": {n: float(v.certificate.max()) / top for n, v in kept.items()},
        "seconds": {n: t.median for n, t in times.items()},
        "leading": [float(v) for v in dense.values[:4]],
    }  # fmt: skip


def rows(frozen: Frozen, count: int, rounds: int, say: Any) -> dict[str, Any]:
    """Seconds of ``count`` rows at once and one by one."""
    chosen = np.linspace(0, frozen.outputs - 1, count).astype(int).tolist()
    hots = frozen.one_hots(chosen)
    apart = (frozen.pulls(hots)[0] - loop_rows(frozen, chosen)).abs().max()
    work: dict[str, tuple[Callable[[], Any], float]] = {
        "vmapped": (lambda: frozen.pulls(hots), 1.0),
        "loop": (lambda: loop_rows(frozen, chosen), 1.0),
    }
    times = interleave(work, rounds, frozen.x.device, say)
    return {
        "rows": count, "inputs": frozen.inputs, "error": float(apart),
        "seconds": {n: t.median for n, t in times.items()},
    }  # fmt: skip


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        prog="interp bench interpreter", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--side", type=int, default=24, help="pixels a side of the larger picture")
    parser.add_argument("--k", type=int, default=8, help="singular vectors")
    parser.add_argument("--rows", type=int, default=64, help="rows of F")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, default=None,
                        help="also write the result into this folder")  # fmt: skip
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure and tell."""
    args = parse(words)
    device = torch.device(args.device)

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    sides = sorted({12, args.side})
    made = {side: frozen_at(side, device) for side in sides}
    data: dict[str, Any] = {
        "vectors": [vectors(made[s], args.k, args.rounds, say) for s in sides],
        "rows": [rows(made[s], args.rows, args.rounds, say) for s in sides],
        "machine": machine(device),
    }
    agree = [v["error"] < 1e-9 for v in data["vectors"]] + [
        r["error"] < 1e-10 for r in data["rows"]
    ]
    data["agrees"] = all(agree)
    text = told(data)
    if args.write is not None:
        write(f"interpreter-{args.device}", data, text, args.write)
    sys.stdout.write((json.dumps(data, indent=1) if args.json else text) + "\n")
    return 0 if data["agrees"] else 1


def told(data: dict[str, Any]) -> str:
    """The result as Markdown; a ratio only where the answers agree."""
    lines = ["# Linear interpreters", "", describe(data["machine"]), "",
             f"`zoo:digits-sr` in float64; the {data['vectors'][0]['k']} largest singular triples "
             "of F. Error: of the singular values, relative.", ""]  # fmt: skip
    body = []
    for v in data["vectors"]:
        fast, slow = v["seconds"]["lanczos"], v["seconds"]["dense"]
        good = v["error"] < 1e-9
        body.append([
            f"{v['outputs']} × {v['inputs']}", f"{fast:.2f}", f"{slow:.2f}",
            f"{slow / fast:.1f}×" if good else "the answers differ", f"{v['products']}",
            f"{v['error']:.0e}", f"{v['certificate']['lanczos']:.0e}",
        ])  # fmt: skip
    header = ["F", "Lanczos, s", "dense, s", "dense ÷ Lanczos", "products", "error",
              "certificate ÷ σ₁"]  # fmt: skip
    lines += [
        table(header, body),
        "",
        "Leading singular values: "
        + "; ".join(", ".join(f"{x:.3f}" for x in v["leading"]) for v in data["vectors"])
        + ". A flat spectrum is why no power iteration is used.",
        "",
        "Rows of F:",
        "",
    ]
    body = []
    for r in data["rows"]:
        fast, slow = r["seconds"]["vmapped"], r["seconds"]["loop"]
        ratio = f"{slow / fast:.1f}×" if r["error"] < 1e-10 else "the answers differ"
        body.append([f"{r['rows']} of {r['inputs']} numbers", f"{1000 * fast:.1f}",
                     f"{1000 * slow:.1f}", ratio])  # fmt: skip
    lines += [table(["rows", "one vmapped pass, ms", "a loop, ms", "loop ÷ vmapped"], body)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
