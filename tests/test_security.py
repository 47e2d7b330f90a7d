"""What opening a file or a page must never do, and that docs/security.md names real tests."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECURITY = ROOT / "docs" / "security.md"
SOURCES = sorted(
    path
    for folder in ("interp", "apps", "analyses", "benchmarks", "docs", ".ci")
    for path in (ROOT / folder).rglob("*.py")
)

UNSAFE_IMPORTS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "diskcache", "huey", "jsonpickle",
}  # fmt: skip
UNSAFE_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "builtins.eval", "builtins.exec",
    "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load",
}  # fmt: skip
UNSAFE_KEYWORDS = {
    "allow_pickle": True,
    "trust_remote_code": True,
    "weights_only": False,
    "shell": True,
    "use_safetensors": False,
    "dangerously_allow_html": True,
    "dangerouslySetInnerHTML": True,
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for an attribute chain, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def _of_call(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    words = {k.arg: k.value for k in node.keywords}
    if name in UNSAFE_CALLS:
        yield f"{name}()"
    if name == "torch.load" and getattr(words.get("weights_only"), "value", False) is not True:
        yield "torch.load() without weights_only=True"
    if name.endswith("from_pretrained") and "**" in ast.unparse(node) and "trust" in words:
        yield "trust passed on"
    for key, bad in UNSAFE_KEYWORDS.items():
        if key in words and getattr(words[key], "value", bad) == bad:
            yield f"{key}={ast.unparse(words[key])}"


def unsafe(source: str) -> list[str]:
    """Every construct in a source that could run what it opens."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "torch":
                found += [f"from torch import {a.name}" for a in node.names if a.name == "load"]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _of_call(node)]
        found += [f"import {n}" for n in names if n.split(".")[0] in UNSAFE_IMPORTS]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load('x.pt')",
        "import torch; torch.load('x.pt', weights_only=False)",
        "import torch; torch.load('x.pt', weights_only=flag)",
        "from torch import load",
        "import numpy as np; np.load('x.npy', allow_pickle=True)",
        "np.load('x.npy', allow_pickle=flag)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run('ls', shell=True)",
        "yaml.load(text)",
        "eval('1')",
        "import diskcache",
    ],
)
def test_the_search_for_unsafe_code_finds(line):
    assert unsafe(line)


@pytest.mark.parametrize(
    "line",
    [
        "import torch; torch.load('x.pt', weights_only=True)",
        "yaml.safe_load(text)",
        "np.load('x.npy', allow_pickle=False)",
        "model.eval()",
        "re.compile('x')",
        "AutoModel.from_pretrained(x, trust_remote_code=False, use_safetensors=True)",
    ],
)
def test_the_search_for_unsafe_code_lets_pass(line):
    assert not unsafe(line)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_that_could_run_what_it_opens(path):
    assert not unsafe(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------- the network, for every test


def send_datagram(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.sendto(b"x", address)


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: send_datagram(("192.0.2.1", 9)),
    ],
    ids=["connect", "look-up", "datagram"],
)
def test_leaving_the_machine_is_refused_and_remembered(reach, network_attempts):
    with pytest.raises(OSError, match="no network"):
        reach()
    assert len(network_attempts) == 1
    network_attempts.clear()  # this test meant to


def test_loopback_is_open(network_attempts):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5):
            pass
    assert not network_attempts


def test_a_child_process_is_sent_to_a_dead_proxy():
    code = (
        "import urllib.request, urllib.error\n"
        "try: urllib.request.urlopen('http://example.org', timeout=5)\n"
        "except (urllib.error.URLError, OSError) as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refused" in done.stdout


def test_the_tests_see_no_home_and_no_token():
    assert "interp-tests-" in str(Path.home())
    assert "interp-tests-" in os.environ["INTERP_HOME"]
    assert not {"HF_TOKEN", "NDIF_API_KEY"} & set(os.environ)


# ------------------------------------------------------------------------- the table of the cases


def cases() -> dict[int, list[str]]:
    """Case number -> the tests that docs/security.md names for it."""
    found: dict[int, list[str]] = {}
    for line in SECURITY.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\|\s*(\d+)\s*\|", line):
            found[int(match[1])] = re.findall(r"`(tests/[\w/]+\.py::\w+)`", line)
    return found


def test_the_table_lists_each_case_once_and_in_order():
    assert list(cases()) == list(range(1, 21))


def test_the_table_is_not_empty_of_tests():
    assert sum(map(bool, cases().values())) >= 3


@pytest.mark.parametrize(
    "name", sorted({name for tests in cases().values() for name in tests}) or ["(none)"]
)
def test_each_test_that_the_table_names_exists(name):
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert function in functions
