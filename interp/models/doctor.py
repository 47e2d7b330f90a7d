"""The doctor: opens a model and says what holds, what it can do, and what rounding costs it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from typing import Any

from interp.terms import Check, InterpError

PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "safetensors", "numpy")
"""Whose versions decide the numbers."""

DRIFT = ("float64", "float32", "bfloat16", "float16")
"""Dtypes whose logits are held against float64."""


def doctor(
    source: Any,
    *,
    backend: str = "transformer_lens",
    device: str = "cpu",
    dtype: str | None = None,
    example: Any = None,
    site_map: Any = None,
    tokenizer: Any = None,
    revision: str | None = None,
    roots: tuple[Any, ...] = (),
    drift: bool = True,
) -> dict[str, Any]:
    """Examine a model.

    Args:
        source: as for ``load_model``.
        backend: the back-end examined.
        device: where it runs.
        dtype: its floating type.
        example: as for ``load_model``.
        site_map: as for ``load_model``.
        tokenizer: as for ``load_model``.
        revision: as for ``load_model``.
        roots: as for ``load_model``.
        drift: also run the model in each dtype and compare with float64 (loads it four times).

    Returns:
        Plain JSON: ``model``, ``shape``, ``checks``, ``capabilities``, ``versions``, ``drift``,
        ``seconds`` and ``ok`` (every check passed).

    Raises:
        InterpError: the model cannot be opened; the sentence says why.
    """
    from interp.models.opening import load_model

    options = {
        "example": example,
        "site_map": site_map,
        "tokenizer": tokenizer,
        "revision": revision,
        "roots": roots,
    }
    started = time.perf_counter()
    model: Any = load_model(source, backend=backend, device=device, dtype=dtype, **options)
    seconds = time.perf_counter() - started
    checks: list[Check] = list(model.checks)
    return {
        "model": {
            "id": model.id,
            "weight_hash": model.weight_hash,
            "backend": model.backend,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "tokenizer": model.tokenizer is not None,
        },
        "shape": dict(vars(model.shape)),
        "checks": [c.to_json() for c in checks],
        "capabilities": [dict(vars(c)) for c in model.capabilities()],
        "versions": versions(),
        "drift": drift_of(source, model, options) if drift else [],
        "seconds": round(seconds, 3),
        "ok": all(c.passed for c in checks),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def drift_of(source: Any, model: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """For each dtype, its logits against float64's: how much rounding this model suffers.

    Returns:
        Per dtype ``max`` and ``rms`` of the difference in standard deviations of the float64
        logits, ``same_top`` (share of positions with the same largest logit) and ``note``.
    """
    import torch

    exact: Any = None
    out = []
    for name in DRIFT:
        row: dict[str, Any] = {
            "dtype": name,
            "max": None,
            "rms": None,
            "same_top": None,
            "note": "",
        }
        out.append(row)
        try:
            logits = _logits(source, model, name, options)
        except (InterpError, RuntimeError) as error:
            row["note"] = str(error).split("\n")[0][:200]
            continue
        if name == "float64":
            exact = logits
        if exact is None:
            row["note"] = "float64 could not be run, so there is nothing to compare with."
            continue
        if not bool(torch.isfinite(logits).all()):
            row["note"] = "its logits are not finite."
            continue
        scale = float(exact.std()) or 1.0
        gap = (logits - exact).abs() / scale
        row["max"], row["rms"] = float(gap.max()), float(gap.square().mean().sqrt())
        row["same_top"] = float((logits.argmax(-1) == exact.argmax(-1)).double().mean())
    return out


def _logits(source: Any, model: Any, dtype: str, options: dict[str, Any]) -> Any:
    """Logits of one dtype on the model's probe, in float64; the model is dropped at once."""
    from interp.models.opening import load_model

    other: Any = load_model(
        source,
        backend=model.backend,
        device=str(model.device),
        dtype=dtype,
        verify=False,
        **options,
    )
    probe = other.example if hasattr(other, "example") else other.loaded.probe
    return other.run(probe).logits.detach().double().cpu()


def readable(report: dict[str, Any]) -> str:
    """The doctor's report as plain text."""
    model, shape = report["model"], report["shape"]
    lines = [
        f"{model['id']}  ({shape['architecture']}, {shape['n_params']:,} parameters)",
        f"  back-end {model['backend']}, {model['dtype']} on {model['device']}, "
        f"{'a' if model['tokenizer'] else 'no'} tokenizer, opened in {report['seconds']} s",
        f"  weights {model['weight_hash'][:16]}…",
        f"  {shape['n_layers']} layers, {shape['n_heads']} heads"
        + (f" ({shape['n_kv_heads']} key/value)" if shape["n_kv_heads"] != shape["n_heads"] else "")
        + f", d_model {shape['d_model']}, d_head {shape['d_head']}, d_mlp {shape['d_mlp']}, "
        f"vocabulary {shape['vocab']}, context {shape['n_ctx'] or 'unlimited'}",
        "",
        "Self-checks",
    ]
    lines += [_check_line(Check.from_json(c)) for c in report["checks"]] or ["  none were run"]
    yes = [c["name"] for c in report["capabilities"] if c["ok"]]
    lines += ["", "Can", *_wrapped(yes), "", "Cannot"]
    lines += [
        f"  {c['name']:<16} {c['reason']}" for c in report["capabilities"] if not c["ok"]
    ] or ["  (nothing)"]
    if report["drift"]:
        lines += ["", "Rounding: logits against float64, in standard deviations"]
        lines += [f"  {'dtype':<10}{'largest':>10}{'rms':>10}{'same top':>10}"]
        lines += [_drift_line(r) for r in report["drift"]]
    lines += ["", "Versions", *_wrapped([f"{k} {v}" for k, v in report["versions"].items()])]
    return "\n".join(lines)


def _check_line(check: Check) -> str:
    mark = "ok  " if check.passed else "FAIL"
    bound = (
        ""
        if check.tolerance is None
        else (f"  ({'at least' if check.at_least else 'at most'} {check.tolerance:.0e})")
    )
    line = f"  {mark} {check.title}: {check.value:.2e}{bound}"
    return line if check.passed else f"{line}\n       {check.note}"


def _drift_line(row: dict[str, Any]) -> str:
    if row["max"] is None:
        return f"  {row['dtype']:<10}{row['note']}"
    return f"  {row['dtype']:<10}{row['max']:>10.1e}{row['rms']:>10.1e}{row['same_top']:>9.0%}"


def _wrapped(words: list[str], width: int = 90) -> list[str]:
    lines = [" "]
    for word in words:
        if len(lines[-1]) + len(word) + 2 > width:
            lines.append(" ")
        lines[-1] += f" {word},"
    lines[-1] = lines[-1].rstrip(",")
    return lines
