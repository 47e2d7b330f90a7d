"""Arrays: what HeadFeatures found, named, with units."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.methods.observables.inputs import Rows

HEADS = ("observable", "layer", "head")


def arrays_of(found: dict[str, Any], ln: str, top: int) -> Rows:
    """``name -> (dims, values, units, long name, signed)``; the first is drawn first."""
    data_free = "direct_effect" not in found
    unit = "logit per unit" if ln != "ignore" else "logit per normalised unit"
    how = {
        "ignore": "norms passed over",
        "norm": "norms by their gain" + (", lengths left out" if data_free else ""),
        "frozen": "norms frozen at the run",
        "exact": "norms' own derivative",
    }[ln]
    rows: Rows = {
        "norm": (
            HEADS,
            found["norm"],
            unit,
            f"length of each head's vector for a divided input ({how})",
            0,
        ),
    }
    if "direct_effect" in found:
        rows["direct_effect"] = (
            HEADS, found["direct_effect"], "logit",
            "measured direct effect: o clean less o with the head's write from corrupt", 1,
        )  # fmt: skip
        rows["precision"] = (
            ("observable",), precision(found["norm"], found["direct_effect"], top), "1",
            f"share of the {kept(top, found['norm'])} longest vectors among the largest effects", 0,
        )  # fmt: skip
    if "attribution" in found:
        rows["attribution"] = (
            HEADS, found["attribution"], "logit",
            f"what each head writes, read at the logits ({how}; QK fixed)", 1,
        )  # fmt: skip
    if "mlp_norm" in found:
        rows["mlp_norm"] = (
            ("observable", "layer"), found["mlp_norm"], unit,
            f"length of each MLP's vector for a divided input ({how})", 0,
        )  # fmt: skip
    rows |= _curves(found)
    for name, title in (
        ("cosine", "cosine of the angle by which its norm turns each head's vector"),
        ("gain_cosine", "cosine between a head's vector and itself times the norm's gain"),
    ):
        if name in found:
            rows[name] = (HEADS, found[name], "1", title, 1)
    if "cosine_final" in found:
        rows["cosine_final"] = (
            ("observable", "prompt"), found["cosine_final"], "1",
            "cosine of the angle by which the final norm turns the observable", 1,
        )  # fmt: skip
    if "prompt_cosine" in found:
        rows["prompt_cosine"] = (
            ("observable", "prompt", "layer", "head"), found["prompt_cosine"], "1",
            "the same of each head's own norm, prompt by prompt", 1,
        )  # fmt: skip
    if "o" in found:
        rows["o"] = (("observable", "prompt"), found["o"], "logit", "the observable, clean", 1)
    return rows | _vectors(found, unit)


def _curves(found: dict[str, Any]) -> Rows:
    if "g" not in found:
        return {}
    return {
        "mlp_reading": (
            ("observable", "layer", "mix"), found["g"], "logit",
            "what each MLP's write gives the observable, from one class to the other", 1,
        ),
        "boundary": (
            ("observable", "layer"), found["at"], "1",
            "where on that line the MLP is made linear", 0,
        ),
        "same_sign": (
            ("observable", "layer"), found["same"], "1",
            "lines on which the MLP's reading never changes sign", 0,
        ),
    }  # fmt: skip


def _vectors(found: dict[str, Any], unit: str) -> Rows:
    rows: Rows = {
        "vector": ((*HEADS, "d_model"), found["vector"], unit, "feature vector of each head", 1)
    }
    if "length" in found:
        rows["length"] = (HEADS, found["length"], unit, "length of each head's vector itself", 0)
    if "mlp_vector" in found:
        rows["mlp_length"] = (
            ("observable", "layer"), found["mlp_length"], unit, "length of each MLP's vector", 0,
        )  # fmt: skip
        rows["mlp_vector"] = (
            ("observable", "layer", "d_model"), found["mlp_vector"], unit,
            "feature vector of each MLP", 1,
        )  # fmt: skip
    return rows


def kept(top: int, norm: np.ndarray) -> int:
    """So many of the longest vectors are compared: ``top``, a quarter of the heads at most."""
    return max(1, min(top, norm[0].size // 4))


def precision(norm: np.ndarray, effect: np.ndarray, top: int) -> np.ndarray:
    """Share of the ``top`` longest vectors (a quarter at most) among the largest effects."""
    k, out = kept(top, norm), []
    for a, b in zip(norm, np.abs(effect), strict=True):
        best = [set(np.argsort(-x.ravel(), kind="stable")[:k].tolist()) for x in (a, b)]
        out.append(len(best[0] & best[1]) / k)
    return np.array(out)
