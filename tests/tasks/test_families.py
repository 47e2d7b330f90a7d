"""Every family keeps what its knobs promise, on a word-level and on a byte-pair tokenizer."""

from __future__ import annotations

import pytest

from interp.tasks import TASKS, load_task, words
from interp.tasks import ioi as ioi_words
from interp.tasks.concepts import CONCEPTS
from interp.terms import CapabilityError, TaskError, TaskRef, UsageError
from tests.tasks.readers import (
    chain_reader,
    digit_reader,
    gpt2_reader,
    letter_reader,
    people_reader,
    reader,
    sum_reader,
    word_reader,
)

PROMPTED = [k for k, f in TASKS.items() if f.type_name == "PromptPairs"]
OWN = {
    "addition": digit_reader,
    "hops": chain_reader,
    "induction": letter_reader,
    "modular_addition": sum_reader,
    **dict.fromkeys(CONCEPTS, people_reader),
}
"""Tasks that want a model of their own."""
WORDED = ("ioi", "agreement", "pronouns", "greater_than", "brackets")


@pytest.fixture(scope="module")
def model():
    return word_reader()


@pytest.fixture(scope="module")
def gpt2(test_data):
    return gpt2_reader(test_data)


def loaded(name, model):
    own = OWN.get(name.partition(":")[0])
    return load_task(name, own() if own else model)


@pytest.mark.parametrize("name", PROMPTED)
def test_a_seed_gives_the_same_task_and_another_seed_another(name, model):
    first = loaded(f"{name}:n=12,seed=3", model)
    again = loaded(f"{name}:n=12,seed=3", model)
    other = loaded(f"{name}:n=12,seed=4", model)
    assert first.hash() == again.hash() != other.hash()
    assert len(first) == 12


@pytest.mark.parametrize("name", PROMPTED)
def test_a_ref_makes_the_same_task_again(name, model):
    for knob, spec in TASKS[name].knobs.items():
        value = spec.bounds[-1] if spec.type is str else spec.default
        task = loaded(
            f"{name}:n=9,seed=5,{knob}={value}"
            if knob not in ("n", "seed")
            else f"{name}:n=9,seed=5",
            model,
        )
        assert loaded(task.ref, model).hash() == task.hash()
        assert TaskRef.parse(task.ref).name == name


@pytest.mark.parametrize("name", WORDED)
def test_prompts_of_one_template_align_and_pairs_differ_in_answers(name, model):
    task = load_task(name, model, n=40)
    assert task.aligned() and task.template is None and task.bos
    assert all(len(a) == len(b) for a, b in zip(task.clean, task.corrupt, strict=True))
    assert all(row[0] == model.tokenizer.bos_id for row in task.clean)
    assert all(set(r).isdisjoint(w) for r, w in zip(task.right, task.wrong, strict=True))
    assert len(set(task.clean)) == 40


@pytest.mark.parametrize("name", WORDED)
def test_several_templates_are_named_as_the_unit_of_the_bootstrap(name, model):
    task = load_task(name, model, n=60, templates="any")
    assert task.template is not None and len(set(task.template)) > 3


@pytest.mark.parametrize("name", WORDED)
def test_the_end_slot_is_the_last_position_and_slots_hold_their_words(name, model):
    task = load_task(name, model, n=30, templates="any")
    assert task.slots["END"] == tuple(n - 1 for n in task.lengths)


def test_ioi_slots_hold_the_names(model):
    task = load_task("ioi", model, n=60, templates="any")
    for i, text in enumerate(task.clean_text):
        at = {k: text[v[i]] for k, v in task.slots.items()}
        assert at["IO"] == task.answer_text[task.right[i][0]]
        assert at["S1"] == at["S2"] == task.answer_text[task.wrong[i][0]] != at["IO"]
        assert task.slots["S1"][i] < task.slots["S2"][i]


def test_ioi_orders_put_the_receiver_first_or_second(model):
    first = load_task("ioi", model, n=30, order="ABBA").slots
    second = load_task("ioi", model, n=30, order="BABA").slots
    both = load_task("ioi", model, n=30).slots
    assert all(io < s for io, s in zip(first["IO"], first["S1"], strict=True))
    assert all(io > s for io, s in zip(second["IO"], second["S1"], strict=True))
    assert {io < s for io, s in zip(both["IO"], both["S1"], strict=True)} == {True, False}


@pytest.mark.parametrize(
    ("corruption", "changed", "gone"),
    [
        ("swap", ("S2",), 0),
        ("third", ("S2",), 1),
        ("names", ("IO", "S1", "S2"), 2),
        ("order", ("IO", "S1"), 0),
    ],
)
def test_each_ioi_corruption_changes_its_own_places(model, corruption, changed, gone):
    task = load_task("ioi", model, n=40, templates="any", corruption=corruption)
    for i, (clean, corrupt) in enumerate(zip(task.clean, task.corrupt, strict=True)):
        differing = {p for p, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b}
        assert differing == {task.slots[k][i] for k in changed}
        io, subject = task.right[i][0], task.wrong[i][0]
        counts = (corrupt.count(io), corrupt.count(subject))
        assert (
            counts
            == {"swap": (2, 1), "third": (1, 1), "names": (0, 0), "order": (1, 2)}[corruption]
        )


@pytest.mark.parametrize("name", WORDED)
def test_held_out_words_stand_in_held_out_prompts_only(name, model):
    family = TASKS[name]
    for knob, kept in family.held_out.items():
        if knob not in family.knobs:
            continue
        train = load_task(name, model, n=150, **{knob: "train"})
        held = load_task(name, model, n=60, **{knob: "held_out"})
        if knob == "templates":
            said = [{t.partition(" [")[0] for t in task.template} for task in (train, held)]
            assert not said[0] & set(kept) and said[1] <= set(kept)
        else:
            forms = set(kept) | {k + "s" for k in kept} if knob == "nouns" else set(kept)
            slot = {"nouns": "subject", "names": "cue" if name == "pronouns" else "IO"}.get(knob)

            def said(task, slot=slot, i=0):
                texts = task.clean_text
                if slot:
                    return {t[p] for t, p in zip(texts, task.slots[slot], strict=True)}
                return {w for t in texts for w in t}

            assert not said(train) & forms
            assert said(held) & forms


def test_agreement_answers_follow_the_subject_not_the_distractor(model):
    task = load_task("agreement", model, n=60, distractor="opposite")
    singular = {s for s, _ in words.NOUNS}
    for i, text in enumerate(task.clean_text):
        subject, distractor = text[task.slots["subject"][i]], text[-1]
        assert (subject in singular) != (distractor in singular)
        right = {task.answer_text[t] for t in task.right[i]}
        assert ("is" in right) == (subject in singular) and ("are" in right) != ("is" in right)


def test_pronouns_follow_names_and_the_bias_of_the_data(model):
    task = load_task("pronouns", model, n=60, cue="both", case="object", templates="any")
    for i, text in enumerate(task.clean_text):
        cue = text[task.slots["cue"][i]]
        feminine = words.OCCUPATIONS[cue] > 0.5 if cue in words.OCCUPATIONS else cue in words.WOMEN
        assert task.answer_text[task.right[i][0]] == ("her" if feminine else "him")


def test_greater_than_splits_the_years_at_the_start_year(model):
    task = load_task("greater_than", model, n=60, templates="any")
    for i, text in enumerate(task.clean_text):
        year = int(text[task.slots["YY"][i]])
        assert {int(task.answer_text[t]) for t in task.right[i]} == set(range(year + 1, 100))
        assert {int(task.answer_text[t]) for t in task.wrong[i]} == set(range(year + 1))
        assert task.corrupt_text[i][task.slots["YY"][i]] == "01"
        assert text[-1] == text[task.slots["YY"][i] - 1]


def test_brackets_close_the_innermost_open_one(model):
    task = load_task("brackets", model, n=80, templates="any")
    closer = dict(words.BRACKETS)
    for i, text in enumerate(task.clean_text):
        stack = []
        for word in text:
            if word in closer:
                stack.append(word)
            elif word in closer.values():
                assert closer[stack.pop()] == word
        assert task.answer_text[task.right[i][0]] == closer[stack[-1]]
        assert len(task.wrong[i]) == 3


@pytest.mark.parametrize("digit", ["units", "tens", "hundreds"])
@pytest.mark.parametrize("contrast", ["carry", "operand"])
def test_addition_asks_for_the_digit_of_the_sum(digit, contrast):
    task = load_task("addition", digit_reader(), n=200, digit=digit, contrast=contrast)
    power = {"units": 1, "tens": 10, "hundreds": 100}[digit]
    for side, answers in ((task.clean, task.right), (task.corrupt, task.wrong)):
        for row, answer in zip(side, answers, strict=True):
            total = 10 * row[0] + row[1] + 10 * row[2] + row[3]
            assert answer == (total // power % 10,)
            assert row[4:] == tuple(int(d) for d in f"{total:03d}"[::-1])[: len(row) - 4]
    carries = [a[1] + a[3] >= 10 for a in task.clean]
    assert all(carries) if contrast == "carry" else set(carries) == {True, False}
    if contrast == "carry":
        assert not any(b[1] + b[3] >= 10 for b in task.corrupt)
        assert all(a[:3] == b[:3] for a, b in zip(task.clean, task.corrupt, strict=True))


def test_addition_on_the_trained_adder_is_right_on_both_sides(test_data):
    transformers = pytest.importorskip("transformers")
    import torch

    module = transformers.AutoModelForCausalLM.from_pretrained(test_data / "adder" / "hf").eval()
    for digit in ("units", "tens", "hundreds"):
        task = load_task("addition", digit_reader(), n=100, digit=digit)
        with torch.no_grad():
            for side, answers in ((task.clean, task.right), (task.corrupt, task.wrong)):
                best = module(torch.tensor(side)).logits[:, -1].argmax(-1).tolist()
                assert best == [a[0] for a in answers]


@pytest.mark.parametrize("name", [*WORDED, "addition"])
def test_gpt2s_tokenizer_gives_single_token_answers_that_align(name, gpt2):
    for templates in ("one", "any"):
        knobs = {} if name == "addition" else {"templates": templates}
        task = load_task(name, gpt2, n=40, **knobs)
        assert len(task) == 40 and task.bos
        assert templates == "any" or task.aligned()
        if name == "ioi":
            assert all(t.startswith(" ") for t in task.answer_text.values())
            for i, text in enumerate(task.clean_text):
                assert text[task.slots["S2"][i]] == task.answer_text[task.wrong[i][0]]


def test_a_vocabulary_without_the_names_is_told_so():
    class Letters:
        default_bos, bos_id = False, None

        def encode(self, text, *, bos=None):
            return [ord(c) % 128 for c in text]

        def decode(self, ids):
            return "".join(map(chr, ids))

        def texts(self, ids):
            return [chr(i) for i in ids]

    with pytest.raises(TaskError, match="0 of 80 are"):
        load_task("ioi", reader(Letters(), 128, 512))


def test_a_tokenizer_that_makes_two_tokens_of_a_lone_space_still_finds_names():
    class Pieces:
        """Marks each space by itself, as sentencepiece does: " Mary" alone is two pieces."""

        default_bos, bos_id = True, 0

        def __init__(self):
            self.known = ["<s>", "_"]

        def encode(self, text, *, bos=None):
            pieces = ["_" + w if w else "_" for w in text.split(" ")]
            self.known += [p for p in dict.fromkeys(pieces) if p not in self.known]
            return [0] * (bos is None or bos) + [self.known.index(p) for p in pieces]

        def decode(self, ids):
            return "".join(self.texts(ids)).strip()

        def texts(self, ids):
            return [self.known[i].replace("_", " ") for i in ids]

    tokenizer = Pieces()
    assert len(tokenizer.encode(" Mary", bos=False)) == 2
    task = load_task("agreement", reader(tokenizer, 10_000, 64), n=20)
    assert task.aligned() and all(t.startswith(" ") for t in task.answer_text.values())


def test_words_a_vocabulary_lacks_are_named():
    few = word_reader()
    few.tokenizer.ids.pop("gave")
    with pytest.raises(TaskError, match="lacks: gave"):
        load_task("ioi", few)


def test_a_task_of_words_refuses_a_model_without_a_tokenizer():
    for name in WORDED:
        with pytest.raises(CapabilityError, match="no tokenizer"):
            load_task(name, digit_reader())


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("ioy", "'ioi'"),
        ("ioi:sed=3", "'seed'"),
        ("ioi:corruption=swp", "'swap'"),
        ("ioi:n=0", "wanted 1 to"),
        ("ioi:n=lots", "a whole number"),
        ("ioi:seed=-1", "wanted 0 to"),
        ("no_such.csv", "no file"),
        ("ioi:n", "key=value"),
    ],
)
def test_a_wrong_name_or_knob_is_told_with_what_would_do(ref, said, model):
    with pytest.raises((UsageError, TaskError), match=said):
        load_task(ref, model)


def test_a_prompt_over_the_context_is_told_so():
    short = word_reader()
    short.shape = reader(short.tokenizer, 10, n_ctx=8).shape
    with pytest.raises(TaskError, match="context holds 8"):
        load_task("ioi", short)
    with pytest.raises(TaskError, match="context holds 4"):
        load_task("addition", digit_reader(4), digit="tens")


@pytest.mark.parametrize("name", TASKS)
def test_knobs_describe_themselves_for_a_form(name):
    schema = TASKS[name].schema()
    for knob, part in schema["properties"].items():
        assert part["description"] and part["type"] in ("integer", "string", "boolean", "number")
        assert "default" in part, knob
        assert part.get("enum") or "minimum" in part or part["type"] == "boolean"
    assert {"n", "seed"} <= set(schema["properties"])


def test_held_out_templates_share_no_half_with_the_training_ones():
    assert not set(ioi_words.FRAMES) & set(ioi_words.HELD_OUT_FRAMES)
    assert not set(ioi_words.GIVINGS) & set(ioi_words.HELD_OUT_GIVINGS)


def test_the_room_of_tasks_never_imports_torch():
    import subprocess
    import sys

    code = "import sys, interp.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
