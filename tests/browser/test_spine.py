"""The whole path on a shipped model: the first grid, a pair, a patch, a cell, a head, a report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.browser.conftest import watch

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """``python -m apps.workbench`` as a person starts it, on an empty store."""
    store = tmp_path_factory.mktemp("spine") / "store"
    command = [
        sys.executable,
        "-m",
        "apps.workbench",
        "--port",
        "0",
        "--store",
        str(store),
        "--no-browser",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    address = re.search(r"http://\S+", process.stdout.readline())
    assert address, process.stderr.read()
    yield address[0].rstrip("/"), store, time.monotonic(), process
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130), errors
    assert "Traceback" not in errors, errors
    gone = subprocess.run(["pgrep", "-f", f"interp.jobs --store {store}"], capture_output=True)
    assert gone.returncode == 1, "the worker outlived its workbench"


@pytest.fixture(scope="module")
def page(chromium, app):
    """One page for the whole path."""
    context = chromium.new_context(viewport={"width": 1320, "height": 880}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    seen = watch(page, app[0])
    yield page
    context.close()
    assert not seen, seen


def test_the_first_grid_is_on_the_first_page_within_a_minute(page, app):
    url, store, started, _ = app
    page.goto(url)
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    assert time.monotonic() - started < 60
    heading = page.inner_text(".frame .frame-head h2")
    assert "zoo:ioi" in heading
    run = json.loads(next(store.glob("runs/*/manifest.json")).read_text())
    assert run["provenance"]["versions"]["torch"], "computed here, by this installation's worker"


def test_a_new_check_marks_the_pair_that_is_shown_as_the_one_before(page, app):
    page.goto(f"{app[0]}/pair")
    page.click("#pair-check")
    page.wait_for_selector("text=Can the model do this?")
    page.evaluate(
        """() => { const out = document.getElementById('pair-out'); window.__seen = [];
        new MutationObserver(() => window.__seen.push(
            out.style.opacity + ' ' + out.getAttribute('aria-busy') + ' '
            + document.getElementById('pair-wait').textContent))
        .observe(out, {attributes: true}); }"""
    )
    page.click("#pair-check")
    page.wait_for_function(
        "() => window.__seen.length > 1 && "
        "document.getElementById('pair-out').style.opacity !== '0.35'"
    )
    assert any(s.startswith("0.35 true") for s in page.evaluate("() => window.__seen"))
    assert page.inner_text("#pair-wait") == ""


def test_prompts_of_unequal_length_are_offered_a_span_map(page, app):
    page.goto(f"{app[0]}/pair")
    page.get_by_role("tab", name="Two prompts").click()
    page.fill("#pair-corrupt", "When John went to the store, Mary gave a drink to")
    page.click("#pair-check")
    page.wait_for_selector(".note.bad:has-text('span map')")
    page.get_by_role("button", name="Accept this span map").click()
    page.wait_for_function("() => document.getElementById('pair-spans').value.includes('=')")
    page.click("#pair-check")
    page.wait_for_selector("text=Lengths differ; a span map says which positions correspond.")
    assert "task=pairs" in page.get_by_role("link", name="Patch this").get_attribute("href")


def test_a_file_of_pairs_is_uploaded_checked_and_its_bad_row_named(page, app):
    rows = [
        {
            "clean": f"When {a} and {b} went to the store, {b} gave a drink to",
            "corrupt": f"When {a} and {b} went to the store, {a} gave a drink to",
            "right": f" {a}", "wrong": f" {b}",
        }
        for a, b in (("Mary", "John"), ("John", "Mary"))
    ]  # fmt: skip
    bad = {**rows[0], "corrupt": rows[0]["clean"]}
    page.goto(f"{app[0]}/pair")
    page.get_by_role("tab", name="File").click()

    def give(lines):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        page.locator("#pair-file input[type=file]").set_input_files(
            {"name": "mine.jsonl", "mimeType": "application/json", "buffer": text.encode()}
        )
        page.wait_for_selector("text=mine.jsonl is ready")
        page.click("#pair-check")

    give(rows)
    page.wait_for_selector(".pill:has-text('2 pairs')")
    assert page.locator("h2:has-text('mine.jsonl')").count() == 1
    give([*rows, bad])
    page.wait_for_selector(".note.bad:has-text('3')")
    assert "same tokens" in page.inner_text(".note.bad")
    page.locator("label:has-text('Leave out the rows')").click()
    page.click("#pair-check")
    page.wait_for_selector(".pill:has-text('2 pairs')")


def test_a_typed_pair_is_aligned_checked_and_patched(page, app):
    page.get_by_role("link", name="Pair builder").click()
    page.get_by_role("tab", name="Two prompts").click()
    page.click("#pair-check")
    page.wait_for_selector("text=Can the model do this?")
    differing = page.locator(".tok.diff:visible").all_inner_texts()
    assert [d.strip("␣") for d in differing] == ["John", "Mary"]
    page.get_by_role("link", name="Patch this").click()
    page.wait_for_selector("text=patched runs")
    assert "task=pairs" in page.url
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    assert "own pair" in page.inner_text(".frame .frame-head h2")


def test_a_cell_is_verified_by_a_plain_forward_and_leads_to_its_head(page, app):
    page.focus(".frame .grid-layer")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Verify with one plain forward").click()
    page.wait_for_selector(".mantine-Drawer-content .note.ok")
    assert page.locator("h3:has-text('Next token, patched')").count() == 1
    page.get_by_role("link", name="Heads of this layer").click()
    page.wait_for_selector("h2:has-text('Head 0.0')")
    page.wait_for_selector("text=What it writes")
    assert page.locator(".heatmaplayer image").count() >= 4
    page.get_by_role("button", name="0.2", exact=True).click()
    page.wait_for_selector("h2:has-text('Head 0.2')")


def test_a_model_tells_its_card_checks_and_reasons(page, app):
    page.get_by_role("link", name="Models", exact=True).click()
    page.locator("a.card[href$='ref=zoo%3Aioi']").click()
    page.wait_for_selector("h2:has-text('Self-checks of the adapter')")
    assert page.locator(".check.ok").count() >= 4
    assert page.locator("td:has(.pill.warn) + td").first.inner_text()


def test_the_report_of_a_run_is_one_file(page, app, tmp_path):
    page.get_by_role("link", name="Runs & jobs").click()
    page.locator(".ag-row input[type=checkbox]").first.check()
    page.get_by_role("link", name="Open", exact=True).click()
    page.get_by_role("tab", name="Export").click()
    with page.expect_download() as caught:
        page.get_by_role("link", name="HTML report").click()
    path = tmp_path / "report.html"
    caught.value.save_as(path)
    text = path.read_text()
    assert "Content-Security-Policy" in text and "Activation patching" in text


def test_a_worker_that_is_killed_under_an_open_page_comes_back(page, app):
    found = subprocess.run(
        ["pgrep", "-f", f"interp.jobs --store {app[1]}"], capture_output=True, text=True
    ).stdout.split()
    assert len(found) == 1
    os.kill(int(found[0]), signal.SIGKILL)
    page.get_by_role("link", name="Pair builder").click()
    page.click("#pair-check")
    page.wait_for_selector("text=Can the model do this?")
    page.wait_for_selector(".worker:has-text('worker ready')")
