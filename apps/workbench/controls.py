"""Controls from fields: a method's or task's form, a few open, the rest behind "More"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import html

from apps.workbench.bench import bench
from interp import forms

FIRST = ("site", "axes", "direction", "with_", "metric")
"""Knobs in the order in which a person decides them; the others follow as they come."""


def control_id(form: str, name: str) -> dict[str, str]:
    """The id of one control of a form."""
    return {"type": "knob", "method": form, "name": name}


def form_of(
    form: str,
    fields: Iterable[Any],
    values: Mapping[str, Any] | None = None,
    errors: Mapping[str, str] | None = None,
) -> html.Div:
    """The controls of a form.

    Args:
        form: names the form in its controls' ids.
        fields: ``interp.forms.Field``.
        values: field -> value to start from; the defaults where nothing is given.
        errors: field -> sentence, shown under its control.
    """
    fields = sorted(fields, key=lambda f: FIRST.index(f.name) if f.name in FIRST else len(FIRST))
    values, errors = values or {}, errors or {}
    first = [control(form, f, values, errors) for f in fields if not f.advanced]
    more = [control(form, f, values, errors) for f in fields if f.advanced]
    opened = any(f.name in errors or f.name in values for f in fields if f.advanced)
    folded = (
        html.Details(
            [html.Summary(f"More ({len(more)})"), html.Div(more, className="stack")],
            className="more",
            open=opened,
        )
        if more
        else None
    )
    return html.Div([*first, folded], className="stack")


def control(form: str, f: Any, values: Mapping[str, Any], errors: Mapping[str, str]) -> Any:
    """One control, by the kind of its field."""
    value = values.get(f.name, f.default)
    shared = {
        "id": control_id(form, f.name),
        "label": f.label,
        "description": f.phrase or None,
        "error": errors.get(f.name),
        "size": "sm",
    }
    if f.kind == "bool":
        return dmc.Switch(checked=bool(value), **shared)
    if f.kind in ("int", "float"):
        low, high = f.bounds
        return dmc.NumberInput(
            value="" if value is None else value,
            min=low,
            max=high,
            clampBehavior="none",
            allowDecimal=f.kind == "float",
            step=1 if f.kind == "int" else None,
            placeholder="none" if f.nullable else None,
            **shared,
        )
    if f.kind == "choice":
        words = [forms.text_of(c) for c in f.choices]
        return dmc.Select(
            data=words,
            value=forms.text_of(value) or None,
            clearable=f.nullable,
            allowDeselect=f.nullable,
            searchable=len(words) > 10,
            **shared,
        )
    if f.kind == "choices":
        words = [forms.text_of(c) for c in f.choices]
        return dmc.MultiSelect(data=words, value=[forms.text_of(v) for v in value or ()], **shared)
    if f.kind == "ref" and f.ref in ("model", "result", "dictionary"):
        return dmc.Select(
            data=references(f.ref), value=value, searchable=True, clearable=f.nullable, **shared
        )
    placeholder = f"{f.wanted[:60]}" if not f.choices else ", ".join(map(str, f.choices))[:60]
    return dmc.TextInput(value=forms.text_of(value), placeholder=placeholder, **shared)


def references(kind: str) -> list[dict[str, str]]:
    """What a picker of models, dictionaries or results offers."""
    if kind == "model":
        return bench().model_options()
    if kind == "dictionary":
        known = bench().catalogue().get("dictionaries") or []
        return [{"value": r, "label": r} for r in known]
    return [
        {"value": r.id, "label": f"{bench().method_title(r.method)} · {r.model} · {r.id[:8]}"}
        for r in bench().store.list(limit=200)
        if not r.damaged
    ]


def typed(
    ids: Iterable[Mapping[str, str]], values: Iterable[Any], flags: Iterable[Any]
) -> dict[str, Any]:
    """What the controls hold: name -> value (a switch's state where it is one)."""
    return {
        i["name"]: v if flag is None else flag
        for i, v, flag in zip(ids, values, flags, strict=True)
    }
