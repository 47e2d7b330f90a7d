"""A model trained again agrees with what ships by its bits or its card, or the command says no."""

from __future__ import annotations

import json
import shutil

import pytest

from interp.models.registry import ZOO
from interp.training import __main__ as command
from interp.training.agreement import compare, headlines
from interp.training.checkpoints import CARD


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A zoo of one small model, that may be changed."""
    shutil.copytree(ZOO / "digits-mlp", tmp_path / "zoo" / "digits-mlp")
    monkeypatch.setattr(command, "zoo", lambda: tmp_path / "zoo")
    return tmp_path / "zoo" / "digits-mlp"


def altered(folder, **changes):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


def test_the_command_trains_again_leaves_what_ships_and_finds_it_in_agreement(shipped, capsys):
    before = {p.name: p.read_bytes() for p in shipped.iterdir()}
    assert command.main(["digits-mlp", "--check"]) == 0
    said = capsys.readouterr().err
    assert "the same bits" in said or "agree within" in said
    assert {p.name: p.read_bytes() for p in shipped.iterdir()} == before


def test_another_training_that_falls_short_of_the_card_is_told_and_fails(shipped, capsys):
    assert command.main(["digits-mlp", "--check", "--steps", "1"]) == 1
    said = capsys.readouterr().err
    assert "does not agree within 0.02: inputs / test_accuracy: ships" in said


def test_a_cards_own_tolerance_is_what_counts(shipped, tmp_path):
    again = shutil.copytree(shipped, tmp_path / "again")
    assert compare(shipped, again).same_bits
    weights = again / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    right = json.loads((shipped / CARD).read_text())["inputs"]["test_accuracy"]
    altered(again, inputs={"test_accuracy": right - 0.05})
    found = compare(shipped, again)
    assert not found.same_bits and not found.ok and found.largest == pytest.approx(0.05)
    altered(shipped, tolerance=0.06)
    assert compare(shipped, again).ok
    altered(again, inputs={})
    assert not compare(shipped, again).ok, "a number that is gone agrees with nothing"


def test_headlines_are_measures_not_counts_and_of_a_run_its_end():
    card = {
        "accuracy": {"a": {"right": 0.9, "n": 500, "task": "ioi"}},
        "metrics": {"step": [0, 9], "test_accuracy": [0.1, 0.8]},
        "training": {"seconds": 4},
        "loss": 1.5,
    }
    assert headlines(card) == {
        "accuracy / a / right": 0.9, "metrics / test_accuracy": 0.8, "loss": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(p.parent.name for p in ZOO.glob("*/card.json")))
def test_every_shipped_card_has_a_headline_to_agree_with(name):
    card = json.loads((ZOO / name / CARD).read_text())
    assert headlines(card) or name == "hops", "nothing to compare but bits"


def test_a_model_that_does_not_ship_has_nothing_to_agree_with(tmp_path):
    assert compare(tmp_path / "gone", ZOO / "digits-mlp") is None
