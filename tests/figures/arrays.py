"""Datasets of every kind of axis, with tokens that break careless labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

HOSTILE = (
    "<s>",
    "</script><img src=x onerror=window.__pwn=1>",
    "&lt;",
    "%{z}",
    "\u202edlrow",
    "\n",
    "",
    "\x00",
    "$$x$$",
    " the",
    " the",
    "\t",
    "<b>bold</b>",
    "שלום",
    "a" * 60,
    "[/]",
    "[red]",
    "=1+1",
)


def array(values: Any, dims: tuple[str, ...], coords: Any = None, **attrs: Any) -> xr.DataArray:
    """An array with the three attributes every variable has."""
    return xr.DataArray(
        np.asarray(values),
        dims=dims,
        coords=coords,
        attrs={"units": "1", "long_name": "effect", "signed": 1, **attrs},
    )


def tokens() -> dict[str, Any]:
    """Two prompts of the hostile tokens, which differ at position 10."""
    other = list(HOSTILE)
    other[10] = " a"
    return {
        "clean": [list(HOSTILE), other],
        "corrupt": [other, list(HOSTILE)],
        "answers": dict(enumerate(HOSTILE)),
    }


def patch_grid() -> xr.Dataset:
    """A layer × position grid with undefined, inert and faint cells."""
    rng = np.random.default_rng(0)
    n = len(HOSTILE)
    effect = rng.normal(size=(4, n)) * 0.1
    effect[1, 3], effect[0, :2], effect[2, 5] = 0.9, np.nan, 0.001
    inert = np.zeros((4, n), np.int8)
    inert[3, 4:9] = 1
    low_high = np.stack([effect - 0.1, effect + 0.1])
    dims = ("layer", "position")
    return xr.Dataset(
        {
            "effect": array(effect, dims, noise_floor=0.01),
            "effect_se": array(np.abs(effect) / 5, dims, signed=0),
            "effect_ci": array(low_high, ("bound", *dims), {"bound": ["low", "high"]}),
            "inert": array(inert, dims, signed=0),
        }
    )
