"""The house stands: floors, doors, sizes, pins, and documents that say what is there."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
from packaging.version import Version

from interp.terms import AXES, KINDS, SMALL_AXES

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIBRARY = sorted(p for top in ("interp", "apps", "analyses") for p in (ROOT / top).rglob("*.py"))
INTERP = [p for p in LIBRARY if p.is_relative_to(ROOT / "interp")]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------- floors and doors


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the sources in which a contract may be broken."""
    for name in ("interp", "apps", "tests"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=lambda _, names: [
                n for n in names if "." in n and not n.endswith(".py") or n == "__pycache__"
            ],
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path, contract: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache", "--contract", contract,
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [
        ("floors", "interp/stray.py", "x = 1"),
        ("floors", "interp/terms/edits.py", "import interp.models"),
        ("door-models", "interp/terms/edits.py", "import transformer_lens"),
        ("door-models", "interp/engine/stray.py", "from safetensors.torch import load_file"),
        ("door-plotly", "interp/terms/edits.py", "import plotly.graph_objects"),
        ("door-dash", "interp/terms/edits.py", "import dash"),
        ("library-stands-alone", "interp/terms/edits.py", "import apps"),
        ("twins", "tests/twins/stray.py", "from interp.terms import Site"),
    ],
)
def test_a_broken_contract_is_noticed(copy, contract, file, line):
    path = copy / file
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{old}\n{line}\n", encoding="utf-8")
    done = lint_imports(copy, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout or "not declared" in done.stdout.lower(), done.stdout


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running this code."""
    code += "\nimport sys; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"torch", "transformer_lens", "nnsight", "transformers", "pandas", "sklearn"}


@pytest.mark.parametrize("room", ["interp", "interp.terms"])
def test_the_public_page_costs_little(room):
    assert not loaded_by(f"import {room}") & (HEAVY | {"xarray", "plotly", "dash"})


@pytest.mark.parametrize("room", ["store", "forms", "figures", "results", "jobs", "cli"])
def test_upper_rooms_load_no_tensor_library(room):
    if not ((ROOT / "interp" / room).is_dir() or (ROOT / f"interp/{room}.py").exists()):
        pytest.skip(f"interp.{room} is not in this tree")
    assert not loaded_by(f"import interp.{room}") & (HEAVY - {"pandas", "sklearn"})


def test_importing_everything_prints_nothing():
    modules = [
        name_of(p)[:-3].replace("/", ".").removesuffix(".__init__")
        for p in INTERP
        if p.name != "__main__.py"
    ]
    code = "import importlib\n" + "\n".join(f"importlib.import_module({m!r})" for m in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# ------------------------------------------------------------------------------- sizes and habits


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function with its length in lines, docstring left out."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            doc = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            yield node.name, lines


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_rooms_are_small(path):
    long = [f"{name} ({lines})" for name, lines in functions(path) if lines > 75]
    assert not long, f"functions over 75 lines: {long}"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_names_say_what_is_inside(path):
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
    assert not vague & {path.stem, *path.relative_to(ROOT).parts}


def habits(path: Path) -> Iterator[str]:
    """What the house does not do."""
    silent = (ast.Pass, ast.Continue)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler):
            name = getattr(node.type, "id", None)
            if node.type is None:
                yield f"{node.lineno}: bare except"
            if name in ("Exception", "BaseException") and isinstance(node.body[0], silent):
                yield f"{node.lineno}: swallows every exception"
        if isinstance(node, ast.Raise) and node.exc is not None:
            if "NotImplementedError" in ast.unparse(node.exc):
                yield f"{node.lineno}: NotImplementedError"
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
            yield f"{node.lineno}: print"
        if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
            yield f"{node.lineno}: star import"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            yield f"{number}: {line.strip()}"


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_habits(path):
    speaks = path.name in ("cli.py", "__main__.py") or "analyses" in path.parts
    found = [h for h in habits(path) if not (speaks and h.endswith(": print"))]
    assert not found


def test_the_search_for_bad_habits_finds_them(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "from os import *\n"
        "try:\n    print(1)\nexcept:\n    raise NotImplementedError('x')\n"
        "try:\n    pass\nexcept Exception:\n    pass\n# TO" + "DO\n"
    )
    assert len(list(habits(path))) == 6


def test_every_skip_of_a_test_has_a_reason():
    bare = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("pytest.skip", "mark.skip", "mark.skipif", "mark.xfail", "pytest.xfail")
            ):
                words = {k.arg for k in node.keywords}
                first = ast.unparse(node.func).endswith((".skip", "pytest.xfail")) and node.args
                if not first and "reason" not in words:
                    bare.append(f"{name_of(path)}:{node.lineno}")
    assert not bare


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_committed_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert code, "a notebook without code"
    assert not [c for c in code if c["outputs"] or c["execution_count"]]


# --------------------------------------------------------------------------------------------- pins


def pins() -> dict[str, Version]:
    """Package -> pinned version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): Version(version) for name, version in pairs}


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    build = PYPROJECT["build-system"]["requires"]
    return [Requirement(r) for r in [*project["dependencies"], *extras, *build]]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: str(r))
def test_what_we_ask_for_is_pinned_above_its_floor(requirement):
    if requirement.name == "interp":
        known = PYPROJECT["project"]["optional-dependencies"]
        assert requirement.extras <= set(known)
        return
    assert requirement.specifier, "it has no floor"
    assert pins()[canonical(requirement.name)] in requirement.specifier


FLOORS = {
    "torch": "2.10", "transformers": "5.9", "transformer-lens": "4.3", "nnsight": "0.8",
    "dash": "4.4.1", "flask": "3.1", "ray": "2.54", "plotly": "7", "pydantic": "2",
}  # fmt: skip


def test_the_floors_that_security_names_stand_in_pyproject():
    stated = {canonical(r.name): r.specifier for r in requirements()}
    for name, floor in FLOORS.items():
        below = Version(floor).base_version + ".dev0"
        assert not stated[name].contains(below, prereleases=True), f"{name} goes below {floor}"


def installed() -> set[str]:
    names = {canonical(d.metadata["Name"]) for d in metadata.distributions() if _is_here(d)}
    return names - {"interp", "pip"}


def _is_here(distribution: metadata.Distribution) -> bool:
    """Whether it lies in this environment itself (a vendored copy inside a package does not)."""
    return Path(str(distribution.locate_file(""))).name == "site-packages"


def test_every_installed_package_is_on_the_list():
    strangers = installed() - set(pins())
    assert not strangers, f"installed, but not in constraints.txt: {sorted(strangers)}"


def test_what_must_never_be_installed_is_not():
    never = {"diskcache", "huey", "celery", "sae-lens", "circuit-tracer"}
    assert not never & (installed() | set(pins()))


# ---------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_documents_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        assert (path.parent / target.split("#")[0]).exists(), f"{target} is not there"


def glossary() -> str:
    return (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*AXES, *SMALL_AXES, *KINDS])
def test_the_glossary_explains_every_axis_and_site(name):
    assert re.search(rf"^\| `{name}`", glossary(), flags=re.MULTILINE)


KNOBS = (
    "site direction with_ metric at axes layers positions window input_site output_site rules "
    "attn_rule gate_rule ig_steps kl_direction layer_reduce keep_prompts n_boot draws verify seed"
).split()


@pytest.mark.parametrize("name", KNOBS)
def test_the_glossary_explains_every_knob(name):
    assert re.search(rf"^\| `{name}`", glossary(), flags=re.MULTILINE)


def bibliography() -> list[str]:
    text = (ROOT / "docs" / "bibliography.bib").read_text(encoding="utf-8")
    assert text.count("{") == text.count("}")
    return re.findall(r"^@\w+\{([\w:-]+),", text, flags=re.MULTILINE)


def test_bibliography_keys_are_unique_and_each_entry_is_complete():
    keys = bibliography()
    assert len(keys) == len(set(keys)) > 20
    text = (ROOT / "docs" / "bibliography.bib").read_text(encoding="utf-8")
    for entry in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        for field in ("title", "author", "year"):
            assert re.search(rf"\b{field}\s*=", entry), f"{field} lacks in {entry[:60]}"


def cited() -> set[str]:
    """Keys in the ``citations`` of the methods."""
    keys = set()
    for path in (ROOT / "interp" / "methods").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                if getattr(target, "id", None) == "citations":
                    keys |= set(ast.literal_eval(node.value))
    return keys


def test_every_citation_is_in_the_bibliography():
    assert cited() <= set(bibliography())


def test_the_readme_shows_a_picture_that_exists():
    assert re.search(r"!\[[^\]]+\]\(docs/images/[\w-]+\.png\)", (ROOT / "README.md").read_text())


def test_make_help_lists_the_two_commands():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make app" in done.stdout and "make test " in done.stdout
