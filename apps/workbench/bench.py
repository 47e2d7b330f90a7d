"""Bench: what the pages ask the house for. Ids and plain JSON in, results out.

One object a process, reached by ``bench()`` inside a request. It holds the store and the queue of
``interp`` and adds nothing that computes: a page that needs a number asks the worker for it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flask import current_app

import interp
from apps.workbench.holdings import KEPT, WELCOME, Holdings

LOG = logging.getLogger("interp.workbench")
PATIENCE = 60.0
"""Seconds a page waits for the worker's answer to a short question."""


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


VERIFIED = ("activation_patching", "attribution_patching", "agreement")
"""Methods whose cells are patches that one plain forward can make."""


def cell_fields(place: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's place as ``verify_cell`` takes it: ``neuron`` L2N17 and ``feature`` F5 by number.

    Args:
        place: axis -> label.
    """
    out: dict[str, Any] = {
        "layer": place.get("layer"),
        "head": place.get("head", place.get("kv_head")),
        "position": place.get("position", place.get("slot", place.get("query"))),
        "key_position": place.get("key"),
    }
    neuron, feature = place.get("neuron"), place.get("feature")
    named = re.fullmatch(r"L(\d+)N(\d+)", str(neuron))
    if named:
        out |= {"layer": int(named[1]), "neuron": int(named[2])}
    elif neuron is not None:
        out["neuron"] = int(neuron)
    if feature is not None:
        out["feature"] = int(str(feature).removeprefix("F"))
    return out


class Bench(Holdings):
    """The holdings, short questions to the worker, and the worker's life."""

    # -- short questions to the worker -------------------------------------------------------

    def describe(
        self,
        ref: str,
        backend: str | None = None,
        dtype: str | None = None,
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
        return (
            dict(getattr(interp.MODELS.get(ref.removeprefix("zoo:")), "facts", None) or {})
            if ref.startswith("zoo:")
            else {}
        )

    def checks_of(self, found: Mapping[str, Any]) -> list[Any]:
        """The self-checks of a description."""
        return [interp.Check.from_json(c) for c in found.get("checks") or ()]

    def pairs(self, model: str, task: str) -> Any:
        """A task as this model reads it; asked once."""
        key = (model, task)
        if key not in self._tasks:
            self.check_model(model)
            answer = self.queue.request(
                "load_task", {"model": model, "task": self.task_json(task)}, PATIENCE
            )
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
        return self.queue.measure(
            method, fields, model=model, task=self.task_json(task), timeout=PATIENCE
        )

    def texts(self, model: str, ids: Iterable[int]) -> dict[int, str]:
        """The text of token ids; ``#5`` where the model has no tokenizer."""
        wanted = sorted({int(i) for i in ids})
        if not self.has_tokenizer(model):
            return {i: f"#{i}" for i in wanted}
        found = self.queue.request("decode", {"model": model, "ids": wanted}, PATIENCE)["texts"]
        return dict(zip(wanted, found, strict=True))

    def tokens(self, model: str, text: str, bos: bool | None) -> list[str]:
        """A text's tokens; ids as they were typed where the model has no tokenizer."""
        if not self.has_tokenizer(model):
            return text.replace(",", " ").split()
        said = {"model": model, "text": text, "bos": bos}
        return self.queue.request("tokenize", said, PATIENCE)["texts"]

    def top_tokens(self, model: str, data: Any, row: int = 0) -> dict[str, list[tuple[str, float]]]:
        """Likely next tokens of one prompt, side by side: side -> (text, probability)."""
        if "token_id" not in data:
            return {}
        ids, chance = (data[k].isel(prompt=row) for k in ("token_id", "probability"))
        texts = self.texts(model, ids.values.ravel())
        return {
            str(side): [
                (texts[int(i)], float(p))
                for i, p in zip(
                    ids.sel(side=side).values, chance.sel(side=side).values, strict=True
                )
            ]
            for side in ids.coords["side"].values
        }

    def patterns(self, model: str, task: str, layer: int, row: int) -> Any:
        """Attention patterns of one layer and prompt: [side, head, query, key]."""
        found = self.measure(
            "attention_patterns", {"layers": [layer], "prompts": [row]}, model, task
        )
        return found.data["pattern"].isel(layer=0, prompt=0)

    def head(self, model: str, task: str, layer: int, head: int, row: int) -> Any:
        """What a head would write from each position, and what it says at the last."""
        fields = {"layer": layer, "head": head, "prompt": row, "top_k": 6}
        return self.measure("head_page", fields, model, task).data

    def measured_by(self, result: Any) -> Any:
        """The run whose cells a plain forward can repeat: itself, or what an agreement held."""
        if result.spec["method"] != "agreement":
            return result
        return self.result(str(result.data.attrs["exact_run"]))

    def can_verify(self, result: Any) -> bool:
        """Whether a cell of this result can be measured by one plain forward."""
        if result.spec["method"] not in VERIFIED:
            return False
        fields = self.measured_by(result).spec.get("fields") or {}
        return (
            fields.get("with_", "source") in ("source", "zero")
            and fields.get("mode", "replace") == "replace"
        )

    def verify_cell(self, result: Any, place: Mapping[str, Any]) -> Any:
        """One cell by a plain forward.

        Args:
            result: the run.
            place: axis -> label of the cell.
        """
        spec = self.measured_by(result).spec
        fields = {
            k: v
            for k, v in (spec.get("fields") or {}).items()
            if k in ("site", "direction", "with_", "metric", "at", "window", "dictionary")
        }
        return self.measure(
            "verify_cell",
            {**fields, **cell_fields(place)},
            self.model_of(spec),
            self.task_of(spec),
        )

    def estimate(
        self, method: str, fields: Mapping[str, Any], model: str | None, task: str | None
    ) -> dict[str, Any]:
        """What a run will cost, as far as its method knows."""
        if not model:
            return {}
        self.check_model(model)
        return self.queue.request(
            "estimate",
            {
                "method": method,
                "fields": dict(fields),
                "model": model,
                "task": self.task_json(task),
            },
            PATIENCE,
        )

    def head_effects(
        self,
        model: str,
        task: str,
        layer: int,
        head: int,
    ) -> list[tuple[str, str, float]]:
        """What patching this head did, and was estimated to do, in the stored runs.

        Returns:
            run id, words, and the largest share of the gap over positions, at most six.
        """
        out = []
        for row in self.store.list(model=self.stored_name(model), limit=60):
            if row.damaged or row.fields.get("site") not in ("z", "q", "k", "v", "pattern"):
                continue
            result = self.result(row.id)
            known = [n for n in ("effect", "attribution") if n in result.data]
            if not known or self.task_of(result.spec) != task:
                continue
            effect = result.data[known[0]]
            heads = {"head", "kv_head"} & set(effect.dims)
            if not heads or "layer" not in effect.dims:
                continue
            axis = heads.pop()
            own = head if axis == "head" else self._group(model, head)
            if layer in effect["layer"].values and own < effect.sizes[axis]:
                cells = effect.sel(layer=layer).isel({axis: own}).values.ravel()
                largest = cells[np.argmax(np.abs(np.nan_to_num(cells)))]
                what = "measured" if known[0] == "effect" else "estimated"
                words = f"{row.fields['site']}, {row.fields.get('direction', '')}, {what}"
                out.append((row.id, words, float(largest)))
        return out[:6]

    def _group(self, model: str, head: int) -> int:
        """The key/value head that a query head reads."""
        shape = self.shape(model)
        return head // max(1, shape["n_heads"] // max(1, shape["n_kv_heads"]))

    # -- life --------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Start a worker for this store, or find the one that is there."""
        self.worker = interp.start_worker(self.store, roots=self.roots)

    def welcome(self) -> None:
        """Queue the first page's grid where the store has none."""
        if self.welcomed() is None:
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
