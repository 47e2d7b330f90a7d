"""Does a model use its depth? The study of arXiv 2505.13898 as one report.

For every model: what each layer adds, the lens, skip maps (current, future, local), erasure,
integrated gradients, Jacobians, rankings against the measured loss, other orders. Then depth
against hops: the hand-set chain, where the answer is known, and a trained one, with its interval,
whatever it is. Then linear maps from a shallow model to a deep one beside untrained copies. Runs
that are in the store already are not measured again.

    python analyses/depth_efficiency.py --data FOLDER_WITH_stories260K
    python analyses/depth_efficiency.py --models meta-llama/Llama-3.1-8B --tasks my.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interp

HERE = Path(__file__).resolve().parent
PAIRS = "ioi:n=24,seed=0"
SHIPPED = [("zoo:deep", PAIRS), ("zoo:shallow", PAIRS), ("zoo:ioi", PAIRS)]
HOPS = ("zoo:hops", "zoo:hops-trained")
MAPS = ("zoo:shallow", "zoo:deep", "ioi:n=400,seed=0")
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("skip_map", {"modes": ("current", "future", "local"), "splits": (-1,)}),
    ("residual_erasure", {}),
    ("depth_gradients", {}),
    ("block_jacobian", {}),
    ("layer_importance", {}),
    ("layer_programs", {}),
    ("residual_expansion", {}),
)


def shipped(ref: str) -> bool:
    """Whether a model of the zoo is in this installation."""
    card = interp.MODELS.get(ref.removeprefix("zoo:"))
    return card is not None and (card.folder is None or card.path.is_dir())


def study(model: Any, task: Any, run: Any) -> list[Any]:
    """Every method on one model; the statistics take the lens's run."""
    lens = run("logit_lens", model, task)
    out = [run("layer_statistics", model, task, lens_result=lens.run_id), lens]
    return out + [run(name, model, task, **fields) for name, fields in METHODS]


def summary(ref: str, results: Sequence[Any]) -> dict[str, Any]:
    """One line of the first table."""
    found = {r.spec["method"]: r for r in results}
    depth = found["layer_statistics"].data
    skips = found["skip_map"].data["depth_score"].sel(part="layer", stat="max", readout="output")
    ranks = found["layer_importance"].data["spearman"]
    return {
        "model": ref,
        "layers": int(depth.attrs["n_layers"]),
        "depth_score": {str(m): float(skips.sel(mode=m)) for m in skips["mode"].values},
        "effective_depth": {
            str(d): float(depth["effective_depth"].sel(definition=d))
            for d in depth["definition"].values
        },
        "spearman": {str(s): float(ranks.sel(score=s)) for s in ranks["score"].values},
        "passed": all(r.passed for r in results),
    }


def hops(ref: str, run: Any, n: int) -> list[dict[str, Any]]:
    """Depth score of current and future effects against the hops asked for."""
    model, rows = interp.load_model(ref), []
    for count in range(1, 6):
        task = interp.load_task(f"hops:n={n},seed=0,hops={count},reader=true", model)
        found = run("skip_map", model, task, modes=("current", "future"), splits=(-1,))
        score = found.data["depth_score"].sel(part="layer", stat="max", readout="output")
        ends = found.data["depth_score_by_prompt_ci"].sel(part="layer")
        rows.append({
            "model": ref, "hops": count, "known": (count - 1) / 2 if ref == "zoo:hops" else None,
            **{m: float(score.sel(mode=m)) for m in ("current", "future")},
            "future_ci": ends.sel(mode="future").values.tolist(), "run": found.run_id,
        })  # fmt: skip
    return rows


def maps(run: Any) -> tuple[dict[str, Any], list[Any]]:
    """The shallow model onto the deep one."""
    small, deep, task = MAPS
    model = interp.load_model(small)
    results = [
        run("linear_map", model, interp.load_task(task, model), other=deep, what=what)
        for what in ("residual", "contribution")
    ]
    rows = {
        r.data.attrs["what"]: {
            "verdict": r.data.attrs["verdict"], "p_permuted": r.data.attrs["p_permuted"],
            "diagonal": r.data["diagonal"].values.tolist(),
            "control": r.data["diagonal_control"].values.tolist(),
            "amplitude": r.data.attrs["amplitude"],
            "amplitude_control": list(r.data.attrs["amplitude_control"]),
        }
        for r in results
    }  # fmt: skip
    return rows, results


def table(rows: Sequence[dict[str, Any]], chains: Sequence[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| model | layers | depth score current / future / local | cosine first, last "
        "| KL first, last, mean | overlap first, last | Spearman 1-ρ, -ZD |",
        "|" + "---|" * 7,
    ]
    for r in rows:
        s = " / ".join(f"{v:.2f}" for v in r["depth_score"].values())
        e = {k: f"{v:.1f}" for k, v in r["effective_depth"].items()}
        ranks = ", ".join(f"{v:.2f}" for v in r["spearman"].values())
        lines.append(
            f"| {r['model']} | {r['layers']} | {s} | {e['cosine, first']}, {e['cosine, last']} "
            f"| {e['KL, first']}, {e['KL, last']}, {e['KL, mean layer']} "
            f"| {e['overlap, first']}, {e['overlap, last']} | {ranks} |"
        )
    lines += ["", "| model | hops | known | future (95 %) | current |", "|" + "---|" * 5]
    for c in chains:
        low, high = c["future_ci"]
        known = "" if c["known"] is None else f"{c['known']:.1f}"
        lines.append(f"| {c['model']} | {c['hops']} | {known} | {c['future']:.2f} "
                     f"({low:.2f} to {high:.2f}) | {c['current']:.2f} |")  # fmt: skip
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--models", default="", help="refs with commas; default the shipped ones")
    out.add_argument("--tasks", default=PAIRS, help="the task of every --models")
    out.add_argument("--data", type=Path, help="folder with stories260K/hf")
    out.add_argument("--prompts", type=int, default=64, help="prompts of each number of hops")
    out.add_argument("--out", type=Path, default=Path("runs/depth_efficiency"))
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, write ``table.md``, ``table.json`` and ``report.html``."""
    args = parser().parse_args(argv)
    store = interp.Store(str(args.out / "store"))

    def run(name: str, model: Any, task: Any, **fields: Any) -> Any:
        return interp.run(interp.METHODS[name](**fields), model, task, store=store, progress=False)

    asked = [(m, args.tasks) for m in filter(None, args.models.split(","))]
    if not asked:
        asked = [pair for pair in SHIPPED if shipped(pair[0])]
        if args.data:
            asked.append(
                (str(args.data / "stories260K/hf"), str(HERE / "relp_vs_atp_pronouns.jsonl"))
            )
    rows, results = [], []
    for ref, task in asked:
        model = interp.load_model(ref)
        found = study(model, interp.load_task(task, model), run)
        rows.append(summary(ref, found))
        results += found
    chains = [c for ref in HOPS if shipped(ref) for c in hops(ref, run, args.prompts)]
    held: dict[str, Any] = {}
    if not args.models and all(shipped(ref) for ref in MAPS[:2]):
        held, more = maps(run)
        results += more
    out = {"models": rows, "hops": chains, "maps": held}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(table(rows, chains) + "\n", encoding="utf-8")
    interp.result_report(results, args.out / "report.html")
    print(table(rows, chains))
    return out


if __name__ == "__main__":
    main()
