"""Networks of pictures: cards are measured again from the shipped weights, by the method too."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import interp
from interp.models.registry import ZOO
from interp.tasks.scenes import TRAIN, coarse, picture, pictures
from interp.training import digits_cnn, digits_denoise, digits_sr
from interp.training.pictures import digits, mean_squared, parts, psnr, shares

CLASSIFIERS = ("digits-cnn", "digits-cnn-nobias", "digits-cnn-bn")
OTHERS = ("digits-denoise", "digits-autoencoder")


def said(name):
    return json.loads((ZOO / name / "card.json").read_text())["metrics"]


def opened(name):
    return interp.load_model(f"zoo:{name}", verify=False)


def tour(name, task, which):
    model = interp.load_model(f"zoo:{name}", dtype="float64", verify=False)
    spec = interp.methods.LinearInterpreter(tour=which)
    return interp.run(spec, model, interp.load_task(task, model), progress=False).data


def agrees(found, card, names):
    for name in names:
        assert found[name] == pytest.approx(card[name], rel=2e-3, abs=3 / 497), name


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifiers_card_is_what_its_weights_give(name):
    _, x, labels = digits()
    card = said(name)
    agrees(shares(opened(name).module(), parts(x)[1], parts(labels)[1]), card, card)
    data = tour(name, "digits:n=497,seed=0", "residual")
    right = data["right"].mean("prompt").values
    assert right[0] == pytest.approx(card["test_accuracy"], abs=3 / 497)
    assert right[1] == pytest.approx(card["linear_accuracy"], abs=3 / 497)
    assert float(data["share"].mean()) == pytest.approx(card["remainder_share"], rel=2e-3, abs=1e-9)


def test_no_bias_is_worth_nothing_and_batch_norm_is_worth_most():
    share = {n: said(n)["remainder_share"] for n in CLASSIFIERS}
    assert share["digits-cnn-nobias"] == 0 < share["digits-cnn"] < share["digits-cnn-bn"]
    assert all(said(n)["test_accuracy"] > 0.93 for n in CLASSIFIERS)


def test_the_sharpeners_card_is_what_its_weights_give_and_it_beats_bicubic():
    x, y = digits_sr.data()
    card = said("digits-sr")
    found = digits_sr.measured(opened("digits-sr").module(), x[TRAIN:], y[TRAIN:])
    agrees(found, card, card)
    assert card["psnr"] > card["bicubic_psnr"] + 1.5 > card["nearest_psnr"]
    assert card["linear_psnr"] > card["bicubic_psnr"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_denoisers_card_is_what_its_weights_give(name):
    card = said(name)
    x, y = digits_denoise.test_data()
    found = digits_denoise.measured(opened(name).module(), x, y)
    agrees(found, card, card)
    assert card["psnr"] > card["noisy_psnr"] + 2
    assert card["noisy_psnr"] == pytest.approx(12.91, abs=0.01)


def test_training_again_gives_the_same_bits_and_another_seed_does_not():
    made = digits_cnn.picture_of("digits-cnn-bn")
    _, x, labels = digits()
    loss = torch.nn.functional.cross_entropy
    runs = [made.trained(x[:128], labels[:128], loss, 1, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not torch.equal(runs[0]["0.weight"], runs[2]["0.weight"])


def test_training_lowers_the_error():
    x, y = digits_denoise.test_data()
    made = digits_denoise.PICTURES["digits-denoise"]
    first, later = (made.trained(x, y, mean_squared, n) for n in (1, 6))
    with torch.no_grad():
        assert psnr(later(x), y) > psnr(first(x), y) + 0.5


def test_scenes_are_the_same_everywhere_and_coarse_is_a_mean():
    one, kind = picture(7)
    again, other = picture(7)
    assert np.array_equal(one, again) and kind == other and not np.array_equal(one, picture(8)[0])
    small = coarse(one)
    assert small.shape == (12, 12) and small[2, 3] == pytest.approx(one[4:6, 6:8].mean())
    assert 0 <= one.min() and one.max() <= 1
    assert set(pictures(range(30))[1]) == {0, 1, 2}


def test_scenes_fit_the_sharpener_and_noise_fits_the_denoisers():
    task = interp.load_task("scenes:n=3,seed=2", opened("digits-sr"))
    assert task.inputs.shape == (3, 1, 12, 12)
    assert interp.load_task(task.ref, opened("digits-sr")).hash() == task.hash()
    with pytest.raises(interp.InterpError, match="zoo:digits-sr"):
        interp.load_task("scenes:n=3", opened("digits-cnn"))
    model = opened("digits-denoise")
    clean, noisy = (interp.load_task(f"digits:n=4{n}", model).inputs for n in ("", ",noise=0.3"))
    assert 0.1 < np.abs(noisy - clean).mean() < 0.3
    assert noisy.min() >= 0 and noisy.max() <= 1
