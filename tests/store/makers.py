"""Records to store, and run folders whose manifest vouches for whatever bytes one likes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.store import Record, canonical
from interp.terms import Check

NASTY = [
    "</script><img src=x onerror=alert(1)>",
    "<s>",
    "&lt;",
    "%{z}",
    "\u202e",
    "\n",
    "\x00",
    "=1+1",
    "\ud800",
    "",
    " Mary",
]
LABELS = [t for t in NASTY if t != "\ud800"]  # pandas takes no lone surrogate as a label
TEXTS = [t for t in NASTY if t != "\x00"]  # numpy's texts take no NUL at their end


def dataset(seed: int = 0, layers: int = 3) -> xr.Dataset:
    """Every kind of value a method may give."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((layers, 4)).astype("f4")
    values[0, 1] = np.nan
    signed = {"units": "logit", "long_name": "effect", "signed": 1}
    return xr.Dataset(
        {
            "effect": (
                ("layer", "position"),
                values,
                {
                    **signed,
                    "floor": 1e-3,
                    "list": [1, 2.5],
                    "one": [3],
                    "dict": {"a": [None, True]},
                    "none": None,
                    "nul": "a\x00b",
                    "empty": "",
                    "long": "x" * 70_000,
                },
            ),
            "half": (("layer",), values[:, 0].astype("f2"), signed),
            "inert": (("layer",), np.arange(layers) > 0, signed),
            "ids": (("prompt", "position"), rng.integers(0, 9, (2, 4)), signed),
            "words": (("token",), np.array(TEXTS), signed),
            "number": ((), np.float64(rng.standard_normal()), signed),
            "nothing": (("top",), np.zeros(0, "f4"), signed),
        },
        coords={"layer": np.arange(layers), "metric": ("metric", np.array(LABELS, dtype=object))},
        attrs={"title": "a run", "direction": "denoising"},
    )


def record(seed: int = 0, task: str = "t", **facts: Any) -> Record:
    """A record whose spec differs by ``seed`` and ``task``."""
    spec = {
        "format": 1,
        "method": "toy",
        "version": 1,
        "fields": {"seed": seed},
        "model": {"ref": "zoo:toy", "weight_hash": "w", "backend": "b", "dtype": "float32"},
        "task": {"ref": None, "hash": task, "inline": {"type": "Texts"}, "name": "by hand"},
    }
    checks = [
        Check("logits", "logits", 1e-7, 1e-5),
        Check("floor", "noise floor", float("nan")),
        Check("bound", "a bound", float("inf"), 1.0),
    ]
    return Record(
        spec,
        dataset(seed),
        {"wall_time_s": 1.0, "created": 1000.0 + seed, **facts},
        checks,
        {"clean": [NASTY], "corrupt": [NASTY[::-1]], "answers": {3: NASTY[0]}},
    )


def forged(
    folder: Path, image: bytes, arrays: dict[str, Any], dims: dict[str, int], **layout: Any
) -> Path:
    """A run folder whose hashes are all right and whose ``data.nc`` is ``image``."""
    spec = canonical({"format": 1, "method": "toy", "fields": {}})
    body = {
        "format": 1,
        "spec_hash": "x",
        "provenance": {},
        "checks": [],
        "tokens": None,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in (("spec.json", spec), ("data.nc", image))
        },
        "layout": {
            "dims": dims,
            "arrays": arrays,
            "texts": {},
            "attrs": {},
            "order": list(arrays),
            "coords": [],
            **layout,
        },
    }
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(spec)
    (folder / "data.nc").write_bytes(image)
    rewrite(folder, body)
    return folder


def rewrite(folder: Path, body: dict[str, Any]) -> None:
    """Write a manifest with its own hash put right."""
    body = {k: v for k, v in body.items() if k != "sha256"}
    signed = {**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()}
    (folder / "manifest.json").write_bytes(canonical(signed))


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands."""
    return json.loads((folder / "manifest.json").read_bytes())
