"""Closed forms against the objective itself, minimised, and against the committed table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.methods.collapse import mixup
from interp.methods.collapse.unconstrained import (
    best_root,
    optimum,
    psi,
    stationary_of,
    stationary_root,
    threshold_of,
)
from interp.terms import UsageError
from tests.twins import collapse as twin

FOUR = (50, 25, 12, 13)
TABLE = [
    (
        FOUR,
        1,
        5e-4,
        5e-4,
        [7.02107, 4.95, 3.4141, 3.55555],
        [0.14042, 0.198, 0.28451, 0.2735],
        [0.99293, 0.99, 0.98557, 0.98613],
    ),
    (
        FOUR,
        3,
        5e-4,
        5e-4,
        [18.72797, 11.10526, 6.37227, 6.77119],
        [0.05311, 0.08924, 0.1545, 0.14553],
        [0.99734, 0.99552, 0.99221, 0.99267],
    ),
    (
        FOUR,
        6,
        5e-4,
        5e-4,
        [28.50725, 15.69881, 8.3283, 8.92585],
        [0.03496, 0.0633, 0.11864, 0.11079],
        [0.99825, 0.99683, 0.99403, 0.99443],
    ),
    ((40,) * 4, 1, 5e-4, 5e-4, [6.24456] * 4, [0.15611] * 4, [0.98735] * 4),
    (
        (100, 50, 10, 2),
        1,
        1e-3,
        5e-2,
        [62.61068, 41.9, 14.26068, 1.9],
        [0.01252, 0.01676, 0.02852, 0.019],
        [0.88545, 0.838, 0.63776, 0.19],
    ),
    ((80, 20), 3, 0.0300342, 0.0300342, [22.09468, 0], [0.03508, 0], [0.88033, 0]),
]
BIASED = [
    ((40,) * 4, 1, [4.68342] * 4),
    ((40,) * 4, 2, [8.69196] * 4),
    (FOUR, 1, [4.27054, 3.65514, 2.75909, 2.85393]),
    (FOUR, 2, [7.68392, 6.27517, 4.29798, 4.49774]),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda r: f"{r[0]} M={r[1]}")
def test_the_table_of_unequal_classes_is_reproduced(row):
    sizes, depth, lambda_w, lambda_h, weights, means, logits = row
    best = optimum(sizes, [lambda_w] * depth, lambda_h)
    for found, wanted in (
        (best.gram_weight, weights),
        (best.gram_mean, means),
        (best.logits, logits),
    ):
        assert np.diag(found) == pytest.approx(wanted, abs=6e-6)
        assert np.abs(found - np.diag(np.diag(found))).max() < 1e-12


@pytest.mark.parametrize("row", BIASED, ids=lambda r: f"{r[0]} M={r[1]}")
def test_the_table_with_a_bias_is_reproduced(row):
    sizes, depth, weights = row
    best = optimum(sizes, [5e-4] * depth, 5e-4, bias=True)
    assert np.diag(best.gram_weight) == pytest.approx(weights, abs=6e-6)
    assert best.bias == pytest.approx(np.array(sizes) / sum(sizes))
    assert np.abs(best.gram_weight.sum(0)).max() < 1e-12  # the all-ones direction is lost


def test_unequal_decays_count_by_their_product():
    best = optimum(FOUR, (2e-4, 1e-3, 4e-4), 5e-4)
    wanted = [20.94737, 12.42492, 7.1333, 7.5793]
    assert np.diag(best.gram_weight) == pytest.approx(wanted, abs=6e-6)


MINIMISED = [
    (FOUR, (5e-4,), 5e-4, False),
    (FOUR, (5e-4,), 5e-4, True),
    ((100, 50, 10, 2), (1e-3,), 5e-2, False),
    ((80, 20), (0.0300342,) * 3, 0.0300342, False),
    *(
        pytest.param(row, marks=pytest.mark.slow)
        for row in (
            (FOUR, (5e-4, 5e-4), 5e-4, True),
            (FOUR, (2e-4, 1e-3, 4e-4), 5e-4, False),
        )
    ),
]


@pytest.mark.parametrize("row", MINIMISED, ids=str)
def test_the_closed_form_is_where_minimising_ends(row):
    sizes, lambda_w, lambda_h, bias = row
    best = optimum(sizes, lambda_w, lambda_h, bias)
    runs = [twin.free_features(sizes, lambda_w, lambda_h, bias, seed=s) for s in range(2)]
    found = min(runs, key=lambda r: r["loss"])
    assert found["loss"] == pytest.approx(best.loss, rel=1e-8)
    assert all(r["loss"] > best.loss - 1e-9 for r in runs)
    assert found["spread"] < 1e-4  # features collapse to their class means
    for name in ("gram_weight", "gram_mean", "logits"):
        wanted = getattr(best, name)
        # H enters the loss with λ_H alone, so its directions are the flattest
        assert np.abs(found[name].numpy() - wanted).max() < 2e-4 * np.abs(wanted).max(), name
    assert found["bias"].numpy() == pytest.approx(best.bias, abs=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_a_direction_vanishes_exactly_at_the_threshold(depth):
    edge = threshold_of(depth)
    assert best_root(edge * (1 + 1e-9), depth) == 0
    below = best_root(edge * (1 - 1e-6), depth)
    assert below > 0 and psi(below, edge * (1 - 1e-6), depth) < 1
    # nothing anywhere is better than zero above the edge
    grid = np.geomspace(1e-4, 1e3, 20_000)
    values = 1 / (grid**depth + 1) + edge * 1.001 * grid
    assert values.min() > 1


def test_a_single_map_loses_a_class_of_n2_lambda_lambda():
    n, lambda_w = 100, 1e-3
    for share, lost in ((0.999, True), (1.001, False)):
        lambda_h = 10 / (n**2 * lambda_w) / share
        best = optimum((90, 10), (lambda_w,), lambda_h)
        assert bool(best.strength.min() == 0) is lost


def test_between_the_edges_the_stationary_point_is_only_local():
    best = optimum((80, 20), (0.0300342,) * 3, 0.0300342)
    assert (round(best.threshold, 4), round(best.stationary, 4)) == (0.5291, 0.8399)
    wrong = stationary_root(best.beta[1], 3)
    assert wrong == pytest.approx(1.1208, abs=1e-4)
    assert psi(wrong, best.beta[1], 3) == pytest.approx(1.144, abs=1e-3)
    assert best.threshold < best.beta[1] < best.stationary
    assert np.isnan(stationary_root(0.84, 3)) and stationary_of(1) == 1


def test_equal_classes_give_the_frames():
    plain = optimum((40,) * 5, (5e-4,) * 2, 5e-4)
    biased = optimum((40,) * 5, (5e-4,) * 2, 5e-4, bias=True)
    assert twin.against(plain.gram_mean, "of") < 1e-12
    assert twin.against(biased.gram_mean, "etf") < 1e-12
    assert twin.against(biased.gram_weight, "etf") < 1e-12


def test_a_tiny_decay_overflows_nothing():
    best = optimum((10**6, 10), (1e-30,) * 6, 1e-30)
    assert np.isfinite(best.gram_weight).all() and np.isfinite(best.loss)


@pytest.mark.parametrize(("change", "word"), [
    ({"sizes": (5,)}, "at least two"), ({"lambda_h": 0.0}, "positive"),
    ({"width": 3}, "below the rank 4"), ({"sizes": (5, 0)}, "each 1 or more"),
])  # fmt: skip
def test_bad_theory_is_refused(change, word):
    given = {"sizes": FOUR, "lambda_w": (1e-3,), "lambda_h": 1e-3, **change}
    with pytest.raises(UsageError, match=word):
        optimum(**given)
    optimum(FOUR, (1e-3,), 1e-3, bias=True, width=3)


def test_the_method_needs_no_model_and_says_what_is_lost():
    spec = interp.methods.CollapseTheory(
        n_per_label=(80, 20), depth=3, lambda_w=(0.0300342,), lambda_h=0.0300342
    )
    result = interp.run(spec)
    assert result.spec["model"]["ref"] == "none" and result.passed
    lost = next(c for c in result.checks if c.name == "directions_lost")
    assert lost.value == 1
    assert np.diag(result.data["gram_weight"]) == pytest.approx([22.09468, 0], abs=6e-6)
    assert np.isnan(result.data["length_map"]).any()
    assert interp.run(spec, "zoo:random-gpt2").spec_hash == result.spec_hash
    with pytest.raises(UsageError, match="2 weight decays were given for 3"):
        interp.run(interp.methods.CollapseTheory(depth=3, lambda_w=(1e-3, 1e-3)))


def test_lengths_of_unequal_classes_stand_beside_the_theory(tmp_path):
    """A network whose inputs are the free features: measured by Collapse, told by the theory."""
    sizes = (12, 6, 3, 3)
    found = twin.free_features(sizes, (5e-3,), 5e-3, False)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False)).double()
    net[0].weight.data = found["weight"]
    task = interp.LabelledInputs(found["features"].detach().numpy(), found["labels"].numpy())
    model = interp.load_model(net, example=task.inputs[:3], dtype="float64")
    measured = interp.run(interp.methods.Collapse(), model, task, progress=False)
    assert float(measured.data["nc1"][-1]) < 1e-6
    measured.save(tmp_path / "measured")
    spec = {"lambda_w": (5e-3,), "lambda_h": 5e-3, "measured": str(tmp_path / "measured")}
    result = interp.run(interp.methods.CollapseTheory(n_per_label=sizes, **spec))
    for name in ("mean_length_beside", "weight_length_beside"):
        told, seen = result.data[name].values
        assert seen == pytest.approx(told, rel=1e-4)
        assert np.ptp(told) > 0.1
        assert result.data[name]["bound"].values.tolist() == ["theory", "measured"]
    assert result.figures()["mean_length_beside"].layout.meta["kind"] == "whiskers"
    with pytest.raises(UsageError, match="4 classes and the theory 2"):
        interp.run(interp.methods.CollapseTheory(n_per_label=(5, 5), **spec))


# ------------------------------------------------------------------------------------------- mixup

MIXED = [
    (10, 1, 0.01, 4.77115, [(3.7293, 3.7293), (4.0603, 3.2623), (4.378, 2.28)], 0.563),
    (10, 3, 0.001, 0.928382, [(0.8041, 0.8041), (0.8387, 0.7539), (0.8687, 0.6486)], 0.732),
    (4, 2, 0.005, 1.215861, [(0.9937, 0.9937), (1.0596, 0.9002), (1.12, 0.7063)], 0.635),
]


@pytest.mark.parametrize("row", MIXED, ids=lambda r: f"K={r[0]}")
def test_the_table_of_mixup_is_reproduced(row):
    k, root, lambda_h, amplitude, pairs, off = row
    s = root**2
    assert mixup.same_class(k, s, lambda_h) == pytest.approx(amplitude, rel=2e-6)
    for mix, wanted in zip((0.5, 0.7, 0.9), pairs, strict=True):
        assert mixup.different_classes(k, s, lambda_h, mix) == pytest.approx(wanted, abs=6e-5)
    assert mixup.deviation(k, s, lambda_h, 0.5) == pytest.approx(off, abs=6e-4)


@pytest.mark.parametrize("row", MIXED, ids=lambda r: f"K={r[0]}")
def test_mixed_features_are_where_minimising_ends(row):
    k, root, lambda_h, *_ = row
    s = root**2
    alone = twin.mixed_feature(k, s, lambda_h, 1, 1, 0.3)[0]
    assert mixup.same_class(k, s, lambda_h) == pytest.approx(alone, rel=1e-7)
    assert mixup.decay_of(k, s, alone) == pytest.approx(lambda_h, rel=1e-6)
    for mix in (0.5, 0.9):
        slow = twin.mixed_feature(k, s, lambda_h, 0, 2, mix)
        assert mixup.different_classes(k, s, lambda_h, mix) == pytest.approx(slow, rel=1e-6)


def test_mixing_is_symmetric_and_its_ends_are_one_class():
    a = mixup.same_class(10, 4.0, 0.01)
    assert mixup.different_classes(10, 4.0, 0.01, 1.0)[0] == pytest.approx(a, rel=1e-9)
    left, right = (mixup.different_classes(10, 4.0, 0.01, m) for m in (0.2, 0.8))
    assert left == pytest.approx(right[::-1], rel=1e-10)
    with pytest.raises(UsageError, match="wants 3 or more"):
        mixup.different_classes(2, 1.0, 0.01, 0.5)
