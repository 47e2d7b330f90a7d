"""A real run told as Python, command and notebook: running any of them gives the same hash."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import interp
from interp.store import Store, compare
from interp.terms import PromptPairs

MODEL = "zoo:random-gpt2"


@pytest.fixture(scope="module")
def model():
    return interp.load_model(MODEL)


@pytest.fixture(scope="module", params=["named", "by hand"])
def result(request, model, tmp_path_factory):
    task = interp.load_task("addition", model, n=3, seed=2)
    if request.param == "by hand":
        task = task.select(range(2))
        assert task.ref is None
    store = Store(tmp_path_factory.mktemp("told") / "store")
    method = interp.methods.ActivationPatching(site="attn_out", direction="noising")
    return interp.run(method, model, task, store=store)


def test_the_python_reproduces_the_hash_and_the_numbers(result):
    scope: dict = {}
    exec(result.to_python(), scope)  # noqa: S102
    assert scope["result"].spec_hash == result.spec_hash
    found = compare(scope["result"].record, result.record)
    assert found.same or max(a.max_abs or 0.0 for a in found.arrays) < 1e-5


def test_the_command_reproduces_the_hash(result, tmp_path):
    if result.spec["task"]["ref"]:
        assert shlex.split(result.to_command())[:4] == [
            "interp",
            "run",
            "activation_patching",
            "--model",
        ]
        return  # the other one runs, and has the harder task
    command = (
        result.to_command().replace("interp run", f"{sys.executable} -m interp run", 1) + " --json"
    )
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "INTERP_HOME": str(tmp_path / "home")},
    )
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["spec_hash"] == result.spec_hash


def test_the_notebooks_code_runs_and_its_asserts_hold(result, tmp_path):
    book = json.loads(json.dumps(result.to_notebook(tmp_path / "x.ipynb")))
    scope: dict = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], scope)  # noqa: S102
    assert scope["result"].spec_hash == result.spec_hash
    assert any("figures()" in c["source"] for c in book["cells"])


def test_a_saved_real_result_comes_back_whole(result, tmp_path):
    read = interp.load_result(result.save(tmp_path / "x"))
    assert read.spec_hash == result.spec_hash and read.tokens == result.tokens
    for name, variable in result.data.variables.items():
        np.testing.assert_array_equal(read.data.variables[name].values, variable.values)
    assert set(read.figures()) == set(result.figures())


def test_its_checks_are_the_models_and_the_methods(result):
    names = [c.name for c in result.checks]
    assert len(names) == len(set(names)) >= 5
    assert result.passed, result.failed_checks
    assert result.provenance["partition"] and result.provenance["backend"] == "transformer_lens"


def test_a_prompt_of_ones_own_with_quotes_in_it_runs_from_its_python(model):
    ids = [[1, 2, 3, 4], [1, 5, 3, 4]]
    task = PromptPairs.from_tokens(
        ids[:1],
        ids[1:],
        [6],
        [7],
        name="a 'b' \"c\" $(d)\n",
        clean_text=[["'", '"""', "$(x)", "\n"]],
    )
    result = interp.run(interp.methods.ActivationPatching(), model, task)
    scope: dict = {}
    exec(result.to_python(), scope)  # noqa: S102
    assert scope["result"].spec_hash == result.spec_hash
    assert scope["result"].tokens == result.tokens


def test_the_store_lists_it_with_what_was_asked(result):
    row = Store(Path(result.path).parents[1]).row(result.run_id)
    assert row.method == "activation_patching" and row.model == MODEL
    assert row.fields["site"] == "attn_out" and row.summary["method_title"]
