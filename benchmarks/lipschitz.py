"""Local Lipschitz bounds: seconds, memory and tightness: ``python -m benchmarks.lipschitz``.

Networks of ReLUs with random weights, inputs of 784 numbers, ten outputs, widths and depths as
asked. Each bound is timed as a person calls it (``interp.run``, all images in one call, checks
included, nothing drawn at random); intervals and the product of norms are the baselines. On a
network small enough the exact maximum over all patterns of gates is enumerated beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")
if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.timing import (  # noqa: E402
    RESULTS,
    describe,
    interleave,
    machine,
    peak_bytes,
    table,
    write,
)

VARIANTS = ("lbp", "recurjac", "interval", "naive")
SHAPES = ((64, 2), (256, 2), (1024, 2), (64, 4), (64, 6))
QUICK = ((32, 2), (32, 3))


def network(width: int, depth: int, inputs: int = 784, seed: int = 0) -> nn.Sequential:
    """Random weights of spectral size about 1, biases of size 0.1, float64."""
    torch.manual_seed(seed)
    sizes = [inputs, *[width] * depth, 10]
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layer = nn.Linear(into, out).double()
        with torch.no_grad():
            layer.weight.normal_(0, (2 / (into + out)) ** 0.5 * 1.4)
            layer.bias.normal_(0, 0.1)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def measure(module: nn.Module, x: np.ndarray, radius: float, variant: str, samples: int = 0) -> Any:
    """One call of the method."""
    import interp

    model = interp.load_model(module, example=x[:1], verify=False)
    task = interp.LabelledInputs(x, np.zeros(len(x), dtype=int))
    kind: Any = variant
    spec = interp.methods.LocalLipschitz(epsilons=(radius,), variant=kind, n_samples=samples)
    return interp.run(spec, model, task, progress=False)


def run_shape(args: argparse.Namespace, width: int, depth: int, say: Any) -> dict[str, Any]:
    """All variants on one shape."""
    module = network(width, depth, args.inputs)
    x = np.random.default_rng(0).uniform(size=(args.images, args.inputs))
    found: dict[str, Any] = {}

    def call(variant: str) -> Any:
        def work() -> None:
            found[variant] = measure(module, x, args.epsilon, variant)

        return work

    contenders = {v: (call(v), 1.0) for v in VARIANTS}
    timings = interleave(contenders, args.rounds, torch.device("cpu"), say)
    peaks = {v: peak_bytes(call(v), torch.device("cpu")) for v in VARIANTS}
    lower = measure(module, x, args.epsilon, "naive", samples=50).data["lower"].values[:, 0].max(-1)
    rows = []
    for v in VARIANTS:
        bound = found[v].data["bound"].sel(variant=v).values[0]
        rows.append({
            "variant": v, "seconds": timings[v].median,
            "seconds_an_image": timings[v].median / args.images,
            "bounds_a_second": 10 * args.images / timings[v].median, "peak_bytes": peaks[v],
            "over_sampled": float(np.exp(np.log(bound / lower).mean())),
            "sound": bool((bound >= lower * (1 - 1e-9)).all()),
        })  # fmt: skip
    return {"width": width, "depth": depth, "images": args.images, "epsilon": args.epsilon,
            "unstable": float(found["lbp"].data["unstable"].mean()), "rows": rows}  # fmt: skip


def convolutions(radius: float, rounds: int, say: Any) -> dict[str, Any]:
    """Four layers on an image of MNIST's size, every class: two convolutions and two dense ones."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    ).double().eval()  # fmt: skip
    x = np.random.default_rng(0).uniform(size=(1, 1, 28, 28))
    found: dict[str, Any] = {}

    def call(variant: str) -> Any:
        def work() -> None:
            found[variant] = measure(module, x, radius, variant)

        return work

    timings = interleave({v: (call(v), 1.0) for v in VARIANTS}, rounds, torch.device("cpu"), say)
    rows = [
        {
            "variant": v, "seconds": timings[v].median, "seconds_a_class": timings[v].median / 10,
            "bound": float(found[v].data["bound"].sel(variant=v).max()),
        }
        for v in VARIANTS
    ]  # fmt: skip
    return {"epsilon": radius, "unstable": float(found["lbp"].data["unstable"].mean()),
            "gates": 3136 + 1568 + 100, "rows": rows}  # fmt: skip


def show_convolutions(data: dict[str, Any]) -> str:
    """The convolutional network as Markdown."""
    body = [
        [r["variant"], f"{r['seconds']:.2f}", f"{r['seconds_a_class']:.2f}", f"{r['bound']:.3f}"]
        for r in data["rows"]
    ]
    title = (
        "### Two convolutions and two dense layers, 28×28: one image, all ten classes, "
        f"ε = {data['epsilon']:g}, {data['unstable']:.0f} of {data['gates']} gates open"
    )
    return f"{title}\n\n{table(['bound', 's', 's a class', 'L∞ constant'], body)}"


def enumerated(radius: float = 0.2) -> dict[str, float]:
    """The largest L1 norm over all patterns of a 16-6-6-4 network beside each bound."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)
    ).double()
    x = np.full((1, 16), 0.5)
    w = [p.detach().numpy() for p in module.parameters()][::2]
    best = 0.0
    for pattern in itertools.product((0.0, 1.0), repeat=12):
        d = np.array(pattern)
        best = max(best, float(np.abs(((w[2] * d[6:]) @ w[1] * d[:6]) @ w[0]).sum(1).max()))
    out = {"all_patterns": best}
    for v in VARIANTS:
        data = measure(module, x, 1e3, v).data
        out[v] = float(data["bound"].sel(variant=v).max())
    import interp

    model = interp.load_model(module, example=x, verify=False)
    task = interp.LabelledInputs(x, np.zeros(1, dtype=int))
    spec = interp.methods.LocalLipschitz(epsilons=(1e3,), bab_nodes=20_000, variant="lbp")
    data = interp.run(spec, model, task, progress=False).data
    out["branch_and_bound"] = float(data["bound"].sel(variant="bab").max())
    out["nodes"] = float(data["nodes"].sum())
    return out


def show(shape: dict[str, Any]) -> str:
    """One shape as Markdown."""
    head = ["bound", "s", "s an image", "bounds a second", "peak", "÷ sampled", "sound"]
    body = [
        [r["variant"], f"{r['seconds']:.3f}", f"{r['seconds_an_image']:.4f}",
         f"{r['bounds_a_second']:.0f}", f"{r['peak_bytes'] / 2**20:.0f} MiB",
         f"{r['over_sampled']:.3f}", "yes" if r["sound"] else "NO"]
        for r in shape["rows"]
    ]  # fmt: skip
    title = (
        f"### width {shape['width']}, depth {shape['depth']}: {shape['images']} images in one "
        f"call, ε = {shape['epsilon']:g}, {shape['unstable']:.0f} open gates"
    )
    return f"{title}\n\n{table(head, body)}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(prog="interp bench lipschitz", description=__doc__)
    out.add_argument("--images", type=int, default=20, help="images in one call")
    out.add_argument("--inputs", type=int, default=784, help="numbers in an image")
    out.add_argument("--epsilon", type=float, default=2 / 255, help="radius of the boxes (L∞)")
    out.add_argument("--rounds", type=int, default=3)
    out.add_argument("--threads", type=int, default=2)
    out.add_argument("--shapes", default="", help="width×depth pairs, as 64x2,256x2")
    out.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out.add_argument("--quick", action="store_true", help="small shapes, one round: seconds")
    out.add_argument("--json", action="store_true", help="print the results as JSON")
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, write its results, and return them."""
    args = parser().parse_args(argv)
    measure(network(8, 1, 16), np.zeros((1, 16)), 0.1, "lbp")  # imports and first kernels
    shapes: Any = QUICK if args.quick else SHAPES
    if args.quick:
        args.images, args.inputs, args.rounds = 4, 64, 1
    if args.shapes:
        shapes = [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")]
    torch.set_num_threads(args.threads)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    data: dict[str, Any] = {"machine": machine(torch.device("cpu")), "arguments": vars(args)}
    data["shapes"] = [run_shape(args, w, d, say) for w, d in shapes]
    data["convolutions"] = None if args.quick else convolutions(args.epsilon, 1, say)
    data["enumeration"] = enumerated()
    exact = data["enumeration"]["all_patterns"]
    rows = [
        [
            k.replace("_", " "),
            f"{v:.5f}" if k != "nodes" else f"{v:.0f}",
            f"{v / exact:.4f}" if k != "nodes" else "",
        ]
        for k, v in data["enumeration"].items()
    ]
    text = "\n\n".join([
        "# Local Lipschitz bounds", describe(data["machine"]), *map(show, data["shapes"]),
        *([show_convolutions(data["convolutions"])] if data["convolutions"] else []),
        "### Against enumeration: 16-6-6-4, every gate open\n\n"
        + table(["", "value", "÷ all patterns"], rows),
    ])  # fmt: skip
    path = write("lipschitz-quick" if args.quick else "lipschitz", data, text, args.out)
    say(f"written: {path}")
    print(json.dumps(data, default=str) if args.json else text)
    return data


if __name__ == "__main__":
    main()
