"""Exact patching sweeps beside other tools: ``python -m benchmarks.patching [--quick] [--json]``.

GPT-2-small's shape with random weights (hard: wide enough that attention and biases matter), pairs
of random tokens, the logit difference of two random answers at the last position. A rival costs the
same for every cell, so it is timed on a sample of cells and scaled; interp is timed on the whole
sweep. All contenders must agree with a float64 loop before a time is compared.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.rivals import RIVALS, Cell, HookLoop, Problem, quiet  # noqa: E402
from benchmarks.timing import (  # noqa: E402
    RESULTS,
    Timing,
    describe,
    flops_of,
    interleave,
    machine,
    matmul_rate,
    peak_bytes,
    table,
    write,
)

SHAPES = {
    "tiny": {"n_layer": 3, "n_embd": 64, "n_head": 4, "vocab_size": 211, "n_positions": 64},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257},
}
SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "resid_pre": ("resid_pre", ("layer", "position")),
    "z": ("z", ("layer", "head")),
    "z_position": ("z", ("layer", "head", "position")),
}
CASES = {"plain": (20, 0), "shared": (16, 10)}  # tokens, of which the first are shared


@dataclass(frozen=True)
class Answer:
    """Whether a contender measured the same thing.

    Args:
        error: largest deviation from the float64 loop, in its standard deviations over cells.
        correlation: with the float64 loop, over cells.
        content: largest |effect| as a share of the metric's gap (a grid of zeros proves nothing).
        agrees: whether times may be compared.
    """

    error: float
    correlation: float
    content: float
    agrees: bool


def make_problem(args: argparse.Namespace, tokens: int, shared: int) -> Problem:
    """A hard random GPT-2 and pairs whose first ``shared`` tokens are the same."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = SHAPES[args.shape]
    torch.manual_seed(args.seed)
    fields: dict[str, Any] = {**shape, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(**fields)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "c_attn" in name or name.endswith(("bias", "ln_1.weight", "ln_2.weight")):
                weight.add_(torch.randn_like(weight) * (0.03 if weight.ndim > 1 else 0.1))
            if name.endswith("attn.c_proj.weight"):  # a few heads matter, as in trained models
                heads = weight.view(config.n_head, -1, weight.shape[1])
                heads.mul_(torch.randn(config.n_head, 1, 1).mul(1.2).exp())
    model.to(args.device, getattr(torch, args.dtype))
    vocab = shape["vocab_size"]
    draw = torch.Generator().manual_seed(args.seed + 1)
    clean, corrupt = torch.randint(0, vocab, (2, args.pairs, tokens), generator=draw)
    corrupt[:, :shared] = clean[:, :shared]
    corrupt[:, shared] = (
        clean[:, shared] + 1
    ) % vocab  # the first difference is where it should be
    right = torch.randint(0, vocab, (args.pairs,), generator=draw)
    wrong = (right + 1) % vocab
    return Problem(model, *(t.to(args.device) for t in (clean, corrupt, right, wrong)))


def cells_of(site: str, axes: Sequence[str], problem: Problem) -> list[Cell]:
    """Every cell of a sweep."""
    config, length = problem.model.config, problem.clean.shape[1]
    positions: Any = range(length) if "position" in axes else [None]
    heads: Any = range(config.n_head) if "head" in axes else [None]
    return [
        Cell(layer, position, head)
        for layer in range(config.n_layer)
        for head in heads
        for position in positions
    ]


def sample(cells: Sequence[Cell], limit: int, strong: Cell | None = None) -> list[Cell]:
    """About ``limit`` cells: three layers, evenly spaced cells in each, and a strong one.

    Args:
        cells: the whole sweep.
        limit: how many, about.
        strong: a cell with a large effect, so that there is something to agree on.
    """
    if len(cells) <= limit:
        return list(cells)
    layers = sorted({c.layer for c in cells})
    picked = [layers[int(i)] for i in np.linspace(0, len(layers) - 1, min(3, len(layers)))]
    if strong is not None and strong.layer not in picked:
        picked[len(picked) // 2] = strong.layer
    out: list[Cell] = []
    for layer in picked:
        mine = [c for c in cells if c.layer == layer]
        keep = np.linspace(0, len(mine) - 1, max(1, limit // len(picked))).round().astype(int)
        chosen = [mine[i] for i in sorted(set(keep))]
        if strong is not None and strong.layer == layer and strong not in chosen:
            chosen[-1] = strong
        out += chosen
    return out


def ideal_flops(site: str, cells: Sequence[Cell], problem: Problem) -> float:
    """The cost model of docs/performance.md, summed over cells and prompts."""
    config, length = problem.model.config, problem.clean.shape[1]
    layers, d, d_head = config.n_layer, config.n_embd, problem.d_head
    c = 24.0 * d * d
    kappa, mu = 1 / 6, 2 / 3

    def rest(layer: int, p: int) -> float:
        if layer >= layers:
            return 0.0
        own = length - p
        full = own * c + 4 * d * sum(range(p + 1, length + 1))
        return (layers - 1 - layer) * full + kappa * own * c + (1 - kappa) * c + 4 * d * length

    total = 0.0
    for pair in zip(problem.clean.tolist(), problem.corrupt.tolist(), strict=True):
        first = next(i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)
        for cell in cells:
            p = first if cell.position is None else cell.position
            last = cell.layer == layers - 1
            if site == "resid_pre":
                total += rest(cell.layer, p) if p >= first else 0.0
                continue
            own = (length - p if cell.position is None else 1) if not last else 1
            if p >= first and (not last or cell.position in (None, length - 1)):
                total += own * (2 * d * d_head + mu * c) + rest(cell.layer + 1, p)
    return total


def naive_flops(n_cells: int, problem: Problem) -> float:
    """One full forward a cell, every position unembedded."""
    config, (pairs, length) = problem.model.config, problem.clean.shape
    d, layers = config.n_embd, config.n_layer
    forward = layers * (24.0 * d * d * length + 4 * d * length**2)
    return n_cells * pairs * (forward + 2.0 * d * config.vocab_size * length)


class Interp:
    """``interp.run``, as a person calls it: statistics, checks and provenance included."""

    name = "interp"

    def __init__(self, problem: Problem, backend: str) -> None:
        import interp

        self.interp = interp
        dtype = str(problem.model.dtype).removeprefix("torch.")
        self.model = interp.load_model(
            copy.deepcopy(problem.model),
            backend=backend,
            device=str(problem.clean.device),
            dtype=dtype,
        )
        columns = (problem.clean, problem.corrupt, problem.right, problem.wrong)
        self.task = interp.PromptPairs.from_tokens(*(t.tolist() for t in columns))
        logits = problem.model(problem.corrupt, logits_to_keep=1).logits[:, -1]
        self.base = problem.metric(logits)[0].cpu().numpy()

    def sweep(self, site: str, axes: Sequence[str]) -> np.ndarray:
        """Logit differences ``[cell, prompt]`` of the whole sweep."""
        method: Any = self.interp.methods.ActivationPatching
        spec = method(site=site, axes=",".join(axes), metric="logit_diff", keep_prompts=True)
        result = self.interp.run(spec, self.model, self.task, progress=False)
        patched = result.data["patched_metric"].transpose(*axes, "prompt")
        return patched.values.reshape(-1, len(self.task))


def reference(site: str, cells: Sequence[Cell], problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The float64 loop's logit differences of some cells, and (base, source) of the pairs."""
    double = Problem(
        copy.deepcopy(problem.model).double(),
        problem.clean, problem.corrupt, problem.right, problem.wrong,
    )  # fmt: skip
    values = HookLoop(double).sweep(site, cells, 4)
    ends = [
        double.metric(double.model(tokens, logits_to_keep=1).logits[:, -1])[0].cpu().numpy()
        for tokens in (double.corrupt, double.clean)
    ]
    return values, np.stack(ends)


def judge(values: np.ndarray, twin: np.ndarray, ends: np.ndarray, dtype: str, depth: int) -> Answer:
    """Hold a contender's numbers to the float64 loop."""
    spread = float(twin.std()) or 1.0
    error = float(np.abs(values - twin).max()) / spread
    correlation = float(np.corrcoef(values.ravel(), twin.ravel())[0, 1])
    content = float(np.abs((twin - ends[0]).mean(1)).max() / abs((ends[1] - ends[0]).mean()))
    tolerance = {"float64": 1e-10, "float32": 1e-5}.get(dtype, np.inf) * depth
    agrees = error <= tolerance and correlation >= 0.99 and content >= 0.1
    return Answer(error, correlation, content, agrees)


def best_k(rival: Any, site: str, cells: Sequence[Cell], device: torch.device) -> int:
    """The number of cells a forward that this rival is fastest with (tried on one layer)."""
    layer = [c for c in cells if c.layer == cells[-1].layer][:20]
    rates = {}
    for k in [k for k in rival.options if abs(k) <= len(layer)] or [1]:
        part = layer[: max(4, abs(k))]
        work = {"try": (lambda k=k, part=part: rival.sweep(site, part, k), 1.0)}
        rates[k] = interleave(work, 2, device)["try"].best / len(part)
    return min(rates, key=lambda k: rates[k])


@dataclass
class Row:
    """A contender's line in the table of one sweep."""

    name: str
    timing: Timing
    answer: Answer
    flops: float
    memory: float
    note: str = ""


def run_sweep(
    args: argparse.Namespace, problem: Problem, rivals: dict[str, Any], ours: Any, key: str,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Time one sweep with every contender."""
    site, axes = SWEEPS[key]
    device = problem.clean.device
    cells = cells_of(site, axes, problem)
    strong = None
    if ours is not None:
        change = np.nan_to_num(ours.sweep(site, axes) - ours.base)
        strong = cells[int(np.abs(change.mean(1)).argmax())]
    some = sample(cells, args.limit, strong)
    where = [cells.index(c) for c in some]
    twin, ends = reference(site, some, problem)
    depth = problem.model.config.n_layer
    work: dict[str, tuple[Callable[[], Any], float]] = {}
    rows: dict[str, Row] = {}

    def enter(name: str, call: Callable[[], Any], scale: float, pick: Any, note: str) -> None:
        values: list[np.ndarray] = []
        memory = peak_bytes(lambda: values.append(call()), device)
        answer = judge(values[0][pick], twin, ends, args.dtype, depth)
        rows[name] = Row(name, Timing(), answer, scale * flops_of(call), memory, note)
        work[name] = (call, scale)
        say(f"{key}  {name}: error {answer.error:.1e} of the spread, agrees: {answer.agrees}")

    if ours is not None:
        enter("interp", lambda: ours.sweep(site, axes), 1.0, where, "whole sweep")
    for rival in rivals.values():
        k = best_k(rival, site, some, device)
        shared = f"{k} cells a forward" if k > 0 else f"{-k} invokes a trace"
        scale = len(cells) / len(some)
        note = f"{shared}; {len(some)} of {len(cells)} cells"
        enter(rival.name, lambda r=rival, k=k: r.sweep(site, some, k), scale, slice(None), note)
    before = matmul_rate(getattr(torch, args.dtype), device)
    for name, timing in interleave(work, args.rounds, device, lambda t: say(f"{key}  {t}")).items():
        rows[name].timing = timing
    rate = max(before, matmul_rate(getattr(torch, args.dtype), device))
    return {
        "sweep": key, "cells": len(cells), "pairs": len(problem.clean),
        "tokens": problem.clean.shape[1], "dtype": args.dtype, "matmul_rate": rate,
        "ideal_flops": ideal_flops(site, cells, problem),
        "naive_flops": naive_flops(len(cells), problem),
        "rows": [line(row, rows, rate) for row in rows.values()],
    }  # fmt: skip


def line(row: Row, rows: dict[str, Row], rate: float) -> dict[str, Any]:
    """One row as plain data, with the ratios that may be stated."""
    seconds = row.timing.median

    def times(other: Row | None) -> float | None:
        fair = other is not None and row.answer.agrees and other.answer.agrees
        return other.timing.median / seconds if fair and other else None

    others = [r for r in rows.values() if r.name != "interp" and r.answer.agrees]
    fastest = min(others, key=lambda r: r.timing.median, default=None)
    return {
        "name": row.name, "seconds": seconds, "best": row.timing.best,
        "cpu_seconds": row.timing.cpu_median, "rounds": row.timing.wall, "scale": row.timing.scale,
        "flops": row.flops, "share_of_peak": row.flops / seconds / rate, "peak_bytes": row.memory,
        "error": row.answer.error, "correlation": row.answer.correlation,
        "content": row.answer.content, "agrees": row.answer.agrees, "note": row.note,
        "times_faster_than_transformer_lens": times(rows.get("transformer_lens.patching")),
        "times_faster_than_fastest_rival": times(fastest),
    }  # fmt: skip


def show(sweep: dict[str, Any]) -> str:
    """One sweep as Markdown."""
    head = [
        "", "seconds (median, best)", "cpu s", "× TransformerLens", "× fastest rival", "TFLOP",
        "÷ ideal", "of matmul peak", "peak memory", "error", "how",
    ]  # fmt: skip

    def ratio(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    body = [
        [
            r["name"], f"{r['seconds']:.2f}, {r['best']:.2f}", f"{r['cpu_seconds']:.1f}",
            ratio(r["times_faster_than_transformer_lens"]),
            ratio(r["times_faster_than_fastest_rival"]), f"{r['flops'] / 1e12:.3f}",
            f"{r['flops'] / sweep['ideal_flops']:.2f}", f"{100 * r['share_of_peak']:.0f} %",
            f"{r['peak_bytes'] / 2**20:.0f} MiB", f"{r['error']:.0e}"
            + ("" if r["agrees"] else " differs"), r["note"],
        ]
        for r in sweep["rows"]
    ]  # fmt: skip
    title = (
        f"### {sweep['sweep']}: {sweep['cells']} cells, {sweep['pairs']} pairs × "
        f"{sweep['tokens']} tokens, {sweep['dtype']} ({sweep['case']})"
    )
    naive = sweep["naive_flops"] / sweep["ideal_flops"]
    facts = (
        f"Ideal {sweep['ideal_flops'] / 1e12:.3f} TFLOP, a plain loop {naive:.1f} times that; "
        f"matmul peak {sweep['matmul_rate'] / 1e9:.0f} GFLOP/s."
    )
    return f"{title}\n\n{facts}\n\n{table(head, body)}"


def page(shape: str, sweeps: Sequence[dict[str, Any]]) -> str:
    """Sweeps as one Markdown page; the machine is told again where it changed."""
    parts, last = [f"# Patching, {shape} shape"], ""
    for sweep in sweeps:
        told = describe(sweep["machine"])
        parts += [show(sweep)] if told == last else [told, show(sweep)]
        last = told
    return "\n\n".join(parts)


def keep(name: str, args: argparse.Namespace, sweeps: Sequence[dict[str, Any]]) -> Path:
    """Write these sweeps beside those of earlier runs, whose like they replace."""
    path = args.out / f"{name}.json"
    there = json.loads(path.read_text(encoding="utf-8"))["sweeps"] if path.is_file() else []
    known = {(s["case"], s["sweep"]): s for s in (*there, *sweeps)}
    order = [known[c, k] for c in CASES for k in SWEEPS if (c, k) in known]
    return write(name, {"sweeps": order}, page(args.shape, order), args.out)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="interp bench patching", description=__doc__)
    out.add_argument("--shape", choices=SHAPES, default="gpt2")
    out.add_argument("--sweeps", default="all", help=f"of {', '.join(SWEEPS)}; or all")
    out.add_argument("--cases", default="all", help=f"of {', '.join(CASES)}; or all")
    out.add_argument("--rivals", default="all", help=f"of {', '.join(RIVALS)}; all, or none")
    out.add_argument("--pairs", type=int, default=8)
    out.add_argument("--rounds", type=int, default=3)
    out.add_argument("--limit", type=int, default=60, help="cells a rival is timed on")
    out.add_argument("--threads", type=int, default=2)
    out.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32")
    out.add_argument("--device", default="cpu")
    out.add_argument("--backend", default="transformer_lens", help="of interp's own model")
    out.add_argument("--without-interp", action="store_true", help="time the rivals alone")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out.add_argument("--quick", action="store_true", help="a tiny shape, one round: seconds")
    out.add_argument("--json", action="store_true", help="print the results as JSON")
    return out


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """Names from ``all``, ``none`` or a list with commas."""
    names = list(known) if text == "all" else [] if text == "none" else text.split(",")
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"Unknown: {', '.join(unknown)}. Known: {', '.join(known)}, all.")
    return names


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, write its results, and return them."""
    args = parser().parse_args(argv)
    if args.quick:
        args.shape, args.rounds, args.limit = "tiny", 1, 12
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(args.device)
    name = f"patching-{args.shape}-{device.type}-{args.dtype}"
    data: dict[str, Any] = {"sweeps": []}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with quiet():
        for case in chosen(args.cases, list(CASES)):
            problem = make_problem(args, *CASES[case])
            rivals = {n: RIVALS[n](problem) for n in chosen(args.rivals, list(RIVALS))}
            ours = None if args.without_interp else Interp(problem, args.backend)
            for key in chosen(args.sweeps, list(SWEEPS)):
                facts = {"machine": machine(device), "arguments": vars(args), "case": case}
                sweep = run_sweep(args, problem, rivals, ours, key, say)
                data["sweeps"].append({**sweep, **facts})
                path = keep(name, args, data["sweeps"])  # at once: a cut loses one sweep
            del problem, rivals, ours
            gc.collect()
    say(f"written: {path}")
    print(json.dumps(data, default=str) if args.json else page(args.shape, data["sweeps"]))
    return data


if __name__ == "__main__":
    main()
