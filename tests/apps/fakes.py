"""A seeded store and a queue that answers without a model, for tests of the pages alone."""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from interp.results import Result
from interp.store import Record, Store
from interp.terms import Check, PromptPairs, UsageError, task_to_json

HOSTILE = (
    "</script><img src=x onerror=window.__pwn=1>",
    "<s>",
    "&lt;",
    "%{z}",
    "\u202eevil",
    "\n",
    "a",
    "a",
    "",
    "<b>x</b>",
    "$$x$$",
    "\x07",
)
WORDS = (
    "When",
    " Mary",
    " and",
    " John",
    " went",
    " to",
    " the",
    " store",
    ",",
    " John",
    " gave",
    " a",
    " drink",
    " to",
)


def dataset(
    words: tuple[str, ...] = WORDS, *, layers: int = 4, prompts: int = 6, seed: int = 0
) -> xr.Dataset:
    """A patch grid with a story: the subject's second place matters early, the end late."""
    rng = np.random.default_rng(seed)
    effect = 0.02 * rng.standard_normal((layers, len(words)))
    effect[: layers // 2, max(len(words) - 5, 0)] += 0.95
    effect[layers // 2 :, -1] += 0.97
    effect[:, :3] = 0
    raw = effect[None] * (5 + rng.standard_normal((prompts, 1, 1)))
    inert = np.zeros((layers, len(words)), dtype=bool)
    inert[:, :3] = True
    signed = {"units": "1", "signed": 1}
    return xr.Dataset(
        {
            "effect": (
                ("layer", "position"),
                effect,
                {**signed, "long_name": "normalised effect", "noise_floor": 0.004},
            ),
            "effect_se": (
                ("layer", "position"),
                np.full_like(effect, 0.03),
                {"units": "1", "signed": 0, "long_name": "standard error"},
            ),
            "effect_raw": (
                ("prompt", "layer", "position"),
                raw,
                {"units": "logit", "signed": 1, "long_name": "effect on logit_diff"},
            ),
            "inert": (
                ("layer", "position"),
                inert,
                {"units": "1", "signed": 0, "long_name": "inert"},
            ),
            "metric_base": (
                ("prompt",),
                rng.standard_normal(prompts) - 4,
                {"units": "logit", "signed": 1, "long_name": "metric of the base"},
            ),
        },
        coords={
            "layer": np.arange(layers),
            "position": np.arange(len(words)),
            "prompt": np.arange(prompts),
        },
        attrs={"direction": "denoising", "metric": "logit_diff"},
    )


def spec(**fields: Any) -> dict[str, Any]:
    """The spec of a patching run."""
    return {
        "format": 1,
        "method": "activation_patching",
        "version": 1,
        "fields": {"site": "resid_pre", "direction": "denoising", **fields},
        "model": {
            "ref": "zoo:ioi",
            "weight_hash": "ab" * 32,
            "backend": "transformer_lens",
            "dtype": "float32",
        },
        "task": {
            "ref": "ioi:n=6,seed=0",
            "hash": "cd" * 32,
            "type": "PromptPairs",
            "name": "Indirect object",
        },
    }


def record(
    words: tuple[str, ...] = WORDS, *, failing: bool = False, seed: int = 0, **fields: Any
) -> Record:
    """A whole run, with a check that fails if asked."""
    checks = [
        Check("logits", "logits against the unwrapped model", 1.2e-7, 1e-5),
        Check("identity_patch", "patching a run into itself changes nothing", 0.0, 1e-6),
        Check("noise_floor", "spread of unedited rows", 4e-3),
    ]
    if failing:
        checks.append(
            Check(
                "sum_check",
                "patching all positions gives the source run",
                0.4,
                1e-4,
                note="The sweep does not reproduce the clean run.",
            )
        )
    facts = {
        "seed": 0,
        "backend": "transformer_lens",
        "device": "cpu",
        "dtype": "float32",
        "versions": {"interp": "0.1.0", "torch": "2.13.0"},
        "wall_time_s": 1.5,
        "created": time.time() - 90,
        "method_title": "Activation patching",
    }
    tokens = {"clean": [list(words)] * 6, "corrupt": [list(words)] * 6, "answers": {1: " Mary"}}
    return Record(spec(**fields), dataset(words, seed=seed), facts, checks, tokens)


def pairs() -> PromptPairs:
    """Two aligned pairs with texts."""
    clean = tuple(range(len(WORDS)))
    corrupt = tuple(30 if i == 9 else t for i, t in enumerate(clean))
    texts = tuple(" Mary" if i == 9 else w for i, w in enumerate(WORDS))
    return PromptPairs(
        (clean, clean),
        (corrupt, corrupt),
        ((1,), (1,)),
        ((3,), (3,)),
        clean_text=(WORDS, WORDS),
        corrupt_text=(texts, texts),
        answer_text={1: " Mary", 3: " John"},
        name="Indirect object",
        ref="ioi:n=2,seed=0",
    )


SCHEMA = {
    "title": "ActivationPatching",
    "type": "object",
    "properties": {
        "site": {
            "type": "string",
            "default": "resid_pre",
            "description": "where to patch",
            "enum": ["resid_pre", "attn_out", "mlp_out", "z"],
        },
        "direction": {
            "type": "string",
            "default": "denoising",
            "description": "which run is base",
            "enum": ["denoising", "noising"],
        },
        "with_": {
            "type": "string",
            "default": "source",
            "description": "what is put there",
            "enum": ["source", "zero", "mean", "resample"],
        },
        "metric": {
            "type": "string",
            "default": "logit_diff",
            "description": "what is measured",
            "enum": ["logit_diff", "prob", "kl"],
        },
        "window": {
            "type": "integer",
            "default": 1,
            "minimum": 1,
            "maximum": 64,
            "description": "layers patched together",
        },
        "keep_prompts": {
            "type": "boolean",
            "default": True,
            "description": "keep each prompt's values",
        },
    },
}
TOY = {
    "title": "ToyMethod",
    "type": "object",
    "properties": {
        "scale": {"type": "number", "default": 1.0, "minimum": 0, "description": "how much"}
    },
}


PIECES = ("frame", "live", "labels", "cell", "workform", "shell")
"""Modules that declare callbacks outside a page."""


def fresh_app(bench: Any) -> Any:
    """An app with all its callbacks, also where this process has made one before.

    dash hands the callbacks that a module declares to the first app alone.
    """
    for piece in PIECES:
        name = f"apps.workbench.{piece}"
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    from apps.workbench import server

    return importlib.reload(server).make_app(bench)


class FakeQueue:
    """Jobs that finish by themselves and questions with canned answers; no process, no model."""

    def __init__(self, store: Store, *, chunks: int = 8, pace: float = 0.15) -> None:
        self.store, self.chunks, self.pace = store, chunks, pace
        self.rows: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.published = True
        self.hold_at = 10**9
        self._ids = (f"{i:032x}" for i in itertools.count(1))

    def catalogue(self) -> dict[str, Any]:
        if not self.published:
            return {}
        return {
            "methods": {
                "activation_patching": {
                    "title": "Activation patching",
                    "question": "Which activations carry the answer?",
                    "schema": SCHEMA,
                    "needs": ["resid_pre"],
                    "accepts": ["PromptPairs"],
                    "family": "patching",
                    "citations": ["meng2022"],
                },
                "toy_method": {
                    "title": "Toy method",
                    "question": "Does a page appear by itself?",
                    "schema": TOY,
                    "needs": [],
                    "accepts": ["PromptPairs"],
                    "family": "toy",
                    "citations": [],
                },
                "pair_check": {"title": "Pair check", "schema": TOY},
                "verify_cell": {"title": "Verify a cell", "schema": TOY},
            }
        }

    def worker(self) -> Any:
        return {"since": 1.0}

    def list(self) -> list[dict[str, Any]]:
        return [dict(r) for r in reversed(self.rows.values())]

    def show(self, job_id: str) -> dict[str, Any]:
        if job_id not in self.rows:
            raise UsageError(f"There is no job {job_id!r}.")
        return dict(self.rows[job_id])

    def submit(self, job: dict[str, Any], priority: int = 0) -> str:
        job_id = next(self._ids)
        self.rows[job_id] = {
            "id": job_id,
            "job": job,
            "state": "queued",
            "done": 0.0,
            "total": 0.0,
            "message": "",
            "created": time.time(),
            "started": None,
            "error": None,
            "run_id": None,
        }
        self._start(job_id)
        return job_id

    def _start(self, job_id: str) -> None:
        threading.Thread(target=self._work, args=(job_id,), daemon=True).start()

    def _work(self, job_id: str) -> None:
        row = self.rows[job_id]
        row.update(state="running", total=float(self.chunks), started=time.time(), cancel=False)
        while row["done"] < self.chunks:
            time.sleep(self.pace)
            if row["cancel"]:
                row["state"] = "cancelled"
                return
            if row["done"] < self.hold_at:
                row["done"] += 1
        row["run_id"] = self.store.add(record(**row["job"]["fields"]))
        row["state"] = "done"

    def cancel(self, job_id: str) -> None:
        self.rows[job_id]["cancel"] = True

    def resume(self, job_id: str) -> None:
        self._start(job_id)

    def partial(self, job_id: str) -> Any:
        row = self.rows[job_id]
        if not row["done"]:
            return None
        data = dataset()
        reached = int(data.sizes["layer"] * row["done"] / self.chunks)
        data["effect"] = data["effect"].where(data["layer"] < reached)
        return data

    def kill(self, job_id: str) -> None:
        self.rows[job_id]["state"] = "interrupted"

    def request(self, kind: str, payload: dict[str, Any], timeout: float = 10) -> dict[str, Any]:
        self.asked.append((kind, payload))
        return ANSWERS[kind](payload)

    def measure(self, method: str, fields: dict[str, Any], **more: Any) -> Any:
        self.asked.append((method, dict(fields)))
        return Result(MEASURED[method](fields), spec(), {}, (), None)


def describe(_payload: dict[str, Any]) -> dict[str, Any]:
    """A model with one 'no'."""
    return {
        "id": "zoo:ioi",
        "weight_hash": "ab" * 32,
        "backend": "transformer_lens",
        "dtype": "float32",
        "device": "cpu",
        "tokenizer": True,
        "default_bos": False,
        "shape": {
            "n_layers": 4,
            "n_heads": 4,
            "n_kv_heads": 4,
            "d_model": 128,
            "d_head": 32,
            "d_mlp": 512,
            "vocab": 640,
            "n_ctx": 64,
            "n_params": 1_000_000,
            "architecture": "GPT2LMHeadModel",
        },
        "checks": [
            Check("logits", "logits against the unwrapped model", 1e-7, 1e-5).to_json(),
            Check(
                "edit", "an edit at each site changes the output", 0.2, 1e-6, at_least=True
            ).to_json(),
        ],
        "capabilities": [
            {"name": "resid_pre", "ok": True, "reason": ""},
            {"name": "q_norm_scale", "ok": False, "reason": "this family has no query norm"},
        ],
    }


def task_answer(task: PromptPairs) -> dict[str, Any]:
    """What the worker says of a task."""
    tokens = {"clean": [list(r) for r in task.clean_text], "answers": {}}
    return {"task": task_to_json(task), "ref": task.ref, "name": task.name, "tokens": tokens}


def made(payload: dict[str, Any]) -> dict[str, Any]:
    """A typed pair, a token a character of the hostile list."""
    n = len(HOSTILE)
    texts = ((*HOSTILE,),)
    other = ((*HOSTILE[:-1], "<i>"),)
    task = PromptPairs(
        (tuple(range(n)),),
        ((*range(n - 1), 99),),
        ((1,),),
        ((2,),),
        clean_text=texts,
        corrupt_text=other,
        answer_text={1: HOSTILE[0], 2: HOSTILE[1]},
        name=HOSTILE[0],
    )
    return task_answer(task)


def tops(sides: tuple[str, ...]) -> xr.Dataset:
    """Likely tokens of two prompts on some sides."""
    shape = (len(sides), 2, 6)
    dims = ("side", "prompt", "top")
    named = {"units": "1", "signed": 0}
    return xr.Dataset(
        {
            "token_id": (
                dims,
                np.broadcast_to(np.arange(6), shape),
                {**named, "long_name": "token"},
            ),
            "probability": (
                dims,
                np.broadcast_to(np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]), shape),
                {**named, "long_name": "probability"},
            ),
        },
        coords={"side": list(sides), "prompt": [0, 1]},
    )


def pair_check(_fields: dict[str, Any]) -> xr.Dataset:
    """Metrics on both sides beside the likely tokens."""
    return tops(("clean", "corrupt")).assign(
        logit_diff=(
            ("side", "prompt"),
            np.array([[5.0, 4.0], [-5.0, -4.0]]),
            {"units": "logit", "signed": 1, "long_name": "logit difference"},
        )
    )


def verified(fields: dict[str, Any]) -> xr.Dataset:
    """The same number as in the grid."""
    cell = dataset()["effect"].sel(layer=fields["layer"], position=fields["position"])
    return tops(("clean", "patched", "corrupt")).assign(effect=((), float(cell), cell.attrs))


def patterns(fields: dict[str, Any]) -> xr.Dataset:
    """Causal patterns of one layer."""
    n = len(WORDS)
    causal = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    return xr.Dataset(
        {
            "pattern": (
                ("side", "prompt", "layer", "head", "query", "key"),
                np.broadcast_to(causal, (2, 1, 1, 4, n, n)).astype("f4"),
                {"units": "1", "signed": 0, "long_name": "attention pattern"},
            )
        },
        coords={"side": ["clean", "corrupt"], "prompt": [0], "layer": fields["layers"]},
    )


def head(fields: dict[str, Any]) -> xr.Dataset:
    """A head's pattern and promoted tokens."""
    n = len(WORDS)
    named = {"units": "1", "signed": 0, "long_name": "x"}
    return xr.Dataset(
        {
            "pattern": (("side", "query", "key"), np.full((2, n, n), 1 / n), named),
            "promoted_id": (("side", "key", "top"), np.zeros((2, n, 3), int), named),
            "promoted_logit": (("side", "key", "top"), np.ones((2, n, 3)), named),
            "direct_id": (("side", "top"), np.zeros((2, 3), int), named),
            "direct_logit": (("side", "top"), np.ones((2, 3)), named),
            "score": (("side", "key"), np.ones((2, n)), named),
            "query_terms": (("side", "component", "key"), np.ones((2, 3, n)), named),
            "key_terms": (("side", "component", "key"), np.ones((2, 3, n)), named),
        },
        coords={"side": ["clean", "corrupt"], "component": ["embed", "L0H0", "biases"]},
    )


ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "describe_model": describe,
    "load_task": lambda p: task_answer(pairs()),
    "make_pairs": made,
    "file_pairs": made,
    "decode": lambda p: {"texts": [HOSTILE[i % len(HOSTILE)] for i in p["ids"]]},
    "estimate": lambda p: {
        "known": True,
        "cells": 56,
        "prompts": 6,
        "bytes": 2.0e6,
        "seconds": 0.4,
    },
}
MEASURED: dict[str, Callable[[dict[str, Any]], xr.Dataset]] = {
    "pair_check": pair_check,
    "verify_cell": verified,
    "attention_patterns": patterns,
    "head_page": head,
}
