"""The stamp: one line under every picture that says what it is a picture of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stamp_of(spec: Mapping[str, Any], attrs: Mapping[str, Any] | None = None,
             provenance: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
    """``method · model@hash · task@hash · direction · metric · seed · version · run``.

    Args:
        spec: the run's spec (``method``, ``fields``, ``model``, ``task``).
        attrs: the dataset's attrs (direction, metric).
        provenance: library version, seed.
        run_id: where the run is kept.
    """
    attrs, provenance = attrs or {}, provenance or {}
    fields = spec.get("fields") or {}
    model, task = spec.get("model") or {}, spec.get("task") or {}

    def known(name: str) -> Any:
        for source in (attrs, fields, provenance):
            if source.get(name) is not None:
                return source[name]
        return None

    parts = [
        str(spec.get("method", "")),
        _at(model.get("ref"), model.get("weight_hash")),
        _at(task.get("ref") or ("own prompts" if task else None), task.get("hash")),
        known("direction"), known("metric"),
        None if known("seed") is None else f"seed {known('seed')}",
        _version(provenance),
        None if run_id is None else f"run {run_id[:8]}",
    ]
    return " · ".join(str(p) for p in parts if p)


def _at(ref: Any, digest: Any) -> str | None:
    if not ref:
        return None
    return f"{ref}@{str(digest)[:8]}" if digest else str(ref)


def _version(provenance: Mapping[str, Any]) -> str | None:
    versions = provenance.get("versions") or {}
    version = versions.get("interp") or provenance.get("interp") or provenance.get("version")
    return f"interp {version}" if version else None
