"""The page of linear interpreters: what a board may send, and what is shown of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dash", reason="the workbench is an extra")

import interp
from apps.workbench.bench import Bench
from apps.workbench.drawing import PIXELS, board, read_pixels
from tests.apps.fakes import FakeQueue, fresh_app


@pytest.mark.parametrize("sent", [None, "x", [1.0] * 63, [1.0] * 63 + ["y"], {"0": 1}])
def test_a_board_that_is_none_is_refused(sent: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_pixels(sent)


def test_pixels_are_held_between_black_and_white() -> None:
    assert read_pixels([-3.0, 7.0] * 32) == [0.0, 1.0] * 32


def test_every_pixel_of_the_board_has_a_name_and_one_takes_the_focus() -> None:
    made = str(board("b", [0.0] * PIXELS))
    assert made.count("gridcell") == 64 and "row 8, column 8" in made
    assert made.count("tabIndex=0") == 1


class Answering(FakeQueue):
    """Measures in this process."""

    def measure(self, method: str, fields: Any, *, model: str, task: Any, **_: Any) -> Any:
        opened = interp.load_model(model, verify=False)
        given = task["inline"]
        inputs = interp.LabelledInputs(
            np.array(given["inputs"]["values"]), given["labels"]["values"],
            dict(given["label_text"]),
        )  # fmt: skip
        return interp.run(interp.METHODS[method](**fields), opened, inputs, progress=False)


@pytest.mark.parametrize("model", ["zoo:digits-cnn", "zoo:digits-mlp", "zoo:digits-denoise"])
def test_a_drawn_digit_gets_votes_a_fall_and_singular_images(
    model: str, tmp_path: Any, monkeypatch: Any
) -> None:
    store = interp.Store(tmp_path)
    fresh_app(Bench(store, queue=Answering(store)))
    from apps.workbench.pages import interpreter

    fake = SimpleNamespace(queue=Answering(store), check_model=lambda ref: None)
    monkeypatch.setattr(interpreter, "bench", lambda: fake)
    pixels = np.zeros((8, 8))
    pixels[1:7, 3:5] = 1.0
    cards = interpreter.view(pixels.ravel().tolist(), model, "linear", "the largest", False)
    drawn = [
        part.figure.layout.meta["kind"]
        for card in cards
        for part in card._traverse()
        if getattr(part, "figure", None) is not None
    ]
    assert drawn[:3] == ["sheet", "waterfall", "sheet"] and len(drawn) == 4
    told = interpreter.view(pixels.ravel().tolist(), model, "linear", "3", False)
    fall = next(p.figure for p in told[1]._traverse() if getattr(p, "figure", None) is not None)
    if model != "zoo:digits-denoise":
        assert fall.layout.meta["selection"]["label"] == "3"
    words = str(cards)
    assert "checks hold" in words
    assert ("The network says" in words) == (model != "zoo:digits-denoise")
