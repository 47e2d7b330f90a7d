"""The documents are followed to the letter: their code runs and does what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import interp

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def blocks(path: Path, language: str = "python") -> list[str]:
    """The code blocks of a document in a language (an empty text: those that name none)."""
    found = re.findall(
        r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [text for name, text in found if name == language]


def block_of(path: Path, file: str) -> str:
    """The block whose first line names this file."""
    return next(b for b in blocks(path) if b.startswith(f"# {file}\n"))


def loaded(name: str, source: str, folder: Path):
    """A module made of printed code."""
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------- write-a-method

PAGE = DOCS / "write-a-method.md"


@pytest.fixture
def residual_norm(tmp_path, monkeypatch):
    """The printed method, entered by the printed registry line."""
    name = "written_method"
    module = loaded(name, block_of(PAGE, "interp/methods/explore/residual_norm.py"), tmp_path)
    line = re.search(r'^"(\w+)": (\w+),$', PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert line is not None
    key, cls = line[1], getattr(module, line[2])
    monkeypatch.setitem(interp.METHODS, key, cls)
    yield cls
    del sys.modules[name]


@pytest.fixture(scope="module")
def model():
    return interp.load_model("zoo:random-gpt2", dtype="float64")


def pairs():
    return interp.PromptPairs.from_tokens(
        [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[3, 1, 4, 2, 5], [9, 2, 6, 4, 3]], [7, 8], [6, 1]
    )


def test_the_printed_method_equals_its_printed_twin(residual_norm, model, tmp_path):
    twin = loaded("written_twin", block_of(PAGE, "tests/twins/residual_norm.py"), tmp_path)
    module = interp.load_model("zoo:random-gpt2", dtype="float64").module()
    layers = module.transformer.h
    expected = twin.residual_norm(layers, module, pairs().clean)
    result = interp.run(residual_norm(), model, pairs(), progress=False)
    found = result.data["norm"].transpose("layer", "position").values
    assert np.allclose(found, expected, rtol=1e-10)
    assert np.ptp(found) > 0.1 * found.mean(), "a grid without content proves nothing"
    halved = interp.run(residual_norm(scale=2.0), model, pairs(), progress=False)
    assert np.allclose(halved.data["norm"], found / 2)


def test_the_printed_method_breaks_as_the_page_says(residual_norm, model, tmp_path):
    source = block_of(PAGE, "interp/methods/explore/residual_norm.py")
    broken = source.replace(".square().sum(-1).mean(0)", ".mean(0).square().sum(-1)")
    assert broken != source, "the page's break cannot be made any more"
    wrong = loaded("broken_method", broken, tmp_path).ResidualNorm
    right = interp.run(residual_norm(), model, pairs(), progress=False).data["norm"]
    interp.METHODS["residual_norm"] = wrong
    assert not np.allclose(interp.run(wrong(), model, pairs(), progress=False).data["norm"], right)


def test_the_printed_method_has_a_form_a_figure_and_a_command(residual_norm, model):
    fields = interp.fields_of(residual_norm.model_json_schema())
    assert [f.name for f in fields] == ["scale"]
    result = interp.run(residual_norm(), model, pairs(), progress=False)
    assert "norm" in result.figures()
    assert "ResidualNorm" in result.to_python()
    assert "residual_norm" in result.to_command()


# ------------------------------------------------------------------------------ README, your-model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Run where the documents' relative paths do no harm."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_runs(here):
    (source,) = blocks(ROOT / "README.md")
    space: dict = {}
    exec(compile(source, "README.md", "exec"), space)
    effect = space["result"].data["effect"]
    assert effect.dims == ("layer", "position")
    assert float(effect.max()) > 0.8, "patching the right place brings the answer back"
    assert (here / "runs/first-patch").is_dir()
    again = interp.load_result("runs/first-patch")
    assert np.array_equal(again.data["effect"], effect, equal_nan=True)


def commands(path: Path) -> list[str]:
    """The ``interp …`` lines of a document, the app left out."""
    lines = [line for b in blocks(path, "") for line in b.splitlines()]
    found = [line for line in lines if line.startswith("interp ")]
    return [line for line in found if not line.startswith("interp app")]


DOCUMENTS = [ROOT / "README.md", DOCS / "tour.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_the_commands_of_a_document_run_in_their_order(document, here, capsys):
    from interp.cli import main

    for spec in blocks(document, "yaml"):
        (here / spec.splitlines()[0].removeprefix("# ")).write_text(spec, encoding="utf-8")
    assert len(commands(document)) >= 3
    for line in commands(document):
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(line)[1:])
        assert ended.value.code in (0, None, 3), f"{line}: {capsys.readouterr().err}"


def test_your_model_runs_from_a_folder(here, monkeypatch):
    zoo = Path(interp.__file__).parent / "models" / "zoo" / "ioi"
    (here / "path/to").mkdir(parents=True)
    (here / "path/to/folder").symlink_to(zoo, target_is_directory=True)
    first, pair, patch = blocks(DOCS / "your-model.md")[:3]
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: None)
    space: dict = {}
    exec(compile(first, "your-model.md", "exec"), space)
    by_text, _, by_tokens = pair.partition("pairs = PromptPairs.from_tokens")
    exec(compile(by_text, "your-model.md", "exec"), space)
    assert space["pairs"].clean_text[0][-1] == "to"
    exec(compile(patch, "your-model.md", "exec"), space)
    assert space["result"].data["effect"].dims == ("layer", "position")
    exec(compile("pairs = PromptPairs.from_tokens" + by_tokens, "your-model.md", "exec"), space)
    assert space["pairs"].right == ((9,),)


def test_your_model_runs_from_a_file_of_pairs(here, capsys):
    from interp.cli import main

    zoo = Path(interp.__file__).parent / "models" / "zoo" / "ioi"
    row = {
        "clean": "When Mary and John went home, John gave a ring to",
        "corrupt": "When Mary and John went home, Mary gave a ring to",
        "right": " Mary",
        "wrong": " John",
    }
    (here / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    (line,) = commands(DOCS / "your-model.md")
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line.replace("path/to/folder", str(zoo)))[1:])
    assert ended.value.code in (0, None, 3), capsys.readouterr().err
    assert (here / "runs/first/spec.json").is_file()
