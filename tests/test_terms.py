"""Floor 0: the words keep their promises (round trips, refusals, hashes)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from interp.terms import (
    AXES,
    KINDS,
    SMALL_AXES,
    CapabilityError,
    Check,
    Edit,
    InterpError,
    LabelledInputs,
    Method,
    ModelRef,
    PromptPairs,
    RefusedError,
    Site,
    TaskError,
    TaskRef,
    Texts,
    TooLargeError,
    UsageError,
    check_dataset,
    near_misses,
    snake_case,
    task_from_json,
    task_to_json,
    unknown_name,
)

small = st.integers(0, 99)
word = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)


@st.composite
def sites(draw) -> Site:
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    position = st.one_of(
        st.none(), st.integers(-9, 99), st.lists(small, min_size=2, max_size=4).map(tuple), word
    )
    maybe = st.one_of(st.none(), small)
    return Site(
        kind.name,
        layer=draw(maybe) if kind.per_layer else None,
        head=draw(maybe) if kind.head_axis else None,
        neuron=draw(maybe) if kind.name == "mlp_post" else None,
        feature=draw(maybe) if kind.name == "feature" else None,
        key=draw(maybe) if kind.name == "pattern" else None,
        position=draw(position),
        path=draw(word) if kind.name == "module" else None,
    )


@st.composite
def prompt_pairs(draw) -> PromptPairs:
    n = draw(st.integers(1, 4))
    clean, corrupt, right, wrong = [], [], [], []
    for _ in range(n):
        length = draw(st.integers(2, 8))
        row = draw(st.lists(small, min_size=length, max_size=length))
        other = list(row)
        place = draw(st.integers(0, length - 1))
        other[place] = row[place] + 1
        clean.append(row)
        corrupt.append(other)
        right.append(draw(st.sets(small, min_size=1, max_size=3)))
        wrong.append(draw(st.sets(st.integers(100, 199), max_size=3)))
    return PromptPairs(
        clean,
        corrupt,
        [sorted(r) for r in right],
        [sorted(w) for w in wrong],
        slots={"start": (0,) * n, "both": ((0, 1),) * n},
        template=tuple(f"t{i % 2}" for i in range(n)),
        clean_text=tuple(tuple(f"«{t}»" for t in row) for row in clean),
        answer_text={5: "five\n</script>", 6: ""},
    )


# ------------------------------------------------------------------------------------------ sites


@given(sites())
def test_a_site_reads_back_from_its_text_and_from_its_json(site):
    assert Site.parse(str(site)) == site
    assert Site.from_json(json.loads(json.dumps(site.to_json()))) == site
    assert hash(Site.from_json(site.to_json())) == hash(site)


@given(sites())
def test_the_whole_site_selects_nothing_and_is_its_own_whole(site):
    whole = site.whole
    assert (whole.head, whole.position, whole.key, whole.neuron) == (None,) * 4
    assert whole.whole == whole


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"kind": "resid_prr"}, "resid_pre"),
        ({"kind": "resid_pre", "head": 1}, "no head"),
        ({"kind": "embed", "layer": 0}, "no layer"),
        ({"kind": "z", "key": 0}, "no key"),
        ({"kind": "module"}, "path"),
    ],
)
def test_a_site_that_cannot_be_is_refused_in_a_sentence(fields, phrase):
    with pytest.raises(UsageError, match=phrase):
        Site(**fields)


@pytest.mark.parametrize("text", ["", "z Q3", "z L3 L", "resid_pre @", "nowhere L1"])
def test_a_text_that_names_no_site_is_refused(text):
    with pytest.raises(UsageError):
        Site.parse(text)


# ------------------------------------------------------------------------------------------ edits


def test_edits_are_equal_exactly_when_they_do_the_same():
    site = Site("z", layer=1, head=0)
    value = np.arange(4.0)
    assert Edit(site, value) == Edit(site, value.copy())
    assert len({Edit(site), Edit(site, "source"), Edit(site, "zero")}) == 2
    assert Edit(site, value) != Edit(site, value + 1e-12)
    assert Edit(site, value) != Edit(site, value.astype(np.float32))
    assert Edit(site, value) != Edit(site, value, mode="add")
    assert Edit(site) != Edit(site, reader=Site("q", layer=2, head=0))


def test_a_tensor_and_an_array_of_the_same_numbers_are_the_same_edit():
    torch = pytest.importorskip("torch", reason="the edit's value is a tensor here")
    site = Site("resid_pre", layer=0)
    assert Edit(site, torch.arange(3).double()) == Edit(site, np.arange(3.0))


@pytest.mark.parametrize("fields", [{"with_": "clean"}, {"mode": "multiply"}])
def test_an_unknown_word_in_an_edit_is_refused(fields):
    with pytest.raises(UsageError, match="wanted"):
        Edit(Site("resid_pre", layer=0), **fields)


# ------------------------------------------------------------------------------------------ tasks


@given(prompt_pairs())
def test_prompt_pairs_survive_json_with_their_hash(pairs):
    back = task_from_json(json.loads(json.dumps(task_to_json(pairs))))
    assert back == pairs
    assert back.hash() == pairs.hash()


@given(prompt_pairs())
def test_swapping_twice_gives_the_pairs_back_and_swapping_once_does_not(pairs):
    assert pairs.swapped().swapped().hash() == pairs.hash()
    assert pairs.swapped().hash() != pairs.hash()
    assert (pairs.swapped().first_difference() == pairs.first_difference()).all()


@given(prompt_pairs())
def test_buckets_hold_every_row_once_and_only_equal_lengths(pairs):
    buckets = pairs.buckets()
    assert sorted(i for rows in buckets.values() for i in rows) == list(range(len(pairs)))
    assert all(len(pairs.clean[i]) == length for length, rows in buckets.items() for i in rows)
    assert pairs.aligned() == (len(buckets) == 1)


@given(prompt_pairs(), st.randoms())
def test_selecting_rows_keeps_every_column_together(pairs, random):
    rows = [random.randrange(len(pairs)) for _ in range(3)]
    chosen = pairs.select(rows)
    for i, row in enumerate(rows):
        assert chosen.clean[i] == pairs.clean[row]
        assert chosen.right[i] == pairs.right[row]
        assert chosen.slots["both"][i] == pairs.slots["both"][row]
        assert chosen.template[i] == pairs.template[row]
    assert chosen.ref is None


GOOD = {"clean": [[1, 2, 3]], "corrupt": [[1, 5, 3]], "right": [[7]], "wrong": [[8]]}


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"corrupt": [[1, 2, 3]]}, "same tokens"),
        ({"corrupt": [[1, 5]]}, "span map"),
        ({"corrupt": [[]]}, "empty"),
        ({"right": [[]]}, "no right answer"),
        ({"wrong": [[7]]}, "both the right and the wrong"),
        ({"slots": {"end": (3,)}}, "outside the prompt"),
        ({"right": [[7], [7]]}, "2 rows where clean has 1"),
        ({"clean": [], "corrupt": [], "right": [], "wrong": []}, "no prompt pair"),
    ],
)
def test_a_bad_pair_is_named_with_its_reason(change, phrase):
    with pytest.raises(TaskError, match=phrase):
        PromptPairs(**{**GOOD, **change})


def test_a_bad_row_is_named_with_its_number():
    with pytest.raises(TaskError, match="row 2: ") as caught:
        PromptPairs.from_tokens([[1, 2], [1, 2], [3, 4]], [[1, 3], [1, 2], [3, 5]], [7, 7, 7])
    assert caught.value.rows == ((2, caught.value.rows[0][1]),)


def test_unequal_lengths_pass_with_a_span_map():
    pairs = PromptPairs([[1, 2, 3]], [[1, 3]], [[7]], span_map=((((1, 3), (1, 2)),),))
    assert pairs.lengths == (3,)


def test_what_is_only_a_label_does_not_change_the_hash_and_what_is_measured_does():
    pairs = PromptPairs(**GOOD)
    assert PromptPairs(**GOOD, name="other", answer_text={7: "x"}).hash() == pairs.hash()
    assert PromptPairs(**{**GOOD, "right": [[9]]}).hash() != pairs.hash()
    assert PromptPairs(**GOOD, slots={"s": (1,)}).hash() != pairs.hash()


class Letters:
    """A tokenizer of single letters; a capital is two tokens."""

    default_bos, bos_id = True, 0

    def encode(self, text, *, bos=None):
        ids = [i for c in text for i in ([1, ord(c.lower())] if c.isupper() else [ord(c)])]
        return [0, *ids] if (self.default_bos if bos is None else bos) else ids

    def decode(self, ids):
        return "".join(self.texts(ids))

    def texts(self, ids):
        return ["<s>" if i == 0 else "^" if i == 1 else chr(i) for i in ids]


def letters(n_ctx=10):
    return SimpleNamespace(tokenizer=Letters(), shape=SimpleNamespace(n_ctx=n_ctx))


def test_texts_become_tokens_with_the_bos_shown_and_answers_without():
    pairs = PromptPairs.from_text("ab", "ac", "x", "y", model=letters())
    assert pairs.clean == ((0, 97, 98),) and pairs.bos
    assert pairs.clean_text == (("<s>", "a", "b"),)
    assert pairs.right == ((120,),) and pairs.answer_text[120] == "x"
    assert PromptPairs.from_text("ab", "ac", "x", "y", model=letters(), bos=False).clean == (
        (97, 98),
    )


@pytest.mark.parametrize(
    ("columns", "phrase"),
    [
        ((["ab"], ["ac"], ["X"], ["y"]), r"2 tokens \(\^ \| x\)"),
        ((["ab"], ["abc"], ["x"], ["y"]), "span map"),
        ((["a" * 12], ["b" * 12], ["x"], ["y"]), "context holds 10"),
        ((["ab", "cd"], ["ac"], ["x"], ["y"]), "differ in length"),
        ((["ab"], ["ac"], [""], ["y"]), "no tokens"),
    ],
)
def test_texts_that_cannot_be_used_say_why(columns, phrase):
    with pytest.raises(TaskError, match=phrase):
        PromptPairs.from_text(*columns, model=letters())


def test_bad_rows_are_left_out_only_when_asked():
    columns = (["ab", "ab", "cd"], ["ac", "ab", "ce"], ["x", "x", "x"], ["y", "y", "y"])
    with pytest.raises(TaskError, match="row 2"):
        PromptPairs.from_text(*columns, model=letters())
    kept = PromptPairs.from_text(*columns, model=letters(), skip_bad=True, template=("a", "b", "c"))
    assert len(kept) == 2 and kept.template == ("a", "c")


def test_a_span_answer_may_be_several_tokens():
    pairs = PromptPairs.from_text("ab", "ac", "X", "y", model=letters(), answer_form="span")
    assert pairs.right == ((1, 120),)


def test_a_model_without_a_tokenizer_sends_one_to_token_ids():
    with pytest.raises(CapabilityError, match="from_tokens"):
        PromptPairs.from_text("a", "b", "c", "d", model=SimpleNamespace(tokenizer=None))


@given(st.lists(st.lists(small, min_size=1, max_size=5), min_size=1, max_size=4))
def test_texts_survive_json(rows):
    texts = Texts(rows, answer_mask=tuple(tuple(t % 2 for t in row) for row in rows))
    assert task_from_json(task_to_json(texts)) == texts
    assert task_from_json(task_to_json(texts)).hash() == texts.hash()


def test_labelled_inputs_survive_json_with_their_dtype():
    task = LabelledInputs(np.random.rand(3, 2).astype(np.float32), [0, 1, 0], label_text={0: "a"})
    back = task_from_json(json.loads(json.dumps(task_to_json(task))))
    assert back.hash() == task.hash() and back.inputs.dtype == np.float32
    assert LabelledInputs(task.inputs + 1, task.labels).hash() != task.hash()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Texts(()),
        lambda: Texts(((),)),
        lambda: Texts(((1, 2),), answer_mask=((1,),)),
        lambda: LabelledInputs(np.zeros((2, 3)), [0]),
        lambda: LabelledInputs(np.zeros((0, 3)), []),
        lambda: task_from_json({"type": "Recipe"}),
    ],
)
def test_a_task_of_nothing_or_of_odd_columns_is_refused(make):
    with pytest.raises(TaskError):
        make()


# ------------------------------------------------------------------------------------------- refs


@given(word, st.dictionaries(word, st.one_of(small, st.booleans(), word), max_size=3))
def test_a_task_ref_reads_back_from_its_text(name, knobs):
    knobs = {k: v for k, v in knobs.items() if v not in ("true", "false") or isinstance(v, bool)}
    ref = TaskRef(name, knobs)
    assert TaskRef.parse(str(ref)) == ref


def test_a_task_ref_may_be_a_path_with_knobs():
    assert TaskRef.parse("data/pairs.jsonl") == TaskRef("data/pairs.jsonl")
    ref = TaskRef.parse("data/pairs.jsonl::n=3")
    assert ref == TaskRef("data/pairs.jsonl", {"n": 3}) and TaskRef.parse(str(ref)) == ref


def test_a_knob_without_a_value_is_refused():
    with pytest.raises(UsageError, match="key=value"):
        TaskRef.parse("ioi:n")


# ---------------------------------------------------------------------------------------- methods


class ShadeOfGrey(Method):
    """A method that measures nothing much."""

    needs = ("resid_pre",)
    depth: int = 3
    """How deep."""
    other: ModelRef | None = None
    """Another model."""

    def measure(self, model, task: PromptPairs | None, context):
        return xr.Dataset()


def test_a_method_is_its_fields():
    spec = ShadeOfGrey(depth=4, other="zoo:ioi")
    assert ShadeOfGrey(**spec.model_dump(mode="json")) == spec
    assert ShadeOfGrey.key() == "shade_of_grey"
    assert ShadeOfGrey.accepts() == ("PromptPairs", "none")
    schema = ShadeOfGrey.model_json_schema()["properties"]
    assert schema["depth"]["description"] == "How deep."
    assert "'ref': 'model'" in str(schema["other"])


def test_a_method_takes_no_field_it_does_not_have_and_cannot_be_changed():
    with pytest.raises(ValueError, match="dept"):
        ShadeOfGrey(dept=1)
    with pytest.raises(ValueError, match="frozen"):
        ShadeOfGrey().depth = 5


@pytest.mark.parametrize(
    ("name", "key"),
    [("ActivationPatching", "activation_patching"), ("EAPIG", "eapig"), ("LRPRule", "lrp_rule")],
)
def test_registry_keys_are_snake_case(name, key):
    assert snake_case(name) == key


# ---------------------------------------------------------------------------- checks, axes, errors


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"value": 1e-6, "tolerance": 1e-5}, True),
        ({"value": 1e-4, "tolerance": 1e-5}, False),
        ({"value": 0.9, "tolerance": 0.8, "at_least": True}, True),
        ({"value": 0.7, "tolerance": 0.8, "at_least": True}, False),
        ({"value": math.nan, "tolerance": 1.0}, False),
        ({"value": math.nan, "tolerance": 1.0, "at_least": True}, False),
        ({"value": math.nan}, True),
    ],
)
def test_a_check_holds_its_value_against_its_tolerance(fields, passed):
    check = Check("c", "a check", **fields)
    assert check.passed is passed
    assert json.loads(json.dumps(check.to_json(), allow_nan=False))["passed"] is passed


@given(st.floats(allow_infinity=False), st.floats(0, 1), st.booleans())
def test_a_check_survives_json(value, tolerance, at_least):
    check = Check("c", "a check", value, tolerance, at_least, "note")
    assert repr(Check.from_json(check.to_json())) == repr(check)


def _variable(dims, **attrs):
    attrs = {"units": "1", "long_name": "x", "signed": 1, **attrs}
    return xr.DataArray(np.zeros((1,) * len(dims)), dims=dims, attrs=attrs).to_dataset(name="x")


def test_a_dataset_on_the_list_passes_and_one_off_it_does_not():
    check_dataset(_variable(("layer", "position", "top")))
    check_dataset(_variable(("layer", "voxel")), small={"voxel": "a voxel"})
    with pytest.raises(AssertionError, match="voxel"):
        check_dataset(_variable(("layer", "voxel")))
    with pytest.raises(AssertionError, match="signed"):
        check_dataset(_variable(("layer",), signed=2))
    bare = _variable(("layer",))
    del bare["x"].attrs["units"]
    with pytest.raises(AssertionError, match="units"):
        check_dataset(bare)


def test_no_axis_is_on_both_lists():
    assert not set(AXES) & set(SMALL_AXES)
    assert not {"class", "lambda", "unit"} & {*AXES, *SMALL_AXES}


def test_errors_carry_the_exit_code_the_command_line_returns():
    codes = {InterpError: 1, UsageError: 2, TaskError: 2, RefusedError: 4, TooLargeError: 4}
    assert {kind: kind("x").exit_code for kind in codes} == codes
    assert str(UsageError("No.", remedy="Yes.")) == "No. Yes."


def test_a_wrong_name_gets_its_near_misses_or_the_list():
    assert near_misses("actvation_patching", ["path_patching", "activation_patching"])[0] == (
        "activation_patching"
    )
    assert "Did you mean 'ioi'" in str(unknown_name("task", "ioy", ["ioi", "addition"]))
    assert "Known: ioi" in str(unknown_name("task", "zzzz", ["ioi"]))


def test_the_words_cost_no_tensor_library():
    code = "import sys, interp.terms; print([m for m in ('torch', 'xarray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
