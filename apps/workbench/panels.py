"""The panels beside the figure: table, trust, provenance, export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dash_ag_grid as dag
import numpy as np
from dash import dcc, html

from apps.workbench.tell import link, notice
from interp import figures

MOST_ROWS = 2000


def part(kind: str, run: str, **more: Any) -> dict[str, Any]:
    """The id of one piece of a frame."""
    return {"type": f"frame-{kind}", "run": run, **more}


def trust_pill(checks: Any) -> html.Span:
    """The checks in a few words."""
    held = [c for c in checks if c.tolerance is not None]
    failed = sum(not c.passed for c in held)
    if failed:
        verb = "fails" if failed == 1 else "fail"
        return html.Span(f"{failed} of {len(held)} checks {verb}", className="pill warn")
    if not held:
        return html.Span("no checks", className="pill")
    words = "1 check holds" if len(held) == 1 else f"{len(held)} checks hold"
    return html.Span(words, className="pill ok")


def failed_note(failed: list[Any]) -> html.Div:
    """What fails, in one amber box."""
    names = "; ".join(f"{c.title}: {number(c.value)}, {bound(c)}" for c in failed[:3])
    return notice(
        f"Not every check holds. {names}.",
        kind="warn",
        remedy="The numbers are shown, but read the trust panel before using them.",
    )


def number(value: float) -> str:
    """A number with three digits that count."""
    return "undefined" if value is None or np.isnan(value) else f"{value:.3g}"


def bound(check: Any) -> str:
    """The tolerance in words."""
    if check.tolerance is None:
        return "stated"
    return f"wanted {'≥' if check.at_least else '≤'} {number(check.tolerance)}"


def check_line(check: Any) -> html.Div:
    """One line of the trust panel."""
    kind, sign, said = (
        ("said", "·", "stated")
        if check.tolerance is None
        else ("ok", "✓", "holds")
        if check.passed
        else ("bad", "!", "fails")
    )
    note = f"{said}. {check.note}" if check.note else f"{said}."
    return html.Div(
        [
            html.Span(sign, className="sign", **{"aria-hidden": "true"}),
            html.Span(check.title or check.name),
            html.Span([html.B(number(check.value)), " ", bound(check)], className="value"),
            html.Span(note, className="why"),
        ],
        className=f"check {kind}",
    )


def trust_panel(result: Any) -> html.Div:
    """Each check as value against tolerance, and what is needed to repeat the run."""
    checks = sorted(result.checks, key=lambda c: (c.passed, c.tolerance is None))
    lines = [check_line(c) for c in checks] or [notice("This run made no checks.", kind="warn")]
    known = result.provenance
    facts = {k: known[k] for k in ("seed", "backend", "device", "dtype", "partition") if k in known}
    return html.Div(
        [
            html.Div(lines),
            html.H3("Needed to repeat it", style={"margin": "16px 0 6px"}),
            facts_list(facts | dict(known.get("versions") or {})),
        ],
        style={"maxWidth": "860px"},
    )


def facts_list(facts: Mapping[str, Any]) -> html.Dl:
    """Names and values, one a line."""
    rows: list[Any] = []
    for key, value in facts.items():
        if value is None or value == {} or value == []:
            continue
        text = (
            value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        )
        rows += [html.Dt(str(key).replace("_", " ")), html.Dd(str(text)[:2000])]
    return html.Dl(rows, className="facts")


def provenance_panel(result: Any, run: str) -> html.Div:
    """Where the numbers come from: model, task, spec, machine."""
    spec = dict(result.spec)
    task = {k: v for k, v in (spec.get("task") or {}).items() if k != "inline"}
    blocks = {
        "Run": {"run": run, "spec hash": result.spec_hash},
        "Model": spec.get("model") or {},
        "Task": task,
        "Method": {
            "method": spec["method"],
            "version": spec.get("version"),
            **(spec.get("fields") or {}),
        },
        "How it was measured": {k: v for k, v in result.provenance.items() if k != "versions"},
    }
    return html.Div(
        [
            html.Div([html.H3(k, style={"margin": "10px 0 4px"}), facts_list(v)])
            for k, v in blocks.items()
        ]
    )


def export_panel(result: Any, run: str) -> html.Div:
    """Files to take away, and the same run as Python, command and notebook."""
    files = {
        "csv": "CSV",
        "json": "JSON",
        "nc": "netCDF (.nc)",
        "html": "HTML report",
        "ipynb": "Notebook",
    }
    links = [
        html.A(words, href=link(f"/export/{run}.{kind}"), className="button", download="")
        for kind, words in files.items()
    ]
    return html.Div(
        [
            html.Div(links, className="row"),
            html.P("Pictures: the camera over the figure saves an SVG.", className="faint"),
            html.H3("Python"),
            copyable(result.to_python(), part("python", run)),
            html.H3("Command"),
            copyable(result.to_command(), part("command", run)),
        ],
        className="stack",
    )


def copyable(text: str, ident: dict[str, Any]) -> html.Div:
    """Code with a button that copies it."""
    return html.Div(
        [
            html.Pre(text, className="code", id=ident, tabIndex=0),
            html.Div(dcc.Clipboard(content=text, title="Copy"), className="copy"),
        ],
        className="copyable",
    )


def table(result: Any, var: str | None = None) -> html.Div:
    """The table twin of a figure, the largest values first where there are many."""
    names = figures.drawn_names(result.data)
    if not names:
        return html.Div(notice("There is no array in this result."))
    var = var if var in names else names[0]
    cells = int(result.data[var].size)
    made = figures.table_of(
        result.data, var, tokens=result.tokens, limit=MOST_ROWS, largest_first=cells > MOST_ROWS
    )
    keys = [f"c{i}" for i in range(len(made.columns))]
    rows = [{k: tidy(v) for k, v in zip(keys, row, strict=True)} for row in made.rows]
    columns = [
        {
            "field": k,
            "headerName": name,
            "type": "numericColumn" if rows and isinstance(rows[0][k], (int, float)) else None,
        }
        for k, name in zip(keys, made.columns, strict=True)
    ]
    cut = (
        f" The {len(rows)} largest of {made.total}; the CSV has all."
        if made.total > len(rows)
        else ""
    )
    return html.Div(
        [html.P(f"{made.title}, a row a cell.{cut}", className="faint"), rows_grid(rows, columns)],
        className="stack tight",
    )


def tidy(value: Any) -> Any:
    """A cell of a table as JSON: six digits, undefined as nothing."""
    if isinstance(value, float):
        return None if value != value else float(f"{value:.6g}")
    return value


GRID_THEME = {
    "function": """themeQuartz.withParams({
  backgroundColor: 'var(--card)', foregroundColor: 'var(--ink)', borderColor: 'var(--line)',
  headerBackgroundColor: 'var(--sunk)', headerTextColor: 'var(--ink-2)', fontSize: 13,
  fontFamily: 'var(--font)', accentColor: 'var(--accent)', rowHoverColor: 'var(--accent-soft)',
  selectedRowBackgroundColor: 'var(--accent-soft)', oddRowBackgroundColor: 'var(--card)',
  browserColorScheme: 'inherit', rowHeight: 34, headerHeight: 36, wrapperBorderRadius: 6,
  menuBackgroundColor: 'var(--card)', inputBackgroundColor: 'var(--card)',
  inputTextColor: 'var(--ink)', checkboxUncheckedBackgroundColor: 'var(--card)'})"""
}
"""AG Grid's theme in the page's own colours; parsed by the component, never evaluated."""


def rows_grid(rows: list[dict[str, Any]], columns: list[dict[str, Any]], **more: Any) -> Any:
    """An AG Grid in the page's looks; cells are plain text."""
    options = {
        "pagination": len(rows) > 50,
        "paginationPageSize": 50,
        "theme": GRID_THEME,
        "paginationPageSizeSelector": False,
        "ensureDomOrder": True,
        "suppressColumnVirtualisation": True,
        **more.pop("options", {}),
    }
    height = f"{min(520, 60 + 34 * max(len(rows), 3) + (46 if len(rows) > 50 else 0))}px"
    return dag.AgGrid(
        rowData=rows,
        columnDefs=columns,
        defaultColDef={
            "sortable": True,
            "resizable": True,
            "minWidth": 90,
            "flex": 1,
            "filter": more.pop("filter", True),
        },
        dashGridOptions=options,
        className="",
        style={"height": height, "width": "100%"},
        **more,
    )
