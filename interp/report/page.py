"""The page: results as one HTML file that opens offline and runs nothing but its own two scripts.

Everything that came from a model, a prompt or a spec enters through jinja2's autoescape, or as
JSON without ``<``; the content security policy names the scripts by hash, so that text which
slipped through still could not run.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.figures import (
    drawn_names,
    figure_json,
    figures_of,
    glyphs,
    number,
    picture,
    plan_of,
    plotly_script,
    selectors_of,
    table_of,
)
from interp.results import Result
from interp.terms import Check, UsageError

MOST_ROWS = 60
"""Rows of a table twin, largest first; the run's folder has all."""

FIRST_FIGURES = 2
"""Arrays of a run that are shown at once; the rest unfolds."""

MOST_VARIANTS = 8
"""Entries of a selector that a reader can switch between without the app."""

MOST_VARIANT_BYTES = 2_500_000

STATES = {
    "done": "done",
    "found": "done",
    "misfit": "does not fit",
    "failed": "failed",
    "missing": "not run",
}

SCRIPT = """
(function () {
  "use strict";
  function draw(box) {
    var figures = JSON.parse(document.getElementById(box.dataset.figure).textContent);
    var pick = document.getElementById(box.dataset.figure + "-pick");
    function show(k) {
      Plotly.react(box, figures[k].data, figures[k].layout,
                   {responsive: true, displaylogo: false, showSendToCloud: false,
                    plotlyServerURL: ""});
    }
    if (pick) { pick.addEventListener("change", function () { show(pick.selectedIndex); }); }
    show(pick ? pick.selectedIndex : 0);
  }
  var boxes = document.querySelectorAll(".figure");
  if (!("IntersectionObserver" in window)) { boxes.forEach(draw); return; }
  var watch = new IntersectionObserver(function (seen) {
    seen.forEach(function (s) {
      if (s.isIntersecting) { watch.unobserve(s.target); draw(s.target); }
    });
  }, {rootMargin: "600px"});
  boxes.forEach(function (b) { watch.observe(b); });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details.more").forEach(function (d) { d.open = true; });
    boxes.forEach(function (b) { if (!b.data) { draw(b); } });
  });
})();
"""


@dataclass
class Section:
    """One run on the page.

    Args:
        title: method, model, task.
        result: what it gave, or None.
        state: ``done``, ``found``, ``misfit``, ``failed``, ``missing``.
        reason: why there is no result.
        anchor: the link to it.
        model: refs, for the overview and comparisons; likewise ``task`` and ``method``.
        task: see ``model``.
        method: see ``model``.
    """

    title: str
    result: Result | None = None
    state: str = "done"
    reason: str = ""
    anchor: str = ""
    model: str = ""
    task: str = ""
    method: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)


def result_report(
    results: Result | Iterable[Result],
    path: str | Path,
    *,
    title: str = "",
    pictures: str | None = None,
) -> Path:
    """Write results as one HTML file that opens offline.

    Args:
        results: one or several.
        path: the file to write (``.html``), or a folder for ``report.html``.
        title: of the page (default: the result's own).
        pictures: also write each figure as ``"png"`` or ``"svg"`` beside it.

    Raises:
        UsageError: there is no result.
    """
    many = [results] if isinstance(results, Result) else list(results)
    if not many:
        raise UsageError("There is no result to report.")
    sections = [_section_of(r, f"run-{i + 1}") for i, r in enumerate(many)]
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    return write_page(
        path,
        sections,
        title=title or many[0].title,
        pictures=pictures,
        folder=path.with_suffix("") if pictures else path.parent,
    )


def _section_of(result: Result, anchor: str) -> Section:
    spec = result.spec
    task = spec.get("task") or {}
    return Section(
        result.title,
        result,
        anchor=anchor,
        model=str((spec.get("model") or {}).get("ref") or ""),
        task=str(task.get("ref") or task.get("name") or ""),
        method=str(spec.get("method", "")),
    )


def write_page(
    path: Path,
    sections: Sequence[Section],
    *,
    title: str,
    question: str = "",
    compare: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
    pictures: str | None = None,
    folder: Path | None = None,
) -> Path:
    """Write the page by a temporary name and a rename."""
    notes: list[str] = []
    if pictures:
        notes += _pictures(sections, pictures, (folder or path.parent) / "figures")
    text = page_of(
        sections, title=title, question=question, compare=compare, source=source, notes=notes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_text(text, encoding="utf-8", errors="backslashreplace")
    half.replace(path)
    return path


def page_of(
    sections: Sequence[Section],
    *,
    title: str,
    question: str = "",
    compare: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The whole page as text."""
    from interp.report.compare import comparisons

    blocks: list[tuple[str, str]] = []
    shown = [_view(s, blocks) for s in sections]
    beside = comparisons(sections, compare, blocks)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=glyphs_line(title),
            question=glyphs_line(question),
            sections=shown,
            comparisons=beside,
            notes=list(notes),
            blocks=blocks,
            overview=_overview(sections),
            source=json.dumps(source, indent=1, default=str, ensure_ascii=False) if source else "",
            made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=_version(),
            csp=_policy(),
            script=SCRIPT,
            plotly=plotly_script(),
            states=STATES,
        )
    )
    return page


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("interp.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda v: number(v) if isinstance(v, float) else str(v)
    return environment


def _policy() -> str:
    hashes = " ".join(f"'sha256-{_digest(s)}'" for s in (plotly_script(), SCRIPT))
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _version() -> str:
    import interp

    return str(interp.__version__)


def glyphs_line(text: str) -> str:
    """House or spec prose: control characters made visible, spaces kept."""
    return "".join(c if c in " \n" else glyphs(c) for c in text)


# -- one section ----------------------------------------------------------------------------------


def _view(section: Section, blocks: list[tuple[str, str]]) -> dict[str, Any]:
    """What the template shows of a section."""
    view: dict[str, Any] = {
        "title": glyphs_line(section.title),
        "anchor": section.anchor,
        "state": section.state,
        "reason": glyphs_line(section.reason),
        "result": None,
    }
    result = section.result
    if result is None:
        return view
    provenance = result.provenance
    figures = _figures(section, blocks)
    view["result"] = {
        "shown": FIRST_FIGURES,
        "rest": [f["table"].title for f in figures[FIRST_FIGURES:]],
        "question": str(provenance.get("question") or ""),
        "checks": [_check(c) for c in result.checks],
        "passed": result.passed,
        "figures": figures,
        "parameters": _flat(result.spec.get("fields") or {}),
        "provenance": _flat(
            {
                "run": result.run_id,
                "spec hash": result.spec_hash,
                "model": result.spec.get("model"),
                "task": _task_lines(result.spec),
                **provenance,
            }
        ),
        "python": result.to_python(),
        "command": result.to_command(),
        "stamp": result.stamp,
    }
    return view


def _task_lines(spec: Mapping[str, Any]) -> Any:
    task = spec.get("task")
    return {k: v for k, v in task.items() if k != "inline"} if isinstance(task, Mapping) else task


def _check(check: Check) -> dict[str, Any]:
    bound = "stated only"
    if check.tolerance is not None:
        bound = f"{'at least' if check.at_least else 'at most'} {number(check.tolerance)}"
    return {
        "title": check.title,
        "name": check.name,
        "value": number(float(check.value)),
        "bound": bound,
        "passed": check.passed,
        "note": check.note,
        "stated": check.tolerance is None,
    }


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows ``a.b``: value."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{name}.")
        elif value is not None and value != {} and value != "":
            text = value if isinstance(value, str) else _plain(value)
            rows.append((name, glyphs_line(text if len(text) <= 400 else text[:399] + "…")))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 6) if math.isfinite(value) else str(value)
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _figures(section: Section, blocks: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Every array: its variants as JSON blocks, its table twin, its sentence."""
    result = section.result
    assert result is not None, "a section with figures has a result"
    out = []
    for name in drawn_names(result.data):
        axis, labels = _switch(result, name)
        try:
            variants = [_drawn(result, name, {axis: v} if axis else {}) for v in labels]
        except UsageError as error:
            variants, note = [], str(error)
        else:
            note = ""
        texts = [figure_json(f) for f in variants]
        while len(texts) > 1 and sum(map(len, texts)) > MOST_VARIANT_BYTES:
            texts.pop()
        key = f"figure-{len(blocks)}"
        if texts:
            blocks.append((key, "[" + ",".join(texts) + "]"))
        table = table_of(
            result.data, name, tokens=result.tokens, largest_first=True, limit=MOST_ROWS
        )
        out.append(
            {
                "key": key if texts else None,
                "name": name,
                "note": note,
                "table": table,
                "alt": variants[0].layout.meta["alt"] if variants else table.title,
                "height": int(variants[0].layout.height or 400) if variants else 0,
                "axis": axis,
                "choices": [_entry(axis, v) for v in labels[: len(texts)]],
            }
        )
    return out


def _entry(axis: str | None, value: Any) -> str:
    if axis == "prompt" and isinstance(value, int):
        return str(value + 1)
    return glyphs_line(str(value))


def _switch(result: Result, name: str) -> tuple[str | None, list[Any]]:
    """The axis a reader may switch along, and its first entries."""
    plan = plan_of(result.data[name])
    choices = selectors_of(result.data[[name]])
    for axis in plan.selectors:
        if result.data.sizes[axis] > 1:
            return axis, choices[axis][:MOST_VARIANTS]
    return None, [None]


def _drawn(result: Result, name: str, selection: Mapping[str, Any]) -> Any:
    return figures_of(
        result.data,
        tokens=result.tokens,
        title=result.title,
        stamp=result.stamp,
        only=name,
        selection=selection,
    )[name]


def _overview(sections: Sequence[Section]) -> list[dict[str, Any]]:
    rows = []
    for s in sections:
        failed = [c.title for c in s.result.checks if not c.passed] if s.result else []
        rows.append(
            {
                "title": glyphs_line(s.title),
                "anchor": s.anchor,
                "state": s.state,
                "word": STATES[s.state],
                "reason": glyphs_line(s.reason),
                "failed": failed,
            }
        )
    return rows


def _pictures(sections: Sequence[Section], format_: str, folder: Path) -> list[str]:
    """Write every figure as a file; the notes say how many, or why none."""
    count = 0
    for section in sections:
        if section.result is None:
            continue
        for name in drawn_names(section.result.data):
            image = picture(_drawn(section.result, name, {}), format_)
            if image.reason:
                return [f"No {format_.upper()} pictures: {image.reason}."]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{section.anchor}-{name}.{format_}").write_bytes(image.image)
            count += 1
    return [f"{count} figures are also in {folder.name}/ as {format_.upper()}."]
