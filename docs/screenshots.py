"""Take the pictures of the documents again: ``make screenshots``.

Starts the workbench on an empty store, lets its worker compute the first patch grid, and takes one
picture a page into ``docs/images`` with a headless Chromium. It fails where a page shows no figure
in time, or where the browser's console has an error, so a picture is never one of a broken page.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PATIENCE = 180  # seconds until the first grid must be there
SIZE = {"width": 1360, "height": 900}
PAGES = {  # picture -> page, whether it must show a figure
    "workbench": ("/", True),
    "models": ("/models", False),
    "pair": ("/pair", False),
    "patching": ("/patching", False),
    "run": ("/run/{run}", True),
    "head": ("/head?run={run}&layer=2&head=0", False),
    "method": ("/method/activation_patching", False),
    "runs": ("/runs", False),
}


@contextmanager
def workbench() -> Iterator[str]:
    """A workbench on an empty store; gives its address and ends it after."""
    with tempfile.TemporaryDirectory(prefix="interp-screenshots-") as folder:
        command = [
            sys.executable, "-m", "apps.workbench", "--port", "0", "--no-browser",
            "--store", str(Path(folder) / "store"),
        ]  # fmt: skip
        env = {**os.environ, "GOMP_SPINCOUNT": "0", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found[0].rstrip("/")
                    break
            else:
                sys.exit("The workbench ended before it said where it is.")
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def run_id(page: Any, address: str) -> str:
    """The first run this installation computed, once its grid is on the home page."""
    page.goto(address + "/")
    link = page.locator("a[href*='/run/']").first
    stop = time.monotonic() + PATIENCE
    while time.monotonic() < stop:
        if link.count() and page.locator(".js-plotly-plot .main-svg").count():
            return str(link.get_attribute("href")).split("/run/")[1].split("?")[0]
        page.wait_for_timeout(500)
    sys.exit(f"No computed grid was on the home page after {PATIENCE} s.")


def shoot(page: Any, address: str, name: str, run: str, out: Path) -> None:
    """One picture of one page."""
    path, figure = PAGES[name]
    page.goto(address + path.format(run=run))
    page.wait_for_load_state("networkidle")
    if figure:
        page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=30_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=out / f"{name}.png")
    print(f"{out / name}.png")


def main() -> None:
    """Take the chosen pictures, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAGES)}")
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    options = parser.parse_args()
    names = options.names or list(PAGES)
    if unknown := sorted(set(names) - set(PAGES)):
        parser.error(f"no picture is called {', '.join(unknown)}; there are {', '.join(PAGES)}")
    from playwright.sync_api import sync_playwright

    chromium = next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))),
        None,
    )
    if chromium is None:
        sys.exit("No Chromium was found on PATH; `make setup` installs one where it may.")
    options.out.mkdir(parents=True, exist_ok=True)
    errors: list[str] = []
    with workbench() as address, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport=SIZE,
            color_scheme="dark" if options.dark else "light",  # type: ignore[arg-type]
        )
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        run = run_id(page, address)
        for name in names:
            shoot(page, address, name, run, options.out)
        browser.close()
    if errors:
        sys.exit("The browser's console had errors:\n  " + "\n  ".join(sorted(set(errors))))


if __name__ == "__main__":
    main()
