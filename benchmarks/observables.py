"""Observable propagation, batched and one by one: ``python -m benchmarks.observables [--quick]``.

A GPT-2 of random weights. *Ranking*: every head's feature vector from the weights, as one product,
beside a loop over heads. *Paths*: how many extensions (prefix × head × source × prompt) are scored
a second by the batched search, beside an un-batched reference in the same process that forms each
vector and multiplies it with the residual, one extension at a time, on a sample of the same ones.
Both must agree before a rate is stated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.patching import SHAPES, make_problem  # noqa: E402
from benchmarks.timing import RESULTS, describe, interleave, machine, table, write  # noqa: E402

AGREE = {"float64": 1e-9, "float32": 1e-3}
"""Largest difference, in standard deviations, at which two answers count as the same."""


def opened(args: argparse.Namespace) -> tuple[Any, Any]:
    """The problem and its model, wrapped."""
    from interp.models import load_model

    problem = make_problem(args, args.tokens, 0)
    return problem, load_model(problem.model, device=args.device, dtype=args.dtype, verify=False)


def ranking(model: Any, args: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Every head's vector: one product, and head by head."""
    from interp.engine.traces import Maps
    from interp.methods.observables.graph import Node
    from interp.methods.observables.reading import at_logits, heads_free, through

    maps = Maps(model)
    u = maps.unembedding((5, 9))[0] @ torch.tensor([1.0, -1.0], device=maps.like.device).to(
        maps.like
    )
    shape, found = model.shape, {}

    def batched() -> None:
        at = at_logits(maps, None, u[None], "norm")
        found["batched"] = heads_free(maps, at, "norm", shape.n_layers)[0].norm(dim=-1)

    def alone() -> None:
        at = at_logits(maps, None, u[None], "norm")
        rows = [
            [through(maps, Node(n, h), at, "norm").y.norm() for h in range(shape.n_heads)]
            for n in range(shape.n_layers)
        ]
        found["alone"] = torch.tensor(rows)

    work = {"one product": (batched, 1.0), "head by head": (alone, 1.0)}
    batched()  # the maps are made once
    timings = interleave(work, args.rounds, torch.device(args.device), say)
    apart = float((found["batched"].cpu() - found["alone"]).abs().max() / found["alone"].std())
    return {"heads": shape.n_layers * shape.n_heads, "apart": apart,
            "seconds": {k: t.median for k, t in timings.items()}}  # fmt: skip


def search(problem: Any, model: Any, args: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Extensions a second of the search and of the loop, on the same prefixes."""
    from interp.engine.traces import Maps, trace
    from interp.methods.observables.search import Search

    maps = Maps(model)
    run = trace(maps, problem.clean.cpu().numpy())
    weights = torch.tensor([1.0, -1.0], device=maps.like.device).to(maps.like)
    u = (maps.unembedding((5, 9))[0] @ weights).expand(run.rows, -1)
    first = Search(maps, run, u)
    prefixes = first.beam(args.width, 1).prefixes
    searcher = Search(maps, run, u)
    kept: dict[str, Any] = {}

    def batched() -> None:
        kept["batched"] = searcher.extend(prefixes)[1]

    sample = sampled(maps, run, prefixes, args.sample)

    def alone() -> None:
        kept["alone"] = np.array([reference(maps, run, prefixes[b], *rest) for b, *rest in sample])

    before = searcher.evaluations
    batched()
    count = searcher.evaluations - before
    scale = count / len(sample)
    timings = interleave(
        {"batched": (batched, 1.0), "one by one": (alone, scale)}, args.rounds,
        torch.device(args.device), say,
    )  # fmt: skip
    theirs = kept["alone"]
    mine = np.array([extension(maps, run, searcher, prefixes, *item) for item in sample])
    apart = float(np.abs(mine - theirs).max() / theirs.std())
    rate = {k: count / t.median for k, t in timings.items()}
    return {"prefixes": len(prefixes), "prompts": run.rows, "tokens": run.length,
            "evaluations": count, "sample": len(sample), "apart": apart, "rate": rate}  # fmt: skip


def sampled(maps: Any, run: Any, prefixes: list[Any], n: int) -> list[tuple[int, ...]]:
    """(prefix, layer, head, source, prompt), drawn."""
    rng, out = np.random.default_rng(0), []
    while len(out) < n:
        b = int(rng.integers(len(prefixes)))
        layer = int(rng.integers(len(run.layers)))
        if prefixes[b].order > 2 * layer:
            out.append((
                b, layer, int(rng.integers(maps.shape.n_heads)),
                int(rng.integers(prefixes[b].position + 1)), int(rng.integers(run.rows)),
            ))  # fmt: skip
    return out


def reference(maps: Any, run: Any, prefix: Any, layer: int, head: int, s: int, r: int) -> float:
    """One extension of one prompt, by its own vector: A · (x · P(γ (W_V W_O y)) / σ)."""
    part, seen = maps.layer(layer), run.layers[layer]
    y = part.w_v[head // part.groups] @ (part.w_o[head] @ prefix.y[r])
    norm = part.norms["pre_attn"]
    read = norm.centred(norm.gain * y) / seen.scales["pre_attn"][r, s]
    weight = seen.pattern[r, head, prefix.position, s]
    return float(weight * (read @ seen.resid[r, s]))


def extension(
    maps: Any, run: Any, searcher: Any, prefixes: list[Any], b: int, layer: int, head: int,
    s: int, r: int,
) -> float:  # fmt: skip
    """The same extension out of the batched search."""
    prefix = prefixes[b]
    places = torch.tensor([prefix.position], device=prefix.y.device)
    values = searcher._heads(layer, [prefix], [0], prefix.y[None], places)[0]
    return float(values.reshape(maps.shape.n_heads, run.length, run.rows)[head, s, r])


def page(data: dict[str, Any]) -> str:
    """The results as Markdown."""
    rank, paths = data["ranking"], data["paths"]
    lines = ["## Observable propagation: batched and one by one", "", describe(data["machine"]), ""]
    limit = AGREE[data["dtype"]]
    same = rank["apart"] < limit
    ratio = rank["seconds"]["head by head"] / rank["seconds"]["one product"]
    lines += [
        f"### Ranking of all {rank['heads']} heads from the weights", "",
        table(["way", "s", "÷"], [
            ["one product", f"{rank['seconds']['one product']:.4f}", "1"],
            ["head by head", f"{rank['seconds']['head by head']:.4f}",
             f"{ratio:.1f}" if same else "answers differ"],
        ]),
        f"Largest difference {rank['apart']:.1e} standard deviations.", "",
    ]  # fmt: skip
    same = paths["apart"] < limit
    ratio = paths["rate"]["batched"] / paths["rate"]["one by one"]
    lines += [
        f"### Extensions of paths: {paths['prefixes']} prefixes, {paths['prompts']} prompts of "
        f"{paths['tokens']} tokens, {paths['evaluations']:,} extensions", "",
        table(["way", "extensions a second", "×"], [
            ["batched", f"{paths['rate']['batched']:,.0f}", f"{ratio:,.0f}" if same
             else "answers differ"],
            [f"one by one (sample of {paths['sample']:,})",
             f"{paths['rate']['one by one']:,.0f}", "1"],
        ]),
        f"Largest difference {paths['apart']:.1e} standard deviations. The batched search scores "
        "MLPs as well, whose gradients are part of its time.",
    ]  # fmt: skip
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="interp bench observables", description=__doc__)
    out.add_argument("--shape", default="gpt2", choices=sorted(SHAPES))
    out.add_argument("--pairs", type=int, default=4, help="prompts")
    out.add_argument("--tokens", type=int, default=16)
    out.add_argument("--width", type=int, default=32, help="prefixes that are extended")
    out.add_argument("--sample", type=int, default=2000, help="extensions done one by one")
    out.add_argument("--rounds", type=int, default=5)
    out.add_argument("--threads", type=int, default=2)
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--dtype", default="float32", choices=sorted(AGREE))
    out.add_argument("--device", default="cpu")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out.add_argument("--quick", action="store_true", help="a tiny model, one round: seconds")
    out.add_argument("--json", action="store_true", help="print the results as JSON")
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, write its results, and return them."""
    args = parser().parse_args(argv)
    if args.quick:
        args.shape, args.rounds, args.sample = "tiny", 1, 200
    torch.set_num_threads(args.threads)

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    problem, model = opened(args)
    with torch.no_grad():
        data = {
            "shape": args.shape, "dtype": args.dtype, "machine": machine(torch.device(args.device)),
            "ranking": ranking(model, args, say), "paths": search(problem, model, args, say),
        }  # fmt: skip
    text = page(data)
    write(f"observables-{args.shape}-{args.device}", data, text, args.out)
    print(json.dumps(data, indent=1, default=str) if args.json else text)
    return data


if __name__ == "__main__":
    main()
