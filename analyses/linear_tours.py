"""What do networks of pictures do at one input, and does it look as the paper says?

``python analyses/linear_tours.py [--quick] [--out FILE]`` takes the three tours of
michelini2019tour on the shipped networks and writes each claim beside what is seen.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import interp

CLASSIFIERS = ("digits-cnn", "digits-cnn-nobias", "digits-cnn-bn")


def tour(network: str, task: str, **knobs: object) -> interp.Result:
    """One tour of a shipped network, in float64."""
    model = interp.load_model(f"zoo:{network}", dtype="float64", verify=False)
    spec = interp.methods.LinearInterpreter(**knobs)
    result = interp.run(spec, model, interp.load_task(task, model), progress=False)
    assert result.passed, [c for c in result.checks if not c.passed]
    return result


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)] + [""]


def spoken(value: float) -> str:
    """A share, or a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.3f}"


def classification(n: int) -> list[str]:
    """Votes and biases."""
    rows = []
    for name in CLASSIFIERS:
        data = tour(name, f"digits:n={n},seed=0", tour="residual").data
        with np.errstate(invalid="ignore"):
            right = data["right"].values
        alone = right[:, 2].mean() if np.isfinite(right[:, 2]).all() else np.nan
        share = data["share"].values
        rows.append([name, spoken(right[:, 0].mean()), f"{share.mean():.3g}",
                     spoken(right[:, 1].mean()), spoken(alone)])  # fmt: skip
    head = ["network", "accuracy", "mean ‖r‖/‖f‖", "of F·x₀ alone", "of r alone"]
    return [
        "## Classification", "",
        "The paper: a classifier votes pixel by pixel for every class, and relies on its biases.",
        f"Seen on {n} digits that were never trained on:", "", *table(head, rows),
        "Votes and remainder make up every score to 1e-12. That biases decide shows with batch "
        "norm, where the remainder is a large part of the output; with plain biases F·x₀ alone is "
        "nearly as right as the network, and a network without any bias does as well.", "",
    ]  # fmt: skip


def super_resolution(n: int) -> list[str]:
    """Rows, columns, singular vectors."""
    task = f"scenes:n={n},seed=0"
    rows = tour("digits-sr", task, tour="rows").data
    svd = tour("digits-sr", f"scenes:n={min(n, 4)},seed=0", tour="svd", k=8).data
    rest = tour("digits-sr", task, tour="residual").data["share"].values
    sums, drift = rows["row_sum"].values, rows["row_drift"].values.mean(0)
    signed = [
        float((np.abs(m).sum() - np.abs(m.sum())) / np.abs(m).sum())
        for m in svd["eigen_output"].values.reshape(-1, *svd["eigen_output"].shape[-2:])
    ]
    # against a flat filter: the share of a row's weight that is negative
    image = rows["row_image"].values
    negative = np.abs(np.minimum(image, 0)).sum((-3, -2, -1)) / np.abs(image).sum((-3, -2, -1))
    body = [
        ["mean row sum (1 keeps the grey level)", f"{sums.mean():.3f}"],
        ["‖r‖/‖f‖", f"{rest.mean():.3f}"],
        ["share of negative weight in a row", f"{negative.mean():.3f}"],
        ["eigen-outputs: how much cancels in their sum (0 flat, 1 oscillating), median",
         f"{np.median(signed):.2f}"],
        ["rank of F, least and most", f"{svd['rank'].values.min():.0f}, "
         f"{svd['rank'].values.max():.0f} of 144"],
        ["directions that share the work, (Σσ)²/Σσ²", f"{svd['spread'].values.mean():.0f}"],
        ["how far a fixed pixel's row turns between pictures (1 - cosine), mean",
         f"{drift.mean():.3f}"],
    ]  # fmt: skip
    return [
        "## Super-resolution", "",
        "The paper: the network enlarges with wavelet-like bases that follow the picture.",
        f"Seen on {n} scenes (12 × 12 to 24 × 24):", "", *table(["measured", "value"], body),
        "Rows are local filters with negative lobes whose sum is near one and which turn with the "
        "picture; eigen-outputs oscillate. Whether that is a wavelet is a matter of the eye: the "
        "figures of `tour=\"svd\"` and `tour=\"rows\"` show it, no number here claims it.", "",
    ]  # fmt: skip


def image_to_image(n: int) -> list[str]:
    """Copies or templates."""
    rows = []
    for name in ("digits-denoise", "digits-autoencoder"):
        data = tour(name, f"digits:n={n},seed=0,noise=0.3", tour="copy_template").data
        rank = data["rank"].values
        rows.append([name, f"{data['local_share'].values.mean():.2f}",
                     f"{rank.min():.0f} to {rank.max():.0f}",
                     f"{data['share'].values.mean():.2f}"])  # fmt: skip
    head = ["network", "share of Σ|F| within 3 × 3", "rank of F", "mean ‖r‖/‖f‖"]
    return [
        "## Image to image", "",
        "The paper: such networks work by copying and moving pixels, and by drawing templates.",
        f"Seen on {n} noisy digits:", "", *table(head, rows),
        "Nine of 64 pixels would hold 0.12 of a uniform F (less at the frame). The convolutional "
        "network copies from neighbours; the one with a bottleneck draws as many templates as "
        "units are open, which is the rank of its F.", "",
    ]  # fmt: skip


def main() -> None:
    """Take the tours and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pictures")
    parser.add_argument("--out", type=Path, help="write the text there too")
    given = parser.parse_args()
    sizes = (20, 3, 4) if given.quick else (497, 24, 20)
    lines = ["# Three tours of linear interpreters", ""]
    lines += classification(sizes[0]) + super_resolution(sizes[1]) + image_to_image(sizes[2])
    text = "\n".join(lines)
    sys.stdout.write(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
