"""Lists and help: what there is, and what a method takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import typer

from interp.cli.say import DONE, UNTRUSTED, USAGE, Voice
from interp.terms.errors import UsageError


def models(roots: Sequence[Path], voice: Voice) -> int:
    """Shipped models and dictionaries with what each is good for, and models in folders."""
    from interp.models import list_models

    for root in roots:
        if not root.expanduser().is_dir():
            raise UsageError(f"There is no folder {root}.", remedy="--models wants a folder.")
    found = [m.to_json() for m in list_models(roots, dictionaries=True)]
    if voice.as_json:
        voice.document(found)
        return DONE
    voice.table(
        ["model", "good for", "architecture", "size"],
        [
            [
                m["ref"],
                m["reason"] or m["question"] or m["title"],
                m["architecture"],
                size(m["size_bytes"]),
            ]
            for m in found
        ],
        right=["size"],
    )
    return DONE


def size(n: int) -> str:
    """Bytes for a person."""
    if not n:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g} {unit}"
        n = n / 1000  # type: ignore[assignment]
    return ""


def tasks(voice: Voice) -> int:
    """Task families."""
    from interp.tasks import TASKS

    if voice.as_json:
        voice.document(
            [
                {
                    "name": t.name,
                    "title": t.title,
                    "question": t.question,
                    "type": t.type_name,
                    "knobs": t.schema()["properties"],
                }
                for t in TASKS.values()
            ]
        )
        return DONE
    rows = []
    for t in TASKS.values():
        knobs = ", ".join(f"{k}={v['default']}" for k, v in t.schema()["properties"].items())
        rows.append([t.name, t.title, t.question, knobs])
    voice.table(["task", "title", "what a model must know", "knobs"], rows)
    voice.note("Use one as --task 'ioi:n=64,seed=1', or give a JSONL or CSV file of pairs.")
    return DONE


def methods(voice: Voice) -> int:
    """The registry of methods."""
    from interp.methods import METHODS

    if voice.as_json:
        voice.document(
            [
                {
                    "name": key,
                    "title": m.title,
                    "question": m.question,
                    "accepts": list(m.accepts()),
                    "needs": list(m.needs),
                    "citations": list(m.citations),
                    "version": m.version,
                    "schema": m.model_json_schema(),
                }
                for key, m in METHODS.items()
            ]
        )
        return DONE
    voice.table(
        ["method", "title", "question", "takes"],
        [[key, m.title, m.question, ", ".join(m.accepts())] for key, m in METHODS.items()],
    )
    voice.note("`interp run METHOD --help` lists the knobs of one.")
    return DONE


def metrics(voice: Voice) -> int:
    """The registry of metrics."""
    from interp.engine import METRICS

    rows = []
    for key, metric in METRICS.items():
        facts = _facts(metric)
        rows.append({"name": key, **{k: v for k, v in facts.items() if k != "name"}})
    if voice.as_json:
        voice.document(rows)
        return DONE
    voice.table(
        ["metric", "what it is", "unit"],
        [
            [
                r["name"],
                r.get("title") or r.get("long_name") or r.get("phrase") or "",
                r.get("units") or r.get("unit") or "",
            ]
            for r in rows
        ],
    )
    return DONE


def _facts(metric: Any) -> dict[str, Any]:
    """The plain fields of a registry entry (functions stay out)."""
    if is_dataclass(metric) and not isinstance(metric, type):
        shallow = {k: getattr(metric, k) for k in metric.__dataclass_fields__}
    else:
        shallow = {k: v for k, v in vars(metric).items() if not k.startswith("_")}
    return {
        k: (asdict(v) if is_dataclass(v) and not isinstance(v, type) else v)
        for k, v in shallow.items()
        if isinstance(v, (str, int, float, bool, tuple, list, dict))
    }


def machine(voice: Voice) -> int:
    """Versions and memory, where no model is named."""
    from interp.run import default_memory, free_memory, git_revision, versions

    body = {
        "versions": versions("transformer_lens"),
        "git_revision": git_revision(),
        "free_memory": free_memory(),
        "memory_per_run": default_memory("cpu"),
    }
    if voice.as_json:
        voice.document(body)
        return DONE
    voice.table(
        ["what", "found"],
        [
            *[[k, v] for k, v in body["versions"].items()],
            ["git revision", body["git_revision"]],
            ["free memory", size(body["free_memory"])],
            ["memory a run may use", size(body["memory_per_run"])],
        ],
    )
    voice.note("Add --model M to check a model.")
    return DONE


def doctor(found: Mapping[str, Any], voice: Voice) -> int:
    """What ``interp.doctor`` found about a model."""
    checks = list(found.get("checks") or ())
    failed = [c for c in checks if not c.get("passed", True)]
    if voice.as_json:
        voice.document(found)
        return UNTRUSTED if failed else DONE
    for title, value in found.items():
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            voice.line(f"{title.replace('_', ' ')}: {value}")
    _section(
        voice,
        "Self-checks",
        ["verdict", "check", "value", "at most", "note"],
        [
            [
                "passed" if c.get("passed") else "FAILED",
                c.get("title") or c.get("name"),
                c.get("value"),
                c.get("tolerance"),
                c.get("note"),
            ]
            for c in checks
        ],
    )
    capabilities = found.get("capabilities") or ()
    _section(
        voice,
        "Capabilities",
        ["what", "there", "reason"],
        [[c.get("name"), "yes" if c.get("ok") else "no", c.get("reason")] for c in capabilities],
    )
    for key in ("drift", "dtypes", "versions", "shape"):
        value = found.get(key)
        if isinstance(value, Mapping):
            _section(
                voice,
                key.capitalize(),
                ["what", "found"],
                [[k, _short(v)] for k, v in value.items()],
            )
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            names = list(value[0])
            _section(voice, key.capitalize(), names, [[r.get(n) for n in names] for r in value])
    return UNTRUSTED if failed else DONE


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _section(voice: Voice, title: str, columns: list[str], rows: list[list[Any]]) -> None:
    if rows:
        voice.line()
        voice.table(columns, rows, title=title, right=["value", "at most"])


def help_of_run(ctx: typer.Context, method: str | None, voice: Voice, asked: bool) -> int:
    """Help of ``interp run``; with a method named, also its question and knobs."""
    if method is None or method.startswith("-"):
        if not asked:
            raise UsageError(
                "No method was given.",
                remedy="`interp list methods` shows them; then interp run METHOD …",
            )
        typer.echo(ctx.get_help())
        return DONE
    from interp.cli.knobs import knob_rows, method_class

    kind = method_class(method)
    voice.line(f"Usage: interp run {kind.key()} --model M --task T [--knob value …]", "bold")
    voice.line()
    voice.line(f"{kind.title}. {kind.question}".strip())
    voice.line(
        f"Takes: {', '.join(kind.accepts())}. Needs: {', '.join(kind.needs) or 'nothing'}."
        + (f" See: {', '.join(kind.citations)}." if kind.citations else "")
    )
    voice.line()
    voice.table(["knob", "takes", "default", "what it does"], knob_rows(kind), title="Knobs")
    voice.line()
    voice.line("Options of every run: `interp run --help`.")
    return DONE if asked else USAGE
