"""The web process: no tensor library, safe options, layouts that come up whatever the link says."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import interp
from apps.workbench import start
from apps.workbench.bench import Bench
from apps.workbench.cell import cell_at
from apps.workbench.exports import KINDS, MAKERS
from apps.workbench.views import View, read_view
from interp.jobs.asking import allowed_model
from interp.store import Store
from tests.apps.fakes import FakeQueue, dataset, record

ROOM = Path(start.__file__).parent

SERVES = """
import sys, pathlib
from apps.workbench.bench import Bench
from apps.workbench.server import make_app
from interp.jobs.asking import allowed_model
from interp.store import Store
from tests.apps.fakes import FakeQueue, record
from werkzeug.test import Client
store = Store(pathlib.Path(sys.argv[1]))
run = store.add(record())
app = make_app(Bench(store, queue=FakeQueue(store)))
client = Client(app)
head = {"Host": "localhost"}
assert client.get("/", headers=head).status_code == 200
pages = client.get("/_dash-dependencies", headers=head).json
route = next(d["output"] for d in pages if "_pages_content" in d["output"])
for path in ("/", "/models", "/pair", "/patching", "/head", "/runs", "/compare", f"/run/{run}",
             "/attribution", "/method/toy_method", "/method/activation_patching"):
    names = [o.rsplit(".", 1) for o in route.strip(".").split("...")]
    outputs = [{"id": i, "property": p} for i, p in names]
    got = client.post("/_dash-update-component", headers=head, json={
        "output": route, "outputs": outputs, "changedPropIds": [], "inputs": [
            {"id": "_pages_location", "property": "pathname", "value": path},
            {"id": "_pages_location", "property": "search", "value": ""}]})
    assert got.status_code == 200, (path, got.text)
    assert "could not be shown" not in got.text, (path, got.text[:2000])
for kind in ("csv", "json", "nc", "ipynb", "py", "html"):
    assert client.get(f"/export/{run}.{kind}", headers=head).status_code == 200, kind
heavy = [m for m in ("torch", "transformers", "transformer_lens", "nnsight") if m in sys.modules]
assert not heavy, heavy
print("served")
"""


def test_the_web_process_serves_every_page_and_export_without_importing_torch(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", SERVES, str(tmp_path / "s")],
        timeout=120,
        capture_output=True,
        text=True,
        cwd=ROOM.parent.parent,
    )
    assert found.stdout.strip() == "served", found.stderr[-3000:]


def test_loopback_wants_no_token_and_anything_else_gets_one():
    assert start.chosen_token(None, "127.0.0.1") is None
    assert start.chosen_token(None, "::1") is None
    made = start.chosen_token(None, "0.0.0.0")
    assert made is not None and len(made) >= 21
    assert start.chosen_token("", "127.0.0.1") != start.chosen_token("", "127.0.0.1")
    assert start.chosen_token("a-token-of-enough-length", "h") == "a-token-of-enough-length"


@pytest.mark.parametrize("token", ["short", "x" * 20, "ümlaut" * 5, "line\nbreak" * 5])
def test_a_token_that_could_be_guessed_or_typed_wrong_is_refused(token):
    with pytest.raises(start.OptionError):
        start.chosen_token(token, "127.0.0.1")


@pytest.mark.parametrize(
    "given,wanted", [("/", "/"), ("a/b", "/a/b/"), ("/user/x@y/", "/user/x@y/"), ("", "/")]
)
def test_a_prefix_has_one_slash_at_each_end(given, wanted):
    assert start.clean_prefix(given) == wanted


@pytest.mark.parametrize("bad", ["/../x", "/a b/", "/<x>/", "/a?b/", "/./"])
def test_a_prefix_that_is_no_path_is_refused(bad):
    with pytest.raises(start.OptionError):
        start.clean_prefix(bad)


@pytest.mark.parametrize(
    "host,loopback",
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.0.2", False),
        ("example.org", False),
    ],
)
def test_loopback_is_known_by_its_number(host, loopback):
    assert start.is_loopback(host) is loopback


def test_a_view_comes_back_from_its_own_query():
    view = View("effect_raw", "table", {"prompt": 2, "layer": 1}, "PuOr", "robust")
    again, notices = read_view({k: str(v) for k, v in view.query().items()}, dataset())
    assert again == view and not notices


@pytest.mark.parametrize(
    "query",
    [
        {"layer": "4"},
        {"layer": "x"},
        {"layer": ["1", "9"], "zz": "1"},
        {"var": "nope"},
        {"tab": "nope"},
        {"v": "7"},
        {"prompt": "\x00"},
        {"layer": "-1"},
        {"layer": "1" * 99},
    ],
)
def test_what_a_link_cannot_mean_is_left_out_and_said(query):
    view, notices = read_view(query, dataset())
    assert notices and (view.place in ({}, {"layer": 1}))


def test_a_point_of_a_grid_is_the_cell_under_it():
    data = dataset()
    assert cell_at(data["effect"], {"x": 13.0, "y": 2.0}) == {"layer": 2, "position": 13}
    assert cell_at(data["metric_base"], {"x": 4, "y": 0.2}) == {"prompt": 4}
    assert cell_at(data["effect"], {"x": 99, "y": 99}) == {}


def test_a_model_that_was_not_offered_is_refused_whatever_it_is_called(tmp_path):
    store = Store(tmp_path)
    bench = Bench(store, queue=FakeQueue(store))
    for ref in ("../x", "/etc/passwd", "zoo:nothing", "a/b/c", "C:\\x", "file:///x", "", "a\x00b"):
        with pytest.raises(interp.InterpError):
            bench.check_model(ref)
    bench.check_model("gpt2")
    bench.check_model("EleutherAI/pythia-70m@step1000")


def test_a_run_on_a_listed_folder_goes_by_the_listed_name_and_shows_no_path(tmp_path):
    store = Store(tmp_path / "store")
    bench = Bench(store, queue=FakeQueue(store))
    bench.models()
    bench._models.append({"ref": "mine", "stored": "/secret/models/mine", "ok": True})
    assert bench.model_of({"model": {"ref": "/secret/models/mine"}}) == "mine"
    assert bench.stored_name("mine") == "/secret/models/mine"
    bench.check_model("mine")
    with pytest.raises(interp.InterpError):
        bench.check_model("/secret/models/mine")


def test_a_taken_port_is_said_with_a_way_out(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["--port", str(port), "--store", str(tmp_path), "--no-browser", "--no-worker"]
        assert start.main(words) == 1
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in said and "--port 0" in said and said.count("\n") == 1, said


def test_folders_of_one_name_are_told_apart_and_the_worker_opens_the_one_that_was_picked(tmp_path):
    folders = [tmp_path / p for p in ("one/hf", "two/hf", "three/deep/two/hf", "four/mine")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    roots = tuple(tmp_path / p for p in ("one", "two", "three/deep/two", "four"))
    bench = Bench(Store(tmp_path / "store"), queue=FakeQueue(Store(tmp_path)), roots=roots)
    names = [r["ref"] for r in bench.models() if r["origin"] == "folder"]
    assert names[0] == "one/hf" and names[2] == "deep/two/hf" and names[3] == "mine"
    assert len(set(names)) == 4
    assert [bench.stored_name(n) for n in names] == list(map(str, folders))
    assert [allowed_model(n, roots) for n in names] == list(map(str, folders))


def test_a_file_is_no_task_for_the_page(tmp_path):
    store = Store(tmp_path)
    bench = Bench(store, queue=FakeQueue(store))
    for task in ("/etc/passwd", "pairs.jsonl", "../x.csv", "pairs:../../x", "pairs:" + "0" * 32):
        with pytest.raises(interp.InterpError):
            bench.task_json(task)


def test_prompts_that_were_typed_are_kept_under_their_content(tmp_path):
    store = Store(tmp_path)
    bench = Bench(store, queue=FakeQueue(store))
    task = bench.make_pairs("gpt2", {"clean": ["a"], "corrupt": ["b"]}, None)
    assert bench.task_json(task)["inline"]["type"] == "PromptPairs"
    assert bench.make_pairs("gpt2", {"clean": ["a"], "corrupt": ["b"]}, None) == task


def test_a_deleted_run_is_gone_from_memory_too(tmp_path):
    store = Store(tmp_path)
    bench = Bench(store, queue=FakeQueue(store))
    run = store.add(record())
    assert bench.result(run).run_id == run
    bench.delete_run(run)
    with pytest.raises(interp.InterpError):
        bench.result(run)


def test_every_kind_of_export_has_its_maker():
    assert set(KINDS) == set(MAKERS)


def functions() -> list[tuple[str, ast.FunctionDef]]:
    """Every function of the workbench with where it stands."""
    return [
        (f"{path.name}:{node.name}", node)
        for path in sorted(ROOM.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def is_callback(node: ast.FunctionDef) -> bool:
    """Whether dash calls it."""
    return any(
        isinstance(d, ast.Call) and getattr(d.func, "id", "") == "callback"
        for d in node.decorator_list
    )


def test_callbacks_are_short_and_end_in_what_the_page_shows():
    long = {}
    for name, node in functions():
        if is_callback(node):
            inside = [n for s in node.body[1:] for n in ast.walk(s) if isinstance(n, ast.stmt)]
            long |= {name: len(inside)} if len(inside) > 15 else {}
    assert not long, long


def test_no_page_imports_what_lies_below_the_public_names():
    for path in sorted(ROOM.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("interp"):
                assert node.module == "interp", (path.name, node.module)
