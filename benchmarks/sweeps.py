"""Every sweep on every family beside one forward a cell: ``python -m benchmarks.sweeps``.

Random hard checkpoints of one size for each family. interp is timed on the whole sweep; the naive
twin, the back-end's own forward with one edit (three or four forwards an edge), on a sample of
cells and scaled. No ratio is printed where the two disagree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
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

from benchmarks.rivals import quiet  # noqa: E402
from benchmarks.timing import RESULTS, describe, machine, table, write  # noqa: E402
from interp.engine import Cell, all_edges, metric_named, plain_metrics, sweep  # noqa: E402
from interp.models import load_model  # noqa: E402
from interp.models.families import FAMILIES  # noqa: E402
from interp.models.zoo.hard import hard_model  # noqa: E402
from interp.terms import Check, Edit, ModelShape, PromptPairs, Site  # noqa: E402

Cells = list[Cell]


def by_position(kind: str) -> Callable[[ModelShape, int], Cells]:
    """Layer × position."""
    return lambda s, t: [
        Cell((Edit(Site(kind, layer=n, position=p)),)) for n in range(s.n_layers) for p in range(t)
    ]


def by_head(kind: str, positions: bool = False) -> Callable[[ModelShape, int], Cells]:
    """Layer × head, or layer × head × position."""

    def make(s: ModelShape, t: int) -> Cells:
        heads = s.n_kv_heads if kind in ("k", "v") else s.n_heads
        places = range(t) if positions else [None]
        every = itertools.product(range(s.n_layers), range(heads), places)
        return [Cell((Edit(Site(kind, layer=n, head=h, position=p)),)) for n, h, p in every]

    return make


def neurons(s: ModelShape, _: int) -> Cells:
    """Sixteen neurons of each layer."""
    every = itertools.product(range(s.n_layers), range(0, s.d_mlp, max(1, s.d_mlp // 16)))
    return [Cell((Edit(Site("mlp_post", layer=n, neuron=u)),)) for n, u in every]


def edges(frozen: bool) -> Callable[[ModelShape, int], Cells]:
    """All edges out of heads."""
    return lambda s, _: [
        Cell((Edit(u, reader=v),), frozen=frozen) for u, v in all_edges(s) if u.kind == "z"
    ]


SWEEPS: dict[str, Callable[[ModelShape, int], Cells]] = {
    "resid_pre": by_position("resid_pre"),
    "attn_out": by_position("attn_out"),
    "mlp_out": by_position("mlp_out"),
    "z": by_head("z"),
    "z_position": by_head("z", positions=True),
    "q": by_head("q"),
    "k": by_head("k"),
    "v": by_head("v"),
    "pattern": by_head("pattern"),
    "pattern_query": by_head("pattern", positions=True),
    "mlp_post": neurons,
    "edges": edges(frozen=False),
    "paths": edges(frozen=True),
}


@dataclass(frozen=True)
class Row:
    """One sweep on one family.

    Args:
        family: which; sweep: which; cells: how many.
        seconds: of the whole sweep; naive_seconds: of one forward a cell, scaled from a sample.
        error: largest deviation on that sample, in the metric's standard deviations.
        content: largest change of the metric on it, likewise.
        agrees: whether the times may be compared.
    """

    family: str
    sweep: str
    cells: int
    seconds: float
    naive_seconds: float
    error: float
    content: float
    agrees: bool


class _Silent:
    """A context that keeps nothing."""

    memory = 4 * 10**9

    def advance(self, done: float, total: float) -> None: ...

    def cancelled(self) -> bool:
        return False

    def save_chunk(self, key: str, arrays: Any) -> None: ...

    def load_chunk(self, key: str) -> None:
        return None

    def check(self, check: Check) -> None: ...

    def partial(self, make: Any) -> None: ...

    def note(self, key: str, value: Any) -> None: ...

    def model(self, ref: str) -> Any:
        raise KeyError(ref)

    def result(self, ref: str) -> Any:
        raise KeyError(ref)

    def dictionary(self, ref: str) -> Any:
        raise KeyError(ref)


def make_pairs(n: int, tokens: int, shared: int, vocab: int, seed: int) -> PromptPairs:
    """Random pairs whose first ``shared`` tokens are the same."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, vocab, (n, tokens))
    corrupt = clean.copy()
    corrupt[:, shared:] = rng.integers(0, vocab, (n, tokens - shared))
    corrupt[:, shared] = (clean[:, shared] + 1) % vocab
    answers = np.stack([rng.permutation(vocab)[:2] for _ in range(n)])
    return PromptPairs.from_tokens(
        clean.tolist(), corrupt.tolist(), answers[:, :1].tolist(), answers[:, 1:].tolist()
    )


def run_one(model: Any, pairs: PromptPairs, family: str, name: str, args: Any) -> Row:
    """Time one sweep, and by plain forwards its largest cells and as many random ones."""
    cells = SWEEPS[name](model.shape, args.tokens)
    rng = np.random.default_rng(args.seed)
    metric = metric_named("logit_diff")
    first = sweep(model, pairs, cells, _Silent())  # warm, and where something happens
    order = np.argsort(-np.abs(first.patched - first.base).max(1), kind="stable")
    half = max(1, args.sample // 2)
    rest = rng.permutation(order[half:])[: args.sample - half]
    pick = np.concatenate([order[:half], rest])
    some = [cells[c] for c in pick]
    plain_metrics(model, pairs, some[:1], metric, direction="denoising")
    times, naive_times = [], []
    found, plain = None, np.zeros(0)
    for _ in range(args.rounds):
        start = time.perf_counter()
        found = sweep(model, pairs, cells, _Silent())
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        plain = plain_metrics(model, pairs, some, metric, direction="denoising")
        naive_times.append((time.perf_counter() - start) * len(cells) / len(some))
    assert found is not None
    scale = float(np.std(np.concatenate([found.base, found.source]))) or 1.0
    error = float(np.abs(found.patched[pick] - plain).max()) / scale
    content = float(np.abs(plain - found.base).max()) / scale
    agrees = error <= 1e-5 * model.shape.n_layers * 10 and content >= 0.01
    return Row(
        family,
        name,
        len(cells),
        float(np.median(times)),
        float(np.median(naive_times)),
        error,
        content,
        agrees,
    )


def show(rows: Sequence[Row]) -> str:
    """Sweeps as rows, families as columns: seconds, and how many times the naive twin takes."""
    families = list(dict.fromkeys(r.family for r in rows))
    lines = []
    for name in dict.fromkeys(r.sweep for r in rows):
        line = [name]
        for family in families:
            row = next((r for r in rows if r.family == family and r.sweep == name), None)
            if row is None:
                line.append("—")
            elif not row.agrees:
                line.append(f"{row.seconds:.3f} s (answers differ: {row.error:.1e})")
            else:
                line.append(f"{row.seconds:.3f} s ({row.naive_seconds / row.seconds:.1f}×)")
        lines.append(line)
    return table(["sweep", *families], lines)


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """Names from a comma-separated text; ``all`` for all."""
    names = list(known) if text == "all" else [t.strip() for t in text.split(",")]
    odd = [n for n in names if n not in known]
    if odd:
        raise SystemExit(f"unknown: {', '.join(odd)}; known: {', '.join(known)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="interp bench sweeps", description=__doc__)
    out.add_argument("--families", default="all", help="comma-separated, or all")
    out.add_argument("--sweeps", default="all", help=f"of {', '.join(SWEEPS)}")
    out.add_argument("--layers", type=int, default=6)
    out.add_argument("--width", type=int, default=192, help="d_model; six heads")
    out.add_argument("--pairs", type=int, default=4)
    out.add_argument("--tokens", type=int, default=12)
    out.add_argument("--shared", type=int, default=4, help="tokens before the first difference")
    out.add_argument("--sample", type=int, default=8, help="cells measured by plain forwards")
    out.add_argument("--rounds", type=int, default=3)
    out.add_argument("--threads", type=int, default=torch.get_num_threads())
    out.add_argument("--device", default="cpu")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--quick", action="store_true", help="two families, one round, small")
    out.add_argument("--json", action="store_true", help="print JSON")
    out.add_argument("--out", type=Path, default=RESULTS)
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, write its results, and return them."""
    args = parser().parse_args(argv)
    known = [f.name for f in FAMILIES.values()]
    if args.quick:
        args.families = "gpt2,llama" if args.families == "all" else args.families
        args.layers, args.width, args.rounds, args.sample = 3, 48, 1, 4
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    data: dict[str, Any] = {"machine": machine(device), "arguments": vars(args), "rows": []}
    rows: list[Row] = []
    with quiet():
        for family in chosen(args.families, known):
            module = hard_model(
                family, hidden_size=args.width, num_hidden_layers=args.layers, seed=args.seed
            )
            model = load_model(module, device=args.device)
            pairs = make_pairs(args.pairs, args.tokens, args.shared, 97, args.seed)
            for name in chosen(args.sweeps, list(SWEEPS)):
                row = run_one(model, pairs, family, name, args)
                rows.append(row)
                print(
                    f"{family} {name}: {row.seconds:.3f} s, naive {row.naive_seconds:.3f} s, "
                    f"error {row.error:.1e}",
                    file=sys.stderr,
                    flush=True,
                )
    data["rows"] = [vars(r) for r in rows]
    title = (
        f"# Sweeps by family: {args.layers} layers, width {args.width}, {args.pairs} pairs × "
        f"{args.tokens} tokens ({args.shared} shared), float32"
    )
    text = "\n\n".join([title, describe(data["machine"]), show(rows)])
    path = write(f"sweeps-{device.type}", data, text, args.out)
    print(f"written: {path}", file=sys.stderr)
    print(json.dumps(data, default=str) if args.json else text)
    return data


if __name__ == "__main__":
    main()
