"""Monotonicity is certified where weights make it so, refuted by two gradients, never both."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.methods import Monotonicity
from interp.models.registry import ZOO
from interp.tasks.digits import FEATURES
from interp.terms import LabelledInputs
from tests.methods.lipschitz import nets


def around(x):
    x = np.atleast_2d(x)
    return LabelledInputs(x, np.zeros(len(x), dtype=int))


@pytest.mark.parametrize("gate", [nn.ReLU, nn.Tanh, nn.Sigmoid])
def test_non_negative_weights_are_certified_everywhere(gate):
    module = nets.random_stack((5, 8, 8, 2), gate)
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.weight.abs_()
    for radius in (0.01, 1.0, 100.0):
        data = interp.run(
            Monotonicity(epsilon=radius), nets.wrap(module, (5,)), around(np.zeros(5))
        ).data
        assert (data["sign"].values == 1).all()
    with torch.no_grad():
        module[0].weight[:, 2].neg_()
    data = interp.run(Monotonicity(epsilon=1.0), nets.wrap(module, (5,)), around(np.zeros(5))).data
    assert (data["sign"].values[0, 0] == [1, 1, -1, 1, 1]).all()


def test_verdicts_hold_of_gradients_that_were_not_sampled():
    module = nets.random_stack((6, 12, 12, 3), seed=1)
    net = nets.paired(module, (6,))
    x = np.random.default_rng(3).normal(size=6)
    data = interp.run(Monotonicity(epsilon=0.15), nets.wrap(module, (6,)), around(x)).data
    seen = nets.found(net, x, 0.15, n=2000, seed=99).numpy()
    sign = data["sign"].values[0]
    assert {1.0, -1.0, 0.0} <= set(sign[np.isfinite(sign)])
    assert (seen[:, sign == 1] >= 0).all() and (seen[:, sign == -1] <= 0).all()
    low, high = (data["slope"].sel(bound=b).values[0] for b in ("certified low", "certified high"))
    assert (low <= seen.min(0) + 1e-12).all() and (seen.max(0) <= high + 1e-12).all()
    counted = data["count"].isel(prompt=0).values
    assert counted.sum() == sign.size and counted[1] == (sign == 0).sum()


def test_a_gate_at_zero_is_refuted_or_unknown_never_certified():
    """relu(x) - relu(-x)/2·4 bends at 0: slopes 1 and -2 on either side."""
    module = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    module[0].weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    module[2].weight.data = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    for radius, samples, wanted in ((0.1, 50, 0.0), (0.0, 0, np.nan)):
        sign = (
            interp.run(
                Monotonicity(epsilon=radius, n_samples=samples),
                nets.wrap(module, (1,)),
                around(np.zeros(1)),
            )
            .data["sign"]
            .values.ravel()
        )
        assert np.array_equal(sign, [wanted], equal_nan=True)


def test_the_shipped_network_rises_and_falls_where_its_card_says():
    card = json.loads((ZOO / "monotone-mlp" / "card.json").read_text())
    model = interp.load_model("zoo:monotone-mlp")
    task = interp.load_task("diabetes:n=4", model)
    data = interp.run(Monotonicity(epsilon=100.0), model, task).data
    assert list(data["name"].values) == list(FEATURES)
    for name, wanted in [
        *((n, 1) for n in card["known"]["rising"]),
        *((n, -1) for n in card["known"]["falling"]),
    ]:
        assert (data["sign"].isel(feature=FEATURES.index(name)).values == wanted).all(), name
    others = [
        i
        for i, n in enumerate(FEATURES)
        if n not in card["known"]["rising"] + card["known"]["falling"]
    ]
    assert not (np.abs(data["sign"].isel(feature=others).values) == 1).all()
    near = interp.run(Monotonicity(epsilon=0.05), model, task)
    assert near.passed and (near.data["count"].sel(statistic="certified").values >= 4).all()


def test_images_keep_their_axes():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    data = interp.run(
        Monotonicity(), nets.wrap(module, (1, 4, 4)), around(np.zeros((1, 1, 4, 4)))
    ).data
    assert data["sign"].dims == ("prompt", "label", "channel", "row", "column")
