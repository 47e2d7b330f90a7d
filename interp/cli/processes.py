"""Processes of their own: the workbench and the benchmarks. Neither is imported here."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.cli.say import DONE, FAILED, INTERRUPTED, Voice
from interp.terms.errors import InterpError, unknown_name

ROOT = Path(__file__).resolve().parents[2]


def workbench(words: Sequence[str]) -> int:
    """Start ``python -m apps.workbench`` with the same options, and stay with it."""
    if importlib.util.find_spec("apps") is None:
        raise InterpError(
            "The workbench is not installed with this copy of interp.",
            remedy="Install interp from its source folder or wheel.",
        )
    return call([sys.executable, "-m", "apps.workbench", *words])


def call(words: Sequence[str], **options: Any) -> int:
    """Run a process to its own end; a Ctrl-C reaches it too, a request to end is handed on."""
    with subprocess.Popen(words, **options) as process, handing_on(process):
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue
    return (
        INTERRUPTED
        if code in (-signal.SIGINT, INTERRUPTED)
        else max(code, 0) or (FAILED if code else DONE)
    )


@contextmanager
def handing_on(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Within, a SIGTERM goes to the process: it would outlive us and keep its port otherwise."""
    before = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def benchmarks() -> dict[str, str]:
    """Name -> first line of its docstring, for every benchmark that can be started."""
    found = {}
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "__main__" in text and not path.name.startswith("_"):
            found[path.stem] = text.split('"""')[1].strip().splitlines()[0] if '"""' in text else ""
    return found


def bench(name: str | None, words: Sequence[str]) -> int:
    """Run one benchmark or all, each in its own process; without a name, list them."""
    known = benchmarks()
    asked_json = "--json" in words
    if name in ("--json", "--help", "-h"):
        words, asked_json, name = [name, *words], asked_json or name == "--json", None
    if name is None:
        voice = Voice(asked_json)
        if asked_json:
            voice.document([{"name": k, "title": v} for k, v in known.items()])
        else:
            voice.table(["benchmark", "what it times"], list(known.items()))
            voice.note(
                "`interp bench NAME --help` lists the options of one."
                if known
                else "Benchmarks come with the source folder, which is not here."
            )
        return DONE
    if name != "all" and name not in known:
        raise unknown_name("benchmark", name, [*known, "all"])
    chosen = list(known) if name == "all" else [name]
    if asked_json and len(chosen) > 1:
        return _all_json(chosen, words)
    codes = [call([sys.executable, "-m", f"benchmarks.{n}", *words], cwd=ROOT) for n in chosen]
    return next((c for c in codes if c), DONE)


def _all_json(chosen: Sequence[str], words: Sequence[str]) -> int:
    """Several documents as one: ``{name: document}``."""
    found: dict[str, Any] = {}
    worst = DONE
    for name in chosen:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        worst = worst or done.returncode
        try:
            found[name] = json.loads(done.stdout)
        except json.JSONDecodeError:
            found[name] = {"error": f"no JSON came back (exit code {done.returncode})"}
    Voice(True).document(found)
    return worst
