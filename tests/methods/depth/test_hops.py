"""The hand-set chain: every depth method gives the number that its weights dictate."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from interp.methods import METHODS
from interp.models import load_model
from interp.tasks import load_task
from tests.engine.driven import Remembering

ROOT2, GONE = np.sqrt(2), np.sqrt(1 - 1 / 10)
CURRENT = {1: 2.01, 2: 1.63, 3: 1.73, 4: 2.00}
"""Depth score of the current mode with a reader: not monotone in the number of hops."""


@lru_cache(maxsize=1)
def model():
    return load_model("zoo:hops", dtype="float64")


def measured(method, task, **fields):
    return METHODS[method](**fields).measure(model(), load_task(task, model()), Remembering())


def test_every_self_check_of_the_shipped_weights_passes():
    checked = load_model("zoo:hops")
    assert checked.checks and all(c.passed for c in checked.checks)


def test_the_shipped_weights_are_the_recipes():
    from interp.models.registry import ZOO
    from interp.models.tensors import read_tensors
    from interp.training.hops import tensors

    shipped, made = read_tensors(ZOO / "hops" / "model.safetensors"), tensors()
    assert set(shipped) == set(made)
    assert all(bool((shipped[k] == made[k]).all()) for k in made)


@pytest.mark.parametrize("hops", [1, 3, 6])
def test_the_lens_shows_the_entity_of_each_hop(hops):
    task = load_task(f"hops:n=12,hops={hops}", model())
    data = METHODS["logit_lens"]().measure(model(), task, Remembering())
    pairs = [
        {a: b for a, b in (divmod(t - 11, 10) for t in row if 11 <= t < 111)} for row in task.clean
    ]
    for i, row in enumerate(task.clean):
        at = (row[-1] - 111) // 7
        for boundary in range(7):
            assert data["top_id"].values[i, boundary, len(row) - 1, 0] == 1 + at
            at = pairs[i][at] if boundary < hops else at


@pytest.mark.parametrize("hops", [1, 2, 4, 6])
def test_current_skips_cost_everything_below_the_hops_and_nothing_above(hops):
    data = measured("skip_map", f"hops:n=10,hops={hops}", n_boot=0)
    output = data["output"].sel(part="layer", mode="current", stat="max").values
    assert output == pytest.approx([ROOT2] * hops + [0] * (6 - hops), abs=1e-9)
    score = data["depth_score"].sel(stat="max", readout="output").item()
    assert score == pytest.approx((hops - 1) / 2, abs=1e-9)


def test_without_a_reader_no_later_token_needs_a_skipped_one():
    data = measured("skip_map", "hops:n=6,hops=4", modes=("future",), splits=(-1,), n_boot=0)
    assert float(data["output"].max()) < 1e-9


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_with_a_reader_future_effects_show_depth_and_current_ones_mislead(hops):
    data = measured(
        "skip_map", f"hops:n=10,hops={hops},reader=true", modes=("current", "future"),
        splits=(-1,), n_boot=0,
    )  # fmt: skip
    output = data["output"].sel(part="layer", stat="max")
    future = output.sel(mode="future").values
    assert future == pytest.approx([ROOT2] * hops + [0] * (6 - hops), abs=1e-9)
    current = output.sel(mode="current").values
    assert current[-1] == pytest.approx(GONE, abs=1e-9) and current[0] == pytest.approx(ROOT2)
    score = data["depth_score"].sel(part="layer", stat="max", readout="output")
    assert score.sel(mode="current").item() == pytest.approx(CURRENT[hops], abs=5e-3)
    assert score.sel(mode="future").item() == pytest.approx((hops - 1) / 2, abs=1e-9)


@pytest.mark.parametrize("hops", [1, 3, 6])
def test_a_pair_is_needed_until_its_hop_is_done(hops):
    data = measured("residual_erasure", f"hops:n=8,hops={hops}")
    effect = data["slot_effect"].sel(mode="single")
    for j in range(1, 7):
        want = [GONE if layer < j and j <= hops else 0 for layer in range(6)]
        assert effect.sel(slot=f"hop{j}").values == pytest.approx(want, abs=1e-6)


def test_layers_beyond_the_hops_can_go_and_layers_below_cannot():
    data = measured("layer_importance", "hops:n=12,hops=3", n_boot=0)
    delta = data["delta_loss"].values
    assert (delta[:3] > 10).all() and np.abs(delta[3:]).max() < 1e-9
    assert (data["importance"].sel(score="influence").values[:3] > 0.001).all()
    assert data["dropped_loss"].sel(score="influence").values[:4] == pytest.approx(
        [0] * 4, abs=1e-9
    )
