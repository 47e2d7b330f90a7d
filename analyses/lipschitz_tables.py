"""Do the bounds give the constants that the recipes' networks are known to have?

``python analyses/lipschitz_tables.py [--quick]`` trains the networks (seconds each), bounds them,
and prints every number beside the one that an independent implementation gave.
"""

import argparse

import numpy as np

import interp
from interp.tasks.digits import images
from interp.training.plain import digits_network, leaders_network

CORNER = np.full((1, 16), 0.5)
LOCAL = {  # ε: sampled ≥, LBP, RecurJac-like, interval; then the product of norms
    (16, 16, 16, 10): ({0.05: (6.052, 6.052, 6.277, 6.277), 0.1: (6.052, 6.061, 6.416, 6.642),
                        0.5: (6.158, 9.841, 14.12, 14.12)}, 44.9),
    (16, 32, 32, 10): ({0.05: (11.614, 11.614, 11.947, 11.947),
                        0.1: (11.906, 11.975, 12.914, 14.52),
                        0.5: (11.939, 22.742, 34.02, 34.02)}, 95.9),
    (16, 64, 64, 10): ({0.05: (17.327, 17.356, 18.664, 18.695),
                        0.1: (17.398, 18.310, 23.05, 28.19),
                        0.5: (17.485, 39.679, 64.25, 64.25)}, 202.6),
    (16, 32, 10): ({0.1: (6.995, 7.072, 8.124, 8.124)}, 23.2),
    (16, 32, 32, 32, 10): ({0.1: (15.167, 17.723, 21.309, 29.221)}, 395.6),
    (16, 32, 32, 32, 32, 32, 10): ({0.1: (21.921, 24.305, 29.826, 86.052)}, 5595.0),
}  # fmt: skip
GLOBAL = {  # sampled ≥, ECLipsE-Fast, product
    (16, 8, 8, 10): (1.641, 1.812, 2.170), (16, 16, 16, 10): (2.792, 2.978, 3.668),
    (16, 32, 32, 10): (5.632, 5.936, 6.421), (16, 32, 32, 32, 10): (6.784, 7.656, 8.937),
    (16, 32, 32, 32, 32, 32, 10): (8.371, 13.166, 19.409),
}  # fmt: skip
DIGITS = {1e-4: 88.65, 1e-3: 88.65, 1 / 255: 112.26, 8 / 255: 121.99, 0.1: 145.62, 0.2: 190.35,
          0.3: 227.26, 0.5: 227.42, 1.0: 227.42}  # fmt: skip


def line(name: str, found: object, known: object) -> None:
    """One line of the table."""
    cells = [f"{v:.3f}" for v in np.atleast_1d(np.asarray(found, dtype=float))]
    print(f"  {name:34s} {' / '.join(cells):44s} known {known}")


def local(dims: tuple[int, ...], samples: int) -> None:
    """One network of the local table."""
    rows, naive = LOCAL[dims]
    model = interp.load_model(leaders_network(dims), example=CORNER)
    task = interp.LabelledInputs(CORNER, np.zeros(1, dtype=int))
    spec = interp.methods.LocalLipschitz(epsilons=tuple(rows), n_samples=samples)
    lines = interp.run(spec, model, task, progress=False).data["bound"].isel(prompt=0)
    print("-".join(map(str, dims)))
    for radius, known in rows.items():
        line(f"ε = {radius}: sampled/LBP/RJ/interval", lines.sel(epsilon=radius)[:4], known)
    line("product", lines[4, 0], naive)


def overall(dims: tuple[int, ...], samples: int) -> None:
    """One network of the global table."""
    model = interp.load_model(leaders_network(dims), example=CORNER)
    spec = interp.methods.GlobalLipschitz(n_samples=samples, spread=2.0)
    data = interp.run(spec, model, progress=False).data
    line("-".join(map(str, dims)), data["bound"], GLOBAL[dims])


def regimes(samples: int) -> None:
    """The three regimes: flat at the gradient, growing, saturated."""
    x = images()[0][1300].reshape(1, 64)
    model = interp.load_model(digits_network(), example=x)
    spec = interp.methods.LocalLipschitz(epsilons=tuple(DIGITS), variant="lbp", n_samples=samples)
    task = interp.LabelledInputs(x, np.zeros(1, dtype=int))
    lines = interp.run(spec, model, task, progress=False).data["bound"].isel(prompt=0)
    for radius, known in DIGITS.items():
        line(f"digits, ε = {radius:.4g}: sampled/LBP", lines.sel(epsilon=radius)[:2], known)


def small() -> None:
    """Branch and bound on 16-8-8-10, where all 2¹² patterns were enumerated."""
    model = interp.load_model(leaders_network((16, 8, 8, 10)), example=CORNER)
    spec = interp.methods.LocalLipschitz(
        epsilons=(0.05, 0.2), variant="lbp", bab_nodes=5000, n_samples=500
    )
    task = interp.LabelledInputs(CORNER, np.zeros(1, dtype=int))
    lines = interp.run(spec, model, task, progress=False).data["bound"].isel(prompt=0)
    line("16-8-8-10: branch and bound", lines.sel(variant="bab"), (2.6495, 2.756493))
    line("16-8-8-10: root", lines.sel(variant="lbp"), (2.6495, 3.9494))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two networks a table, few samples")
    quick = parser.parse_args().quick
    print("L∞, local, largest over outputs")
    for widths in list(LOCAL)[: 2 if quick else None]:
        local(widths, 200 if quick else 20_000)
    small()
    print("L2, global: sampled/ECLipsE-Fast/product")
    for widths in list(GLOBAL)[: 2 if quick else None]:
        overall(widths, 500 if quick else 20_000)
    print("the three regimes")
    regimes(200 if quick else 20_000)
