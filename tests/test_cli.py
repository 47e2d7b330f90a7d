"""The command line: every command, exit codes, one JSON document, no markup, no escapes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import interp.methods
from interp.cli import app
from interp.cli.knobs import method_from, pairs_of
from interp.cli.say import Voice, check_rows, visible
from interp.forms import fields_of
from interp.store import Store
from interp.terms import CancelledError, CapabilityError, InterpError, TaskError, UsageError
from tests.figures.arrays import HOSTILE
from tests.outward import BAD, GOOD, PromptLengths, result

ROOT = Path(__file__).parents[1]


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(interp.methods.METHODS, "prompt_lengths", PromptLengths)


@pytest.fixture(scope="session")
def ioi():
    from interp.models import load_model

    return load_model("zoo:ioi")


@pytest.fixture
def one_model(monkeypatch, ioi):
    """zoo:ioi is open already."""
    from interp import models

    real = models.load_model
    monkeypatch.setattr(
        models,
        "load_model",
        lambda source, **options: ioi if source == "zoo:ioi" else real(source, **options),
    )


def call(*words, **options):
    """Exit code, stdout, stderr of one command in this process."""
    done = CliRunner().invoke(app, [str(w) for w in words], **options)
    return done.exit_code, done.stdout, done.stderr


def document(text):
    """Stdout as exactly one JSON document."""
    body, end = json.JSONDecoder().raw_decode(text)
    assert text[end:].strip() == ""
    return body


def stored(root, **changes):
    """A stored result's id."""
    return Store(root).add(result(**changes).record)


# -- listing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("models", "zoo:ioi"),
        ("tasks", "ioi"),
        ("methods", "activation_patching"),
        ("metrics", "logit_diff"),
    ],
)
def test_lists_hold_what_there_is_for_people_and_for_programs(what, known):
    code, out, _ = call("list", what)
    assert code == 0 and known in out
    code, out, err = call("list", what, "--json")
    names = [row.get("ref") or row.get("name") for row in document(out)]
    assert code == 0 and known in names and err == ""


def test_a_method_added_in_a_test_gets_its_command(toy, one_model, store_root, tmp_path):
    assert "prompt_lengths" in call("list", "methods")[1]
    code, out, _ = call("run", "prompt_lengths", "--help")
    assert code == 0 and "--factor" in out and "a number above 0" not in out.split("Knobs")[0]
    assert "Every length is multiplied by this." in out and "How long is each prompt?" in out
    code, out, err = call(
        "run",
        "prompt-lengths",
        "--model",
        "zoo:ioi",
        "--task",
        "ioi:n=2,seed=3",
        "--factor",
        "2",
        "--out",
        tmp_path / "r",
        "--html",
        tmp_path / "r.html",
        "--json",
    )
    body = document(out)
    assert code == 0, err
    assert body["spec"]["fields"]["factor"] == 2 and body["passed"] is True
    assert (tmp_path / "r" / "data.nc").is_file() and (tmp_path / "r.html").is_file()
    assert [r.id for r in Store(store_root).list()] == [body["run_id"]]


def test_starting_is_fast_because_torch_stays_out():
    """Names of heavy libraries that a few commands import, in a fresh process."""
    code = (
        "import sys\nfrom interp.cli import app\nfrom typer.testing import CliRunner\n"
        "for words in (['--help'], ['list', 'models'], ['list', 'tasks'], ['runs', 'list'],\n"
        "              ['jobs', 'list'], ['jobs', '--help'], ['run', '--help']):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n"
        "print([m for m in ('torch', 'transformers', 'transformer_lens', 'nnsight', 'dash',\n"
        "                   'plotly', 'apps') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


# -- run ------------------------------------------------------------------------------------------


def test_the_same_run_is_found_again_and_fresh_measures_it_again(toy, one_model, store_root):
    words = ("run", "prompt_lengths", "--model", "zoo:ioi", "--task", "ioi:n=2", "--json")
    first, second = (document(call(*words)[1])["run_id"] for _ in range(2))
    assert first == second
    assert document(call(*words, "--fresh")[1])["run_id"] != first
    assert document(call(*words, "--no-store")[1])["run_id"] is None


def test_a_failed_check_gives_three_and_is_said(toy, one_model, store_root):
    words = ("run", "prompt_lengths", "--worry", "--model", "zoo:ioi", "--task", "ioi:n=2")
    code, out, _ = call(*words)
    assert code == 3 and "FAILED" in out and "on purpose" in out
    code, out, _ = call(*words, "--json")
    assert code == 3 and document(out)["passed"] is False


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run",), 2, "No method was given"),
        (("run", "activation_patchin"), 2, "'activation_patching'"),
        (("run", "activation_patching"), 2, "No model was given"),
        (("run", "activation_patching", "--sit", "z", "--model", "zoo:ioi"), 2, "'site'"),
        (("run", "activation_patching", "--site", "resid"), 2, "resid_pre"),
        (("run", "activation_patching", "--n-boot", "-1", "--model", "zoo:ioi"), 2, "0 to 100000"),
        (("run", "activation_patching", "stray", "--model", "zoo:ioi"), 2, "'stray'"),
        (("run", "activation_patching", "--site"), 2, "without a value"),
        (("run", "--site", "z", "activation_patching"), 2, "METHOD"),
        (("run", "activation_patching", "--model", "zoo:io", "--task", "ioi"), 2, "zoo:ioi"),
        (
            ("run", "activation_patching", "--model", "/no/such/folder", "--task", "ioi"),
            None,
            "/no/such/folder",
        ),
        (("run", "activation_patching", "--model", "zoo:ioi", "--task", "ioii"), 2, "'ioi'"),
        (("run", "activation_patching", "--model", "zoo:ioi", "--task", "ioi:m=3"), 2, "'m'"),
        (
            (
                "run",
                "activation_patching",
                "--model",
                "zoo:ioi",
                "--task",
                "ioi",
                "--memory",
                "lots",
            ),
            2,
            "lots",
        ),
        (("report", "/no/such/spec.yaml", "--out", "x"), 2, "no report spec"),
        (("runs", "show", "zzzz"), 2, "no run"),
        (("jobs", "show", "abcd"), 2, "No jobs"),
        (("bench", "patchin"), 2, "'patching'"),
        (("list", "models", "--models", "/no/such/folder"), 2, "no folder"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_bad_input_gets_a_sentence_and_its_exit_code(one_model, store_root, words, code, said):
    found, out, err = call(*words)
    assert found == code or (code is None and found in (1, 2, 4)), err
    assert said in err and "Traceback" not in out + err
    assert len(err) < 2500


def test_an_error_under_json_is_one_document_too(store_root):
    code, out, err = call("run", "activation_patchin", "--json")
    body = document(out)
    assert code == body["exit_code"] == 2 and "activation_patching" in body["remedy"]
    assert "activation_patchin" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InterpError("broken"), 1),
        (UsageError("wrong"), 2),
        (CapabilityError("not there"), 4),
        (TaskError("rows", rows=[(3, "why")]), 2),
        (CancelledError("stopped"), 130),
        (RuntimeError("a mistake of ours"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_ending_has_its_exit_code(
    toy, one_model, store_root, monkeypatch, error, code
):
    import importlib

    running = importlib.import_module("interp.run")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(running, "run", fail)
    found, out, err = call("run", "prompt_lengths", "--model", "zoo:ioi", "--task", "ioi:n=2")
    assert found == code and "Traceback" not in out + err
    if isinstance(error, RuntimeError):
        assert "a mistake of ours" in err
        assert "Traceback" in (store_root / "interp.log").read_text()
        assert (store_root / "interp.log").stat().st_mode & 0o777 == 0o600


def test_what_a_cancelled_run_had_done_is_saved(toy, one_model, store_root, tmp_path, monkeypatch):
    import importlib

    running = importlib.import_module("interp.run")
    error = CancelledError("stopped")
    error.partial = result()

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(running, "run", stop)
    code, _, err = call("run", "prompt_lengths", "--model", "zoo:ioi", "--out", tmp_path / "part")
    assert code == 130 and "partial result" in err
    assert (tmp_path / "part" / "data.nc").is_file()


@pytest.mark.parametrize(
    "note",
    [
        "it's",
        '"""',
        "$(rm -rf ~)",
        "a\nb",
        "--json",
        "-x",
        "[/]",
        "",
        "\u202e",
        "`id`",
        "a=b",
        "--",
        "null",
        "[1]",
    ],
)
def test_the_command_that_a_run_tells_gives_the_same_run(toy, one_model, store_root, note):
    from interp import run

    method = PromptLengths(note=note, factor=2)
    told = run(method, "zoo:ioi", "ioi:n=2", progress=False)
    words = shlex.split(told.to_command())
    assert words[0] == "interp"
    code, out, err = call(*words[1:], "--json")
    assert code == 0, err
    assert document(out)["spec_hash"] == told.spec_hash


def test_knobs_are_read_in_every_way_people_write_them():
    fields = fields_of(PromptLengths.model_json_schema())
    assert pairs_of(["--factor=2", "--worry", "--side", "clean"], fields) == {
        "--factor": "2",
        "--worry": "true",
        "--side": "clean",
    }
    assert pairs_of(["--no-worry"], fields) == {"--worry": "false"}
    assert pairs_of(["--worry", "no", "--factor", "-1"], fields)["--worry"] == "no"
    with pytest.raises(UsageError, match="twice"):
        pairs_of(["--factor", "1", "--factor", "2"], fields)


def test_underscores_and_dashes_are_one(toy):
    a = method_from("activation-patching", ["--keep_prompts", "false", "--with", "zero"])
    b = method_from("activation_patching", ["--no-keep-prompts", "--with_=zero"])
    assert a == b and a.with_ == "zero" and a.keep_prompts is False


# -- what is printed ------------------------------------------------------------------------------


def test_token_text_is_printed_as_it_is_and_no_escape_reaches_the_terminal(store_root):
    run_id = stored(store_root)
    for options in ({}, {"env": {"FORCE_COLOR": "1", "COLUMNS": "200"}}):
        code, out, err = call("runs", "show", run_id, **options)
        assert code == 0, err
        assert "16" in out and "<script" not in out
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
        assert "\x00" not in plain and "\u202e" not in plain and "\x1b" not in plain
    voice = Voice()
    runner = CliRunner()
    with runner.isolation() as streams:
        for text in (*HOSTILE, "\x1b[31mred", "\x07"):
            voice.line(text)
        printed = streams[0].getvalue().decode()
    assert "[/]" in printed and "[red]" in printed and "\\u001b[31mred" in printed
    assert "\x1b" not in printed and "\x07" not in printed


def test_what_is_visible_is_what_it_says():
    assert visible("a\x1b[0m\u202eb\n") == "a\\u001b[0m\\u202eb\n"


def test_no_colour_without_a_terminal_or_with_no_color(store_root):
    stored(store_root)
    assert "\x1b" not in call("runs", "list")[1]
    assert "\x1b[3" not in call("runs", "list", env={"FORCE_COLOR": "1", "NO_COLOR": "1"})[1]


def test_progress_and_remarks_stay_off_stdout_and_quiet_silences_them(toy, one_model, store_root):
    words = ("run", "prompt_lengths", "--model", "zoo:ioi", "--task", "ioi:n=2")
    code, out, err = call(*words)
    assert "kept" in err and "kept" not in out
    assert call(*words, "--quiet")[2] == ""


def test_the_trust_panel_names_value_and_bound():
    rows = check_rows([GOOD, BAD])
    assert [r[0] for r in rows] == ["passed", "FAILED"] and rows[1][3] == "≤ 0.0001"


# -- runs, jobs, report, doctor -------------------------------------------------------------------


def test_runs_are_listed_shown_compared_labelled_and_deleted(store_root, tmp_path):
    first = stored(store_root)
    second = stored(store_root, fields={"direction": "noising"}, checks=(BAD,))
    rows = document(call("runs", "list", "--json")[1])
    assert {r["id"] for r in rows} == {first, second}
    assert "FAILED" in call("runs", "list")[1]
    code, out, _ = call("runs", "show", first[:8], "--html", tmp_path / "r.html")
    assert code == 0 and "interp run activation_patching" in out and (tmp_path / "r.html").exists()
    assert call("runs", "show", second)[0] == 3
    code, out, _ = call("runs", "compare", first, second)
    assert code == 0 and "fields.direction" in out and "Every number both have is equal." in out
    assert document(call("runs", "compare", first, second, "--json")[1])["same"] is True
    assert call("runs", "tag", first, "keep", "[red]")[0] == 0
    assert [r["id"] for r in document(call("runs", "list", "--tag", "keep", "--json")[1])] == [
        first
    ]
    assert call("runs", "tag", first, "--remove", "keep")[0] == 0
    assert call("runs", "note", first, "a note")[0] == 0
    assert Store(store_root).row(first).note == "a note"
    code, _, err = call("runs", "delete", first, "--json")
    assert code == 2 and "--yes" in err and Store(store_root).row(first)
    assert document(call("runs", "delete", first[:8], "--yes", "--json")[1]) == {"deleted": [first]}
    assert [r.id for r in Store(store_root).list()] == [second]


def test_a_damaged_run_is_marked_and_the_others_open(store_root):
    good, bad = stored(store_root), stored(store_root, fields={"direction": "noising"})
    path = Store(store_root).path(bad) / "data.nc"
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    code, _, err = call("runs", "show", bad)
    assert code == 1 and "data.nc" in err and "expected" in err
    assert call("runs", "show", good)[0] == 0
    assert "DAMAGED" in call("runs", "list")[1]


def test_jobs_are_listed_shown_cancelled_and_resumed(store_root):
    from interp.jobs import Queue

    queue = Queue(Store(store_root))
    job_id = queue.submit(
        {
            "method": "activation_patching",
            "fields": {},
            "model": {"ref": "zoo:ioi"},
            "task": {"ref": "ioi:n=2"},
        }
    )
    rows = document(call("jobs", "list", "--json")[1])
    assert [(r["id"], r["state"]) for r in rows] == [(job_id, "queued")]
    assert "activation_patching · zoo:ioi" in call("jobs", "list")[1]
    assert document(call("jobs", "cancel", job_id[:6], "--json")[1])["state"] == "cancelled"
    assert document(call("jobs", "resume", job_id, "--json")[1])["state"] == "queued"
    assert document(call("jobs", "show", job_id, "--json")[1])["id"] == job_id


def test_a_report_says_what_became_of_each_run(toy, one_model, store_root, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "models": ["zoo:ioi", "zoo:nothing"],
                "tasks": ["ioi:n=2"],
                "methods": ["prompt_lengths"],
            }
        )
    )
    code, out, err = call("report", spec, "--out", tmp_path / "out", "--json")
    body = document(out)
    assert code == 0, err
    assert [c["state"] for c in body["cells"]] == ["done", "misfit"]
    assert Path(body["report"]).is_file()
    code, out, _ = call("report", spec, "--out", tmp_path / "out", "--resume")
    assert code == 0 and "found" in out and "zoo:nothing" in out
    assert call("report", spec, "--out", tmp_path / "out")[0] == 2
    spec.write_text(
        yaml.safe_dump(
            {
                "models": ["zoo:ioi"],
                "tasks": ["ioi:n=2"],
                "methods": [{"prompt_lengths": {"fault": "x"}}],
            }
        )
    )
    assert call("report", spec, "--out", tmp_path / "b")[0] == 1
    spec.write_text(
        yaml.safe_dump(
            {
                "models": ["zoo:ioi"],
                "tasks": ["ioi:n=2"],
                "methods": [{"prompt_lengths": {"worry": True}}],
            }
        )
    )
    assert call("report", spec, "--out", tmp_path / "c")[0] == 3
    spec.write_text(
        yaml.safe_dump(
            {"models": ["zoo:nothing"], "tasks": ["ioi:n=2"], "methods": ["prompt_lengths"]}
        )
    )
    assert call("report", spec, "--out", tmp_path / "d")[0] == 4


def test_the_doctor_tells_checks_capabilities_versions_and_drift():
    code, out, err = call("doctor", "--model", "zoo:ioi", "--json")
    body = document(out)
    assert code == 0, err
    assert {"checks", "capabilities", "versions"} <= set(body)
    code, out, _ = call("doctor", "--model", "zoo:ioi")
    assert code == 0 and "resid_pre" in out and "passed" in out
    code, out, _ = call("doctor", "--json")
    assert code == 0 and "torch" in document(out)["versions"]


# -- processes ------------------------------------------------------------------------------------


def test_the_workbench_gets_the_options_and_is_imported_nowhere(monkeypatch):
    from interp.cli import processes

    asked = []
    monkeypatch.setattr(processes, "call", lambda words, **_: asked.append(words) or 0)
    assert call("app", "--port", "0", "--no-browser")[0] == 0
    assert asked == [[sys.executable, "-m", "apps.workbench", "--port", "0", "--no-browser"]]
    source = "".join(p.read_text() for p in (ROOT / "interp" / "cli").glob("*.py"))
    assert not re.search(r"^\s*(import|from) (apps|benchmarks)", source, flags=re.M)


def test_a_request_to_end_reaches_the_process_that_was_started():
    inner = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7));"
        "print('up', flush=True); time.sleep(60)"
    )
    outer = (
        "import sys; from interp.cli.processes import call;"
        f"sys.exit(call([sys.executable, '-c', {inner!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(30) == 7


def test_benchmarks_are_listed_and_started_as_processes(monkeypatch):
    from interp.cli import processes

    assert "patching" in {b["name"] for b in document(call("bench", "--json")[1])}
    asked = []
    monkeypatch.setattr(processes, "call", lambda words, **_: asked.append(words) or 5)
    assert call("bench", "patching", "--quick")[0] == 5
    assert asked == [[sys.executable, "-m", "benchmarks.patching", "--quick"]]


def test_the_entry_point_and_the_module_are_the_command():
    for words in (
        [sys.executable, "-m", "interp"],
        [str(Path(sys.executable).with_name("interp"))],
    ):
        done = subprocess.run(
            [*words, "--version"], capture_output=True, text=True, cwd=ROOT, env=os.environ
        )
        assert (done.returncode, done.stdout[:7]) == (0, "interp "), done.stderr
