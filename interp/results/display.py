"""A result as text and as static, escaped HTML: no widget, no script."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from interp.results.result import Result
    from interp.terms import Check

SHOWN = (
    "model_id",
    "weight_hash",
    "task_name",
    "task_hash",
    "seed",
    "backend",
    "device",
    "dtype",
    "partition",
    "wall_time_s",
    "peak_memory_bytes",
    "git_revision",
    "found_in_store",
)


def title_of(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Method and model in words."""
    model = (spec.get("model") or {}).get("ref") or "a model"
    return f"{provenance.get('method_title') or spec['method']} · {model}"


def stamp_of(spec: Mapping[str, Any], provenance: Mapping[str, Any], run_id: str | None) -> str:
    """method · model@hash · task@hash · direction · metric · seed · version · run."""
    model, task = spec.get("model") or {}, spec.get("task") or {}
    fields = spec.get("fields") or {}
    version = (provenance.get("versions") or {}).get("interp")
    parts = [
        str(spec["method"]),
        f"{model.get('ref') or 'model'}@{str(model.get('weight_hash') or '')[:8]}",
        f"{task.get('ref') or task.get('name') or 'task'}@{str(task.get('hash'))[:8]}"
        if task
        else "",
        str(fields.get("direction") or ""),
        str(fields.get("metric") or ""),
        f"seed {provenance['seed']}" if provenance.get("seed") is not None else "",
        f"interp {version}" if version else "",
        f"run {run_id[:8]}" if run_id else "",
    ]
    return " · ".join(filter(None, parts))


def _variables(data: xr.Dataset) -> list[tuple[str, str, str, str, str]]:
    """Per variable: name, meaning, axes, units, range."""
    rows = []
    for name, array in data.data_vars.items():
        axes = " × ".join(f"{d} {n}" for d, n in array.sizes.items()) or "one number"
        rows.append(
            (
                str(name),
                str(array.attrs.get("long_name", "")),
                axes,
                str(array.attrs.get("units", "")),
                _range(array.values),
            )
        )
    return rows


def _range(values: np.ndarray) -> str:
    if values.dtype.kind not in "fiub" or not values.size:
        return ""
    values = values.astype("f8").ravel()
    defined = values[np.isfinite(values)]
    lost = values.size - defined.size
    tail = f", {lost} undefined" if lost else ""
    if not defined.size:
        return f"all {lost} undefined"
    low, high = float(defined.min()), float(defined.max())
    return (f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}") + tail


def check_line(check: Check) -> str:
    """``identity patch: 1.2e-07 (at most 1e-05) ok``."""
    value = "undefined" if math.isnan(check.value) else f"{check.value:.3g}"
    if check.tolerance is None:
        return f"{check.title}: {value}"
    bound = "at least" if check.at_least else "at most"
    mark = "ok" if check.passed else "FAILED"
    return f"{check.title}: {value} ({bound} {check.tolerance:.3g}) {mark}"


def text_of(result: Result) -> str:
    """Several plain lines."""
    lines = [f"Result: {result.title}"]
    for name, meaning, axes, units, values in _variables(result.data):
        lines.append(f"  {name}: {meaning} [{axes}] {values} {units}".rstrip())
    bounded = [c for c in result.checks if c.tolerance is not None]
    failed = [c for c in bounded if not c.passed]
    lines.append(f"  checks: {len(bounded) - len(failed)} of {len(bounded)} pass")
    lines += [f"    {check_line(c)}" for c in failed]
    where = f"run {result.run_id}" if result.run_id else ""
    lines.append("  " + " · ".join(filter(None, [f"spec {result.spec_hash[:12]}", where])))
    return "\n".join(lines)


def html_of(result: Result) -> str:
    """Tables, escaped; what failed stands above, in words and in amber."""
    e = html.escape
    rows = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{e(cell)}</td>" for cell in row) + "</tr>"
        for row in _variables(result.data)
    )
    head = "".join(
        f"<th style='text-align:left'>{h}</th>"
        for h in ("array", "meaning", "axes", "units", "values")
    )
    failed = result.failed_checks
    banner = "".join(
        f"<div style='border-left:4px solid #b45309;padding-left:8px'>Check failed: "
        f"{e(check_line(c))} {e(c.note)}</div>"
        for c in failed
    )
    checks = "".join(f"<li>{e(check_line(c))}</li>" for c in result.checks)
    facts = "".join(
        f"<li>{e(key)}: {e(str(result.provenance[key]))}</li>"
        for key in SHOWN
        if result.provenance.get(key) not in (None, "")
    )
    bounded = [c for c in result.checks if c.tolerance is not None]
    return (
        f"<div><strong>{e(result.title)}</strong>{banner}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<details><summary>Trust panel: {len(bounded) - len(failed)} of {len(bounded)} checks "
        f"pass</summary><ul>{checks}</ul></details>"
        f"<details><summary>Provenance</summary><ul>{facts}</ul></details>"
        f"<div style='font-size:smaller'>{e(result.stamp)}</div></div>"
    )
