"""Files of a run to take away: ``/export/<run id>.<kind>``. Ids in, bytes out; nothing else."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, current_app

import interp

KINDS: dict[str, tuple[str, str]] = {
    "csv": ("text/csv; charset=utf-8", "the arrays in long form"),
    "json": ("application/json", "everything in one document"),
    "nc": ("application/x-netcdf", "the arrays"),
    "html": ("application/octet-stream", "a report that opens offline"),
    "ipynb": ("application/x-ipynb+json", "the same run as a notebook"),
    "py": ("text/plain; charset=utf-8", "the same run as Python"),
}


def add_routes(server: Flask, prefix: str) -> None:
    """Add the download route under the prefix."""
    server.add_url_rule(f"{prefix}export/<name>", "export", export, methods=["GET"])


def export(name: str) -> Response:
    """One file of one run; 404 for anything that is not an id and a kind."""
    match = re.fullmatch(r"([0-9a-f]{32})\.([a-z]{2,5})", name)
    if match is None or match[2] not in KINDS:
        abort(404)
    run, kind = match[1], match[2]
    try:
        result = current_app.config["BENCH"].result(run)
    except interp.InterpError:
        abort(404)
    body = MAKERS[kind](result)
    safe = re.sub(r"[^a-z0-9_]", "", str(result.spec.get("method", "run")).lower())
    return Response(
        body,
        headers={
            "Content-Type": KINDS[kind][0],
            "Content-Disposition": f'attachment; filename="{safe or "run"}-{run[:8]}.{kind}"',
            "Cache-Control": "private, no-store",
        },
    )


def written(write: Callable[[Path], Any], suffix: str) -> bytes:
    """What a writer puts into a file, as bytes."""
    with tempfile.TemporaryDirectory(prefix="interp-export-") as folder:
        path = Path(folder) / f"run.{suffix}"
        write(path)
        return path.read_bytes()


MAKERS: dict[str, Callable[[Any], bytes]] = {
    "csv": lambda r: written(r.to_csv, "csv"),
    "json": lambda r: r.to_json().encode(),
    "nc": lambda r: written(r.to_netcdf, "nc"),
    "html": lambda r: written(lambda path: interp.result_report([r], path), "html"),
    "ipynb": lambda r: json.dumps(r.to_notebook(), indent=1).encode(),
    "py": lambda r: r.to_python().encode(),
}
