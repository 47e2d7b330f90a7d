"""Reports: one offline file; hostile text stays text; what does not fit is said, not thrown."""

import base64
import functools
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import xarray as xr
import yaml

import interp.methods
from interp.report import read_spec, report, result_report
from interp.report.specs import shard_of
from interp.terms import CancelledError, UsageError
from tests.figures.arrays import HOSTILE, array
from tests.outward import BAD, GOOD, PromptLengths, result

TASK = "ioi:n=4,seed=0"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(interp.methods.METHODS, "prompt_lengths", PromptLengths)


@pytest.fixture(scope="session")
def ioi():
    from interp.models import load_model

    return load_model("zoo:ioi")


@pytest.fixture
def one_model(monkeypatch, ioi):
    """Models open once for all tests here; any other name goes its ordinary way."""
    from interp import models

    real, opened = models.load_model, []

    def load_model(source, **options):
        opened.append(source)
        return ioi if source == "zoo:ioi" and not options else real(source, **options)

    monkeypatch.setattr(models, "load_model", load_model)
    return opened


def body_of(page):
    """The page without its own scripts and figure data."""
    return re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)


def cells_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["cells"]


# -- the page -------------------------------------------------------------------------------------


def test_the_policy_allows_the_pages_own_two_scripts_and_nothing_else(tmp_path):
    text = result_report(result(), tmp_path / "r.html").read_text(encoding="utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_plotly_is_inlined_once_whatever_the_number_of_results(tmp_path):
    one = result_report(result(), tmp_path / "a.html").stat().st_size
    three = result_report([result(), result(), result()], tmp_path / "b.html").stat().st_size
    assert 4_000_000 < one and three - one < 1_000_000


def test_nothing_is_fetched(tmp_path):
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    page = result_report(result(), tmp_path / "r.html")
    Tags().feed(body_of(page))
    assert len(tags) > 50
    assert not [t for t in tags if {"src", "srcset", "data", "action"} & set(t[1])]
    assert not [t for t in tags if not t[1].get("href", "#").startswith("#")]
    assert "url(" not in body_of(page) and "@import" not in body_of(page)


def test_hostile_text_stays_text(tmp_path):
    data = xr.Dataset(
        {
            "<svg onload=alert(1)>": array(
                [1.0], ("layer",), long_name=HOSTILE[1], units="</td><script>"
            )
        }
    )
    bad = result(data, model=HOSTILE[1], fields={"note": "'); DROP", "x": HOSTILE[1]})
    page = result_report(bad, tmp_path / "r.html", title=f"</title>{HOSTILE[1]}")
    body = body_of(page)
    assert "<img" not in body and "<svg" not in body and "</td><script>" not in body
    assert "&lt;img src=x onerror" in body
    text = page.read_text(encoding="utf-8")
    data_blocks = re.findall(
        r'<script type="application/json" id="[\w-]+">(.*?)</script>', text, flags=re.S
    )
    assert data_blocks and all("<" not in block for block in data_blocks)
    json.loads(data_blocks[0])


def test_every_number_of_a_figure_stands_in_a_table_without_scripts(tmp_path):
    text = result_report(result(), tmp_path / "r.html").read_text(encoding="utf-8")
    twin = re.search(r"<noscript><?\s*(.*?)</noscript>", text.split("What it found")[1], flags=re.S)
    assert "<table>" in twin[1] and "0.9" in twin[1]
    assert "undefined" in body_of(tmp_path / "r.html") or "of 72 cells" in twin[1]


def test_a_failed_check_is_amber_and_named(tmp_path):
    good = body_of(result_report(result(), tmp_path / "good.html"))
    bad = body_of(result_report(result(checks=(GOOD, BAD)), tmp_path / "bad.html"))
    assert 'class="bar amber"' not in good and "Every check passed" in good
    assert '<tr class="amber">' in bad and "⚠ failed" in bad and "they differ" in bad
    assert "logits equal &lt;b&gt;the unwrapped" in bad
    none = body_of(result_report(result(checks=()), tmp_path / "none.html"))
    assert "carries no check" in none


def test_parameters_provenance_and_the_way_to_run_it_again_are_there(tmp_path):
    made = result()
    body = html.unescape(body_of(result_report(made, tmp_path / "r.html")))
    for text in (
        "resid_pre",
        "denoising",
        made.spec_hash,
        "wall_time_s",
        made.to_command(),
        made.to_python().strip(),
        made.stamp,
    ):
        assert text in body


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    result_report(result(), tmp_path / "r.html")
    before = (tmp_path / "r.html").read_bytes()
    real = Path.write_text

    def full_disk(self, text, *args, **kwargs):
        real(self, text[:1000], *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="space"):
        result_report(result(), tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == before


def test_pictures_without_a_browser_are_skipped_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    page = result_report(result(), tmp_path / "r.html", pictures="png")
    assert re.search(r"No PNG pictures: (no browser|kaleido)", body_of(page))
    assert not (tmp_path / "r").exists()


@pytest.mark.browser
def test_the_file_opens_offline_draws_and_runs_nothing_foreign(tmp_path, browser_path):
    from playwright.sync_api import sync_playwright

    data = xr.Dataset(
        {"pattern": array([[[0.5, 0.5], [0.1, 0.9]]] * 3, ("prompt", "query", "key"), signed=0)}
    )
    page = result_report(
        [result(fields={"x": HOSTILE[1]}), result(data)], tmp_path / "r.html", title=HOSTILE[1]
    )
    said, asked = [], []
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = chrome.new_page()
        tab.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda e: said.append(str(e)))
        tab.on("request", lambda r: asked.append(r.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector("#run-1 .figure .main-svg")
        ticks = tab.locator("#run-1 .figure").first.locator(".xtick text").all_text_contents()
        tab.locator("#run-2").scroll_into_view_if_needed()
        tab.wait_for_selector("#run-2 .figure .main-svg")
        tab.select_option("#run-2 select", "3")
        tab.wait_for_function(
            "document.querySelector('#run-2 .gtitle-subtitle')"
            "?.textContent.includes('prompt 3 of 3')"
        )
        hurt = tab.evaluate("window.__pwn")
        title = tab.title()
        chrome.close()
    assert hurt is None and title == HOSTILE[1]
    assert said == []
    assert [u for u in asked if not u.startswith(("file:", "data:", "blob:"))] == []
    assert ticks[0] == "<s>" and ticks[3] == "%{z}" and ticks[9] == "␣the" and ticks[6] == "∅"
    assert len(ticks) == len(HOSTILE)


# -- specs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"model": ["zoo:ioi"], "methods": ["activation_patching"]}, "'models'"),
        ({"models": [], "methods": ["activation_patching"]}, "names no models"),
        ({"models": ["zoo:ioi"]}, "names no methods"),
        ({"models": ["zoo:ioi"], "methods": [{"activation_patching": "z"}]}, "knobs of"),
        ({"models": ["zoo:ioi"], "methods": ["activation_patchin"]}, "'activation_patching'"),
        ({"models": ["zoo:ioi"], "methods": [{"activation_patching": {"sit": "z"}}]}, "'site'"),
        (
            {"models": ["zoo:ioi"], "methods": [{"activation_patching": {"n_boot": -1}}]},
            "0 to 100000",
        ),
        (
            {"models": ["zoo:ioi"], "methods": ["activation_patching"], "compare": ["model"]},
            "'models'",
        ),
        ({"models": [{"dtype": "float64"}], "methods": ["activation_patching"]}, "ref is missing"),
        ({"models": ["zoo:ioi"], "methods": ["activation_patching"], "seed": "x"}, "whole number"),
        (
            {
                "models": [f"zoo:{i}" for i in range(101)],
                "tasks": [f"t{i}" for i in range(101)],
                "methods": ["activation_patching"],
            },
            "at most 10,000",
        ),
    ],
)
def test_a_spec_that_cannot_be_is_refused_before_anything_runs(tmp_path, spec, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        report(spec, tmp_path / "out")
    assert not list(tmp_path.glob("out/runs/*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [zoo:ioi", "no YAML in line"),
        ("- a\n- b", "wanted a mapping"),
        ("models: !!python/object/apply:os.system ['true']", "no YAML"),
        ("a: &a [x]\nmodels: [*a, *a]", "aliases"),
        ("", "wanted a mapping"),
    ],
)
def test_a_file_that_is_no_spec_is_refused_in_a_sentence(tmp_path, text, said):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_spec(path)


def test_a_spec_reads_knobs_tasks_and_loading_options():
    spec = read_spec(
        {
            "models": ["a", {"ref": "b", "dtype": "float64"}],
            "tasks": [{"ioi": {"n": 4}}, "addition"],
            "methods": ["m", {"k": {"x": 1}}],
        }
    )
    assert spec.models == (("a", {}), ("b", {"dtype": "float64"}))
    assert spec.tasks == ("ioi:n=4", "addition")
    assert [c.title for c in spec.cells()][:3] == [
        "m · a · ioi:n=4",
        "k(x=1) · a · ioi:n=4",
        "m · a · addition",
    ]
    assert len({c.key for c in spec.cells()}) == 8


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "x", "1", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(wrong):
    with pytest.raises(UsageError, match="i/n"):
        shard_of(wrong)


# -- batches --------------------------------------------------------------------------------------


def spec_of(*methods, models=("zoo:ioi",), **more):
    return {"models": list(models), "tasks": [TASK], "methods": list(methods), **more}


def test_a_method_added_in_a_test_gets_its_section(tmp_path, toy, one_model):
    page = report(spec_of("prompt_lengths", {"prompt_lengths": {"factor": "2"}}), tmp_path / "out")
    body = body_of(page)
    assert "How long is each prompt?" in body and "length (tokens)" in body
    assert [c["state"] for c in cells_of(tmp_path / "out")] == ["done", "done"]
    assert one_model == ["zoo:ioi"]


def test_what_does_not_fit_or_fails_is_said_and_the_rest_is_done(tmp_path, toy, one_model):
    page = report(
        spec_of(
            {"prompt_lengths": {"fault": "<b>broken</b>"}},
            "prompt_lengths",
            models=("zoo:no-such-model", "zoo:ioi"),
        ),
        tmp_path / "out",
    )
    cells = cells_of(tmp_path / "out")
    assert [c["state"] for c in cells] == ["misfit", "misfit", "failed", "done"]
    assert "zoo:no-such-model" in cells[0]["reason"]
    assert "RuntimeError: <b>broken</b>" in cells[2]["reason"]
    body = body_of(page)
    assert "does not fit" in body and "&lt;b&gt;broken" in body and "<b>broken" not in body


def test_resuming_runs_only_what_is_missing(tmp_path, toy, one_model, monkeypatch):
    spec = spec_of("prompt_lengths", {"prompt_lengths": {"factor": 2}})
    report(spec, tmp_path / "out")
    with pytest.raises(UsageError, match="resume"):
        report(spec, tmp_path / "out")
    done = cells_of(tmp_path / "out")
    damaged = tmp_path / "out" / done[0]["folder"] / "data.nc"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    calls = []
    real = PromptLengths.measure

    @functools.wraps(real)
    def measure(self, model, task, context):
        calls.append(self.factor)
        return real(self, model, task, context)

    monkeypatch.setattr(PromptLengths, "measure", measure)
    report(spec, tmp_path / "out", resume=True)
    cells = cells_of(tmp_path / "out")
    assert [c["state"] for c in cells] == ["done", "found"] and calls == [1.0]
    assert [c["spec_hash"] for c in cells] == [c["spec_hash"] for c in done]


def test_shards_together_are_the_whole(tmp_path, toy, one_model):
    spec = spec_of(*[{"prompt_lengths": {"factor": f}} for f in (1, 2, 3)])
    report(spec, tmp_path / "out", shard="1/2")
    assert [c["state"] for c in cells_of(tmp_path / "out")] == ["done", "missing", "done"]
    report(spec, tmp_path / "out", shard=(2, 2))
    assert [c["state"] for c in cells_of(tmp_path / "out")] == ["found", "done", "found"]


def test_what_is_finished_before_a_cancel_is_in_the_report(tmp_path, toy, one_model, monkeypatch):
    real = PromptLengths.measure

    @functools.wraps(real)
    def measure(self, model, task, context):
        if self.factor == 2:
            raise CancelledError("Cancelled.")
        return real(self, model, task, context)

    monkeypatch.setattr(PromptLengths, "measure", measure)
    spec = spec_of(*[{"prompt_lengths": {"factor": f}} for f in (1, 2, 3)])
    with pytest.raises(CancelledError, match="resume"):
        report(spec, tmp_path / "out")
    assert [c["state"] for c in cells_of(tmp_path / "out")] == ["done", "missing", "missing"]
    monkeypatch.setattr(PromptLengths, "measure", real)
    report(spec, tmp_path / "out", resume=True)
    assert [c["state"] for c in cells_of(tmp_path / "out")] == ["found", "done", "done"]


def test_comparing_sets_results_side_by_side(tmp_path, toy, one_model):
    page = report(
        spec_of("prompt_lengths", {"prompt_lengths": {"factor": 3}}, compare=["methods"]),
        tmp_path / "out",
    )
    body = body_of(page)
    assert "Compared along methods" in body
    lengths = 15 * 2
    assert f"{lengths} tokens" in body


def test_the_example_spec_is_one_that_runs(tmp_path):
    path = Path(__file__).parents[1] / "analyses" / "first_patch.yaml"
    spec = read_spec(path)
    assert spec.question and spec.cells()
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["models"] == ["zoo:ioi"]
    report({**spec.source, "tasks": ["ioi:n=2,seed=0"]}, tmp_path / "out")
    assert {c["state"] for c in cells_of(tmp_path / "out")} == {"done"}
