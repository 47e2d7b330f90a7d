"""Layer masking: ones change nothing, what is under the mask is never read, patches matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.engine.linear import run_masked
from interp.engine.linear.masking import filled
from interp.terms import UsageError
from tests.engine.straight import Residual, hard, pictures

Spec = interp.METHODS["layer_masking"]


def conv_net(seed=0):
    return hard(nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4, 3),
    ), seed)  # fmt: skip


@pytest.mark.parametrize("net", [conv_net, lambda: hard(Residual("relu", "batch"))])
def test_a_mask_of_ones_changes_nothing(net):
    net, x = net(), pictures()
    assert torch.equal(run_masked(net, x, torch.ones(3, 1, 6, 6, dtype=torch.bool)), net(x))


@pytest.mark.parametrize("net", [conv_net, lambda: hard(Residual("relu", "batch"))])
def test_what_stands_under_the_mask_is_never_read(net):
    net, x = net(), pictures()
    mask = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    mask[:, :, 1:4, 2:5] = False
    kept = run_masked(net, x, mask)
    hidden = torch.where(mask, x, torch.nan)
    assert torch.equal(run_masked(net, hidden, mask), kept)
    assert torch.isfinite(kept).all() and not torch.allclose(kept, net(x), rtol=1e-3)


def test_unknown_pixels_become_the_mean_of_known_neighbours_ring_by_ring():
    x = torch.tensor([[1.0, 2.0, 3.0, 99.0, 99.0]]).expand(1, 1, 1, 5).double()
    mask = torch.tensor([[True, True, True, False, False]])[None, None]
    assert filled(x, mask, 1)[0, 0, 0].tolist() == [1, 2, 3, 3, 0]
    assert filled(x, mask, 2)[0, 0, 0].tolist() == [1, 2, 3, 3, 3]


def test_a_constant_picture_stays_constant_where_there_is_no_frame():
    """Padded from neighbours, a hole in a flat picture cannot be seen."""
    net = hard(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten()))
    x = torch.full((1, 1, 9, 9), 0.4, dtype=torch.float64)
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 3:6, 3:6] = False
    assert torch.allclose(run_masked(net, x, mask), net(x), rtol=1e-12)
    assert not torch.allclose(net(torch.where(mask, x, 0.0)), net(x), rtol=1e-2)


def test_an_empty_mask_is_refused():
    with pytest.raises(UsageError, match="Nothing"):
        run_masked(conv_net(), pictures(1), torch.zeros(1, 1, 6, 6, dtype=torch.bool))


def test_only_patches_over_the_pixel_that_is_read_matter():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(36, 1)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.zero_()
        net[2].weight[0, 2 * 6 + 3] = 2.0
    x = pictures(2).numpy()
    model = interp.load_model(net.eval(), example=x)
    task = interp.LabelledInputs(x, [0, 0])
    effect = interp.run(Spec(patch=2), model, task, progress=False).data["effect"]
    assert effect.dims == ("prompt", "label", "row", "column") and effect.shape == (2, 1, 5, 5)
    over = np.zeros((5, 5), dtype=bool)
    over[1:3, 2:4] = True
    assert np.abs(effect.values[..., ~over]).max() == 0
    assert np.abs(effect.values[..., over]).min() > 1e-3
    black = interp.run(Spec(patch=2, fill="zero"), model, task, progress=False).data["effect"]
    assert np.allclose(black.values[..., over], 2 * x[:, :, 2, 3][..., None])


def test_on_a_trained_network_the_whole_picture_is_untouched_and_patches_count():
    model = interp.load_model("zoo:digits-cnn", dtype="float64", verify=False)
    task = interp.load_task("digits:n=4,seed=3", model)
    result = interp.run(Spec(patch=2), model, task, progress=False)
    assert result.passed and result.data["effect"].shape == (4, 10, 7, 7)
    assert float(np.abs(result.data["effect"]).max()) > 1
    assert result.figures()["effect"].layout.meta["kind"] == "sheet"
    painted = interp.run(Spec(patch=2, fill="mean"), model, task, progress=False).data["effect"]
    assert float(np.abs(painted - result.data["effect"]).max()) > 0.1


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("digits-cnn", {"patch": 8}, "leaves nothing"),
        ("digits-mlp", {}, "wanted pictures"),
        ("digits-denoise", {}, "one row of outputs"),
    ],
)
def test_what_cannot_be_masked_is_said(name, knobs, words):
    model = interp.load_model(f"zoo:{name}", verify=False)
    with pytest.raises(UsageError, match=words):
        interp.run(Spec(**knobs), model, interp.load_task("digits:n=1", model), progress=False)
