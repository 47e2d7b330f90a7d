"""The same run told again: as Python, as a command, as a notebook. Text enters by quoting only."""

from __future__ import annotations

import html
import math
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.forms import text_of
from interp.store import canonical

if TYPE_CHECKING:
    from interp.results.result import Result

USUAL = {"backend": "transformer_lens", "dtype": "float32", "device": "cpu"}
"""What ``load_model`` does when nothing is said; only what differs is written out."""

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$])")


def python_of(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Python that runs this spec again."""
    return "\n".join(
        ["import interp", "", *_setting(spec, provenance), _running(spec, provenance), ""]
    )


def _setting(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """Lines that make ``model``, ``task`` and ``method``."""
    model = spec.get("model") or {}
    options = "".join(f", {k}={v!r}" for k, v in _model_options(model, provenance).items())
    lines = []
    if provenance.get("live_model"):
        lines += [
            "# This run measured a module that was handed in. Put your own torch module in",
            f"# `module`; its weights had the hash {str(model.get('weight_hash'))!r}.",
        ]
        lines.append(f"model = interp.load_model(module{options})")
    else:
        lines.append(f"model = interp.load_model({model.get('ref')!r}{options})")
    task = spec.get("task")
    if task and task.get("ref"):
        lines.append(f"task = interp.load_task({task['ref']!r}, model)")
    elif task:
        lines.append(f"task = interp.task_from_json({task.get('inline')!r})")
    knobs = _knobs(spec, provenance)
    name = str(provenance.get("method_class") or "")
    if IDENTIFIER.fullmatch(name) and all(IDENTIFIER.fullmatch(k) for k in knobs):
        inside = ", ".join(f"{k}={_literal(v)}" for k, v in knobs.items())
        lines.append(f"method = interp.methods.{name}({inside})")
    else:
        lines.append(f"method = interp.METHODS[{spec['method']!r}](**{_literal(dict(knobs))})")
    return lines


def _running(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    seed = _seed(spec, provenance)
    task = ", task" if spec.get("task") else ""
    return f"result = interp.run(method, model{task}{f', seed={seed}' if seed else ''})"


def _model_options(model: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    said = {
        "backend": model.get("backend"),
        "dtype": model.get("dtype"),
        "device": provenance.get("device"),
    }
    return {k: str(v) for k, v in said.items() if v and str(v) != USUAL[k]}


def _knobs(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not at their default (all of them where that is not known)."""
    fields = spec.get("fields") or {}
    named = provenance.get("knobs")
    return {k: v for k, v in fields.items() if named is None or k in named}


def _seed(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> int:
    """The seed, where no field of the method holds it."""
    if "seed" in (spec.get("fields") or {}):
        return 0
    return int(provenance.get("seed") or 0)


def _literal(value: Any) -> str:
    """``repr``, with the floats that ``repr`` does not write as Python."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def command_of(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """A shell command that runs this spec again; two where a task must be written first."""
    model, task = spec.get("model") or {}, spec.get("task")
    words = ["interp", "run", str(spec["method"])]
    if provenance.get("live_model"):
        words += ["--model", "FOLDER_OF_YOUR_MODEL"]
    else:
        words += _option("--model", str(model.get("ref")))
    before = ""
    if task and task.get("ref"):
        words += _option("--task", str(task["ref"]))
    elif task:
        name = f"task-{str(task.get('hash'))[:12]}.json"
        inline = canonical(task.get("inline")).decode()
        before = f"printf '%s\\n' {shlex.quote(inline)} > {shlex.quote(name)}\n"
        words += ["--task", name]
    for name, value in _knobs(spec, provenance).items():
        words += _option(
            f"--{name.strip('_').replace('_', '-')}", "none" if value is None else text_of(value)
        )
    for name, value in _model_options(model, provenance).items():
        words += _option(f"--{name}", value)
    if seed := _seed(spec, provenance):
        words += ["--seed", str(seed)]
    return before + shlex.join(words)


def _option(name: str, value: str) -> list[str]:
    """``--name value``, joined by ``=`` where the value could be taken for an option."""
    return [f"{name}={value}"] if value.startswith("-") or not value else [name, value]


def notebook_of(result: Result) -> dict[str, Any]:
    """A notebook that runs this again, shows it, and asserts that it is the same spec."""
    spec, provenance = result.spec, result.provenance
    question = str(provenance.get("question") or "")
    cells = [
        _markdown(f"# {_escaped(result.title)}\n\n{_escaped(question)}"),
        _code("import interp"),
        _code("\n".join(_setting(spec, provenance))),
        _code(_running(spec, provenance) + "\nresult"),
        _markdown("The figures, one a variable."),
        *[_code(f"result.figures()[{str(name)!r}]") for name in _drawn(result)],
        _markdown(
            "The same spec gives the same hash, and every check of the trust panel that "
            "passed then passes now."
        ),
        _code(
            f"assert result.spec_hash == {result.spec_hash!r}\n"
            f"failed = {{c.name for c in result.failed_checks}}\n"
            f"assert failed <= {sorted({c.name for c in result.failed_checks})!r}, failed"
            if result.failed_checks
            else f"assert result.spec_hash == {result.spec_hash!r}\n"
            "assert result.passed, result.failed_checks"
        ),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _drawn(result: Result) -> list[str]:
    from interp.figures import figures_of

    return list(figures_of(result.data, tokens=result.tokens))


def _markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": text,
    }


def _escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    flat = " ".join(text.split())
    return MARKDOWN.sub(r"\\\1", html.escape(flat, quote=False))
