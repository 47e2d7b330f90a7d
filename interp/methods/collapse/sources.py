"""Sources: which places of a network are read, which head reads them, and its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.engine.features import (
    Call,
    Features,
    LinearHead,
    NextTokenFeatures,
    Place,
    calls_of,
    head_of,
    labelled_batches,
    model_features,
    places_of,
    undisturbed,
    usual_places,
)
from interp.methods.collapse.counting import Batches
from interp.methods.collapse.snapshot import Plan, Snapshot, take
from interp.terms import HookedModel, LabelledInputs, PromptPairs, Site, Texts, UsageError

if TYPE_CHECKING:
    from interp.methods.collapse.collapse import Collapse


@dataclass(frozen=True)
class Source:
    """A network's features, ready to be counted.

    Args:
        batches: features of every place, with labels.
        layers: places by depth.
        head: the linear head; its first map reads the last place.
        n_labels: K.
        rows: N.
    """

    batches: Batches
    layers: list[str]
    head: LinearHead
    n_labels: int
    rows: int

    def take(self, plan: Plan, ood: Tensor | None = None) -> Snapshot:
        """One snapshot."""
        return take(self.batches, self.layers, self.head, self.n_labels, plan, ood)


def source_of(
    spec: Collapse, model: HookedModel, task: LabelledInputs | Texts | PromptPairs, keep: int
) -> Source:
    """Where a model's features come from.

    Args:
        spec: says where they are read.
        model: any adapter.
        task: labelled inputs, or texts whose next tokens are the classes.
        keep: bytes of features that may be kept between passes.
    """
    if not isinstance(task, LabelledInputs):
        tokens = NextTokenFeatures(model, task, spec.sites, keep)
        names = [p.name for p in tokens.places]
        return Source(tokens.batches, names, tokens.head, model.shape.vocab, tokens.rows)
    to_inputs = getattr(model, "to_inputs", torch.as_tensor)
    layers, places, head = chosen(
        spec, model.module(), lambda x: model.run(x).logits, to_inputs(task.inputs[:2]),
        model.shape.n_layers,
    )  # fmt: skip
    features = model_features(model, task, places, spec.pool, keep)
    return Source(features.batches, layers, head, labels_of(head, task.labels), len(task))


def module_source(spec: Collapse, module: nn.Module, task: LabelledInputs, keep: int) -> Source:
    """Where the features of a plain torch module come from, which stays as it is.

    Args:
        spec: says where they are read.
        module: called as ``module(inputs)``.
        task: inputs and labels.
        keep: bytes of features that may be kept between passes.
    """
    like = next(module.parameters(), torch.zeros(()))

    def to_inputs(inputs: Any) -> Tensor:
        batch = torch.as_tensor(np.asarray(inputs), device=like.device)
        return batch.to(like.dtype) if batch.is_floating_point() else batch

    def run(inputs: Tensor, sites: list[Site]) -> dict[Site, Tensor]:
        if sites:
            raise UsageError(
                f"A plain module has no site {str(sites[0])!r}.",
                remedy="Name its parts by their paths, or open it with interp.load_model.",
            )
        module(inputs)
        return {}

    layers, places, head = chosen(spec, module, module, to_inputs(task.inputs[:2]), 0)
    batches = labelled_batches(task.inputs, task.labels, to_inputs)
    features = Features(module, places, batches, run, spec.pool, keep)
    return Source(features.batches, layers, head, labels_of(head, task.labels), len(task))


def chosen(
    spec: Collapse,
    module: nn.Module,
    run: Callable[[Tensor], Any],
    first: Tensor,
    n_layers: int,
) -> tuple[list[str], list[Place], LinearHead]:
    """Layers by name, every place that is read, and the head that reads the last layer."""
    with undisturbed(module):
        calls, output = calls_of(module, lambda: run(first))
    found = head_of(calls, _tensor(output), spec.head)
    if spec.sites is None:
        places = usual_places(calls, found)
    else:
        places = places_of(spec.sites, module, n_layers)
    if not places:
        raise UsageError(
            "This network calls no linear map or convolution, so there is no usual place.",
            remedy="Name where its features are (sites), as paths of its modules.",
        )
    head = _reading(found, calls, places)
    layers = [p.name for p in places]
    inner = [Place(f"{n}:input", path=n, side="input") for n in head.names[1:]]
    return layers, [*places, *(p for p in inner if p.name not in layers)], head


def _reading(head: LinearHead, calls: Sequence[Call], places: Sequence[Place]) -> LinearHead:
    """The head, if the last place is what it reads; else none, with the reason."""
    if not head.weights:
        return head
    last = places[-1]
    entry = next(c for c in calls if c.path == head.names[0])
    if (last.path, last.side) == (head.names[0], "input"):
        return head
    feeds = last.site is None and last.side == "output"
    before = [c for c in calls if c.path == last.path]
    if feeds and before and before[-1].output is entry.given:
        return head
    return LinearHead(
        reason=f"the last place read ({last.name}) is not what the head {head.names[0]!r} reads; "
        f"end sites with '{head.names[0]}:input'"
    )


def _tensor(output: Any) -> Any:
    return getattr(output, "logits", output)


def labels_of(head: LinearHead, labels: np.ndarray) -> int:
    """K: the head's outputs, or one more than the largest label."""
    return len(head.weights[-1]) if head.weights else int(np.max(labels)) + 1
