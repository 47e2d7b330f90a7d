"""Dose and response: a feature vector added to the residual stream of sixty prompts.

Does the observable follow the dose, does what the model writes follow, and what do random
directions of the same length do? One run of head_features, one of feature_steering; a run that is
in the store already is not measured again.

    python analyses/obsprop_steering.py
    python analyses/obsprop_steering.py --model gpt2 --task 'pronoun_subject:n=60' \
        --observable pronoun_subject --neutral ''
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interp


def table(found: Any) -> str:
    """Effects, continuations and divergences by dose, as Markdown."""
    data = found.data
    head = ["dose", "vector: change of o (95 %)", "QK fixed", "predicted", "random: change of o",
            "vector: words written, plus less minus", "random: likewise", "KL"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for alpha in data["alpha"].values:
        at = data.sel(alpha=alpha)
        low, high = at["effect_ci"].sel(component="feature vector").values
        effect = [float(at["effect"].sel(component=c)) for c in data["component"].values]
        written = at["written"].values
        kl = f"{float(at['kl'][0]):.3g}" if "kl" in data else ""
        lines.append(
            f"| {alpha:g} | {effect[0]:.2f} ({low:.2f} to {high:.2f}) | {effect[1]:.2f} "
            f"| {effect[2]:.2f} | {effect[3]:.2f} | {written[0]:+.2f} | {written[1]:+.2f} | {kl} |"
        )
    facts = data.attrs
    return (
        f"{facts['observable']}, {facts['node']} ({facts['site']}), {facts['n_prompts']} prompts; "
        f"a dose of 1 is {facts['median_length']:.3g} long.\n\n" + "\n".join(lines)
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out.add_argument("--model", default="zoo:ioi")
    out.add_argument("--task", default="pronouns:n=60,seed=0")
    out.add_argument("--observable", default="she / he")
    out.add_argument("--node", default="", help="as L9H6; the one answered most")
    out.add_argument("--neutral", default="agreement:n=16", help="a task it should leave alone")
    out.add_argument("--out", type=Path, default=Path("runs/obsprop_steering"))
    return out


def main(argv: Sequence[str] | None = None) -> Any:
    """Measure, write ``table.md`` and ``report.html``."""
    args = parser().parse_args(argv)
    store = interp.Store(str(args.out / "store"))
    model = interp.load_model(args.model)
    task = interp.load_task(args.task, model)
    method = interp.methods
    vectors = interp.run(
        method.HeadFeatures(observable=args.observable), model, task, store=store, progress=False
    )
    spec = method.FeatureSteering(vectors=vectors.run_id, node=args.node, neutral=args.neutral)
    found = interp.run(spec, model, task, store=store, progress=False)
    text = table(found)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    interp.result_report([vectors, found], args.out / "report.html")
    print(text)
    return found


if __name__ == "__main__":
    main()
