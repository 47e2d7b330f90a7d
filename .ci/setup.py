"""Set a bare machine up: ``python3 .ci/setup.py app|test|ray``. Standard library only.

It makes ``.venv``, installs torch (pinned) and then everything else under constraints.txt, finds
or installs a Chromium for the tests, and marks what is done with ``.venv/.ready-*``, which the
Makefile compares with pyproject.toml and constraints.txt. Doing it twice costs seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = {"app": "", "test": "[test,bench,kaleido]", "ray": "[test,bench,kaleido,ray]"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NOISE = re.compile(r"^(WARNING: Location|\[notice\]|DEPRECATION:|WARNING: Running pip as)")
EVERY = 6.0  # seconds between two lines of progress


class SetupFailed(Exception):
    """What went wrong and what to do, in a sentence."""


def say(text: str) -> None:
    """A line of progress, seen at once also through a pipe."""
    print(f"interp: {text}", flush=True)


def run(command: Sequence[str | Path], what: str) -> None:
    """Run a command quietly, with a line of progress every few seconds.

    Raises:
        SetupFailed: the command failed; its last lines have been printed.
    """
    started = time.monotonic()
    tail: list[str] = []
    env = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONSTRAINT": str(CONSTRAINTS),  # also holds for the environment that builds interp
        "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS),
    }
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        over = threading.Event()
        teller = threading.Thread(target=_tell, args=(over, tail, started), daemon=True)
        teller.start()
        for line in process.stdout:
            if not NOISE.match(line):
                tail[:] = [*tail[-30:], line.rstrip()]
        over.set()
        teller.join()
    if process.returncode:
        print("\n".join(tail), flush=True)
        raise SetupFailed(f"{what} failed (exit status {process.returncode}); see the lines above.")
    say(f"  done in {time.monotonic() - started:.0f} s")


def _tell(over: threading.Event, tail: list[str], started: float) -> None:
    """Say every few seconds how long it has taken and what came last, until it is over."""
    while not over.wait(EVERY):
        last = f"  {_short(tail[-1])}" if tail else ""
        say(f"  … {time.monotonic() - started:3.0f} s{last}")


def _short(line: str) -> str:
    line = re.sub(r"\s+\(.*|\s+from .*", "", line.strip())
    return line if len(line) <= 72 else f"{line[:71]}…"


def make_venv() -> Path:
    """``.venv`` with a pip of its own; returns its python.

    Raises:
        SetupFailed: no venv can be made here.
    """
    python = VENV / "bin" / "python"
    if python.exists() and _works(python, "-m", "pip", "--version"):
        return python
    say(f"making .venv with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", "--clear", VENV]
    try:
        run(command, "python3 -m venv")
    except SetupFailed:
        if not _apt("python3-venv"):
            raise SetupFailed(
                "Python's venv module does not work here. Install it (Debian and Ubuntu: "
                "apt-get install python3-venv) and run make again."
            ) from None
        run(command, "python3 -m venv")
    return python


def _works(*command: str | Path) -> bool:
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    return done.returncode == 0


def install(python: Path, what: str) -> None:
    """Torch as pinned first (a local build is found under that name), then the rest."""
    pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    pip = [python, "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
    say(f"installing {torch} (the largest piece: 0.2 GB for CPUs, 3 GB with CUDA)")
    run([*pip, torch], f"installing {torch}")
    count = sum(1 for line in pins if "==" in line)
    say(f"installing interp{EXTRAS[what]} and what it needs (up to {count} packages, minutes)")
    run([*pip, "-e", f".{EXTRAS[what]}"], "installing interp")


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _apt(package: str) -> bool:
    """Install a Debian package if this person may; whether it worked."""
    apt = shutil.which("apt-get")
    if apt is None:
        return False
    sudo: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or not _works("sudo", "-n", "true"):
            return False
        sudo = ["sudo", "-n"]
    env = ["env", "DEBIAN_FRONTEND=noninteractive"]
    try:
        run([*sudo, *env, apt, "update", "-q"], "apt-get update")
        run(
            [*sudo, *env, apt, "install", "-y", "-q", "--no-install-recommends", package],
            f"apt-get install {package}",
        )
    except SetupFailed as error:
        say(str(error))
        return False
    return True


def need_browser() -> None:
    """Find a Chromium for the browser tests, or install Debian's.

    Raises:
        SetupFailed: there is none and CI=true.
    """
    if find_browser():
        return
    say("installing chromium for the browser tests")
    if _apt("chromium") and find_browser():
        return
    sentence = (
        "No Chromium was found and none could be installed (that takes apt-get and root or "
        "passwordless sudo). Install chromium or google-chrome so that it is on PATH"
    )
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        raise SetupFailed(f"{sentence}; under CI=true the browser tests are not optional.")
    say(f"{sentence}; until then the browser tests are skipped.")


def main(what: str) -> None:
    """Set up for ``app``, ``test`` or ``ray`` and leave the stamps."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before pip has checked it
        raise SetupFailed(
            f"Python 3.11 or newer is wanted and python3 is {sys.version.split()[0]}; "
            "name another one with make PYTHON=python3.12."
        )
    os.chdir(ROOT)
    say(f"setting up for 'make {what}' in {VENV} (once; later runs skip this)")
    python = make_venv()
    install(python, what)
    if what != "app":
        need_browser()
    (VENV / ".ready-app").touch()
    if what != "app":
        (VENV / ".ready-test").touch()
    say("set up.")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        sys.exit(f"usage: python3 .ci/setup.py {'|'.join(EXTRAS)}")
    try:
        main(sys.argv[1])
    except SetupFailed as failure:
        sys.exit(f"interp: {failure}")
    except KeyboardInterrupt:
        sys.exit("\ninterp: stopped; run make again to go on.")
