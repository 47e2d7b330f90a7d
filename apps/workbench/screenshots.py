"""Take the pictures of README and docs again: ``python -m apps.workbench.screenshots OUT_DIR``.

Starts a workbench on an empty store, walks the spine on ``zoo:ioi`` in both themes with a headless
Chromium, and writes one PNG a page. Needs playwright and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import interp
from apps.workbench.bench import Bench
from apps.workbench.server import make_app, serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 1320, "height": 900}
GRID = ".frame .js-plotly-plot .heatmaplayer image"


def home(page: Any, url: str) -> None:
    """The first grid."""
    page.goto(url)
    page.wait_for_selector(GRID)


def models(page: Any, url: str) -> None:
    """The shipped model's card."""
    page.goto(f"{url}models?ref=zoo:ioi")
    page.wait_for_selector("h2:has-text('What it can do')")


def pair(page: Any, url: str) -> None:
    """A typed pair, checked."""
    page.goto(f"{url}pair")
    page.get_by_role("tab", name="Two prompts").click()
    page.click("#pair-check")
    page.wait_for_selector("text=Can the model do this?")


def patching(page: Any, url: str) -> None:
    """All heads patched."""
    page.goto(f"{url}patching?model=zoo:ioi&task=ioi:n=32,seed=0&site=z")
    page.wait_for_selector("text=patched runs")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector(GRID)


def cell(page: Any, url: str) -> None:
    """A cell, verified."""
    home(page, url)
    page.focus(".frame .grid-layer")
    for key in ("End", "ArrowUp"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Verify with one plain forward").click()
    page.wait_for_selector(".mantine-Drawer-content .note.ok, .mantine-Drawer-content .note.warn")


def head(page: Any, url: str) -> None:
    """A head's pattern."""
    page.goto(f"{url}head?model=zoo:ioi&task=ioi:n=32,seed=0&layer=2&head=1")
    page.wait_for_selector("text=What it writes")


def trust(page: Any, url: str) -> None:
    """The trust panel of the first grid."""
    home(page, url)
    page.get_by_role("tab", name="Trust").first.click()
    page.wait_for_selector(".check")


def runs(page: Any, url: str) -> None:
    """What was measured so far."""
    page.goto(f"{url}runs")
    page.wait_for_selector(".ag-row")


SHOTS: dict[str, tuple[Callable[[Any, str], None], bool]] = {
    "home": (home, True),
    "models": (models, True),
    "pair": (pair, True),
    "patching": (patching, True),
    "cell": (cell, False),
    "head": (head, True),
    "trust": (trust, True),
    "runs": (runs, False),
}
"""Name -> how to get there, and whether the whole page is taken."""


def take(
    out: Path,
    url: str,
    browser_path: str,
    themes: Sequence[str] = ("light", "dark"),
    names: Sequence[str] = tuple(SHOTS),
) -> list[Path]:
    """Take the pictures; the light ones by name, the dark ones as ``name-dark.png``."""
    from playwright.sync_api import sync_playwright

    taken = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for theme in themes:
            page = browser.new_context(
                viewport=SIZE, color_scheme=theme, reduced_motion="reduce"
            ).new_page()
            page.set_default_timeout(90_000)
            for name in names:
                go, whole = SHOTS[name]
                go(page, url)
                page.wait_for_timeout(900)
                path = out / f"{name}{'' if theme == 'light' else '-dark'}.png"
                if whole:
                    page.set_viewport_size(
                        SIZE
                        | {
                            "height": page.evaluate(
                                "() => Math.min(2200, document.documentElement.scrollHeight)"
                            )
                        }
                    )
                    page.wait_for_timeout(300)
                page.screenshot(path=path)
                page.set_viewport_size(SIZE)
                taken.append(path)
        browser.close()
    return taken


def main(argv: Sequence[str] | None = None) -> int:
    """Start, take, stop; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.workbench.screenshots",
        description="Take the pictures of the docs again.",
    )
    parser.add_argument("out", type=Path, help="the folder they go to")
    parser.add_argument("--only", action="append", choices=list(SHOTS), help="this one alone")
    options = parser.parse_args(argv)
    browser = next((p for n in BROWSERS if (p := shutil.which(n))), None)
    if browser is None:
        sys.stderr.write(f"No browser was found on the PATH ({', '.join(BROWSERS)}).\n")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="interp-shots-") as folder:
        bench = Bench(interp.Store(Path(folder) / "store"))
        server = serve(make_app(bench), "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        bench.start_worker()
        bench.welcome()
        try:
            for path in take(
                options.out,
                f"http://127.0.0.1:{server.server_port}/",
                browser,
                names=options.only or tuple(SHOTS),
            ):
                sys.stdout.write(f"{path}\n")
        finally:
            bench.stop()
            server.shutdown()
            server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
