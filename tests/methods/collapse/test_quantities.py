"""Metrics against their definitions, and against geometries whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.methods.collapse.accumulators import MeanCounter, OnePass
from interp.methods.collapse.pairs import distance_to_target, pair_statistics, target_matrix
from interp.methods.collapse.quantities import QUANTITIES, Options
from interp.terms import UsageError
from tests.methods.collapse.networks import blobs, frame, measured
from tests.twins import collapse as twin

ZERO = ("nc1", "nc1_svd", "nc1_quotient", "cdnv", "nc2_norms", "nc2_angles", "gnc2_variance")
KNOWN = {
    "etf": {"nc2_h": 0, "nc2_w": 0, "nc3": 0, "nc3_dual": 0, "nc2_w_of": 0.3204},
    "of": {"nc2_h_of": 0, "nc2_w_of": 0, "nc3_of": 0, "nc2_w": 0.3204},
}


def close(a, b, rel=1e-10, floor=1e-13):
    return abs(a - b) <= rel * abs(b) + floor


@pytest.mark.parametrize("target", ["etf", "of"])
def test_a_perfect_frame_has_the_known_values(target):
    means = frame(10, 24, target)
    y = torch.arange(200) % 10
    found = measured(means[y], y, 10, means)
    for name in ZERO:
        assert abs(found.value(name)) < 1e-12, name
    for name, value in KNOWN[target].items():
        assert found.value(name) == pytest.approx(value, abs=5e-5 if value else 1e-12), name
    assert found.value("nc4") == found.value("ncc_accuracy") == 1
    distance = measured(means[y], y, 10, options=Options(kernel="distance"))
    assert distance.value("gnc2_mean") == pytest.approx(math.sqrt(20 / 9), rel=1e-12)
    assert distance.value("gnc2_mean") == pytest.approx(1.4907, abs=1e-4)


@pytest.mark.parametrize("spread", [0.3, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("center", ["class", "sample"])
def test_the_fast_metrics_are_those_of_the_definitions(spread, center):
    torch.manual_seed(3)
    means = torch.randn(6, 9, dtype=torch.float64)
    shares = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    h, y = blobs(means, 300, spread, offset=5.0, shares=shares)
    weight, bias = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    ood = torch.randn(9, dtype=torch.float64)
    slow = twin.metrics(h, y, weight, bias, center, ood.numpy())
    fast = measured(h, y, 6, weight, bias, center, ood=ood)
    assert slow["nc1"] > 0.001 * spread**2
    assert set(slow) == set(QUANTITIES)
    for name, value in slow.items():
        # means of 300 rows at 5 are rounded at 1e-15: the slow pseudo-inverse shows it first
        assert close(fast.value(name), value, 1e-10 if spread > 1e-5 else 1e-8), name


@pytest.mark.parametrize("target", range(1, 13))
def test_nc1_is_resolved_from_a_tenth_to_a_million_millionth(target):
    means = frame(5, 7, "etf")
    h, y = blobs(means, 200, 1.0, seed=target)
    rows = [h[y == k] for k in range(5)]
    h = torch.cat([means[k] + (r - r.mean(0)) for k, r in enumerate(rows)])
    y = torch.repeat_interleave(torch.arange(5), 40)
    unscaled = measured(h, y, 5).value("nc1")
    wanted = 10.0**-target
    shrunk = means[y] + (h - means[y]) * math.sqrt(wanted / unscaled) + 5.0
    found = measured(shrunk, y, 5)
    assert found.value("nc1") == pytest.approx(wanted, rel=1e-6)
    assert found.value("nc1") > 0


@pytest.mark.parametrize("name", list(QUANTITIES))
def test_scale_rotation_row_order_and_batches_change_nothing(name):
    h, y = blobs(frame(5, 8, "etf") * torch.linspace(1, 2, 5)[:, None], 150, 0.2, offset=1.0)
    torch.manual_seed(0)
    weight, ood = torch.randn(5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    base = measured(h, y, 5, weight, ood=ood).value(name)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    order = torch.randperm(len(h))
    assert math.isfinite(base) and abs(base) > 1e-9
    others = {
        "rotated": measured(h @ turn, y, 5, weight @ turn, ood=ood @ turn),
        "shuffled": measured(h[order], y[order], 5, weight, ood=ood),
        "other batches": measured(h, y, 5, weight, batch=7, ood=ood),
    }
    if name != "nc3_bias":
        others["scaled"] = measured(3 * h, y, 5, weight / 3, ood=ood)
    for what, other in others.items():
        assert close(other.value(name), base, 1e-10), what


@pytest.mark.parametrize("spread", [0.5, 1e-2, 1e-3])
def test_one_pass_agrees_with_two_where_it_resolves(spread):
    shares = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.03])
    h, y = blobs(frame(5, 8, "etf"), 400, spread, offset=5.0, shares=shares)
    for center in ("class", "sample"):
        two = measured(h, y, 5, center=center)
        one = measured(h, y, 5, center=center, one_pass=True, batch=33)
        for name in ("nc1", "nc1_quotient", "cdnv", "nc2_h", "nc2_h_of", "nc2_norms"):
            assert close(one.value(name), two.value(name), 1e-6), name
    assert one.moments.resolution == 1e-8 and two.moments.resolution == 0
    assert math.isnan(one.value("ncc_accuracy"))


def test_more_classes_than_dimensions_are_measured():
    torch.manual_seed(2)
    means = torch.randn(20, 4, dtype=torch.float64)
    h, y = blobs(means, 400, 0.1)
    found = measured(h, y, 20, means)
    slow = twin.metrics(h, y, means)
    assert found.moments.means.rank == 4
    for name, value in slow.items():
        assert close(found.value(name), value), name
    assert found.value("nc2_h") > 0.5


def test_a_class_without_samples_is_left_out_and_moves_nothing():
    h, y = blobs(frame(5, 8, "etf"), 100, 0.1, offset=4.0)
    weight = frame(5, 8, "etf")
    kept = y != 3
    found = measured(h[kept], y[kept], 5, weight)
    slow = twin.metrics(h[kept], y[kept], weight)
    assert float(found.moments.means.centre.norm()) > 1
    for name, value in slow.items():
        assert close(found.value(name), value), name
    assert torch.isnan(found.moments.means.means[3]).all()
    # as a zero vector it would have moved the centre
    zeroed = torch.cat([found.moments.means.here, torch.zeros(1, 8)]).mean(0)
    assert float((zeroed - found.moments.means.centre).norm()) > 1


def test_a_class_with_one_sample_counts_and_all_single_ones_are_undefined():
    h, y = blobs(frame(4, 6, "etf"), 61, 0.1)
    y[y == 3] = 2
    y[0] = 3
    found = measured(h, y, 4)
    assert close(found.value("nc1"), twin.metrics(h, y)["nc1"])
    alone = measured(h[:4], torch.arange(4), 4)
    assert math.isnan(alone.value("nc1")) and math.isnan(alone.value("cdnv"))
    assert alone.value("ncc_accuracy") == 1


def test_a_bias_decides_nc4():
    means = frame(3, 5, "etf")
    h, y = blobs(means, 90, 0.01)
    assert measured(h, y, 3, means).value("nc4") == 1
    bias = torch.tensor([9.0, 0.0, 0.0])
    assert measured(h, y, 3, means, bias).value("nc4") == pytest.approx(1 / 3)


def test_constant_features_are_undefined():
    h = torch.full((20, 4), 3.3, dtype=torch.float64)
    found = measured(h, torch.arange(20) % 2, 2, torch.eye(2, 4, dtype=torch.float64))
    assert found.moments.means.rank == 0
    assert math.isnan(found.value("nc1")) and math.isnan(found.value("nc2_h"))


@pytest.mark.parametrize("target", ["etf", "of"])
@pytest.mark.parametrize("k", [3, 50])
def test_the_distance_to_a_frame_is_the_same_without_a_table(target, k, monkeypatch):
    torch.manual_seed(1)
    a, b = torch.randn(2, k, 7, dtype=torch.float64)
    exact = distance_to_target(a, b, target)
    table = a @ b.T
    assert exact == pytest.approx(
        float((table / table.norm() - target_matrix(k, target)).norm()), rel=1e-12
    )
    monkeypatch.setattr("interp.methods.collapse.pairs.EXACT", 1)
    assert distance_to_target(a, b, target) == pytest.approx(exact, rel=1e-12)


def test_bands_of_pairs_and_drawn_pairs_agree():
    torch.manual_seed(1)
    c, v = torch.randn(300, 5, dtype=torch.float64), torch.rand(300, dtype=torch.float64)
    every = pair_statistics(c, v)
    assert (every.pairs, every.sampled) == (300 * 299 // 2, False)
    drawn = pair_statistics(c, v, max_pairs=30_000)
    assert drawn.sampled and drawn.pairs == 100 * 299
    # 100 classes of 300: each one's mean over the others deviates by less than .1
    assert drawn.angles == pytest.approx(every.angles, abs=5 * 0.1 / 100**0.5)
    assert drawn.kernel_mean == pytest.approx(every.kernel_mean, abs=5 * 0.1 / 100**0.5)
    assert torch.isfinite(drawn.cdnv_label).all()
    assert pair_statistics(c, v, max_pairs=300 * 299 // 2).cdnv == every.cdnv


def test_twenty_thousand_classes_need_no_table_of_classes():
    """Counted from outside: the largest tensor any operation makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    torch.manual_seed(0)
    k, d = 20_000, 256
    h, y = torch.randn(4096, d), torch.randint(0, k, (4096,))
    with Largest() as seen:
        means = MeanCounter(k, d)
        means.add(h, y)
    assert seen.size <= k * d
    assert int(means.counts.sum()) == 4096


@pytest.mark.parametrize(("label", "word"), [(5, "label"), (-1, "label")])
def test_a_label_outside_is_named_with_its_row(label, word):
    h, y = blobs(frame(5, 8, "etf"), 30, 0.1)
    y[17] = label
    with pytest.raises(UsageError, match=rf"Row 17 .*{word} outside 0 … 4"):
        measured(h, y, 5, batch=8)


def test_bad_features_and_labels_are_refused():
    h, y = blobs(frame(5, 8, "etf"), 30, 0.1)
    bad = h.clone()
    bad[11, 3] = torch.inf
    with pytest.raises(UsageError, match="Row 11 .*not finite"):
        measured(bad, y, 5)
    with pytest.raises(UsageError, match="whole numbers"):
        measured(h, y.double(), 5)
    with pytest.raises(UsageError, match="1 class has samples"):
        measured(h, torch.zeros_like(y), 5)
    with pytest.raises(UsageError, match="at least two"):
        MeanCounter(1, 8)
    with pytest.raises(UsageError, match="at most 4096"):
        OnePass(3, 5000)


def test_permuted_labels_are_far_from_collapse():
    h, y = blobs(frame(5, 8, "etf"), 500, 0.01)
    assert measured(h, y, 5).value("nc1") < 1e-2
    assert measured(h, y[torch.randperm(500)], 5).value("nc1") > 1


def test_every_quantity_names_a_source_in_the_bibliography():
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs/bibliography.bib").read_text()
    for name, quantity in QUANTITIES.items():
        assert f"{{{quantity.citation}," in text, name
    assert np.isfinite(len(QUANTITIES))
