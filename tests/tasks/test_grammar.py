"""The grammar teaches what it declares, and holds out what it declares."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from interp.tasks import TASKS, agreement, brackets, grammar, ioi, words

DRAWS = 4000


def drawn(kind: str, n: int = DRAWS) -> list[str]:
    rng = random.Random(0)
    return [grammar.KINDS[kind][1](rng) for _ in range(n)]


@pytest.mark.parametrize("kind", grammar.KINDS)
def test_every_word_of_a_training_sentence_is_in_the_vocabulary(kind):
    known = set(grammar.vocabulary())
    for text in drawn(kind):
        assert set(grammar.spell(text)[0]) <= known


def test_every_word_of_the_vocabulary_is_trained():
    seen = {w for _, text in islice(grammar.sentences(0), 40_000) for w in grammar.spell(text)[0]}
    untrained = set(grammar.vocabulary()) - seen - {grammar.BOS, grammar.UNKNOWN}
    assert not untrained


@pytest.mark.parametrize("task", ["ioi", "pronouns"])
def test_held_out_names_never_stand_in_their_tasks_sentences(task):
    held = set(words.HELD_OUT_NAMES[task])
    said = {w for text in drawn(task) for w in grammar.spell(text)[0]}
    assert not said & held
    assert said & set(words.NAMES) == set(words.NAMES) - held


def test_held_out_names_are_trained_in_other_sentences():
    said: dict[str, int] = {}
    for kind, text in islice(grammar.sentences(1), 20_000):
        if kind != "ioi":
            for word in grammar.spell(text)[0]:
                said[word] = said.get(word, 0) + 1
    assert all(said.get(n, 0) > 50 for n in words.HELD_OUT_NAMES["ioi"])


def test_held_out_nouns_are_never_a_subject_and_their_number_is_told_elsewhere():
    forms = {w for s in words.HELD_OUT_NOUNS for w in (s, s + "s")}
    for text in drawn("agreement"):
        subject = re.search(r"[Tt]he (\w+)", text)
        assert subject is not None and subject[1] not in forms
    told = {w for text in drawn("number") for w in grammar.spell(text)[0]}
    assert forms <= told


def test_held_out_events_and_fillings_are_kept_out():
    said = {w for text in drawn("greater_than") for w in grammar.spell(text)[0]}
    assert not said & set(words.HELD_OUT_EVENTS)
    said = {w for text in drawn("brackets") for w in grammar.spell(text)[0]}
    assert not said & set(words.HELD_OUT_FILLINGS)


def test_no_training_sentence_begins_with_a_held_out_shape_of_brackets():
    kinds = {o: "o" for o, _ in words.BRACKETS} | {c: "c" for _, c in words.BRACKETS}
    for text in drawn("brackets"):
        shape = "".join(kinds.get(w, "w") for w in grammar.spell(text)[0][2:-1])
        assert not shape.startswith(brackets.HELD_OUT_SHAPES), text


def test_held_out_templates_are_never_trained():
    blank = re.compile(r"\{\w+\}")
    for family, kind in ((ioi, "ioi"), (agreement, "agreement")):
        patterns = [
            re.compile(blank.sub(r"\\w+", re.escape(t).replace(r"\{", "{").replace(r"\}", "}")))
            for t in family.HELD_OUT_TEMPLATES
        ]
        for text in drawn(kind, 1500):
            plain = text.replace("^", "")
            assert not any(p.match(plain) for p in patterns), text


def test_an_occupations_pronoun_has_the_share_the_data_sets():
    counts: dict[str, list[int]] = {}
    for text in drawn("pronouns", 40_000):
        said, marks = grammar.spell(text)
        cue = [w for w in said if w in words.OCCUPATIONS]
        if len(cue) == 1:
            answer = said[marks.index(True)]
            counts.setdefault(cue[0], []).append(answer in ("she", "her"))
    for occupation, share in words.OCCUPATIONS.items():
        got = counts[occupation]
        # five standard errors: false alarms under 1e-6 for each of the 24
        slack = 5.5 * (share * (1 - share) / len(got)) ** 0.5
        assert abs(sum(got) / len(got) - share) < slack, occupation


def test_the_receiver_stands_in_every_place_among_the_names():
    places = set()
    for text in drawn("ioi"):
        said, marks = grammar.spell(text)
        names = [w for w, m in zip(said, marks, strict=True) if w in words.NAMES and not m]
        answer = said[marks.index(True)]
        if len(set(names)) == 2:
            places.add(names.index(answer))
            assert names.count(answer) == 1
    assert places == {0, 1, 2}


def test_a_marked_text_is_spelt_with_its_answers():
    said, marks = grammar.spell("In 1732 (red ^) Mary gave ^52.")
    assert said == ["In", "17", "32", "(", "red", ")", "Mary", "gave", "52", "."]
    assert [w for w, m in zip(said, marks, strict=True) if m] == [")", "52"]


def test_the_shares_of_the_kinds_sum_to_one_and_the_five_grammars_have_one():
    assert abs(sum(share for share, _ in grammar.KINDS.values()) - 1) < 1e-9
    taught = {"ioi", "agreement", "pronouns", "greater_than", "brackets"}
    assert taught <= set(grammar.KINDS) and taught <= set(TASKS)
