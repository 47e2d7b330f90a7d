"""Dictionaries: the features of largest attribution as a grid, with the error's share beside."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import xarray as xr

from interp.engine import Cell, feature_cells, feature_values
from interp.methods.attribution.layout import Layout
from interp.models import Dictionary
from interp.terms import Check, Context, HookedModel, PromptPairs


def feature_layout(
    model: HookedModel,
    task: PromptPairs,
    layout: Layout,
    book: Dictionary,
    values: dict[str, np.ndarray],
    top: int,
    *,
    direction: str,
    at: int | str,
) -> Layout:
    """The layout with the features whose estimates, summed over positions, are largest on average.

    Args:
        model: whose runs hold the features' values.
        task: the prompts.
        layout: axes without features.
        book: the dictionary.
        values: estimates of the engine.
        top: so many features.
        direction: as of the estimates; likewise ``at``.
        at: see ``direction``.
    """
    size = np.abs(np.nansum(values["feature"], 1).mean(0))
    chosen = np.sort(np.argsort(-size, kind="stable")[: min(top, (size > 0).sum() or 1)])
    order = chosen[np.argsort(-size[chosen], kind="stable")]
    known: dict[int, int] = {int(f): i for i, f in enumerate(order)}
    steps: list[np.ndarray] = []

    def exact(feature: int, position: int | str | None) -> Cell:
        if not steps:
            base, source = feature_values(
                model, task, book, order.tolist(), direction=direction, at=at
            )
            steps.append(source - base)
        change = steps[0][:, :, [known[feature]]]
        return feature_cells(book, [feature], change, [position])[0]

    return dataclasses.replace(layout, coords={**layout.coords, "feature": order}, exact=exact)


def with_error(
    data: xr.Dataset,
    values: dict[str, np.ndarray],
    book: Dictionary,
    context: Context,
    unit: str,
    tolerance: float,
) -> xr.Dataset:
    """The dataset with the error's part, and the check that features and error are the site.

    Args:
        data: estimates of the chosen features.
        values: estimates of the engine: of all features, the error and the site.
        book: the dictionary.
        context: takes the check.
        unit: of the metric.
        tolerance: of the check, relative.
    """
    error, whole = (np.nansum(values[k], 1) for k in ("feature_error", "feature_site"))
    features = np.nansum(values["feature"], (1, 2))
    size = max(float(np.abs(whole).max()), float(np.abs(features).max()), 1e-300)
    apart = float(np.abs(features + error - whole).max()) / size
    context.check(
        Check(
            "features_and_error",
            "features and error against the whole site",
            apart,
            tolerance,
            note=f"All {book.n_features} features and what they leave over add up to the estimate "
            f"of {book.site}; of its mean the error holds {_share(error, whole):.1%}.",
        )
    )
    parts: tuple[tuple[str, Any, str], ...] = (
        ("site_attribution", whole.mean(), f"estimated change, all of {book.site}"),
        ("features_attribution", features.mean(), "estimated change, all features"),
        ("error_attribution", error.mean(), "estimated change, what the features leave over"),
    )
    for name, value, words in parts:
        data[name] = ((), float(value), {"units": unit, "long_name": words, "signed": 1})
    data["error_share"] = (
        (),
        _share(error, whole),
        {"units": "1", "long_name": "the error's share of the site", "signed": 1},
    )
    data.attrs.update(
        {
            "dictionary": book.name,
            "dictionary_site": str(book.site),
            "layer": int(book.site.layer or 0),
            "n_features": book.n_features,
        }
    )
    return data


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.mean() / whole.mean()) if whole.mean() else float("nan")
