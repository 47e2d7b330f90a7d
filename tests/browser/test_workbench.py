"""The workbench in a browser over a seeded store: what a person sees and does, page by page."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from interp.figures import glyphs
from tests.apps.fakes import HOSTILE, WORDS
from tests.browser.conftest import watch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PAGES = (
    "/",
    "/models?ref=zoo:ioi",
    "/pair",
    "/patching",
    "/head?layer=1&head=2",
    "/attribution",
    "/depth",
    "/interpreter",
    "/runs",
    "/method/toy_method",
    "/compare",
    "/nowhere",
    "/run/{plain}",
    "/run/{failing}?tab=trust",
    "/run/{plain}?tab=table",
    "/run/{plain}?tab=export",
    "/run/{plain}?tab=provenance",
)


def visit(page, workbench, path: str) -> None:
    """Open a path and wait until it has come to rest."""
    page.goto(workbench.url + path.format(**workbench.runs))
    page.wait_for_selector(".page h1")
    page.wait_for_function("() => !document.querySelector('[data-dash-is-loading]')")


def ticks(page) -> list[str]:
    """The labels under the columns, as a reader sees them."""
    page.wait_for_selector(".js-plotly-plot .xtick text", state="attached")
    return page.eval_on_selector_all(
        ".js-plotly-plot .xtick text", "ts => ts.map(t => t.textContent)"
    )


def test_the_first_page_shows_a_grid_with_its_tokens_and_trust(page, workbench):
    page.goto(workbench.url + "/")
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    assert page.locator(".frame .pill.ok").first.inner_text() == "2 checks hold"
    assert len(ticks(page)) == len(HOSTILE)
    assert page.locator(".rail a[aria-current=page]").inner_text() == "Home"


def test_no_button_of_a_figure_sends_it_anywhere(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.wait_for_selector(".modebar-btn", state="attached")
    names = page.eval_on_selector_all(".modebar-btn", "bs => bs.map(b => b.dataset.title)")
    assert names and not [n for n in names if "share" in n.lower() or "cloud" in n.lower()], names


@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens_in_both_themes_with_readable_text_and_labelled_inputs(
    page, workbench, path
):
    visit(page, workbench, path)
    assert page.locator("h1").count() == 1
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(PALE) == []
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => document.documentElement.dataset.mantineColorScheme === 'dark'")
    assert page.evaluate(PALE) == []


def test_the_theme_switch_repaints_the_figure_and_survives_a_reload(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    scale = "() => document.querySelector('.js-plotly-plot').data[0].colorscale[2][1]"
    page.wait_for_selector(".js-plotly-plot")
    before = page.evaluate(scale)
    page.click("#theme")
    page.wait_for_function(f"before => ({scale})() !== before", arg=before)
    page.reload()
    page.wait_for_selector(".js-plotly-plot .xtick")
    assert page.evaluate("() => document.documentElement.dataset.mantineColorScheme") == "dark"
    assert page.evaluate(scale) != before


def test_hostile_tokens_are_text_in_every_view(page, workbench):
    for tab in ("figure", "table", "trust", "provenance", "export"):
        visit(page, workbench, "/run/{hostile}?tab=" + tab)
        page.wait_for_timeout(300)
        assert page.evaluate("() => window.__pwn") is None, tab
    visit(page, workbench, "/run/{hostile}")
    labels = ticks(page)
    shown = [glyphs(t) for t in HOSTILE]
    assert len(labels) == len(shown)
    for label, token in zip(labels, shown, strict=True):
        assert token.startswith(label.rstrip("…")) and label, (label, token)


def test_hostile_tokens_are_text_in_the_pair_builder_and_in_a_cell(page, workbench):
    visit(page, workbench, "/pair")
    page.get_by_role("tab", name="Two prompts").click()
    page.click("#pair-check")
    page.wait_for_selector("text=Can the model do this?")
    chips = page.eval_on_selector_all(
        ".tokens tbody tr:nth-child(2) .tok", "ts => ts.map(t => t.textContent)"
    )
    assert chips == [glyphs(t) for t in HOSTILE]
    assert page.evaluate("() => window.__pwn") is None
    differing = page.locator(".tok.diff")
    assert differing.count() == 2


def test_a_view_goes_into_the_link_and_comes_back_from_it(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.get_by_role("textbox", name="Show").click()
    page.get_by_role("option", name="effect on logit_diff").click()
    page.wait_for_function("() => location.search.includes('var=effect_raw')")
    page.get_by_role("textbox", name="prompt").click()
    page.get_by_role("option", name="prompt 3").click()
    page.wait_for_function("() => location.search.includes('prompt=2')")
    url = page.url
    assert len(url) < 300
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector(".js-plotly-plot .xtick")
    assert page.get_by_role("textbox", name="Show").input_value() == "effect on logit_diff"
    assert page.get_by_role("textbox", name="prompt").input_value() == "prompt 3"


STRANGE = (
    "?v=9&var=nothing&tab=<script>",
    "?layer=999999&prompt=-1&x=1&x=2&y[]=z&layer=1%00",
    "?self=1&args=2&" + "&".join(f"k{i}=v" for i in range(200)),
)


def test_a_link_with_strange_keys_shows_the_run_and_says_what_it_left_out(page, workbench):
    for query in STRANGE:
        visit(page, workbench, "/run/{plain}" + query)
        page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
        assert page.locator(".note.warn").count() >= 1, query
    visit(page, workbench, "/run/{plain}?run_id={failing}")
    assert page.locator(".frame.amber").count() == 0


def test_an_unknown_run_and_an_unknown_page_lead_somewhere(page, workbench):
    visit(page, workbench, "/run/" + "0" * 32)
    assert page.locator(".note.bad").inner_text().startswith("There is no run")
    visit(page, workbench, "/nowhere/at/all")
    assert "no such page" in page.locator("h1").inner_text()


def test_a_run_is_started_followed_cancelled_and_resumed(page, workbench):
    workbench.queue.pace, workbench.queue.chunks, workbench.queue.hold_at = 0.02, 10, 5
    visit(page, workbench, "/patching")
    page.wait_for_selector(".tok.diff.clean")
    page.wait_for_selector("text=patched runs", state="detached")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector(".live .js-plotly-plot .heatmaplayer image")
    page.wait_for_selector("[role=progressbar][aria-valuenow='50']")
    assert "job=" in page.url
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".pill:has-text('Cancelled')")
    page.reload()
    page.wait_for_selector(".pill:has-text('Cancelled')")
    workbench.queue.hold_at = 10**9
    page.get_by_role("button", name="Resume").click()
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    assert page.locator(".frame .pill.ok").count() == 1


def test_a_value_that_does_not_fit_is_told_under_its_field_and_nothing_runs(page, workbench):
    visit(page, workbench, "/patching")
    page.get_by_text(re.compile(r"^More \(")).click()
    page.get_by_label("window").fill("900")
    before = len(workbench.queue.rows)
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector("text=wanted a whole number from 1 to 64")
    assert len(workbench.queue.rows) == before


def test_the_grid_is_walked_and_opened_by_keyboard_alone(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.wait_for_selector(".js-plotly-plot .heatmaplayer image")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.classList.contains('grid-layer')"):
            break
    else:
        raise AssertionError("Tab never reached the grid")
    assert page.evaluate("() => document.activeElement.getAttribute('role')") == "grid"
    for key in ("End", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    said = page.inner_text("#announce")
    assert said.startswith(f"layer 2, position {len(WORDS) - 1} {glyphs(WORDS[-1])}, "), said
    assert "± 0.03" in said
    page.keyboard.press("Enter")
    page.wait_for_selector(".mantine-Drawer-content h2:has-text('layer 2')")
    page.get_by_role("button", name="Verify with one plain forward").click()
    page.wait_for_selector(".mantine-Drawer-content .note.ok")
    page.keyboard.press("Escape")
    page.wait_for_selector(".mantine-Drawer-content", state="detached")


def test_a_click_on_a_cell_leads_to_the_heads_of_its_layer(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.wait_for_selector(".js-plotly-plot .heatmaplayer image")
    box = page.locator(".js-plotly-plot .heatmaplayer image").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 12, box["y"] + 12)
    page.get_by_role("link", name="Heads of this layer").click()
    page.wait_for_selector("h2:has-text('Head 3.0')")
    assert "layer=3" in page.url and page.locator("text=What it writes").count()
    page.go_back()
    page.wait_for_selector(".frame .js-plotly-plot")


def test_a_method_of_the_catalogue_has_a_page_that_runs_it(page, workbench):
    workbench.queue.pace, workbench.queue.chunks = 0.02, 3
    visit(page, workbench, "/")
    page.get_by_role("link", name="Toy method").click()
    page.wait_for_selector("h1:has-text('Toy method')")
    page.get_by_label("scale").fill("2.5")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    assert list(workbench.queue.rows.values())[-1]["job"]["fields"] == {"scale": 2.5}


def test_a_failing_check_puts_the_result_under_amber(page, workbench):
    visit(page, workbench, "/run/{failing}")
    assert page.locator(".frame.amber .note.warn").inner_text().startswith("Not every check holds")
    page.get_by_role("tab", name="Trust (1 to look at)").click()
    first = page.locator(".check").first
    assert "check bad" in first.get_attribute("class") and "0.4" in first.inner_text()


def test_two_runs_are_picked_and_compared(page, workbench):
    visit(page, workbench, "/runs")
    page.locator(".ag-row input[type=checkbox]").first.wait_for()
    rows = page.locator(".ag-row")
    texts = rows.all_inner_texts()
    picked = [
        next(i for i, t in enumerate(texts) if part in t) for part in ("attn_out", "resid_pre")
    ]
    for i in picked:
        rows.nth(i).locator("input[type=checkbox]").check()
    page.get_by_role("link", name="Compare the two").click()
    page.wait_for_selector("h2:has-text('Where they differ')")
    assert page.locator("td:has-text('fields.site')").count() == 1


def test_tags_and_notes_are_kept_as_text_and_found(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.get_by_label("Note").fill("<b>look</b> here")
    page.get_by_role("button", name="Keep").click()
    page.wait_for_selector("text=Kept.")
    assert workbench.store.row(workbench.runs["plain"]).note == "<b>look</b> here"
    visit(page, workbench, "/runs?text=look")
    page.wait_for_selector(".ag-row:has-text('<b>look</b> here')")
    assert page.locator(".ag-center-cols-container .ag-row").count() == 1


def test_exports_download(page, workbench):
    visit(page, workbench, "/run/{plain}?tab=export")
    with page.expect_download() as caught:
        page.get_by_role("link", name="CSV").click()
    assert caught.value.suggested_filename.endswith(".csv")
    assert "interp run activation_patching" in page.inner_text(".frame-tabs")


def test_a_pickers_hub_id_is_held_against_its_pattern(page, workbench):
    visit(page, workbench, "/models")
    page.get_by_label("From the hub").fill("../../etc/passwd")
    page.get_by_role("button", name="Open").click()
    page.wait_for_selector("text=That is no id of a model.")


def test_the_page_works_on_a_narrow_screen(page, workbench):
    page.set_viewport_size({"width": 420, "height": 800})
    for path in ("/", "/patching", "/runs"):
        visit(page, workbench, path)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 421, path


def test_a_prompt_of_512_tokens_is_drawn_and_walked(page, workbench):
    visit(page, workbench, "/run/{long}")
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    assert 10 < len(ticks(page)) <= 64
    assert "0 to 2 are the same in both prompts" in page.text_content(".gtitle-subtitle")
    shown = "() => document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range.map(Number)"
    assert page.evaluate(shown) == [-0.5, 66.5]
    page.focus(".frame .grid-layer")
    page.keyboard.press("End")
    assert "position 511 ␣w511" in page.inner_text("#announce")
    left, right = page.evaluate(shown)
    assert right == 511.5 and left == 444.5, "the window slides along"
    cursor, plot = (page.locator(s).bounding_box() for s in (".frame .cursor", ".nsewdrag"))
    assert plot["x"] <= cursor["x"] < plot["x"] + plot["width"]


def test_colours_and_their_scale_are_chosen_kept_in_the_link_and_hidden_where_idle(page, workbench):
    visit(page, workbench, "/run/{plain}")
    page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
    scale = "() => document.querySelector('.js-plotly-plot')._fullData[0]"
    before = page.evaluate(scale + ".colorscale[0][1]"), page.evaluate(scale + ".zmax")
    page.get_by_role("textbox", name="Colours").click()
    page.get_by_role("option", name="purple and orange").click()
    page.wait_for_function("() => location.search.includes('palette=PuOr')")
    page.get_by_role("textbox", name="Scale").click()
    page.get_by_role("option", name="robust").click()
    page.wait_for_function("() => location.search.includes('scale=robust')")
    page.wait_for_function(f"z => {scale[6:]}.zmax < z", arg=before[1])
    assert page.evaluate(scale + ".colorscale[0][1]") != before[0]
    page.reload()
    page.wait_for_selector(".js-plotly-plot .xtick")
    assert page.get_by_role("textbox", name="Colours").input_value() == "purple and orange"
    assert page.evaluate(scale + ".colorscale[0][1]") != before[0]


PREFIXED = """
import pathlib, sys
from apps.workbench.bench import Bench
from apps.workbench.server import make_app, serve
from interp.store import Store
from tests.apps.fakes import FakeQueue, record
store = Store(pathlib.Path(sys.argv[1]))
store.add(record())
app = make_app(Bench(store, queue=FakeQueue(store)), prefix="/user/me/",
               token="a-token-of-enough-length", cookie="interp_test")
server = serve(app, "127.0.0.1", 0)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""In a process of its own: dash keeps one app's callbacks and prefix a process."""


def test_under_a_prefix_with_a_token_everything_works_and_strangers_do_not(chromium, tmp_path):
    server = subprocess.Popen(
        [sys.executable, "-c", PREFIXED, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    context = chromium.new_context()
    try:
        base = f"http://127.0.0.1:{int(server.stdout.readline())}"
        assert context.new_page().goto(f"{base}/user/me/runs").status == 401
        page = context.new_page()
        seen = watch(page, base)
        page.goto(f"{base}/user/me/runs?token=a-token-of-enough-length&text=zoo")
        page.wait_for_selector(".ag-row")
        assert page.url == f"{base}/user/me/runs?text=zoo"
        page.get_by_role("link", name="Home").click()
        page.wait_for_selector(".frame .js-plotly-plot .heatmaplayer image")
        page.get_by_role("link", name="Open this run").click()
        page.wait_for_selector("h1:has-text('Activation patching')")
        page.get_by_role("tab", name="Table").click()
        page.wait_for_selector(".ag-row")
        assert not seen
    finally:
        context.close()
        server.terminate()
        server.wait(10)
        server.stdout.close()


@pytest.mark.parametrize(
    "headers,status",
    [
        ({"Host": "evil.example"}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_the_running_server_refuses_strangers(workbench, headers, status):
    connection = http.client.HTTPConnection(urlsplit(workbench.url).netloc, timeout=10)
    body = json.dumps({"output": "x.y", "inputs": []})
    connection.request(
        "POST", "/_dash-update-component", body, {"Content-Type": "application/json", **headers}
    )
    answer = connection.getresponse()
    assert answer.status == status and b"Traceback" not in answer.read()
    assert answer.getheader("Server").strip() == "interp"
    connection.close()


UNNAMED = """() => [...document.querySelectorAll('input, textarea, select, button, a')]
  .filter(e => e.type !== 'hidden' && e.getClientRects().length && e.tabIndex >= 0
    && !e.closest('.ag-root')
    && !e.closest('.modebar'))
  .filter(e => !(e.labels && e.labels.length && [...e.labels].some(l => l.textContent.trim()))
    && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')
    && !e.textContent.trim() && !e.title)
  .map(e => e.outerHTML.slice(0, 160))"""
"""Controls without a name."""

PALE = """() => {
  const rgb = c => { const m = c.match(/[\\d.]+/g).map(Number);
    return { c: m.slice(0, 3), a: m.length > 3 ? m[3] : 1 }; };
  const lum = c => { const [r, g, b] = c.map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = e => { for (let n = e; n; n = n.parentElement) {
    const s = rgb(getComputedStyle(n).backgroundColor); if (s.a > 0.9) return s.c; }
    return [255, 255, 255]; };
  const out = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.textContent.trim() || !e.getClientRects().length || e.closest('svg, script, style')
        || e.closest(':disabled, [data-disabled], .sr-only')) continue;
    const ink = rgb(getComputedStyle(e).color);
    if (ink.a < 0.9) continue;
    const a = lum(ink.c), b = lum(under(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push([n.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
  }
  return out; }"""
"""Texts whose contrast to what lies under them is below 4.5 : 1."""
