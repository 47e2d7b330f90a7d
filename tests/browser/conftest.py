"""A workbench on a free port over a seeded store, and a page that notices every misstep."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from apps.workbench.bench import Bench
from apps.workbench.server import serve
from interp.store import Store
from tests.apps.fakes import HOSTILE, FakeQueue, fresh_app, record


@dataclass
class Workbench:
    """A running workbench without a model."""

    url: str
    store: Store
    queue: FakeQueue
    bench: Bench
    runs: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="session")
def chromium(browser_path):
    """One headless browser for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def workbench(tmp_path_factory):
    """The server over a seeded store, in a thread."""
    store = Store(tmp_path_factory.mktemp("store"))
    runs = {
        "plain": store.add(record()),
        "failing": store.add(record(failing=True, seed=1, site="attn_out")),
        "long": store.add(record(words=tuple(f" w{i}" for i in range(512)))),
        "hostile": store.add(record(words=HOSTILE)),
    }
    bench = Bench(store, queue=FakeQueue(store))
    server = serve(fresh_app(bench), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Workbench(f"http://127.0.0.1:{server.server_port}", store, bench.queue, bench, runs)
    server.shutdown()
    server.server_close()
    thread.join(5)


def watch(page: Any, base: str) -> list[str]:
    """Collect what no page may do: console errors, failed answers, requests off this host."""
    seen: list[str] = []
    page.on("console", lambda m: seen.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: seen.append(f"error: {e}"))
    page.on("response", lambda r: seen.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((base, "data:", "blob:"))
            else seen.append(f"off host: {r.url}")
        ),
    )
    return seen


@pytest.fixture(params=["light"])
def page(request, chromium, workbench):
    """A page in one theme; the test fails if it logged an error or asked another host."""
    context = chromium.new_context(
        viewport={"width": 1320, "height": 880},
        color_scheme=request.param,
        accept_downloads=True,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    seen = watch(page, workbench.url)
    yield page
    context.close()
    assert not seen, seen
