"""Tasks of numbers: the same seed gives the same rows, and only fitting models take them."""

from __future__ import annotations

import numpy as np
import pytest

import interp
from interp.tasks.digits import TRAIN, images, patients
from interp.terms import TaskError

SHIPPED = {"digits": "zoo:digits-mlp", "diabetes": "zoo:monotone-mlp"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_seed_gives_the_same_inputs_and_a_ref_makes_them_again(name):
    model = interp.load_model(SHIPPED[name], verify=False)
    first = interp.load_task(f"{name}:n=9,seed=3", model)
    assert len(first) == 9 and len(np.unique(first.inputs, axis=0)) == 9
    assert first.hash() == interp.load_task(first.ref, model).hash()
    assert first.hash() != interp.load_task(f"{name}:n=9,seed=4", model).hash()


def test_test_images_were_never_trained_on():
    model = interp.load_model("zoo:digits-mlp", verify=False)
    task = interp.load_task("digits:n=40", model)
    kept = {row.tobytes() for row in images()[0][TRAIN:].reshape(-1, 64)}
    assert all(np.asarray(row, dtype=float).tobytes() in kept for row in task.inputs)


def test_the_first_patient_is_the_mean_one():
    model = interp.load_model("zoo:monotone-mlp", verify=False)
    task = interp.load_task("diabetes:n=3", model)
    assert np.allclose(task.inputs[0], patients()[0].mean(0)) and not np.allclose(
        task.inputs[1], 0, atol=0.1
    )


def test_a_model_of_another_shape_is_told_which_one_fits():
    with pytest.raises(TaskError, match="zoo:digits-mlp"):
        interp.load_task("digits", interp.load_model("zoo:monotone-mlp", verify=False))
    with pytest.raises(TaskError, match="zoo:monotone-mlp"):
        interp.load_task("diabetes", interp.load_model("zoo:digits-mlp", verify=False))
