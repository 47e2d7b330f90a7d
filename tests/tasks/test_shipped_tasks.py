"""Induction and modular addition: the answers are what the prompts say, on every knob."""

from __future__ import annotations

import pytest

from interp.tasks import load_task
from interp.tasks.modular_addition import SHARE, training_sums
from interp.terms import TaskError, UsageError
from tests.tasks.readers import letter_reader, reader, sum_reader, word_reader


def followed(row):
    """What followed the last symbol the first time, read off the prompt alone."""
    first = row.index(row[-1])
    assert first < len(row) - 1, "the cue was not seen before"
    return row[first + 1]


@pytest.mark.parametrize("contrast", ["successor", "cue"])
@pytest.mark.parametrize("again", [1, 3])
def test_induction_answers_are_what_followed_the_cue(contrast, again):
    task = load_task(f"induction:n=60,length=9,again={again},contrast={contrast}", letter_reader())
    for i, (clean, corrupt) in enumerate(zip(task.clean, task.corrupt, strict=True)):
        assert followed(clean) == task.right[i][0] != task.wrong[i][0] == followed(corrupt)
        assert sum(a != b for a, b in zip(clean, corrupt, strict=True)) == 1
        at = {k: v[i] for k, v in task.slots.items()}
        assert clean[at["FIRST"]] == clean[at["END"]] and at["NEXT"] == at["FIRST"] + 1
        assert clean[at["NEXT"]] == task.right[i][0] and at["END"] == len(clean) - 1
        run = clean[1 : 1 + 9]
        assert len(set(run)) == 9 and tuple(clean[at["END"] - again + 1 :]) in {
            run[j : j + again] for j in range(9)
        }


def test_induction_cues_stand_at_many_places_so_that_no_distance_gives_the_answer():
    task = load_task("induction:n=200", letter_reader())
    assert len(set(task.slots["FIRST"])) == 11 and task.aligned()


def test_induction_without_a_tokenizer_takes_every_id_and_says_what_does_not_fit():
    task = load_task("induction:n=30,length=5", reader(None, 26, 8))
    assert max(max(row) for row in task.clean) > 20 and len(task.clean[0]) == 6
    for knobs, told in (("length=26", "length=25"), ("length=8", "context holds 8")):
        with pytest.raises(TaskError, match=told):
            load_task(f"induction:{knobs}", reader(None, 26, 8))
    with pytest.raises(UsageError, match="below length"):
        load_task("induction:length=4,again=4", letter_reader())
    with pytest.raises(TaskError, match="zoo:induction"):
        load_task("induction", word_reader())


@pytest.mark.parametrize("contrast", ["first", "second"])
@pytest.mark.parametrize("split", ["any", "train", "held_out"])
def test_modular_sums_are_right_and_keep_to_their_split(contrast, split):
    task = load_task(
        f"modular_addition:n=200,seed=3,split={split},contrast={contrast}", sum_reader()
    )
    known = training_sums(53)
    changed = {"first": 0, "second": 1}[contrast]
    for i, (clean, corrupt) in enumerate(zip(task.clean, task.corrupt, strict=True)):
        assert task.right[i] == (sum(clean[:2]) % 53,) and task.wrong[i] == (sum(corrupt[:2]) % 53,)
        assert clean[2] == 53 and clean[changed] != corrupt[changed]
        assert clean[1 - changed] == corrupt[1 - changed]
        if split != "any":
            assert ((clean[:2] in known), (corrupt[:2] in known)) == ((split == "train"),) * 2


def test_the_training_sums_are_a_fixed_share_of_all():
    known = training_sums(53)
    assert len(known) == round(SHARE * 53**2) and known == training_sums(53)
    assert all(0 <= a < 53 and 0 <= b < 53 for a, b in known)


def test_modular_addition_counts_round_any_modulus_the_model_can_spell():
    task = load_task("modular_addition:n=50,modulus=12,sign=false", sum_reader())
    assert all(r == (sum(row) % 12,) for r, row in zip(task.right, task.clean, strict=True))
    bare = load_task("modular_addition:n=50", reader(None, 60, 3))
    assert all(row[2] == 59 for row in bare.clean)
    with pytest.raises(TaskError, match="modulus=53 or less"):
        load_task("modular_addition:modulus=54", sum_reader())
    with pytest.raises(TaskError, match="zoo:modadd"):
        load_task("modular_addition", letter_reader())
