"""Stored runs and jobs on the command line."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from interp.cli.say import DONE, UNTRUSTED, Voice, tell_checks
from interp.terms.errors import UsageError

MOST_CELLS = 8


def opened(store: Path | None) -> Any:
    """The store at a path, or the usual one."""
    from interp.store import Store

    return Store(store)


def when(seconds: float | None) -> str:
    """A time for a person, in the local zone."""
    if not seconds:
        return ""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def runs(store: Path | None, voice: Voice, *, limit: int, **wanted: str | None) -> int:
    """The list of runs."""
    rows = opened(store).list(limit=limit, **wanted)
    if voice.as_json:
        voice.document([vars(r) for r in rows])
        return DONE
    voice.table(
        ["run", "when", "method", "model", "task", "trust", "tags"],
        [
            [r.id[:8], when(r.created), r.method, r.model, r.task, _trust(r), ", ".join(r.tags)]
            for r in rows
        ],
    )
    if not rows:
        voice.note("No run matches. `interp run METHOD --model M --task T` makes one.")
    return DONE


def _trust(row: Any) -> str:
    if row.damaged:
        return f"DAMAGED: {row.damaged}"
    return f"{row.failed_checks} checks FAILED" if row.failed_checks else "passed"


def show(run_id: str, store: Path | None, html: Path | None, voice: Voice) -> int:
    """One run in full."""
    from interp.results import stored_result

    kept = opened(store)
    result = stored_result(kept, kept.resolve(run_id))
    if html is not None:
        from interp.report import result_report

        html = result_report(result, html)
    if voice.as_json:
        voice.document(body_of(result, html=html))
        return DONE if result.passed else UNTRUSTED
    code = tell(result, voice)
    voice.line()
    facts = {k: v for k, v in result.provenance.items() if v is not None}
    voice.table(
        ["provenance", "value"],
        [
            [k, v if isinstance(v, (str, int, float)) else json.dumps(v, default=str)]
            for k, v in facts.items()
        ],
    )
    voice.line()
    voice.line("Run it again:")
    voice.line(result.to_command())
    if html is not None:
        voice.note(f"Report: {html}")
    return code


def tell(result: Any, voice: Voice) -> int:
    """A result on a terminal: title, largest cells of the first array, trust panel."""
    from interp.figures import drawn_names, table_of

    voice.line(result.title, "bold")
    voice.line(result.stamp)
    names = drawn_names(result.data)
    if names:
        table = table_of(
            result.data, names[0], tokens=result.tokens, largest_first=True, limit=MOST_CELLS
        )
        voice.line()
        voice.table(
            table.columns,
            table.rows,
            right=["value", "± se"],
            title=f"{table.title}: the {len(table.rows)} largest of {table.total}",
        )
        if len(names) > 1:
            voice.line(f"Also: {', '.join(names[1:])}.")
    voice.line()
    return tell_checks(list(result.checks), voice)


def body_of(result: Any, **places: Path | None) -> dict[str, Any]:
    """A result as the one JSON document of ``--json``."""
    body = json.loads(result.to_json())
    more = {
        "run_id": result.run_id,
        "spec_hash": result.spec_hash,
        "passed": result.passed,
        "command": result.to_command(),
    }
    more |= {k: str(v) for k, v in places.items() if v is not None}
    return {**more, **body}


def compare_runs(first: str, second: str, store: Path | None, voice: Voice) -> int:
    """Two runs side by side; each may also be the folder of a saved one."""
    from interp.store import compare

    kept = opened(store)
    found = compare(_record(kept, first), _record(kept, second))
    if voice.as_json:
        voice.document(found.to_json())
        return DONE
    voice.table(
        ["array", "largest difference", "unit", "correlation", "cells", "remark"],
        [[a.name, a.max_abs, a.units, a.correlation, a.cells, a.reason] for a in found.arrays],
        title="Numbers",
        right=["largest difference", "correlation", "cells"],
    )
    for title, rows in (("Spec", found.spec), ("Provenance", found.provenance)):
        if rows:
            voice.line()
            voice.table(
                ["what", first, second], [[p, _text(a), _text(b)] for p, a, b in rows], title=title
            )
    voice.line("Every number both have is equal." if found.same else "The numbers differ.")
    return DONE


def _record(kept: Any, name: str) -> Any:
    if Path(name).is_dir():
        from interp.store import read_run

        return read_run(name)
    return kept.get(name)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:119] + "…"


def delete(run_ids: Sequence[str], yes: bool, store: Path | None, voice: Voice) -> int:
    """Delete runs; asks first where somebody can answer."""
    kept = opened(store)
    full = [kept.resolve(r) for r in run_ids]
    if not yes:
        if voice.as_json or not sys.stdin.isatty():
            raise UsageError(f"{len(full)} runs would be deleted for good.", remedy="Add --yes.")
        typer.confirm(f"Delete {len(full)} runs for good?", abort=True, err=True)
    for run_id in full:
        kept.delete(run_id)
    if voice.as_json:
        voice.document({"deleted": full})
    else:
        voice.line(f"Deleted {', '.join(r[:8] for r in full)}.")
    return DONE


def label(
    run_id: str,
    store: Path | None,
    voice: Voice,
    *,
    tags: Sequence[str] = (),
    remove: Sequence[str] = (),
    note: str | None = None,
) -> int:
    """Set tags or a note."""
    kept = opened(store)
    full = kept.resolve(run_id)
    if tags or remove:
        kept.tag(full, *tags, remove=remove)
    if note is not None:
        kept.note(full, note)
    row = kept.row(full)
    if voice.as_json:
        voice.document(vars(row))
    else:
        voice.line(f"{full[:8]}: tags {', '.join(row.tags) or 'none'}; note {row.note or 'none'}")
    return DONE


# -- jobs -----------------------------------------------------------------------------------------


def _queue(store: Path | None) -> Any:
    from interp.jobs import Queue

    return Queue(opened(store))


def _job_json(job: Any) -> dict[str, Any]:
    return dict(job) if isinstance(job, Mapping) else job.to_json()


def jobs(store: Path | None, voice: Voice) -> int:
    """The list of jobs."""
    rows = [_job_json(j) for j in _queue(store).list()]
    if voice.as_json:
        voice.document(rows)
        return DONE
    voice.table(
        ["job", "state", "progress", "when", "what", "message"],
        [
            [
                str(r["id"])[:8],
                r["state"],
                _share(r),
                when(r.get("created")),
                _what(r),
                r.get("error") or r.get("message"),
            ]
            for r in rows
        ],
    )
    if not rows:
        voice.note("No job. The workbench (`interp app`) makes them.")
    return DONE


def _share(row: Mapping[str, Any]) -> str:
    done, total = row.get("done"), row.get("total")
    return f"{100 * done / total:.0f} %" if done is not None and total else ""


def _what(row: Mapping[str, Any]) -> str:
    spec = row.get("spec") or row.get("job") or {}
    if isinstance(spec, str):
        spec = json.loads(spec)
    model = spec.get("model") or {}
    ref = model.get("ref") if isinstance(model, Mapping) else model
    return " · ".join(str(p) for p in (spec.get("method"), ref) if p)


def job(verb: str, job_id: str, store: Path | None, voice: Voice) -> int:
    """Show, cancel or resume one job; its id may be cut to the first characters."""
    queue = _queue(store)
    found = [_job_json(j)["id"] for j in queue.list()]
    near = [i for i in found if str(i).startswith(job_id)]
    if len(near) != 1:
        raise UsageError(
            f"{len(near) or 'No'} jobs begin with {job_id!r}.",
            remedy="`interp jobs list` shows them.",
        )
    if verb != "show":
        getattr(queue, verb)(near[0])
    row = _job_json(queue.show(near[0]))
    if voice.as_json:
        voice.document(row)
        return DONE
    voice.table(
        ["what", "value"],
        [
            [k, v if isinstance(v, (str, int, float)) else json.dumps(v, default=str)]
            for k, v in row.items()
            if v is not None
        ],
    )
    return DONE
