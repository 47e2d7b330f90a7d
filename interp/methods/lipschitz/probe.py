"""Values along a network's depth under a perturbation of its beginning, by ordinary runs.

Everything goes through ``model.run`` (edits and reads as data), so no hook is left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.terms import (
    CapabilityError,
    Edit,
    HookedModel,
    LabelledInputs,
    Site,
    Texts,
    UsageError,
)


@dataclass(frozen=True)
class Depth:
    """Places along the depth of a model.

    Args:
        start: where the perturbation enters.
        sites: what is read, in the order of depth.
        names: words for them.
    """

    start: Site
    sites: tuple[Site, ...]
    names: tuple[str, ...]


def depth_of(model: HookedModel, wanted: Sequence[str]) -> Depth:
    """The layers of a transformer, or the parts of another network.

    Args:
        model: the model.
        wanted: sites (``resid_post L1``) or module paths; empty takes all.

    Raises:
        UsageError: a path that is not there, or fewer than one place.
        CapabilityError: a model in which no depth can be read.
    """
    have = {c.name for c in model.capabilities() if c.ok}
    if "resid_pre" in have and "resid_post" in have and model.shape.n_layers:
        sites = tuple(Site("resid_post", layer=k) for k in range(model.shape.n_layers))
        if wanted:
            sites = tuple(Site.parse(w) for w in wanted)
        names = tuple(str(s) for s in sites)
        return Depth(Site("resid_pre", layer=0), sites, names)
    if "input" not in have or "module" not in have:
        raise CapabilityError(
            f"{model.id} offers neither a residual stream nor a numeric input to perturb.",
            remedy="Give a site map with resid_pre and resid_post, or a network of numbers.",
        )
    paths = tuple(wanted) or _parts(model)
    known = dict(model.module().named_modules())
    for path in paths:
        if path not in known:
            raise UsageError(
                f"The model has no part {path!r}.", remedy=f"It has {', '.join(known)[:200]}."
            )
    return Depth(Site("input"), tuple(Site("module", path=p) for p in paths), paths)


def _parts(model: HookedModel) -> tuple[str, ...]:
    """Every part without parts of its own, in the order in which the network computes."""
    if any(c.name == "graph" and c.ok for c in model.capabilities()):
        found = [n.path for n in model.graph() if n.path]
    else:
        found = [n for n, m in model.module().named_modules() if n and not list(m.children())]
    return tuple(dict.fromkeys(found))


def batches(task: Any, most: int) -> Iterator[tuple[list[int], Any]]:
    """Row numbers and inputs of equal shape, at most so many at a time."""
    if isinstance(task, LabelledInputs):
        groups = [list(range(len(task)))]
    else:
        tokens = task.tokens if isinstance(task, Texts) else task.clean
        found: dict[int, list[int]] = {}
        for i, row in enumerate(tokens):
            found.setdefault(len(row), []).append(i)
        groups = list(found.values())
    for group in groups:
        for k in range(0, len(group), most):
            rows = group[k : k + most]
            yield rows, (
                np.asarray(task.inputs)[rows] if isinstance(task, LabelledInputs)
                else [list(tokens[i]) for i in rows]
            )  # fmt: skip


class Probe:
    """One batch of inputs.

    Args:
        model: the model.
        inputs: a batch: tokens, or numbers.
        depth: where to look.
    """

    def __init__(self, model: HookedModel, inputs: Any, depth: Depth) -> None:
        self.model, self.inputs, self.depth = model, inputs, depth
        self.base = self.values(None)

    def values(self, delta: Tensor | None, grad: bool = False) -> list[Tensor]:
        """The start and every place, ``[row, …]``, with ``delta`` added at the start."""
        start, sites = self.depth.start, self.depth.sites
        if start.kind == "input":
            kind = next((p for p in self.model.module().parameters()), torch.zeros(1))
            x = torch.as_tensor(self.inputs).to(device=kind.device, dtype=kind.dtype)
            x = x if delta is None else x + delta.to(x)
            run = self.model.run(x, read=sites, grad=grad)
            return [x, *(run.reads[s] for s in sites)]
        edits = [] if delta is None else [Edit(start, delta, "add")]
        run = self.model.run(self.inputs, edits=edits, read=[start, *sites], grad=grad)
        return [run.reads[start], *(run.reads[s] for s in sites)]

    def zeros(self) -> Tensor:
        """A perturbation that changes nothing."""
        return torch.zeros_like(self.base[0]).detach()

    def scaled(self, direction: Tensor, radius: float) -> Tensor:
        """The direction at a length that is ``radius`` times the start's own, row by row."""
        size = flat(self.base[0]).norm(dim=-1) * radius
        length = flat(direction).norm(dim=-1).clamp(min=1e-30)
        return direction * (size / length).reshape(-1, *(1,) * (direction.dim() - 1))


def flat(x: Tensor) -> Tensor:
    """``[row, everything else]`` in float64."""
    return x.detach().reshape(len(x), -1).double()
