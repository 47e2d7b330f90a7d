"""run: refs in, a checked and stored result out; nothing finished is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.run import LocalContext, Shelf, parse_bytes, run
from interp.store import Store, spec_hash
from interp.terms import (
    CancelledError,
    CapabilityError,
    Check,
    DiskFullError,
    LabelledInputs,
    Method,
    ModelRef,
    PromptPairs,
    ResultRef,
    TaskError,
    Texts,
    UsageError,
    task_to_json,
)
from tests.jobs.toy import WORDS, Toy, ToyModel, install

PAIRS = PromptPairs.from_tokens([[0, 1, 10], [0, 9, 10]], [[0, 9, 10], [0, 1, 10]], [1, 9], [9, 1])


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    import interp.methods

    monkeypatch.setattr(interp.methods, "METHODS", dict(interp.methods.METHODS))
    install()


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


class CancelAt(LocalContext):
    """A context whose person cancels after so many steps."""

    def __init__(self, step: int, **options):
        super().__init__(**options)
        self.step = step

    def advance(self, done, total):
        if done >= self.step:
            self.cancel()
        super().advance(done, total)


# -- the page ----------------------------------------------------------------------------------


def test_run_is_the_function_also_after_its_room_was_imported():
    import importlib

    importlib.import_module("interp.run")
    assert interp.run is run and callable(interp.run)
    from interp import run as named

    assert named is run


def test_importing_the_page_and_what_web_processes_use_brings_no_tensor_library():
    code = (
        "import sys, interp; interp.Queue, interp.Store, interp.Result, interp.figures_of,"
        "interp.fields_of, interp.start_worker, interp.load_result, interp.run; "
        "heavy = {'torch', 'transformers', 'transformer_lens', 'nnsight'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_public_name_is_there():
    missing = [name for name in interp.PAGE if not hasattr(interp, name)]
    assert not missing and len(interp.PAGE) <= 40
    with pytest.raises(AttributeError, match="no 'nonsense'"):
        _ = interp.nonsense


# -- what a result says of itself --------------------------------------------------------------


def test_provenance_says_where_the_numbers_come_from(store):
    result = run(Toy(scale=2.0, seed=5), ToyModel(), PAIRS, store=store, memory="1GiB")
    facts = result.provenance
    assert facts["model_id"] == "zoo:toy" and facts["weight_hash"] == ToyModel().weight_hash
    assert facts["task_hash"] == PAIRS.hash() and facts["task_size"] == 2
    assert facts["seed"] == 5 and facts["knobs"] == ["scale", "seed"]
    assert (facts["backend"], facts["device"], facts["dtype"]) == ("torch_module", "cpu", "float32")
    assert facts["partition"] == [1, 1, 1, 1] and facts["memory_limit_bytes"] == 2**30
    assert facts["wall_time_s"] >= 0 and facts["peak_memory_bytes"] > 10**7
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["method_title"] == "Toy sweep" and facts["spec_hash"] == result.spec_hash
    if (Path(interp.__file__).parents[1] / ".git").exists():
        assert len(facts["git_revision"]) == 40
    assert json.loads(json.dumps(facts)) == facts


def test_the_models_checks_stand_before_the_methods():
    result = run(Toy(), ToyModel(), PAIRS)
    assert [c.name for c in result.checks] == ["logits", "finite"] and result.passed


def test_a_failed_check_of_the_model_turns_the_result_amber():
    model = ToyModel()
    model.checks = (Check("logits", "logits", 1.0, 1e-5),)
    assert not run(Toy(), model, PAIRS).passed


def test_tokens_are_kept_raw_for_labels():
    result = run(Toy(), ToyModel(), PAIRS)
    assert result.tokens["clean"] == [["<s>", " Mary", " the"], ["<s>", " John", " the"]]
    assert result.tokens["answers"] == {1: " Mary", 9: " John"}
    bare = ToyModel()
    bare.tokenizer = None
    assert run(Toy(), bare, PAIRS).tokens["clean"][0] == ["0", "1", "10"]
    texts = Texts(((0, 2),))
    assert run(Toy(), ToyModel(), texts).tokens == {"clean": [[WORDS[0], WORDS[2]]]}
    assert run(Toy(), ToyModel()).tokens is None


def test_a_variable_without_units_is_our_mistake(monkeypatch):
    monkeypatch.setattr(Toy, "measure", lambda *_: xr.Dataset({"x": ("layer", [1.0])}))
    with pytest.raises(AssertionError, match="units"):
        run(Toy(), ToyModel(), PAIRS)


# -- the same run twice ------------------------------------------------------------------------


def test_the_same_run_asked_twice_is_found_by_its_hash(store):
    first = run(Toy(), ToyModel(), PAIRS, store=store)
    second = run(Toy(), ToyModel("elsewhere:"), PAIRS, store=store)
    assert first.run_id and second.run_id != first.run_id  # other weights: another run
    again = run(Toy(), ToyModel(), PAIRS, store=store)
    assert again.run_id == first.run_id and again.provenance["found_in_store"]
    assert "found_in_store" not in first.provenance
    fresh = run(Toy(), ToyModel(), PAIRS, store=store, fresh=True)
    assert fresh.run_id not in (first.run_id, second.run_id)
    np.testing.assert_array_equal(fresh.data["effect"], first.data["effect"])


def test_a_damaged_run_is_measured_again(store):
    first = run(Toy(), ToyModel(), PAIRS, store=store)
    (store.path(first.run_id) / "data.nc").write_bytes(b"x")
    again = run(Toy(), ToyModel(), PAIRS, store=store)
    assert again.run_id != first.run_id and "found_in_store" not in again.provenance


def test_what_changes_the_numbers_changes_the_hash_and_names_do_not():
    base = run(Toy(), ToyModel(), PAIRS)
    named = PromptPairs(**{**vars(PAIRS), "name": "another name", "ref": "ioi:n=2"})
    assert run(Toy(), ToyModel(), named).spec_hash == base.spec_hash
    assert run(Toy(scale=2.0), ToyModel(), PAIRS).spec_hash != base.spec_hash
    assert run(Toy(), ToyModel(), PAIRS.swapped()).spec_hash != base.spec_hash
    assert run(Toy(), ToyModel()).spec_hash != base.spec_hash
    wide = ToyModel()
    wide.dtype = "torch.bfloat16"
    result = run(Toy(), wide, PAIRS)
    assert result.spec_hash != base.spec_hash and result.spec["model"]["dtype"] == "bfloat16"


def test_a_task_without_a_name_travels_inside_the_spec(store):
    result = run(Toy(), ToyModel(), PAIRS, store=store)
    assert result.spec["task"]["inline"] == task_to_json(PAIRS)
    stored = store.get(result.run_id).spec
    assert stored == result.spec and spec_hash(stored) == result.spec_hash


class Other(Toy):
    """Names another model and a stored result."""

    other: ModelRef = ModelRef("zoo:b")
    source: ResultRef | None = None


def test_models_and_results_that_a_field_names_count_by_their_hash(store):
    first = run(Toy(), ToyModel(), PAIRS, store=store)

    def measured(length):
        shelf = Shelf(load=lambda ref, **_: ToyModel(ref * length))
        context = LocalContext(store=store, shelf=shelf)
        return run(Other(source=first.run_id), ToyModel(), PAIRS, context=context)

    a, b = measured(1), measured(2)
    assert a.spec["models"] == {"zoo:b": ToyModel("zoo:b").weight_hash}
    assert a.spec["results"] == {first.run_id: first.spec_hash}
    assert a.spec_hash != b.spec_hash


# -- seeds -------------------------------------------------------------------------------------


def test_a_seed_given_to_run_is_the_methods_seed():
    assert run(Toy(), ToyModel(), seed=3).spec_hash == run(Toy(seed=3), ToyModel()).spec_hash


def test_a_run_leaves_the_generators_as_they_were():
    class Draws(Method):
        """Uses the global generators."""

        def measure(self, model: object, task: None, context: object) -> xr.Dataset:
            values = [torch.rand(1).item(), np.random.rand(), __import__("random").random()]
            return xr.Dataset(
                {"x": (("draw",), values, {"units": "1", "long_name": "draws", "signed": 0})}
            )

    torch.manual_seed(9)
    np.random.seed(9)
    expected = (torch.rand(1).item(), np.random.rand())
    torch.manual_seed(9)
    np.random.seed(9)
    a = run(Draws(), ToyModel(), seed=1).data["x"].values
    assert (torch.rand(1).item(), np.random.rand()) == expected
    np.testing.assert_array_equal(a, run(Draws(), ToyModel(), seed=1).data["x"].values)
    assert (a != run(Draws(), ToyModel(), seed=2).data["x"].values).all()


# -- cancel and resume -------------------------------------------------------------------------


def test_a_cancelled_run_goes_on_from_its_chunks_and_ends_bit_identical(store, monkeypatch):
    unbroken = run(Toy(rows=6), ToyModel(), PAIRS)
    with pytest.raises(CancelledError) as caught:
        run(Toy(rows=6), ToyModel(), PAIRS, store=store, context=CancelAt(3))
    assert caught.value.exit_code == 130 and store.list() == []
    partial = caught.value.partial
    assert np.isfinite(partial.data["effect"].values).all(axis=1).sum() == 3
    assert [c.name for c in partial.failed_checks] == ["complete"] and not partial.passed
    drawn = []
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(1) or real(*a, **k))
    resumed = run(Toy(rows=6), ToyModel(), PAIRS, store=store)
    assert len(drawn) == 3
    assert resumed.data["effect"].values.tobytes() == unbroken.data["effect"].values.tobytes()
    assert not list((store.root / "chunks").iterdir())


def test_without_resume_a_run_begins_anew(store, monkeypatch):
    with pytest.raises(CancelledError):
        run(Toy(rows=6), ToyModel(), PAIRS, store=store, context=CancelAt(3))
    drawn = []
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(1) or real(*a, **k))
    run(Toy(rows=6), ToyModel(), PAIRS, store=store, resume=False)
    assert len(drawn) == 6


def test_what_a_method_noted_before_the_interruption_is_still_said(store):
    with pytest.raises(CancelledError):
        run(Toy(rows=6), ToyModel(), PAIRS, store=store, context=CancelAt(3))
    chunks = store.chunks(run(Toy(rows=6), ToyModel(), PAIRS).spec_hash)
    assert chunks.facts()["computed"] == 2
    chunks.close()


CTRL_C = textwrap.dedent("""
    import sys
    sys.path.insert(0, "tests/jobs")
    import interp
    from interp.terms import CancelledError
    from toy import Toy, ToyModel
    print("ready", flush=True)
    try:
        interp.run(Toy(rows=500, pause=0.05), ToyModel(), store=sys.argv[1])
    except CancelledError as error:
        print("cancelled", float(error.partial.data["effect"].notnull().sum()), flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("killed", flush=True)
        sys.exit(99)
""")


def test_one_ctrl_c_keeps_what_is_finished_and_exits_130(store):
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C, str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    assert process.stdout.readline() == "ready\n"
    while len(list(store.root.glob("chunks/*/row-*"))) < 3:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.startswith("cancelled")
    assert float(said.split()[1]) >= 9
    assert len(list(store.root.glob("chunks/*/row-*"))) >= 3


def test_a_second_ctrl_c_stops_at_once(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    context = LocalContext()
    from interp.run import interruptible

    with pytest.raises(KeyboardInterrupt), interruptible(context):
        os.kill(os.getpid(), signal.SIGINT)
        assert context.cancelled()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_bar_is_drawn_only_on_a_terminal(monkeypatch, capfd):
    run(Toy(), ToyModel(), progress=True)
    assert capfd.readouterr() == ("", "")
    assert LocalContext(progress=True)._bar is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert LocalContext(progress=True)._bar is not None
    assert LocalContext(progress=False)._bar is None


def test_a_full_disk_hands_the_result_back_and_keeps_the_chunks(store, monkeypatch):
    def full(self, record):
        raise DiskFullError(needed=5, free=1)

    monkeypatch.setattr(Store, "add", full)
    with pytest.raises(DiskFullError) as caught:
        run(Toy(), ToyModel(), PAIRS, store=store)
    assert caught.value.result.data["effect"].shape == (4, 3)
    assert len(list(store.root.glob("chunks/*/row-*"))) == 4


# -- what does not fit -------------------------------------------------------------------------


class Needy(Toy):
    """Needs what the toy lacks."""

    site: str = "resid_mid"

    def needed(self):
        return (self.site,)


def test_a_missing_site_is_told_with_its_reason_and_a_site_that_works():
    with pytest.raises(CapabilityError) as caught:
        run(Needy(), ToyModel(), PAIRS)
    text = str(caught.value)
    assert "resid_mid: the toy has no such site" in text
    assert "'resid_pre' or 'resid_post' works" in text and caught.value.exit_code == 4


def test_a_missing_feature_is_told_with_a_model_that_has_it():
    with pytest.raises(CapabilityError, match="zoo:ioi"):
        run(Needy(site="pattern"), ToyModel(), PAIRS)
    with pytest.raises(CapabilityError, match="does not know of it"):
        run(Needy(site="levitation"), ToyModel(), PAIRS)


def test_a_task_of_another_kind_is_told_with_one_that_fits():
    images = LabelledInputs(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(CapabilityError) as caught:
        run(Toy(), ToyModel(), images)
    assert "labelled inputs was given" in str(caught.value) and "ioi" in str(caught.value)


def test_tokens_the_model_does_not_have_are_told_by_row():
    alien = PromptPairs.from_tokens([[1, 2], [1, 99]], [[1, 3], [1, 3]], [1, 1])
    with pytest.raises(TaskError, match="row 2: token 99") as caught:
        run(Toy(), ToyModel(), alien)
    assert caught.value.rows == ((2, "token 99 of its clean prompt is not among the model's 11"),)
    long = PromptPairs.from_tokens([[1] * 17], [[2] * 17], [1])
    with pytest.raises(TaskError, match="17 tokens and the model's context holds 16"):
        run(Toy(), ToyModel(), long)
    with pytest.raises(TaskError, match="answer 50"):
        run(Toy(), ToyModel(), PromptPairs.from_tokens([[1]], [[2]], [50]))


@pytest.mark.parametrize(
    ("method", "match"),
    [("tyo", "no method 'tyo'.*Did you mean 'toy'"), (3, "A int was given"), (dict, "A type")],
)
def test_no_method_is_told_with_near_misses(method, match):
    with pytest.raises(UsageError, match=match):
        run(method, ToyModel(), PAIRS)


def test_knobs_that_do_not_fit_are_told_by_name():
    from interp.run import method_of

    with pytest.raises(UsageError, match="'rowz'.*Did you mean 'rows'"):
        method_of("toy", {"rowz": 1})
    with pytest.raises(UsageError, match="rows was given as 0"):
        method_of("toy", {"rows": 0})
    assert method_of("toy", {"rows": 2}) == Toy(rows=2) == method_of(Toy(), {"rows": 2})
    assert method_of(Toy) == Toy()


def test_a_model_that_is_none_is_told_what_to_do():
    with pytest.raises(UsageError, match="interp.load_model"):
        run(Toy(), torch.nn.Linear(2, 2), PAIRS)


def test_memory_is_read_as_people_write_it():
    assert parse_bytes("8GiB") == 8 * 2**30 and parse_bytes("1.5 MB") == 1_500_000
    assert parse_bytes(10) == 10 and parse_bytes("10k") == 10_000
    for wrong in ("8 gigs", "-1", "", 0, "0"):
        with pytest.raises(UsageError):
            parse_bytes(wrong)


# -- told again --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["", "'\"`$(x)\n", "\\", "</script>"])
@pytest.mark.parametrize("task", [PAIRS, None], ids=["pairs", "none"])
def test_running_the_generated_python_reproduces_the_spec_hash(monkeypatch, words, task):
    result = run(Toy(rows=2, words=words, scale=0.1), ToyModel(), task)
    monkeypatch.setattr(interp, "load_model", lambda ref, **_: ToyModel(ref))
    scope: dict = {}
    exec(result.to_python(), scope)  # noqa: S102
    assert scope["result"].spec_hash == result.spec_hash
    np.testing.assert_array_equal(scope["result"].data["effect"], result.data["effect"])


def test_a_task_written_as_json_is_read_back_as_the_same_task(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task_to_json(PAIRS)))
    by_file = run(Toy(), ToyModel(), str(path))
    assert by_file.spec_hash == run(Toy(), ToyModel(), PAIRS).spec_hash
    assert run(Toy(), ToyModel(), task_to_json(PAIRS)).spec_hash == by_file.spec_hash


# -- the shelf ---------------------------------------------------------------------------------


def test_the_shelf_opens_a_model_once_and_puts_the_oldest_away():
    opened = []

    def load(ref, **_):
        opened.append(ref)
        return ToyModel(ref)

    shelf = Shelf(budget=2 * 4000, load=load)
    for ref in ("a", "b", "a", "c", "a", "b"):
        assert shelf.get(ref).id == ref
    assert opened == ["a", "b", "c", "b"] and len(shelf) == 2
    shelf.get("b", dtype="float64")
    assert opened[-1] == "b" and len(opened) == 5


def test_a_folder_whose_weights_changed_is_opened_again(tmp_path):
    opened = []
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    shelf = Shelf(load=lambda ref, **_: opened.append(ref) or ToyModel(ref))
    shelf.get(str(folder))
    shelf.get(str(folder))
    (folder / "model.safetensors").write_bytes(b"22")
    shelf.get(str(folder))
    assert len(opened) == 2
