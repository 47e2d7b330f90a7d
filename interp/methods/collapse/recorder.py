"""CollapseRecorder: the metrics of ``Collapse`` over somebody's own training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import nn

from interp.methods.collapse.collapse import Collapse
from interp.methods.collapse.snapshot import Snapshot, dataset
from interp.methods.collapse.sources import Source, module_source, source_of
from interp.terms import HookedModel, LabelledInputs, TaskError, UsageError

if TYPE_CHECKING:
    from interp.terms import Context

KEEP = 2**28
"""Bytes of features that are kept between the two passes of one step."""


class CollapseRecorder:
    """Watches a network collapse while it is trained.

    >>> recorder = CollapseRecorder(Collapse(), net, (x, y), every=10)
    >>> for epoch in range(300):
    ...     train_one_epoch(net)
    ...     recorder.step(epoch)
    >>> recorder.dataset()["nc1"]

    It measures in eval mode without gradients and leaves everything as it was: each part's train
    or eval, the random generators, running statistics, parameters. It writes no file.

    Args:
        spec: what is measured; ``checkpoints`` is of no use here.
        model: the network that is trained (any ``nn.Module``), or an open model.
        task: labelled inputs, or a pair (inputs, labels) of arrays or tensors.
        every: steps whose epoch is a multiple of this are measured.
        context: where rows are kept as soon as they are there (``save_chunk``), so that a run
            that is taken up again does not measure them twice.

    Raises:
        UsageError: inputs that do not fit, or ``every`` below 1.
    """

    def __init__(
        self,
        spec: Collapse,
        model: nn.Module | HookedModel,
        task: LabelledInputs | tuple[Any, Any],
        *,
        every: int = 1,
        context: Context | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"every was given as {every}; wanted 1 or more.")
        self.spec, self.every, self.context = spec, every, context
        self._model, self._task = model, _labelled(task)
        self._rows: dict[float, Snapshot] = {}
        self._attrs: dict[str, Any] = {}
        self._ood = None
        if spec.ood is not None:
            if context is None:
                raise UsageError(
                    "ood names a stored result, and no context was given to open it.",
                    remedy="Give context=, or leave ood out.",
                )
            self._ood = spec.other_mean(context)

    def step(self, epoch: float, force: bool = False) -> Snapshot | None:
        """Measure if ``epoch`` is due (or ``force``); call it once an epoch, after the update.

        Returns:
            What was measured, or None where it was not due.
        """
        if not force and epoch % self.every:
            return None
        key = f"collapse-{epoch:g}"
        source = self._source()
        self._attrs = self.spec.attrs(source.head)
        kept = self.context.load_chunk(key) if self.context is not None else None
        if kept is None:
            row = source.take(self.spec.plan(source.head), self._ood)
            if self.context is not None:
                self.context.save_chunk(key, _chunk(row))
        else:
            row = _unchunk(kept, source)
        self._rows[float(epoch)] = row
        return row

    __call__ = step

    def __len__(self) -> int:
        return len(self._rows)

    def dataset(self) -> xr.Dataset:
        """Everything measured so far, along ``epoch``.

        Class means, lengths and Gram matrices are those of ``spec.geometry_at``, or of the last
        row.

        Raises:
            UsageError: nothing was measured yet, or not at ``geometry_at``.
        """
        if not self._rows:
            raise UsageError("Nothing was recorded yet.", remedy="Call step(epoch) first.")
        epochs = sorted(self._rows)
        return dataset(
            [self._rows[e] for e in epochs],
            epochs,
            self._attrs,
            self._task.label_text or None,
            self.spec.shown(epochs),
        )

    def _source(self) -> Source:
        if isinstance(self._model, nn.Module):
            return module_source(self.spec, self._model, self._task, KEEP)
        return source_of(self.spec, self._model, self._task, KEEP)


def _labelled(task: Any) -> LabelledInputs:
    if isinstance(task, LabelledInputs):
        return task
    if not isinstance(task, tuple) or len(task) != 2:
        raise TaskError(
            f"A {type(task).__name__} was given as task.",
            remedy="Give a LabelledInputs, or the pair (inputs, labels).",
        )
    inputs, labels = (v.detach().cpu().numpy() if hasattr(v, "detach") else v for v in task)
    if np.asarray(labels).dtype.kind not in "iu":
        raise TaskError(
            f"Labels of type {np.asarray(labels).dtype} were given; wanted whole numbers from 0."
        )
    return LabelledInputs(np.asarray(inputs), np.asarray(labels))


def _chunk(row: Snapshot) -> dict[str, np.ndarray]:
    facts = {f"fact:{k}": np.array(v) for k, v in row.facts.items()}
    return {**row.arrays, **facts}


def _unchunk(kept: dict[str, np.ndarray], source: Source) -> Snapshot:
    arrays = {k: v for k, v in kept.items() if not k.startswith("fact:")}
    facts = {k.removeprefix("fact:"): float(v) for k, v in kept.items() if k.startswith("fact:")}
    depth = len(source.head.weights)
    return Snapshot(arrays, source.layers, depth if depth > 1 else 0, facts)
