"""Answers to short requests, inside the worker. One function a kind; plain JSON in and out."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.jobs.asking import allowed_model, allowed_task, job_of
from interp.jobs.catalogue import describe_in, publish
from interp.jobs.context import LOOK_S, JobContext
from interp.jobs.table import Ask, now
from interp.jobs.uploads import pairs_of_text
from interp.run import LocalContext, facts_of_tensors, method_of, run, task_of, tokens_of
from interp.store import canonical, dataset_to_json
from interp.terms import InterpError, PromptPairs, UsageError, task_to_json, unknown_name

if TYPE_CHECKING:
    from interp.results import Result
    from interp.run import Shelf
    from interp.store import Store
    from interp.terms import HookedModel

LOG = logging.getLogger("interp.jobs")


@dataclass(frozen=True)
class Desk:
    """What a handler has at hand.

    Args:
        store: the store that is served.
        roots: model folders that may be opened.
        shelf: open models.
        between: called between the chunks of an answer that measures; serves quick requests.
    """

    store: Store
    roots: tuple[Path, ...]
    shelf: Shelf
    between: Callable[[], object] = lambda: None

    def model(self, payload: Mapping[str, Any]) -> HookedModel:
        """The model that a payload names."""
        said = job_of({"method": "x", "model": payload.get("model")})["model"]
        ref = allowed_model(said.pop("ref"), self.roots)
        model = self.shelf.get(ref, **said)
        return model


class ShortContext(LocalContext):
    """The context of a short request: it ends when nobody waits any more, and lets others in.

    Args:
        desk: whose models and results it opens.
        seconds: how long somebody waits.
        options: ``device``, ``dtype``, ``backend``, ``memory``.
    """

    def __init__(self, desk: Desk, seconds: float, **options: Any) -> None:
        super().__init__(store=desk.store, shelf=desk.shelf, **options)
        self._desk, self._end = desk, now() + seconds
        self._looked = now()

    def advance(self, done: float, total: float) -> None:
        """Let quick requests in between."""
        if now() - self._looked >= LOOK_S:
            self._desk.between()
            self._looked = now()
        super().advance(done, total)

    def cancelled(self) -> bool:
        """Whether its time is over."""
        return now() > self._end or super().cancelled()

    def model(self, ref: str) -> HookedModel:
        """Open a model, if this worker may."""
        return super().model(allowed_model(ref, self._desk.roots))

    def dictionary(self, ref: str) -> Any:
        """Open a dictionary that ships or lies in one of the worker's folders."""
        from interp.models import load_dictionary

        return load_dictionary(ref, roots=self._desk.roots)

    result = JobContext.result


def run_method(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{method, fields, model, task, seed, keep, timeout}`` -> the result, data in base64."""
    asked = {k: payload.get(k) for k in ("method", "fields", "model", "task", "seed")}
    return result_to_json(_measured(desk, job_of(asked), payload))


def _measured(desk: Desk, job: dict[str, Any], payload: Mapping[str, Any]) -> Result:
    said = dict(job["model"])
    ref = allowed_model(said.pop("ref"), desk.roots)
    seconds = float(payload.get("timeout") or 60.0)
    return run(
        method_of(job["method"], job["fields"]),
        ref,
        allowed_task(job["task"]),
        context=ShortContext(desk, seconds, **said),
        progress=False,
        seed=job["seed"],
        store=desk.store if payload.get("keep") else None,
    )


def result_to_json(result: Result) -> dict[str, Any]:
    """A result as plain JSON; ``queue.result_of_json`` reads it back."""
    return {
        "data": dataset_to_json(result.data),
        **json.loads(
            canonical(
                {
                    "spec": result.spec,
                    "spec_hash": result.spec_hash,
                    "provenance": result.provenance,
                    "checks": [c.to_json() for c in result.checks],
                    "tokens": result.tokens,
                    "run_id": result.run_id,
                }
            )
        ),
    }


def describe_model(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model}`` -> id, hash, sizes, every capability with its reason, the adapter's checks."""
    model = desk.model(payload)
    device, dtype = facts_of_tensors(model)
    described = json.loads(
        canonical(
            {
                "id": model.id,
                "weight_hash": model.weight_hash,
                "backend": model.backend,
                "device": device,
                "dtype": dtype,
                "shape": vars(model.shape),
                "capabilities": [vars(c) for c in model.capabilities()],
                "checks": [c.to_json() for c in model.checks],
                "sites": [str(s) for s in model.sites],
                "tokenizer": model.tokenizer is not None,
                "default_bos": bool(getattr(model.tokenizer, "default_bos", False)),
            }
        )
    )
    said = payload["model"]
    describe_in(desk.store, said if isinstance(said, str) else said["ref"], described)
    return described


def doctor(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model}`` -> what ``interp doctor`` says."""
    from interp.models import doctor as examine

    said = job_of({"method": "x", "model": payload.get("model")})["model"]
    ref = allowed_model(said.pop("ref"), desk.roots)
    said = {k: v for k, v in said.items() if v is not None}
    return json.loads(canonical(examine(ref, **said)))


def load_task(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model, task}`` -> the whole task as JSON, its hash, and the texts of its tokens."""
    model = desk.model(payload)
    task = task_of(
        allowed_task(
            job_of({"method": "x", "model": "zoo:x", "task": payload.get("task")})["task"]
        ),
        model,
    )
    if task is None:
        raise UsageError("No task was given.")
    return _task_json(task, model)


def _task_json(task: Any, model: HookedModel) -> dict[str, Any]:
    return json.loads(
        canonical(
            {
                "task": task_to_json(task),
                "hash": task.hash(),
                "ref": task.ref,
                "name": task.name,
                "size": len(task),
                "tokens": tokens_of(task, model),
            }
        )
    )


def make_pairs(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model, clean, corrupt, right, wrong, answer_form, bos, skip_bad, span_map}`` -> task.

    Texts, or token ids where the model has no tokenizer (or ``tokens`` is true).
    """
    model = desk.model(payload)
    return _task_json(_pairs(model, payload), model)


def _pairs(model: HookedModel, payload: Mapping[str, Any]) -> PromptPairs:
    columns = [payload.get(k) or () for k in ("clean", "corrupt", "right", "wrong")]
    more = {
        k: payload[k]
        for k in ("answer_form", "span_map", "slots", "template", "name")
        if payload.get(k) is not None
    }
    if payload.get("tokens") or model.tokenizer is None:
        return PromptPairs.from_tokens(*columns, **more)
    return PromptPairs.from_text(
        *columns,
        model=model,
        bos=payload.get("bos"),
        skip_bad=bool(payload.get("skip_bad")),
        **more,
    )


def file_pairs(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model, text, name, form, answer_form, bos, skip_bad, …}`` -> task: an uploaded table."""
    model = desk.model(payload)
    return _task_json(pairs_of_text(model, payload), model)


def check_pair(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """As ``make_pairs``, and ``result``: what the method PairCheck says of it."""
    model = desk.model(payload)
    made = _task_json(_pairs(model, payload), model)
    job = job_of(
        {
            "method": "pair_check",
            "fields": payload.get("fields") or {},
            "model": payload.get("model"),
            "task": made["task"],
        }
    )
    return {**made, "result": result_to_json(_measured(desk, job, payload))}


def tokenize(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model, text, bos}`` -> ids and the text of each."""
    tokenizer = _tokenizer(desk, payload)
    text = payload.get("text")
    if not isinstance(text, str):
        raise UsageError("No text was given.")
    ids = [int(i) for i in tokenizer.encode(text, bos=payload.get("bos"))]
    return {"ids": ids, "texts": tokenizer.texts(ids), "default_bos": bool(tokenizer.default_bos)}


def decode(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """``{model, ids}`` -> the text of each id, and of all together."""
    tokenizer = _tokenizer(desk, payload)
    ids = [int(i) for i in payload.get("ids") or []]
    return {"texts": tokenizer.texts(ids), "text": tokenizer.decode(ids)}


def _tokenizer(desk: Desk, payload: Mapping[str, Any]) -> Any:
    model = desk.model(payload)
    if model.tokenizer is None:
        raise UsageError(f"{model.id} has no tokenizer; its prompts are token ids.")
    return model.tokenizer


def estimate(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """A job -> what the method says it will cost, or ``{"known": false}``."""
    job = job_of({k: payload.get(k) for k in ("method", "fields", "model", "task", "seed")})
    method = method_of(job["method"], job["fields"])
    model = desk.model(payload)
    task = task_of(allowed_task(job["task"]), model)
    ask = getattr(method, "estimate", None)
    if ask is None:
        return {"known": False}
    return {"known": True, **json.loads(canonical(ask(model, task)))}


def refresh(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Publish the catalogue again (new model folders) and return its list of models."""
    return {"models": publish(desk.store, desk.roots)["models"]}


def ping(desk: Desk, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Say that it is there."""
    return {"pong": True}


ANSWERS: dict[str, Callable[[Desk, Mapping[str, Any]], dict[str, Any]]] = {
    "run_method": run_method,
    "describe_model": describe_model,
    "doctor": doctor,
    "load_task": load_task,
    "make_pairs": make_pairs,
    "file_pairs": file_pairs,
    "check_pair": check_pair,
    "tokenize": tokenize,
    "decode": decode,
    "estimate": estimate,
    "refresh": refresh,
    "ping": ping,
}

QUICK = ("ping", "tokenize", "decode", "load_task", "make_pairs", "file_pairs", "estimate")
"""Requests that measure nothing: they are let in between the chunks of one that does."""

PATIENCE_S = 2.0
"""A request that measures lets quick ones go first that come up to so many seconds after it."""


def next_of(asks: Sequence[Ask], quick: bool = False) -> Ask | None:
    """Who is served next: the oldest, where one that measures counts as a little younger.

    So a quick question never stands behind a row of slow ones, and a slow one never waits for
    more than the quick ones of a moment.

    Args:
        asks: who waits.
        quick: look at quick requests alone.
    """
    fit = [a for a in asks if a.kind in QUICK or not quick]
    return min(fit, key=lambda a: a.created + PATIENCE_S * (a.kind not in QUICK), default=None)


def answer_to(desk: Desk, ask: Ask) -> dict[str, Any]:
    """``{"answer": …}`` or ``{"error": …}``; nothing a request does ends the worker."""
    try:
        if ask.kind not in ANSWERS:
            raise unknown_name("request", ask.kind, ANSWERS)
        return {"answer": ANSWERS[ask.kind](desk, ask.payload)}
    except InterpError as error:
        return {
            "error": {
                "kind": type(error).__name__,
                "message": error.message,
                "remedy": error.remedy,
                "rows": list(getattr(error, "rows", ())),
            }
        }
    except Exception as error:
        LOG.error("request %s (%s) failed\n%s", ask.id, ask.kind, traceback.format_exc())
        return {
            "error": {
                "kind": "InterpError",
                "message": unexpected(error),
                "remedy": f"The worker's log has the details under {ask.id[:8]}.",
            }
        }


def unexpected(error: BaseException) -> str:
    """A mistake of ours, or of the machine, in one sentence without a path or a trace."""
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return (
            "It does not fit into the memory, not even one row at a time. Use fewer or "
            "shorter prompts, a smaller dtype, or a larger machine."
        )
    return f"Something went wrong inside interp ({name})."
