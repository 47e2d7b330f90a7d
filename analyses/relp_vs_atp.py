"""RelP against attribution patching, each scored by exact patching.

Does RelP (arXiv 2508.21258) estimate activation patching better than the ordinary gradient, site
by site and layer by layer? For each model and task the exact sweep, the estimates of each rule set,
and their agreement are runs of their own in a store; the report has Pearson's correlation with its
interval for resid_pre, attn_out and mlp_out, the scatters, and the published figures beside. A run
that is in the store already is not measured again. The same script takes models from the hub:

    python analyses/relp_vs_atp.py --data FOLDER_WITH_stories260K_AND_adder
    python analyses/relp_vs_atp.py --models gpt2,gpt2-large,EleutherAI/pythia-410m --tasks ioi:n=100
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interp

SITES = ("resid_pre", "attn_out", "mlp_out")
RULES = ("none", "relp", "relp_ah", "relp_no_identity", "attnlrp", "cplrp")
DIRECTION = "denoising"

PUBLISHED = {
    ("gpt2", "resid_pre"): (0.753, 0.968),
    ("gpt2", "attn_out"): (0.979, 0.962),
    ("gpt2", "mlp_out"): (0.195, 0.992),
    ("gpt2-medium", "resid_pre"): (0.671, math.nan),
    ("gpt2-large", "mlp_out"): (0.006, 0.956),
}
"""Pearson's correlation of AtP and RelP with exact patching on IOI, as published."""

SHIPPED = [("zoo:ioi", "ioi:n=32,seed=0")]
HERE = Path(__file__).resolve().parent


def foreign(folder: Path) -> list[tuple[str, str]]:
    """Two models that nobody here trained: sums with another operand, a story's pronoun."""
    return [
        (str(folder / "adder/hf"), "addition:n=32,seed=0,contrast=operand"),
        (str(folder / "stories260K/hf"), str(HERE / "relp_vs_atp_pronouns.jsonl")),
    ]


def score(
    model: Any, task: Any, store: Any, seed: int, rules: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Agreement of every rule set at every site."""
    rows, results = [], []
    kinds = {s.kind for s in model.sites}
    for site in (s for s in SITES if s in kinds):
        exact = interp.run(
            interp.methods.ActivationPatching(site=site, direction=DIRECTION, seed=seed),
            model,
            task,
            store=store,
            progress=False,
        )
        for name in rules:
            estimate = interp.run(
                interp.methods.AttributionPatching(
                    site=site, direction=DIRECTION, rules=name, seed=seed
                ),
                model,
                task,
                store=store,
                progress=False,
            )
            found = interp.run(
                interp.methods.Agreement(exact=exact.run_id, estimate=estimate.run_id, seed=seed),
                model,
                None,
                store=store,
                progress=False,
            )
            rows.append(row_of(model.id, site, name, found))
            if name in ("none", "relp"):
                results.append(found)
    return rows, results


def row_of(model: str, site: str, rules: str, found: Any) -> dict[str, Any]:
    """One line of the table."""
    whole, interval = found.data["agreement"], found.data["agreement_ci"]
    by_layer = found.data.get("agreement_by_layer")
    return {
        "model": model,
        "site": site,
        "rules": rules,
        "cells": int(found.data["n_cells"]),
        **{str(s): float(whole.sel(statistic=s)) for s in whole["statistic"].values},
        "pearson_ci": interval.sel(statistic="pearson").values.tolist(),
        "pearson_by_layer": []
        if by_layer is None
        else by_layer.sel(statistic="pearson").values.tolist(),
        "passed": found.passed,
        "run": found.run_id,
    }


def published(model: str, site: str, rules: str) -> str:
    """The paper's figure for this model and site, if it has one."""
    pair = PUBLISHED.get((model.split("@")[0].split("/")[-1], site))
    index = {"none": 0, "relp": 1}.get(rules)
    return "" if pair is None or index is None else f"{pair[index]:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | site | rules | cells | Pearson (95 %) | Spearman | top 10 | slope | "
        "by layer | published |",
        "|" + "---|" * 10,
    ]
    for r in rows:
        low, high = r["pearson_ci"]
        layers = " ".join(f"{v:.2f}" for v in r["pearson_by_layer"])
        path = Path(r["model"])
        name = path.parent.name if path.name == "hf" else r["model"]
        lines.append(
            f"| {name} | {r['site']} | {r['rules']} | {r['cells']} "
            f"| {r['pearson']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {r['spearman']:.3f} | {r['overlap_top_10']:.1f} | {r['slope']:.2f} | {layers} "
            f"| {published(r['model'], r['site'], r['rules'])} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out.add_argument("--models", default="", help="refs with commas; default the shipped ones")
    out.add_argument("--tasks", default="ioi:n=32,seed=0", help="the task of every --models")
    out.add_argument("--data", type=Path, help="folder with stories260K/hf and adder/hf")
    out.add_argument("--rules", default=",".join(RULES))
    out.add_argument("--out", type=Path, default=Path("runs/relp_vs_atp"))
    out.add_argument("--seed", type=int, default=0)
    return out


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, write ``table.md``, ``table.json`` and ``report.html``."""
    args = parser().parse_args(argv)
    asked: list[tuple[str, str]] = [(m, args.tasks) for m in filter(None, args.models.split(","))]
    asked = asked or [*SHIPPED, *(foreign(args.data) if args.data else [])]
    store = interp.Store(str(args.out / "store"))
    rows, results = [], []
    for ref, task in asked:
        model = interp.load_model(ref)
        found = score(model, interp.load_task(task, model), store, args.seed, args.rules.split(","))
        rows += found[0]
        results += found[1]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
    interp.result_report(results, args.out / "report.html")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
