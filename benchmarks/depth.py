"""Skip and erasure maps beside equally batched loops: ``python -m benchmarks.depth [--quick]``.

GPT-2-small's shape with random weights, random tokens, every layer skipped (the whole layer, at
all positions and before two later ones) and every residual of every layer erased. The loop runs
whole forwards in batches of as many rows as interp's own, with the same unembedding and the same
reductions; the published style runs one nnsight trace a layer and prompt, batch 1. All must agree
before a time is compared. Arithmetic allows 1.6 times for skips and 2.9 times for erasures, since
every row's unembedding is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.timing import (  # noqa: E402
    RESULTS,
    describe,
    flops_of,
    interleave,
    machine,
    table,
    write,
)
from interp.engine.depth import Fill, Skip, erase, layer_step, skip_wavefront, walk  # noqa: E402
from interp.engine.depth.walking import embedded  # noqa: E402
from interp.engine.depth.wavefront import changed, output_distances  # noqa: E402
from interp.models.blocks import ModelBlocks  # noqa: E402

SHAPES = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "tiny": {"n_layer": 4, "n_embd": 64, "n_head": 4, "vocab_size": 211},
}
TOLERANCE = {"float64": 1e-9, "float32": 2e-4}


class Problem:
    """One model, one batch of prompts, every skip and every erasure.

    Args:
        args: shape, prompts, tokens, seed, dtype.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        fields: dict[str, Any] = {
            **SHAPES[args.shape], "n_positions": max(64, args.tokens), "attn_pdrop": 0.0,
            "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
        }  # fmt: skip
        config = GPT2Config(**fields)
        torch.manual_seed(args.seed)
        module = GPT2LMHeadModel(config).eval().to(getattr(torch, args.dtype))
        with torch.no_grad():  # the default draw is nearly linear and its outputs nearly even
            for name, weight in module.named_parameters():
                if weight.ndim == 2 and ".h." in name:
                    weight.mul_(3.0)
            module.transformer.ln_f.weight.mul_(5.0 / (0.02 * config.n_embd**0.5))
        self.module, self.blocks = module, ModelBlocks(module)
        dice = np.random.default_rng(args.seed)
        self.tokens = dice.integers(0, config.vocab_size, (args.prompts, args.tokens))
        self.layers, T = config.n_layer, args.tokens
        stops = [(T, 1), (T // 2, T // 2), (3 * T // 4, 3 * T // 4)]
        self.skips = [Skip("layer", s, 1, a, b) for a, b in stops for s in range(self.layers)]
        self.targets = list(range(1, T, args.every))
        with torch.no_grad():
            steps = walk(self.blocks, self.tokens)
            self.means = torch.stack([s.resid[:, 1:].mean((0, 1)) for s in steps])


# -- interp -------------------------------------------------------------------------------------


def our_skips(problem: Problem) -> dict[str, np.ndarray]:
    """One growing batch."""
    found = skip_wavefront(problem.blocks, problem.tokens, problem.skips, Fill())
    return {"effect": found.effect, "output": found.output}


def our_erasures(problem: Problem) -> dict[str, np.ndarray]:
    """Suffixes alone, on the clean run's keys and values."""
    found = erase(problem.blocks, problem.tokens, problem.means, problem.targets, "single")
    return {"away": found.away}


# -- the equally batched loop -------------------------------------------------------------------


def looped_skips(problem: Problem) -> dict[str, np.ndarray]:
    """Whole forwards of all rows, each skipping its layer where it comes to it."""
    blocks, skips = problem.blocks, problem.skips
    with torch.no_grad():
        x = embedded(blocks, problem.tokens)
        rows = x[None].expand(len(skips) + 1, *x.shape).clone()
        effect = np.zeros((len(skips), problem.layers, *problem.tokens.shape), np.float64)
        for layer, block in enumerate(blocks.layers):
            attn, mlp, out = (y.view(rows.shape) for y in layer_step(block, rows.flatten(0, 1)))
            added = attn + mlp
            for i, skip in enumerate(skips):
                if skip.layer == layer:
                    where = slice(skip.start, skip.stop)
                    added[1 + i, :, where] = 0
                    out[1 + i, :, where] = rows[1 + i, :, where]
            effect[:, layer] = changed(added[0], added[1:], rows[0], False).numpy()
            rows = out
        seen = np.array([s.seen for s in skips])
        output = output_distances(blocks, rows[0], rows[1:], seen)
    for i, skip in enumerate(skips):
        effect[i, :, :, : skip.seen] = np.nan
    return {"effect": effect, "output": output}


def looped_erasures(problem: Problem) -> dict[str, np.ndarray]:
    """Whole forwards, unembedded whole, of a batch of rows a position, one row a layer."""
    blocks, L = problem.blocks, problem.layers
    away = []
    with torch.no_grad():
        for t in problem.targets:
            x = embedded(blocks, problem.tokens)
            rows = x[None].expand(L + 1, *x.shape).clone()
            for layer, block in enumerate(blocks.layers):
                rows[1 + layer, :, t] = problem.means[layer]
                rows = layer_step(block, rows.flatten(0, 1))[2].view(rows.shape)
            found = output_distances(blocks, rows[0], rows[1:], np.zeros(L, dtype=int))
            found[:, :, :t] = np.nan
            away.append(found)
    return {"away": np.stack(away, 1)}


# -- the published style ------------------------------------------------------------------------


class Traces:
    """One nnsight trace a layer and prompt, batch 1, everything unembedded."""

    def __init__(self, problem: Problem) -> None:
        import copy

        from nnsight import TransformersModel

        from benchmarks.rivals import number_tokenizer

        self.problem = problem
        module = copy.deepcopy(problem.module)
        self.model = TransformersModel(
            module, task="text-generation", tokenizer=number_tokenizer(module.config.vocab_size)
        )

    def __call__(self, skips: list[Skip], prompt: int) -> Tensor:
        """‖P - P̄‖ ``[skip, T]`` of one prompt."""
        ids = torch.from_numpy(self.problem.tokens[prompt : prompt + 1])
        with torch.no_grad():
            with self.model.trace(ids):
                clean = self.model.lm_head.output.softmax(-1).save()
            out = []
            for skip in skips:
                with self.model.trace(ids):
                    block = self.model.transformer.h[skip.layer]
                    where = slice(skip.start, skip.stop)
                    before = block.input
                    value = block.output.clone()
                    value[:, where] = before[:, where]
                    block.output = value
                    other = self.model.lm_head.output.softmax(-1).save()
                out.append((clean - other)[0].norm(dim=-1))
        return torch.stack(out)


# -- measuring ----------------------------------------------------------------------------------


def agreement(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest difference relative to the spread, over all arrays."""
    worst = 0.0
    for name, x in a.items():
        known = np.isfinite(x) & np.isfinite(b[name])
        assert known.any() and np.abs(x[known]).max() > 0.1, "a comparison of nothing"
        worst = max(worst, float(np.abs(x - b[name])[known].max() / x[known].std()))
    return worst


def measure(args: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Agreement, then times, FLOPs and ratios."""
    problem = Problem(args)
    cpu = torch.device("cpu")
    work: dict[str, tuple[Any, Any]] = {
        "skip map": (lambda: our_skips(problem), lambda: looped_skips(problem)),
        "erasure map": (lambda: our_erasures(problem), lambda: looped_erasures(problem)),
    }
    out: dict[str, Any] = {"machine": machine(cpu), "options": vars(args), "rows": []}
    for name, (ours, loop) in work.items():
        apart = agreement(ours(), loop())
        say(f"{name}: answers differ by {apart:.1e} of their spread")
        timings = interleave({"interp": (ours, 1.0), "loop": (loop, 1.0)}, args.rounds, cpu, say)
        flops = flops_of(loop) / flops_of(ours)
        ratio = timings["loop"].median / timings["interp"].median
        same = apart <= TOLERANCE[args.dtype] * problem.layers
        out["rows"].append({
            "what": name, "interp": timings["interp"].median, "loop": timings["loop"].median,
            "ratio": ratio if same else None, "flops": flops, "apart": apart,
        })  # fmt: skip
    if args.traces:
        out["traces"] = traced(problem, args, say, out["rows"][0]["interp"])
    return out


def traced(problem: Problem, args: argparse.Namespace, say: Any, ours: float) -> dict[str, Any]:
    """The published style on a few skips of one prompt, scaled to all."""
    rival = Traces(problem)
    some = problem.skips[:: max(1, len(problem.skips) // args.traces)]
    got = rival(some, 0).numpy()
    want = our_skips(problem)["output"][[problem.skips.index(s) for s in some], 0]
    known = np.isfinite(want)
    apart = float(np.abs(got - want)[known].max() / want[known].std())
    scale = len(problem.skips) * len(problem.tokens) / len(some)
    timing = interleave({"nnsight": (lambda: rival(some, 0), scale)}, args.rounds,
                        torch.device("cpu"), say)["nnsight"]  # fmt: skip
    same = apart <= TOLERANCE[args.dtype] * problem.layers
    return {"seconds": timing.median, "apart": apart, "timed": len(some),
            "ratio": timing.median / ours if same else None}  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    o = found["options"]
    rows = [
        [r["what"], f"{r['interp']:.2f}", f"{r['loop']:.2f}",
         f"{r['ratio']:.2f}" if r["ratio"] else "answers differ", f"{r['flops']:.2f}",
         f"{r['apart']:.0e}"]
        for r in found["rows"]
    ]  # fmt: skip
    text = [
        "# Depth: skip maps and erasure maps", "",
        f"{o['shape']} shape, {o['prompts']} prompts × {o['tokens']} tokens, {o['dtype']}; "
        "seconds, medians.", "",
        table(["", "interp", "equally batched loop", "ratio", "ratio of FLOPs", "differ by"], rows),
    ]  # fmt: skip
    if "traces" in found:
        t = found["traces"]
        ratio = f"{t['ratio']:.1f}" if t["ratio"] else "answers differ"
        text += ["", f"The published style (one nnsight trace a layer and prompt, batch 1; "
                 f"{t['timed']} of the skips timed): {t['seconds']:.1f} s for the outputs of the "
                 f"skip map alone, {ratio} times interp's."]  # fmt: skip
    return "\n".join([*text, "", describe(found["machine"])])


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        prog="interp bench depth", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of one batch")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a prompt")
    parser.add_argument("--every", type=int, default=2, help="erase every so many positions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--traces", type=int, default=6, help="nnsight traces to time; 0 for none")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny model, once")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(words)
    if args.quick:
        args.shape, args.tokens, args.rounds = "tiny", 16, 1
    return args


def main(words: list[str] | None = None) -> int:
    """Measure and write; 1 where answers differ."""
    args = parse(words)
    torch.set_num_threads(args.threads)

    def say(text: str) -> None:
        sys.stderr.write(text + "\n")

    found = measure(args, say)
    found["options"] = {k: v for k, v in vars(args).items() if k != "out"}
    text = page(found)
    if not args.quick:
        write(f"depth-{args.shape}-cpu-{args.dtype}", found, text, args.out)
    sys.stdout.write((json.dumps(found, default=str) if args.json else text) + "\n")
    return 0 if all(r["ratio"] for r in found["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
