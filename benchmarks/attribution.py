"""Attribution patching beside other tools: ``python -m benchmarks.attribution [--quick] [--json]``.

GPT-2-small's shape with random weights, eight pairs of random tokens (20 tokens that all differ; 16
of which the first 10 are shared, as in a template), the estimate of every embedding, head and MLP
at every position: the nodes that TransformerLens's ``attribution_patch`` scores. Rivals: that
function, and a plain Hugging Face loop with hooks that batches all pairs. All must agree with the
loop in float64 before a time is compared. RelP is timed too; its answers are its own, so no ratio
is stated. ``interp.run`` with its statistics and trust panel is timed once.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.patching import SHAPES, make_problem  # noqa: E402
from benchmarks.rivals import Problem, number_tokenizer, quiet  # noqa: E402
from benchmarks.timing import (  # noqa: E402
    RESULTS,
    describe,
    flops_of,
    interleave,
    machine,
    peak_bytes,
    table,
    write,
)

Scores = dict[str, np.ndarray]
KINDS = ("embed", "z", "mlp_out")
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
"""Of the spread of a grid and per layer: what rounding does to a backward pass, for all alike."""


class Hooks:
    """Plain Hugging Face with hooks: two forwards and one backward of the whole batch."""

    name = "hook loop, batched"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self) -> Scores:
        """Mean estimates: embed ``[position]``, z ``[layer, position, head]``, mlp_out."""
        problem = self.problem
        clean = self._run(problem.clean, False)
        with torch.enable_grad():
            corrupt, metric = self._run(problem.corrupt, True)
        grads = torch.autograd.grad(metric, corrupt)
        steps = [
            ((a - b.detach()) * g).double() for a, b, g in zip(clean, corrupt, grads, strict=True)
        ]
        layers = problem.model.config.n_layer
        shape = (-1, problem.d_head)
        heads = [s.unflatten(-1, shape).sum(-1).mean(0) for s in steps[1 : layers + 1]]
        mlps = [s.sum(-1).mean(0) for s in steps[layers + 1 :]]
        parts = {"embed": steps[0].sum(-1).mean(0), "z": torch.stack(heads),
                 "mlp_out": torch.stack(mlps)}  # fmt: skip
        return {k: v.cpu().numpy() for k, v in parts.items()}

    def _run(self, tokens: Tensor, grad: bool) -> Any:
        kept: dict[tuple[str, int], Tensor] = {}

        def before(key: tuple[str, int]) -> Any:
            def hook(_: Any, args: Any) -> None:
                kept[key] = args[0]

            return hook

        def after(key: tuple[str, int]) -> Any:
            def hook(_: Any, args: Any, out: Tensor) -> Tensor:
                kept[key] = out if out.requires_grad or not grad else out.requires_grad_()
                return kept[key]

            return hook

        net = self.problem.model.transformer
        handles = [net.wte.register_forward_hook(after(("embed", 0)))]
        for n, block in enumerate(net.h):
            handles.append(block.attn.c_proj.register_forward_pre_hook(before(("z", n))))
            handles.append(block.mlp.register_forward_hook(after(("mlp_out", n))))
        try:
            logits = self.problem.model(tokens, logits_to_keep=1).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        count = self.problem.model.config.n_layer
        order = [("embed", 0), *((k, n) for k in ("z", "mlp_out") for n in range(count))]
        values = [kept[k] for k in order]
        return (values, self.problem.metric(logits).sum()) if grad else values


class TransformerLens:
    """``transformer_lens.tools.analysis.attribution_patch``, node granularity."""

    name = "transformer_lens.attribution_patch"

    def __init__(self, problem: Problem) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.problem = problem
        self.bridge = TransformerBridge.boot_transformers(
            "gpt2", hf_model=copy.deepcopy(problem.model),
            tokenizer=number_tokenizer(problem.model.config.vocab_size),
            device=str(problem.clean.device), dtype=problem.model.dtype,
        )  # fmt: skip
        self.bridge.eval()

    def __call__(self) -> Scores:
        """The same nodes; its metric sees one prompt at a time, so the answers are counted off."""
        from transformer_lens.tools.analysis import attribution_patch

        problem = self.problem
        turn = iter(i // 2 for i in range(2 * len(problem.right)))  # clean, then corrupt

        def metric(logits: Tensor) -> Tensor:
            i = next(turn)
            return logits[0, -1, problem.right[i]] - logits[0, -1, problem.wrong[i]]

        with torch.enable_grad():
            found = attribution_patch(self.bridge, problem.clean, problem.corrupt, metric)
        config, length = problem.model.config, problem.clean.shape[1]
        out = {
            "embed": np.zeros(length), "z": np.zeros((config.n_layer, length, config.n_head)),
            "mlp_out": np.zeros((config.n_layer, length)),
        }  # fmt: skip
        for node, score in found.node_scores.items():
            if node.kind == "embed":
                out["embed"][node.position] = score
            elif node.kind == "attn_head_out":
                out["z"][node.layer, node.position, node.head] = score
            else:
                out["mlp_out"][node.layer, node.position] = score
        return out


class Interp:
    """All nodes by the engine, under ordinary gradients or a set of rules."""

    def __init__(self, problem: Problem, backend: str, rules: str) -> None:
        import interp

        self.interp, self.rules = interp, rules
        self.name = "interp" if rules == "none" else f"interp, {rules} with its proof"
        dtype = str(problem.model.dtype).removeprefix("torch.")
        self.model = interp.load_model(
            copy.deepcopy(problem.model), backend=backend, device=str(problem.clean.device),
            dtype=dtype, verify=False,
        )  # fmt: skip
        columns = (problem.clean, problem.corrupt, problem.right, problem.wrong)
        self.task = interp.PromptPairs.from_tokens(*(t.tolist() for t in columns))

    def __call__(self) -> Scores:
        """Two forwards and one backward for the three kinds."""
        from interp.engine.gradients import attribute, rules
        from interp.run import LocalContext

        with rules(self.model, self.rules):
            found = attribute(self.model, self.task, KINDS, LocalContext())
        return {k: found.values[k].mean(0) for k in KINDS}


class Run(Interp):
    """``interp.run`` for each kind: with bootstrap, trust panel and provenance."""

    def __init__(self, problem: Problem, backend: str) -> None:
        super().__init__(problem, backend, "none")
        self.name = "interp.run, three results"

    def __call__(self) -> Scores:
        """The three grids as results."""
        out = {}
        for kind in KINDS:
            axes = "layer,head,position" if kind == "z" else "auto"
            spec = self.interp.methods.AttributionPatching(site=kind, axes=axes, verify=0)
            data = self.interp.run(spec, self.model, self.task, progress=False).data
            out[kind] = data["attribution_raw"].values
        out["z"] = out["z"].swapaxes(1, 2)
        return out


def reference(problem: Problem) -> Scores:
    """The loop's answers in float64."""
    double = Problem(copy.deepcopy(problem.model).double(), problem.clean, problem.corrupt,
                     problem.right, problem.wrong)  # fmt: skip
    return Hooks(double)()


def judge(found: Scores, wanted: Scores, dtype: str, depth: int) -> tuple[float, bool]:
    """Largest error in standard deviations of each grid, and whether times may be compared."""
    errors = [float(np.abs(found[k] - wanted[k]).max() / (wanted[k].std() or 1.0)) for k in KINDS]
    content = max(float(np.abs(wanted[k]).max()) for k in KINDS) > 0
    return max(errors), max(errors) <= TOLERANCE.get(dtype, np.inf) * depth and content


def measure(
    args: argparse.Namespace, tokens: int, shared: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Time every contender on one problem."""
    problem = make_problem(args, tokens, shared)
    device = problem.clean.device
    contenders: dict[str, Any] = {}
    for made in (
        Interp(problem, args.backend, "none"), TransformerLens(problem), Hooks(problem),
        Interp(problem, args.backend, "relp"), *([] if shared else [Run(problem, args.backend)]),
    ):  # fmt: skip
        contenders[made.name] = made
    wanted, depth = reference(problem), problem.model.config.n_layer
    rows = {}
    for name, call in contenders.items():
        kept: list[Scores] = []
        memory = peak_bytes(lambda call=call, kept=kept: kept.append(call()), device)
        error, agrees = judge(kept[0], wanted, args.dtype, depth)
        whole = isinstance(call, Run)
        rows[name] = {"name": name, "error": error, "agrees": agrees, "peak_bytes": memory,
                      "flops": None if whole else flops_of(call)}  # fmt: skip
        say(f"{name}: error {error:.1e} of the spread, agrees: {agrees}")
    work = {n: (c, 1.0) for n, c in contenders.items() if not isinstance(c, Run)}
    once = {n: (c, 1.0) for n, c in contenders.items() if isinstance(c, Run)}
    timings = interleave(work, args.rounds, device, say) | interleave(once, 1, device, say)
    for name, timing in timings.items():
        rows[name] |= {"seconds": timing.median, "best": timing.best,
                       "cpu_seconds": timing.cpu_median, "rounds": timing.wall}  # fmt: skip
    lens = rows[TransformerLens.name]
    rivals = [r for r in rows.values() if not r["name"].startswith("interp") and r["agrees"]]
    fastest = min(rivals, key=lambda r: r["seconds"], default=None)
    for row in rows.values():
        for key, other in (("times_faster_than_transformer_lens", lens),
                           ("times_faster_than_fastest_rival", fastest)):  # fmt: skip
            fair = other is not None and row["agrees"] and other["agrees"]
            row[key] = other["seconds"] / row["seconds"] if fair and other else None
    nodes = int(sum(np.size(v) for v in wanted.values()))
    return {"nodes": nodes, "pairs": len(problem.clean), "tokens": tokens, "shared": shared,
            "dtype": args.dtype, "rows": list(rows.values())}  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    head = ["", "seconds (median, best)", "cpu s", "× TransformerLens", "× fastest rival", "TFLOP",
            "peak memory", "error"]  # fmt: skip

    def ratio(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    body = [
        [r["name"], f"{r['seconds']:.2f}, {r['best']:.2f}", f"{r['cpu_seconds']:.1f}",
         ratio(r["times_faster_than_transformer_lens"]),
         ratio(r["times_faster_than_fastest_rival"]),
         "–" if r["flops"] is None else f"{r['flops'] / 1e12:.3f}",
         f"{r['peak_bytes'] / 2**20:.0f} MiB",
         f"{r['error']:.0e}" + ("" if r["agrees"] else " other answers")]
        for r in found["rows"]
    ]  # fmt: skip
    title = (
        f"{found['nodes']} nodes (embeddings, heads and MLPs at every position), {found['pairs']} "
        f"pairs × {found['tokens']} tokens ({found['shared']} shared), {found['dtype']}"
    )
    return f"### {title}\n\n{table(head, body)}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="interp bench attribution", description=__doc__)
    out.add_argument("--shape", choices=SHAPES, default="gpt2")
    out.add_argument("--pairs", type=int, default=8)
    out.add_argument("--tokens", type=int, default=20, help="of pairs that differ everywhere")
    out.add_argument(
        "--similar",
        type=int,
        nargs=2,
        default=(16, 10),
        metavar=("T", "SHARED"),
        help="tokens of pairs that share a beginning, and how many they share",
    )
    out.add_argument("--rounds", type=int, default=3)
    out.add_argument("--threads", type=int, default=2)
    out.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    out.add_argument("--device", default="cpu")
    out.add_argument("--backend", default="transformer_lens", help="of interp's own model")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out.add_argument("--quick", action="store_true", help="a tiny shape, one round: seconds")
    out.add_argument("--json", action="store_true", help="print the results as JSON")
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, write its results, and return them."""
    args = parser().parse_args(argv)
    if args.quick:
        args.shape, args.rounds = "tiny", 1
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(args.device)
    data: dict[str, Any] = {"machine": machine(device), "arguments": vars(args)}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with quiet():
        sizes = ((args.tokens, 0), tuple(args.similar))
        data["problems"] = [measure(args, tokens, shared, say) for tokens, shared in sizes]
    tables = [show(found) for found in data["problems"]]
    text = "\n\n".join([f"# Attribution, {args.shape} shape", describe(data["machine"]), *tables])
    path = write(f"attribution-{args.shape}-{device.type}-{args.dtype}", data, text, args.out)
    say(f"written: {path}")
    print(json.dumps(data, default=str) if args.json else text)
    return data


if __name__ == "__main__":
    main()
