"""A result shows, saves and exports itself, and no text in it becomes code."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shlex
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
import xarray as xr

from interp.results import Result, load_result
from interp.terms import Check, UsageError
from tests.store.makers import NASTY, record

QUOTES = [
    "'",
    '"',
    '"""',
    "'''",
    "$(touch pwn)",
    "`touch pwn`",
    "; touch pwn",
    "a\nb",
    "\\",
    "--x",
    "-1",
    "",
    " ",
    "%s",
    "{x}",
    "\u202e",
    "\t",
    "é",
    "!!",
    "#",
    "&&",
    "|",
    "~",
    "*",
    "\\n'",
]


def make(**changes) -> Result:
    base = record()
    values = {
        "data": base.data,
        "spec": base.spec,
        "provenance": base.provenance,
        "checks": tuple(base.checks),
        "tokens": base.tokens,
        **changes,
    }
    return Result(**values)


def spec_with(**fields) -> dict:
    return {**record().spec, "fields": fields, "task": {"ref": "ioi:n=2,seed=1", "hash": "t"}}


class Tags(HTMLParser):
    """Every tag and every bit of text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


# -- display -----------------------------------------------------------------------------------


def test_the_html_is_static_and_no_text_in_it_becomes_a_tag():
    for text in NASTY:
        provenance = {"method_title": text, "model_id": text, "task_name": text}
        spec = {**record().spec, "model": {"ref": text, "weight_hash": "w"}}
        checks = [Check("c", text, 2.0, 1.0, note=text)]
        data = xr.Dataset(
            {"x": (("layer",), np.ones(2), {"long_name": text, "units": text, "signed": 1})}
        )
        page = Tags()
        page.feed(make(provenance=provenance, spec=spec, checks=checks, data=data)._repr_html_())
        assert page.tags <= {
            "div",
            "strong",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "details",
            "summary",
            "ul",
            "li",
        }
        assert text.strip() in page.text


def test_a_failed_check_stands_above_the_numbers_in_words():
    shown = make()._repr_html_()
    assert shown.index("Check failed: a bound") < shown.index("<table>")
    assert "Check failed" not in make(checks=record().checks[:1])._repr_html_()
    assert "FAILED" in repr(make()) and "1 of 2 pass" in repr(make())


def test_undefined_cells_are_counted():
    assert "1 undefined" in repr(make())


def test_the_stamp_names_method_model_task_seed_and_run():
    result = make(
        spec={**spec_with(direction="noising", metric="logit_diff"), "method": "m"},
        provenance={"seed": 3, "versions": {"interp": "0.1.0"}},
        run_id="abcdef0123",
    )
    assert result.stamp == (
        "m · zoo:toy@w · ioi:n=2,seed=1@t · noising · logit_diff · seed 3 · "
        "interp 0.1.0 · run abcdef01"
    )


# -- to disk -----------------------------------------------------------------------------------


def test_a_saved_result_loads_with_the_same_hash(tmp_path):
    wrote = make()
    read = load_result(wrote.save(tmp_path / "x"))
    assert read.spec_hash == wrote.spec_hash and read.path == tmp_path / "x"
    assert read.passed is False and [c.name for c in read.failed_checks] == ["bound"]
    with pytest.raises(UsageError):
        load_result(tmp_path / "nothing")


def test_csv_has_a_column_an_axis_and_a_row_a_cell(tmp_path):
    result = make(data=record().data[["effect", "number"]])
    path = result.to_csv(tmp_path / "x.csv")
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert list(rows[0]) == ["variable", "layer", "position", "value"]
    effects = [r for r in rows if r["variable"] == "effect"]
    assert len(effects) == 12 and len(rows) == 13
    assert effects[1]["value"] == "" and effects[0]["layer"] == "0"
    found = np.array([float(r["value"] or "nan") for r in effects], "f4").reshape(3, 4)
    np.testing.assert_array_equal(found, result.data["effect"].values)
    beside = json.loads((tmp_path / "x.json").read_text())
    assert beside["spec_hash"] == result.spec_hash
    assert beside["variables"]["effect"]["units"] == "logit"


def test_text_cells_that_a_spreadsheet_would_run_get_an_apostrophe_and_numbers_do_not(tmp_path):
    labels = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\n=x", "plain", " =1"]
    data = xr.Dataset({"=evil": (("metric",), -np.arange(1.0, 10.0))}, coords={"metric": labels})
    path = make(data=data).to_csv(tmp_path / "x.csv")
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert [r["metric"] for r in rows] == [f"'{t}" for t in labels[:7]] + labels[7:]
    assert rows[0]["variable"] == "'=evil" and rows[0]["value"] == "-1.0"


def test_json_is_one_document_without_nan():
    document = json.loads(make().to_json(), parse_constant=lambda c: pytest.fail(c))
    assert document["data"]["effect"]["values"][0][1] is None
    assert document["data"]["effect"]["axes"] == ["layer", "position"]
    assert document["coords"]["layer"]["values"] == [0, 1, 2]
    assert document["checks"][0]["passed"] is True


def test_netcdf_opens_with_plain_xarray(tmp_path):
    data = record().data.drop_dims(["metric", "token"])
    path = make(data=data).to_netcdf(tmp_path / "x.nc")
    with xr.open_dataset(path, engine="h5netcdf") as read:
        np.testing.assert_array_equal(read["effect"].values, data["effect"].values)
        assert read["effect"].attrs["units"] == "logit"


# -- told again --------------------------------------------------------------------------------


def called(source: str) -> dict[str, list]:
    """The arguments of the calls in generated Python, read without running it."""
    calls = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            args = [
                ast.literal_eval(a) for a in node.args if not isinstance(a, (ast.Name, ast.Call))
            ]
            words = {
                k.arg: (
                    float(k.value.args[0].value)
                    if isinstance(k.value, ast.Call)
                    else ast.literal_eval(k.value)
                )
                for k in node.keywords
            }
            calls[name] = [args, words]
    return calls


@pytest.mark.parametrize("text", QUOTES + NASTY)
def test_any_text_in_a_knob_or_ref_parses_back_to_itself_in_python(text):
    spec = spec_with(words=text, layers=[1, 2], none=None, inf=1.5)
    spec["model"] = {"ref": text, "weight_hash": "w", "backend": "nnsight", "dtype": "bfloat16"}
    spec["task"] = {"ref": text or "x", "hash": "t"}
    source = make(spec=spec, provenance={"method_class": "Toy"}).to_python()
    calls = called(source)
    assert calls["interp.methods.Toy"][1] == spec["fields"]
    assert calls["interp.load_model"] == [[text], {"backend": "nnsight", "dtype": "bfloat16"}]
    assert calls["interp.load_task"][0] == [text or "x"]


@pytest.mark.parametrize("text", QUOTES + [t for t in NASTY if "\x00" not in t and t != "\ud800"])
def test_any_text_in_a_knob_or_ref_parses_back_to_itself_in_a_shell(text):
    spec = spec_with(words=text)
    spec["model"] = {**spec["model"], "ref": text}
    spec["task"] = {"ref": text or "x", "hash": "t"}
    words = shlex.split(make(spec=spec).to_command())
    found = {}
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else words.pop(0)
    assert found["--words"] == text and found["--model"] == text
    assert found["--task"] == (text or "x")


def test_a_shell_runs_no_part_of_the_command(tmp_path):
    import subprocess

    for text in QUOTES:
        spec = spec_with(words=text)
        spec["task"] = {"ref": None, "hash": "t" * 12, "inline": {"type": "Texts", "name": text}}
        command = make(spec=spec).to_command().replace("interp run", "printf '%s\\0' run", 1)
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, timeout=20)
        assert done.returncode == 0, done.stderr
        assert {p.name for p in tmp_path.iterdir()} == {"task-tttttttttttt.json"}
        written = json.loads((tmp_path / "task-tttttttttttt.json").read_text())
        assert written == spec["task"]["inline"]


def test_only_knobs_that_were_set_are_told_where_that_is_known():
    spec = spec_with(a=1, b=2)
    told = make(spec=spec, provenance={"knobs": ["b"], "method_class": "Toy"})
    assert "interp.methods.Toy(b=2)" in told.to_python() and "--a" not in told.to_command()
    told = make(spec=spec, provenance={})
    assert "interp.METHODS['toy'](**{'a': 1, 'b': 2})" in told.to_python()


def test_a_method_without_a_field_seed_is_told_its_seed():
    told = make(spec=spec_with(), provenance={"seed": 7})
    assert "seed=7" in told.to_python() and "--seed 7" in told.to_command()
    told = make(spec=spec_with(seed=7), provenance={"seed": 7, "knobs": []})
    assert ", seed=" not in told.to_python()


def test_a_class_name_that_is_no_identifier_never_reaches_the_code():
    evil = {"method_class": "X(); import os; os.system('x')"}
    source = make(provenance=evil).to_python()
    assert "os.system" not in source
    ast.parse(source)


def test_a_module_that_was_handed_in_is_named_as_such():
    told = make(provenance={"live_model": True}).to_python()
    assert "interp.load_model(module" in told and "# This run measured a module" in told


@pytest.mark.parametrize("text", NASTY + QUOTES)
def test_the_notebook_is_valid_and_its_prose_holds_no_markup(tmp_path, text):
    spec = spec_with(words=text)
    result = make(
        spec=spec,
        data=record().data[["effect"]],
        tokens=None,
        provenance={"method_title": text, "question": text, "method_class": "Toy"},
    )
    path = tmp_path / "x.ipynb"
    book = result.to_notebook(path)
    nbformat.validate(nbformat.read(path, as_version=4))
    prose = "".join(c["source"] for c in book["cells"] if c["cell_type"] == "markdown")
    assert "<" not in prose and not re.search(r"(?<!\\)[`\[\]]", prose)
    code = "\n".join(c["source"] for c in book["cells"] if c["cell_type"] == "code")
    assert called(code)["interp.methods.Toy"][1] == spec["fields"]
    assert f"assert result.spec_hash == '{result.spec_hash}'" in code
