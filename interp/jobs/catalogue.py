"""What the worker publishes, so that pages are built without importing a method."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.run import versions
from interp.store import Store, canonical, replace_file


def publish(store: Store, roots: tuple[Path, ...]) -> dict[str, Any]:
    """Write ``catalogue.json`` into the store; what is known of opened models stays in it."""
    catalogue = {**catalogue_of(roots), "described": _before(store)}
    replace_file(store.root / "catalogue.json", canonical(catalogue))
    return catalogue


def describe_in(store: Store, ref: str, described: Mapping[str, Any]) -> None:
    """Add what is known of an opened model."""
    path = store.root / "catalogue.json"
    try:
        catalogue = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    known = catalogue.setdefault("described", {})
    if known.get(ref) != described:
        known.pop(ref, None)
        known[ref] = dict(described)
        while len(known) > 60:
            known.pop(next(iter(known)))
        replace_file(path, canonical(catalogue))


def _before(store: Store) -> dict[str, Any]:
    try:
        return dict(json.loads((store.root / "catalogue.json").read_bytes())["described"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def catalogue_of(roots: tuple[Path, ...]) -> dict[str, Any]:
    """Methods, tasks, metrics, models and versions, as plain JSON."""
    from interp.engine import METRICS
    from interp.methods import METHODS
    from interp.models import list_dictionaries
    from interp.tasks import TASKS

    return {
        "format": 1,
        "published": time.time(),
        "methods": {key: method_entry(m) for key, m in METHODS.items()},
        "tasks": {
            name: {
                "title": f.title,
                "question": f.question,
                "type": f.type_name,
                "schema": f.schema(),
            }
            for name, f in TASKS.items()
        },
        "metrics": {name: metric_entry(m) for name, m in METRICS.items()},
        "models": models_of(roots),
        "dictionaries": list_dictionaries(roots),
        "roots": [str(r) for r in roots],
        "versions": versions(),
    }


def method_entry(method: Any) -> dict[str, Any]:
    """One method as pages need it."""
    return {
        "title": method.title,
        "class": method.__name__,
        "question": method.question,
        "citations": list(method.citations),
        "needs": list(method.needs),
        "accepts": list(method.accepts()),
        "version": method.version,
        "doc": (method.__doc__ or "").strip(),
        "schema": method.model_json_schema(),
    }


def metric_entry(metric: Any) -> dict[str, Any]:
    """One metric as pages need it: its plain attributes."""
    plain = (str, int, float, bool)
    facts = {k: v for k, v in vars(metric).items() if isinstance(v, plain)}
    return {"title": str(getattr(metric, "title", "")), **facts}


def models_of(roots: tuple[Path, ...]) -> list[Any]:
    """The models that can be opened, as plain JSON."""
    from interp.models import list_models

    return json.loads(canonical([_plain(m) for m in list_models(roots)]))


def _plain(model: Any) -> Any:
    if isinstance(model, Mapping):
        return dict(model)
    return dict(vars(model)) if hasattr(model, "__dict__") else str(model)
