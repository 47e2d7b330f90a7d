"""Bench: what the pages ask the house for. Ids and plain JSON in, results out; never a path.

One object a process, reached by ``bench()`` inside a request. It holds the store and the queue of
``interp`` and adds nothing that computes: a page that needs a number asks the worker for it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import current_app

import interp

LOG = logging.getLogger("interp.workbench")
WELCOME = {"method": "activation_patching", "fields": {}, "model": "zoo:ioi", "task": "ioi:n=32"}
"""What the first page shows: computed by this installation's own worker at the first start."""

HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?(@[\w.-]{1,64})?")
PARTS = ("pair_check", "verify_cell", "head_page")
"""Methods that pages ask for themselves: no page of their own in the rail."""
PATIENCE = 60.0
"""Seconds a page waits for the worker's answer to a short question."""

KEPT = 12
"""Opened results kept in memory; runs never change."""


def plain(row: Any) -> dict[str, Any]:
    """A row of the jobs table as plain JSON."""
    return dict(row) if isinstance(row, Mapping) else row.to_json()


def bench() -> Bench:
    """The bench of this process."""
    return current_app.config["BENCH"]


@dataclass(frozen=True)
class CheckedPair:
    """Pairs that were made for a model, and what it says to them.

    Args:
        task: how a link names them.
        pairs: the pairs.
        said: what the method PairCheck measured, None where there is no such method.
    """

    task: str
    pairs: Any
    said: Any


class Bench:
    """Store, queue and model roots.

    Args:
        store: where runs are kept.
        roots: folders whose model folders are offered.
        queue: the jobs of the store; made from it if None.
    """

    def __init__(self, store: Any, *, roots: tuple[Path, ...] = (), queue: Any = None) -> None:
        self.store = store
        self.roots = roots
        self.queue = interp.Queue(store) if queue is None else queue
        self.worker: Any = None
        self._results: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._tasks: OrderedDict[tuple[str, str], tuple[Any, Any]] = OrderedDict()
        self.first: str | None = None

    # -- catalogue ---------------------------------------------------------------------------

    def catalogue(self) -> dict[str, Any]:
        """What the worker published: methods with schema, needs and task types."""
        return self.queue.catalogue() or {}

    def method(self, key: str) -> dict[str, Any] | None:
        """One method's entry."""
        return (self.catalogue().get("methods") or {}).get(key)

    def listed_methods(self) -> dict[str, dict[str, Any]]:
        """The methods that have a page; the short ones that pages ask for themselves are not."""
        methods = self.catalogue().get("methods") or {}
        return {k: e for k, e in methods.items() if k not in PARTS}

    def method_title(self, key: str) -> str:
        """A method's title; its key where nothing is published yet."""
        return (self.method(key) or {}).get("title") or key.replace("_", " ")

    def worker_state(self) -> tuple[str, str]:
        """(``ok``, ``busy`` or ``off``, what to say) of the worker."""
        beat = self.queue.worker()
        if beat is None:
            return "off", "worker not running"
        running = [j for j in self.jobs() if j["state"] == "running"]
        return ("busy", "worker measuring") if running else ("ok", "worker ready")

    # -- runs and jobs -----------------------------------------------------------------------

    def result(self, run_id: str) -> Any:
        """A stored run as a result; opened once."""
        run_id = self.store.resolve(run_id)
        with self._lock:
            if run_id in self._results:
                self._results.move_to_end(run_id)
                return self._results[run_id]
        record = self.store.get(run_id)
        result = interp.Result(record.data, record.spec, record.provenance, tuple(record.checks),
                               record.tokens, run_id)
        with self._lock:
            self._results[run_id] = result
            while len(self._results) > KEPT:
                self._results.popitem(last=False)
        return result

    def compare(self, a: Any, b: Any) -> Any:
        """The difference of b from a."""
        return interp.compare(a, b)

    def delete_run(self, run_id: str) -> None:
        """Delete a run for good."""
        with self._lock:
            self._results.pop(run_id, None)
        self.store.delete(run_id)

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, newest first, as plain rows."""
        return [plain(row) for row in self.queue.list()]

    def job(self, job_id: str) -> dict[str, Any] | None:
        """One job, None where there is none."""
        try:
            return plain(self.queue.show(job_id))
        except interp.InterpError:
            return None

    def job_title(self, row: Mapping[str, Any]) -> str:
        """Method, model and task of a job."""
        spec = row.get("job") or {}
        if spec.get("title"):
            return str(spec["title"])
        model, task = spec.get("model") or {}, spec.get("task") or {}
        return " · ".join(str(p) for p in (
            self.method_title(str(spec.get("method") or "job")),
            model.get("ref"), task.get("ref") or ("own pairs" if task else None)) if p)

    def cancel(self, job_id: str) -> None:
        """Ask a job to stop."""
        self.queue.cancel(job_id)

    def resume(self, job_id: str) -> None:
        """Let a job go on."""
        self.queue.resume(job_id)

    def kill(self, job_id: str) -> None:
        """Stop a job that does not answer; its worker is started again."""
        self.queue.kill(job_id)

    def submit(self, method: str, fields: Mapping[str, Any], model: str, task: str | None,
               machine: Mapping[str, Any] | None = None) -> str:
        """Queue a run; the job's id.

        Args:
            method: registry key.
            fields: its knobs.
            model: a ref that is offered here, or a hub id.
            task: a ref, ``pairs:<key>``, or None.
            machine: backend, dtype, device.
        """
        self.check_model(model)
        job = {"method": method, "fields": dict(fields), "model": {"ref": model, **(machine or {})},
               "task": self.task_json(task)}
        return self.queue.submit(job)

    def partial(self, job_id: str) -> Any:
        """What a running job has finished so far as a dataset, or None."""
        try:
            return self.queue.partial(job_id)
        except interp.InterpError:
            return None

    def welcome_state(self) -> tuple[str | None, str | None]:
        """(run, job) of the first page's grid; both None where there is neither."""
        if self.first and (row := self.job(self.first)):
            return (row.get("run_id") if row["state"] == "done" else None), self.first
        for row in self.store.list(method=WELCOME["method"], limit=1):
            return row.id, None
        return None, None

    # -- models and tasks --------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """Shipped models and the model folders of the roots."""
        out = []
        for listed in interp.list_models(self.roots):
            row = dict(vars(listed))
            if row.get("origin", "zoo") != "zoo":
                row["ref"] = row["title"]
            out.append(row)
        return out

    def model_options(self) -> list[dict[str, str]]:
        """What a picker of models offers."""
        return [{"value": r["ref"], "label": r["ref"]} for r in self.models() if r.get("ok", True)]

    def check_model(self, ref: str) -> None:
        """Refuse a model that was not offered: no path comes from the page.

        Raises:
            InterpError: neither listed here nor the pattern of a hub id.
        """
        if ref in {r["ref"] for r in self.models()}:
            return
        if HUB.fullmatch(ref) and ".." not in ref:
            return
        raise interp.InterpError(f"The model {ref[:60]!r} is not offered here.",
                                 remedy="Choose one of the list, or give a hub id.")

    def task_options(self, accepts: Any) -> list[dict[str, str]]:
        """The task families of the types a method accepts."""
        return [{"value": f"{k}:n=32,seed=0", "label": f.title} for k, f in interp.TASKS.items()
                if f.type_name in accepts or "Any" in accepts]

    def default_task(self) -> str:
        """The first family, small."""
        return WELCOME["task"]

    def task_title(self, task: str) -> str:
        """A task's ref for a person."""
        return "your own pairs" if task.startswith("pairs:") else task

    def task_json(self, task: str | None) -> dict[str, Any] | None:
        """A task as a job carries it: by ref, or whole where it was built here.

        Raises:
            InterpError: no family of that name, or prompts that are not kept here.
        """
        if not task:
            return None
        if task.startswith("pairs:"):
            return {"ref": None, "inline": interp.kept_task(self.store, task.partition(":")[2])}
        if task.partition(":")[0] not in interp.TASKS:
            raise interp.InterpError(f"The task {task[:60]!r} is not offered here.",
                                     remedy="Choose one of the list, or build a pair.")
        return {"ref": task}

    def task_of(self, spec: Mapping[str, Any]) -> str:
        """The task of a stored run as this page names it."""
        task = spec.get("task") or {}
        if task.get("inline"):
            return "pairs:" + interp.keep_task(self.store, task["inline"])
        return str(task.get("ref") or "")

    # -- short questions to the worker -------------------------------------------------------

    def describe(self, ref: str, backend: str | None = None, dtype: str | None = None,
                 ) -> dict[str, Any]:
        """A model's shape, self-checks and capabilities; opens it in the worker."""
        self.check_model(ref)
        model = {"ref": ref, "backend": backend, "dtype": dtype}
        return self.queue.request("describe_model", {"model": model}, PATIENCE)

    def shape(self, ref: str) -> dict[str, Any]:
        """A model's sizes, from what was published about it where it was opened before."""
        known = (self.catalogue().get("described") or {}).get(ref)
        return (known or self.describe(ref))["shape"]

    def card(self, ref: str) -> dict[str, Any]:
        """A shipped model's card; {} for others."""
        return dict(getattr(interp.MODELS.get(ref.removeprefix("zoo:")), "facts", None) or {}) \
            if ref.startswith("zoo:") else {}

    def checks_of(self, found: Mapping[str, Any]) -> list[Any]:
        """The self-checks of a description."""
        return [interp.Check.from_json(c) for c in found.get("checks") or ()]

    def pairs(self, model: str, task: str) -> Any:
        """A task as this model reads it; asked once."""
        key = (model, task)
        if key not in self._tasks:
            self.check_model(model)
            answer = self.queue.request(
                "load_task", {"model": model, "task": self.task_json(task)}, PATIENCE)
            self._remember(key, answer)
        return self._tasks[key][0]

    def _remember(self, key: tuple[str, str], answer: Mapping[str, Any]) -> None:
        with self._lock:
            self._tasks[key] = (interp.task_from_json(answer["task"]), answer.get("tokens"))
            while len(self._tasks) > 4 * KEPT:
                self._tasks.popitem(last=False)

    def known_tokens(self, job: Mapping[str, Any]) -> Any:
        """The tokens of a job's task where they were asked for before; None else."""
        model, task = job.get("model") or {}, job.get("task") or {}
        known = self._tasks.get((str(model.get("ref")), str(task.get("ref"))))
        return known[1] if known else None

    def make_pairs(self, model: str, source: Mapping[str, Any], bos: bool | None) -> str:
        """Pairs from a ref, columns of texts, or a table's text; how this page names the task."""
        self.check_model(model)
        if "ref" in source:
            self.pairs(model, str(source["ref"]))
            return str(source["ref"])
        kind = "file_pairs" if "text" in source else "make_pairs"
        answer = self.queue.request(kind, {"model": model, "bos": bos, **source}, PATIENCE)
        task = "pairs:" + interp.keep_task(self.store, answer["task"])
        self._remember((model, task), answer)
        return task

    def has_tokenizer(self, model: str) -> bool:
        """Whether the model reads text."""
        known = (self.catalogue().get("described") or {}).get(model) or self.describe(model)
        return bool(known.get("tokenizer", True))

    def check_pair(self, model: str, source: Mapping[str, Any], bos: bool | None) -> CheckedPair:
        """Make the pairs and ask the model what it says to them."""
        task = self.make_pairs(model, source, bos)
        pairs = self.pairs(model, task)
        said = self.measure("pair_check", {}, model, task) if self.method("pair_check") else None
        return CheckedPair(task, pairs, said)

    def measure(self, method: str, fields: Mapping[str, Any], model: str, task: str) -> Any:
        """A short method, measured now, as a result that is not kept."""
        self.check_model(model)
        return self.queue.measure(method, fields, model=model, task=self.task_json(task),
                                  timeout=PATIENCE)

    def texts(self, model: str, ids: Iterable[int]) -> dict[int, str]:
        """The text of token ids; ``#5`` where the model has no tokenizer."""
        wanted = sorted({int(i) for i in ids})
        if not self.has_tokenizer(model):
            return {i: f"#{i}" for i in wanted}
        found = self.queue.request("decode", {"model": model, "ids": wanted}, PATIENCE)["texts"]
        return dict(zip(wanted, found, strict=True))

    def top_tokens(self, model: str, data: Any, row: int = 0) -> dict[str, list[tuple[str, float]]]:
        """Likely next tokens of one prompt, side by side: side -> (text, probability)."""
        if "token_id" not in data:
            return {}
        ids, chance = (data[k].isel(prompt=row) for k in ("token_id", "probability"))
        texts = self.texts(model, ids.values.ravel())
        return {str(side): [(texts[int(i)], float(p)) for i, p in zip(
            ids.sel(side=side).values, chance.sel(side=side).values, strict=True)]
            for side in ids.coords["side"].values}

    def patterns(self, model: str, task: str, layer: int, row: int) -> Any:
        """Attention patterns of one layer and prompt: [side, head, query, key]."""
        found = self.measure("attention_patterns", {"layers": [layer], "prompts": [row]}, model,
                             task)
        return found.data["pattern"].isel(layer=0, prompt=0)

    def head(self, model: str, task: str, layer: int, head: int, row: int) -> Any:
        """What a head would write from each position, and what it says at the last."""
        fields = {"layer": layer, "head": head, "prompt": row, "top_k": 6}
        return self.measure("head_page", fields, model, task).data

    def can_verify(self, result: Any) -> bool:
        """Whether a cell of this result can be measured again by one plain forward."""
        fields = result.spec.get("fields") or {}
        return (result.spec["method"] == "activation_patching" and "effect" in result.data
                and fields.get("with_", "source") in ("source", "zero"))

    def verify_cell(self, result: Any, place: Mapping[str, Any]) -> Any:
        """One cell again by a plain forward.

        Args:
            result: the run.
            place: axis -> label of the cell.
        """
        spec = result.spec
        fields = {k: v for k, v in (spec.get("fields") or {}).items() if k in (
            "site", "direction", "with_", "metric", "at", "window")}
        where = {"layer": place.get("layer"), "head": place.get("head", place.get("kv_head")),
                 "position": place.get("position", place.get("slot"))}
        return self.measure("verify_cell", {**fields, **where}, spec["model"]["ref"],
                            self.task_of(spec))

    def estimate(self, method: str, fields: Mapping[str, Any], model: str | None,
                 task: str | None) -> dict[str, Any]:
        """What a run will cost, as far as its method knows."""
        if not model:
            return {}
        self.check_model(model)
        return self.queue.request("estimate", {
            "method": method, "fields": dict(fields), "model": model,
            "task": self.task_json(task)}, PATIENCE)

    def head_effects(self, model: str, task: str, layer: int, head: int,
                     ) -> list[tuple[str, str, float]]:
        """What patching this head did in the stored runs of this model and task."""
        out = []
        for row in self.store.list(model=model, limit=60):
            if row.damaged or row.fields.get("site") not in ("z", "q", "k", "v"):
                continue
            result = self.result(row.id)
            effect = result.data.get("effect")
            if effect is None or self.task_of(result.spec) != task:
                continue
            heads = {"head", "kv_head"} & set(effect.dims)
            if not heads or "layer" not in effect.dims:
                continue
            axis = heads.pop()
            if layer < effect.sizes["layer"] and head < effect.sizes[axis]:
                cells = effect.isel({"layer": layer, axis: head})
                out.append((row.id, f"{row.fields['site']}, {row.fields.get('direction', '')}",
                            float(cells.max() if cells.ndim else cells)))
        return out[:6]

    # -- life --------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Start a worker for this store, or find the one that is there."""
        self.worker = interp.start_worker(self.store, roots=self.roots)

    def welcome(self) -> None:
        """Queue the first page's grid where the store has none."""
        if not self.store.list(method=WELCOME["method"], limit=1):
            self.first = self.queue.submit({**WELCOME, "title": "Your first grid"})
            threading.Thread(target=self._greet, name="greet", daemon=True).start()

    def _greet(self) -> None:
        """Ask for the first task's tokens, so that the first grid fills with words on its axis."""
        try:
            self.pairs(WELCOME["model"], WELCOME["task"])
        except interp.InterpError as error:
            LOG.info("the first task's tokens are not there yet: %s", error)

    def stop(self) -> None:
        """Let the worker go with the workbench."""
        if self.worker is not None:
            self.worker.stop()
