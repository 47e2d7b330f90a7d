"""On trained networks: found ≤ LBP ≤ intervals ≤ product, a hundred images in one call."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.methods import GlobalLipschitz, LocalLipschitz
from interp.models.registry import ZOO, card_of
from interp.tasks.digits import images
from interp.terms import LabelledInputs
from interp.training.recipes import RECIPES

CARDS = {"digits-mlp": ("digits:n=100,seed=5", "test_accuracy"),
         "monotone-mlp": ("diabetes:n=100,seed=5", "explained_variance")}  # fmt: skip


def in_order(data):
    """Row by row: found ≤ LBP ≤ RecurJac-like ≤ intervals ≤ product."""
    lines = data["bound"]
    names = list(lines["variant"].values)
    assert names == ["sampled", "lbp", "recurjac", "interval", "naive"]
    for tighter, looser in zip(names, names[1:], strict=False):
        a, b = lines.sel(variant=tighter).values, lines.sel(variant=looser).values
        assert (a <= b * (1 + 1e-9)).all(), (tighter, looser)
    assert (data["lower"].values <= data["upper"].values).all()


def test_on_digits_the_bounds_stand_in_order():
    model = interp.load_model("zoo:digits-mlp")
    task = interp.load_task("digits:n=40,seed=3", model)
    result = interp.run(
        LocalLipschitz(epsilons=(1e-3, 8 / 255, 0.1), n_samples=30, domain=(0, 1)), model, task
    )
    in_order(result.data)
    lines = result.data["bound"].sel(epsilon=0.1).mean("prompt").values
    assert (np.diff(lines) > 0.01 * lines[0]).all()  # at this radius each is a real step
    assert result.passed


def test_the_cards_headline_is_measured_again():
    module = interp.load_model("zoo:digits-mlp").module()
    pixels, labels = images()
    with torch.no_grad():
        said = module(torch.tensor(pixels[1300:].reshape(-1, 64), dtype=torch.float32)).argmax(1)
    card = card_of("digits-mlp").facts
    assert float((said.numpy() == labels[1300:]).mean()) == pytest.approx(
        card["inputs"]["test_accuracy"], abs=3 / 497
    )
    from interp.tasks.digits import patients

    x, y = patients()
    y = (y - y.mean()) / y.std()
    with torch.no_grad():
        out = interp.load_model("zoo:monotone-mlp").module()(torch.tensor(x, dtype=torch.float32))
    explained = 1 - float(((out[:, 0].numpy() - y) ** 2).mean() / y.var())
    assert explained == pytest.approx(
        card_of("monotone-mlp").facts["inputs"]["explained_variance"], abs=1e-3
    )


@pytest.mark.parametrize("name", CARDS)
def test_the_recipe_makes_the_shipped_weights_again(name, tmp_path):
    from interp.models.tensors import read_tensors

    RECIPES[name].make(tmp_path, lambda text: None, None, 0)
    made = read_tensors(tmp_path / "model.safetensors")
    for key, tensor in read_tensors(ZOO / name / "model.safetensors").items():
        assert torch.allclose(made[key], tensor, rtol=1e-3, atol=1e-4), key


@pytest.fixture(scope="module")
def mnist(test_data):
    """The first hundred test images and their labels, and the trained 784-128-64-10 network."""
    folder = test_data / "mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as f:
        pixels = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 784)[:100] / 255.0
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read(), np.uint8, offset=8)[:100].astype(np.int64)
    weights = torch.load(folder / "mnist_fc_3layer.pth", weights_only=True, map_location="cpu")
    weights = weights.get("state_dict", weights)
    module = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    values = list(weights.values())
    module.load_state_dict(dict(zip(module.state_dict(), values, strict=True)))
    model = interp.load_model(module, example=torch.full((1, 784), 0.5))
    return model, LabelledInputs(pixels, labels)


def test_mnists_network_is_the_one_that_was_published(mnist):
    model, task = mnist
    said = model.run(task.inputs).logits.argmax(1).numpy()
    assert (said == task.labels).mean() >= 0.95
    data = interp.run(GlobalLipschitz(n_samples=50), model, task).data
    assert data["norm"].values == pytest.approx([8.4951, 3.8163, 1.6501], abs=2e-4)
    bound = dict(zip(data["variant"].values, data["bound"].values, strict=True))
    assert bound["product"] == pytest.approx(53.496, abs=2e-3)
    assert bound["sampled"] < bound["fast"] < bound["product"]


def test_a_hundred_mnist_images_in_one_call_stand_in_order(mnist):
    model, task = mnist
    result = interp.run(
        LocalLipschitz(epsilons=(2 / 255,), n_samples=5, domain=(0, 1)), model, task
    )
    in_order(result.data)
    lines = result.data["bound"].isel(epsilon=0).mean("prompt").values
    assert lines[1] < 0.7 * lines[3] and lines[3] < 0.2 * lines[4]  # LBP, intervals, product
    assert result.data["upper"].shape == (100, 1, 10) and result.passed
