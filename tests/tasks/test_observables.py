"""Observables from text name the tokens they say, and refuse what is no single token."""

from __future__ import annotations

import numpy as np
import pytest

from interp.tasks import load_task
from interp.tasks.concepts import CONCEPTS
from interp.tasks.observables import OBSERVABLES, observables_of
from interp.terms import Observable, PromptPairs, TaskError, UsageError
from tests.tasks.readers import digit_reader, gpt2_reader, people_reader, word_reader

PAIRS = PromptPairs.from_tokens([[1, 2], [3, 4]], [[1, 3], [3, 5]], [[7, 8], 9], [[9], [7]])


@pytest.fixture(scope="module")
def gpt2(test_data):
    return gpt2_reader(test_data)


def test_words_for_and_against_become_weights_on_their_tokens():
    model = word_reader()
    (found,) = observables_of("she her / he", model)
    ids = {w: model.tokenizer.encode(w, bos=False)[0] for w in ("she", "her", "he")}
    assert dict(zip(found.tokens, found.weights.tolist(), strict=True)) == {
        ids["she"]: 1.0, ids["her"]: 1.0, ids["he"]: -1.0,
    }  # fmt: skip
    assert not found.centred and observables_of("she / he", model)[0].centred
    mean = Observable.from_tokens([ids["she"], ids["her"]], [ids["he"]], reduce="mean")
    assert mean.centred and mean.weights.tolist() == [0.5, 0.5, -1.0]


def test_answers_are_each_prompts_own_mean_right_less_mean_wrong():
    (found,) = observables_of("answers", digit_reader(), PAIRS)
    dense = np.zeros((2, 10))
    dense[:, list(found.tokens)] = found.weights
    expected = np.zeros((2, 10))
    expected[0, [7, 8, 9]] = 0.5, 0.5, -1
    expected[1, [9, 7]] = 1, -1
    assert (dense == expected).all() and found.each and found.centred


def test_a_vector_over_the_vocabulary_keeps_its_weights():
    n = np.zeros(12)
    n[[3, 7]] = 1.5, -0.5
    found = Observable.from_vector(n)
    assert found.tokens == (3, 7) and found.weights.tolist() == [1.5, -0.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("she / she", "among its plus and its minus"),
        ("shee", "no observable"),
        ("xylophone / he", "unknown"),
        ("she / he / her", "3 sides"),
        ("pronoun_subjekt", "pronoun_subject"),
        ("#9999 / he", "not among"),
        ("she / he; she / he", "twice"),
        ("answers", "no pairs"),
    ],
)
def test_what_is_no_observable_is_refused_with_a_remedy(text, said):
    with pytest.raises(UsageError) as error:
        observables_of(text, word_reader())
    assert said in str(error.value)


def test_a_word_of_several_tokens_is_shown_in_pieces(gpt2):
    with pytest.raises(UsageError) as error:
        observables_of("antidisestablishment / he", gpt2)
    assert "tokens (" in str(error.value) and "|" in str(error.value)


def test_words_need_a_tokenizer_and_ids_do_not():
    with pytest.raises(UsageError):
        observables_of("she / he", digit_reader())
    assert observables_of("#3 / #4", digit_reader())[0].tokens == (3, 4)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_every_built_in_observable_is_single_tokens_in_gpt2(name, gpt2):
    found = observables_of(name, gpt2)[0]
    words = OBSERVABLES[name]
    assert gpt2.tokenizer.texts(found.tokens) == [*words.plus, *words.minus]


@pytest.mark.parametrize("name", CONCEPTS)
def test_prompts_of_a_concept_align_and_answer_by_the_observables_words(name, gpt2):
    for model in (gpt2, people_reader()):
        task = load_task(f"{name}:n=24", model)
        words = OBSERVABLES[name]
        assert len(task) == 24 and set(task.right) == {task.right[0]}
        assert [task.answer_text[t].strip() for t in task.right[0]] == [
            w.strip() for w in words.plus
        ]
        assert all(len(a) == len(b) for a, b in zip(task.clean, task.corrupt, strict=True))
    if name != "party":  # politicians' names differ in length
        assert task.aligned()


def test_party_prompts_hold_a_democrat_clean_and_a_republican_corrupt(gpt2):
    from interp.tasks.politicians import DEMOCRATS, REPUBLICANS

    assert len(set(DEMOCRATS)) == len(set(REPUBLICANS)) == 40
    assert not set(DEMOCRATS) & set(REPUBLICANS)
    task = load_task("party:n=40", gpt2)
    for clean, corrupt in zip(task.clean_text, task.corrupt_text, strict=True):
        texts = ["".join(t[1:]).removesuffix(" is a") for t in (clean, corrupt)]
        assert texts[0] in DEMOCRATS and texts[1] in REPUBLICANS


@pytest.mark.parametrize("name", ["code_brace", "code_comment"])
def test_windows_of_code_are_labelled_by_language(name, gpt2):
    task = load_task(f"{name}:n=16,window=64", gpt2)
    assert task.inputs.shape == (16, 64) and task.labels.sum() == 8
    for ids, label in zip(task.inputs, task.labels, strict=True):
        text = gpt2.tokenizer.decode(ids)
        is_c = (label == 1) == (name == "code_brace")
        assert (";" in text) == is_c and ("def " in text) == (not is_c)


def test_a_tokenizer_without_the_words_is_told_which():
    with pytest.raises(TaskError) as error:
        load_task("nurse", word_reader())
    assert "programmer" in str(error.value)
    with pytest.raises(TaskError):
        load_task("code_brace", word_reader())
