"""run: resolve refs, check fit, seed, time, gather provenance and checks, keep the result."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.models.nothing import NoModel
from interp.results import Result, stored_result
from interp.run.context import LocalContext, Recorder, interruptible
from interp.run.fitting import check_fit
from interp.run.machine import (
    PeakMemory,
    facts_of_tensors,
    git_revision,
    parse_bytes,
    versions,
)
from interp.run.specs import method_of, spec_of, task_of, tokens_of
from interp.run.vocabulary import with_vocabulary
from interp.store import Store, canonical, spec_hash
from interp.terms import (
    CancelledError,
    Check,
    Context,
    DamagedError,
    DiskFullError,
    HookedModel,
    Method,
    Task,
    UsageError,
    check_dataset,
)

if TYPE_CHECKING:
    import xarray as xr


def run(
    method: Method | type[Method] | str,
    model: HookedModel | str | None = None,
    task: Task | str | Mapping[str, Any] | None = None,
    *,
    memory: int | str | None = None,
    progress: bool = True,
    store: Store | str | None = None,
    seed: int | None = None,
    context: Context | None = None,
    fresh: bool = False,
    resume: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    backend: str | None = None,
) -> Result:
    """Measure.

    Args:
        method: a spec such as ``interp.methods.ActivationPatching(site="resid_pre")``.
        model: an open model, or a ref (``"zoo:ioi"``, a folder, a hub id) that is opened here;
            None for a method that measures none.
        task: a task, a ref (``"ioi:n=64,seed=1"``, a file), its JSON, or None.
        memory: bytes that may be used (``"8GiB"``); default a part of what is free.
        progress: draw a bar on stderr, where that is a terminal.
        store: keep the result there. A run of the same spec that is there already is returned
            instead; an unfinished one goes on from its finished chunks.
        seed: where the method has a field ``seed``, its value; else the seed of the generators.
        context: who is told about progress and asked about cancelling; default one of this
            process.
        fresh: measure again although the store has this run.
        resume: go on from the finished chunks of an unfinished run of this spec.
        device: where a model given as ref is opened; likewise ``dtype`` and ``backend``.
        dtype: see ``device``.
        backend: see ``device``.

    Returns:
        The result, with its checks; look at ``result.passed``.

    Raises:
        UsageError: a name, knob or value that does not exist or does not fit.
        CapabilityError: the model lacks a site or feature, with one that works.
        TaskError: prompts that cannot be used.
        CancelledError: Ctrl-C or ``context.cancelled()``; ``error.partial`` holds what was done.
        DiskFullError: the store's disk is full; ``error.result`` holds the whole result.
    """
    method = _seeded(method_of(method), seed)
    if not method.takes_model():
        model, task = NoModel(), None
    store = Store(store) if isinstance(store, str) else store
    limit = None if memory is None else parse_bytes(memory)
    own = None
    if context is None:
        opening = (
            {"device": device, "dtype": dtype, "backend": backend}
            if isinstance(model, str)
            else _opening(model)
        )
        own = context = LocalContext(
            limit, progress=progress, store=store, title=method.title or method.key(), **opening
        )
    elif limit is not None:
        context.memory = limit
    try:
        ref = model if isinstance(model, str) else None
        opened: Any = context.model(model) if isinstance(model, str) else model
        job = Measurement(method, opened, task_of(task, opened), context, store, seed, ref)
        with interruptible(context):
            return job.result(fresh=fresh, resume=resume)
    finally:
        if own is not None:
            own.close()


def _opening(model: Any) -> dict[str, Any]:
    """How other models are opened beside this one."""
    if not hasattr(model, "run") or not hasattr(model, "capabilities"):
        raise UsageError(
            f"A {type(model).__name__} was given as model.",
            remedy="Wrap it first: interp.load_model(module, …), or give a ref such as 'zoo:ioi'.",
        )
    device, dtype = facts_of_tensors(model)
    return {"device": device, "dtype": dtype, "backend": model.backend}


def _seeded(method: Method, seed: int | None) -> Method:
    if seed is None or "seed" not in type(method).model_fields:
        return method
    return method_of(method, {"seed": seed})


class Measurement:
    """One run on its way.

    Args:
        method: what is measured; likewise ``model`` and ``task``.
        model: see ``method``.
        task: see ``method``.
        context: who is told about progress.
        store: where the result goes, or None.
        seed: of the generators; None takes the method's own, or 0.
        ref: the text the model was opened by.
    """

    def __init__(
        self,
        method: Method,
        model: HookedModel,
        task: Task | None,
        context: Context,
        store: Store | None,
        seed: int | None,
        ref: str | None,
    ) -> None:
        check_fit(method, model, task)
        self.method, self.model, self.task = method, model, task
        self.remote_before = int(getattr(model, "remote_runs", 0))
        self.context, self.store = context, store
        self.live = ref is None and str(model.id).startswith("module:")
        own = getattr(method, "seed", None)
        self.seed = int(own if isinstance(own, int) else seed or 0)
        self.spec = spec_of(method, model, task, ref=ref, context=context)
        self.hash = spec_hash(self.spec)
        begun = getattr(context, "begun", None)
        if begun is not None:
            begun(self.spec, self.hash)

    def result(self, *, fresh: bool = False, resume: bool = True) -> Result:
        """The stored run of this spec, or a new measurement that is then stored."""
        if self.store is not None and not fresh:
            found = self._stored()
            if found is not None:
                return found
        chunks = self.store.chunks(self.hash) if self.store is not None else None
        if chunks is not None and not resume:
            chunks.clear()
        recorder = Recorder(self.context, chunks)
        kept = False
        try:
            result = self._measure(recorder)
            if self.store is None:
                return result
            try:
                run_id = self.store.add(result.record)
            except DiskFullError as error:
                error.result = result
                raise
            kept = True
            return Result(
                result.data,
                result.spec,
                result.provenance,
                result.checks,
                result.tokens,
                run_id,
                self.store.path(run_id),
            )
        finally:
            if chunks is not None:
                chunks.close(discard=kept)

    def _stored(self) -> Result | None:
        assert self.store is not None
        run_id = self.store.find(self.hash)
        if run_id is None:
            return None
        try:
            found = stored_result(self.store, run_id)
        except DamagedError:
            return None
        facts = {**found.provenance, "found_in_store": True}
        return Result(found.data, found.spec, facts, found.checks, found.tokens, run_id, found.path)

    def _measure(self, recorder: Recorder) -> Result:
        import torch  # noqa: F401  (its import is no part of the measured time)

        device = facts_of_tensors(self.model)[0]
        started, clock = time.time(), time.perf_counter()
        try:
            with PeakMemory(device) as peak, _reproducible(self.seed, device):
                data = self.method.measure(self.model, self.task, recorder)
        except CancelledError as error:
            error.partial = self._partial(recorder, started, time.perf_counter() - clock)
            raise
        facts = {
            "wall_time_s": round(time.perf_counter() - clock, 4),
            "peak_memory_bytes": peak.bytes,
        }
        return self._result(data, recorder, started, facts)

    def _partial(self, recorder: Recorder, started: float, wall: float) -> Result | None:
        """What was finished when the person cancelled, marked as such."""
        if recorder.latest is None:
            return None
        whole = Check(
            "complete",
            "share of the run that was finished",
            recorder.done / recorder.total if recorder.total else 0.0,
            1.0,
            at_least=True,
            note="The run was cancelled; cells not reached are undefined.",
        )
        recorder.check(whole)
        return self._result(
            recorder.latest(), recorder, started, {"wall_time_s": round(wall, 4), "cancelled": True}
        )

    def _result(
        self, data: xr.Dataset, recorder: Recorder, started: float, more: dict[str, Any]
    ) -> Result:
        check_dataset(data, getattr(type(self.method), "small_axes", None))
        checks = [*self.model.checks, *recorder.checks]
        provenance = {**self._provenance(), "created": started, **more, **recorder.facts}
        return Result(
            data,
            self.spec,
            json.loads(canonical(provenance)),
            tuple(checks),
            with_vocabulary(self._tokens(recorder), data, self.model),
        )

    def _tokens(self, recorder: Recorder) -> dict[str, Any] | None:
        """Texts of the task's tokens; without a task, of the one that all results read share."""
        if self.task is not None:
            return tokens_of(self.task, self.model)
        tasks = {(r.spec.get("task") or {}).get("hash") for r in recorder.results}
        return recorder.results[0].tokens if len(tasks) == 1 and None not in tasks else None

    def _provenance(self) -> dict[str, Any]:
        method, model, task = self.method, self.model, self.task
        device, dtype = facts_of_tensors(model)
        revision = git_revision()
        facts: dict[str, Any] = {
            "method_title": method.title,
            "method_class": type(method).__name__,
            "question": method.question,
            "citations": list(method.citations),
            "knobs": sorted(method.model_dump(mode="json", exclude_defaults=True)),
            "model_id": model.id,
            "weight_hash": model.weight_hash,
            "architecture": model.shape.architecture,
            "seed": self.seed,
            "backend": model.backend,
            "device": device,
            "dtype": dtype,
            "memory_limit_bytes": self.context.memory,
            "versions": versions(model.backend),
            "spec_hash": self.hash,
        }
        if task is not None:
            facts |= {
                "task_name": task.name,
                "task_hash": self.spec["task"]["hash"],
                "task_size": len(task),
            }
        if revision:
            facts["git_revision"] = revision
        if self.live:
            facts["live_model"] = True
        away = getattr(model, "remote_runs", 0) - self.remote_before
        if away:
            facts["remote_runs"] = away
        return facts


@contextlib.contextmanager
def _reproducible(seed: int, device: str) -> Iterator[None]:
    """Seed the generators, ask CUDA for deterministic kernels; all as it was afterwards."""
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    cuda = device.startswith("cuda")
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        if cuda:
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
            if cuda:
                torch.use_deterministic_algorithms(before, warn_only=warn)
