"""Wishes: what is asked of a pass of gradients, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from interp.engine.metrics import Metric
from interp.terms import KINDS, ModelShape

if TYPE_CHECKING:
    from interp.models.dictionaries import Dictionary

PARTS = ("feature", "feature_error", "feature_site")
"""What a dictionary splits its site's estimate into, and the whole."""


@dataclass(eq=False)
class Attribution:
    """Estimates of all nodes.

    Args:
        values: kind -> ``[prompt, layer, position]``, with ``head``, ``kv_head`` or ``neuron``
            last where the kind has it; without ``layer`` for ``embed`` and a dictionary's
            ``feature`` (with it ``feature_error`` and ``feature_site``, no last axis). A
            ``pattern`` has queries as positions, ``head``, and ``key`` if asked for. NaN behind a
            prompt's end and where a position has no counterpart in the source run.
        base: metric of the base run ``[prompt]``; source: of the source run.
        passes: forward and backward passes of the whole model, per prompt.
        streamed: batches whose layers were computed anew on the way back.
    """

    values: dict[str, np.ndarray]
    base: np.ndarray
    source: np.ndarray
    passes: dict[str, int] = field(default_factory=dict)
    streamed: int = 0


@dataclass(frozen=True)
class Wish:
    """What is asked of a pass.

    Args:
        kinds: sites.
        metric: what is differentiated.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
        qk_fix: queries and keys by the softmax's own change.
        grad_drop: mean over layers λ of the size of each estimate with its sublayers blocked.
        steps: points on the path of embeddings that gradients are averaged over, in (0, 1);
            empty for the base run alone.
        keys: whether a pattern's entries stay apart by key, else they are summed.
        dictionary: whose features are meant by ``feature``.
    """

    kinds: tuple[str, ...]
    metric: Metric
    direction: str
    at: int | str = "last"
    qk_fix: bool = False
    grad_drop: bool = False
    steps: tuple[float, ...] = ()
    keys: bool = False
    dictionary: Dictionary | None = None

    @property
    def lent(self) -> set[str]:
        """Kinds that the source run must take."""
        more = {"q", "k"} if "pattern" in self.kinds else set()
        if self.dictionary is not None:
            more |= {self.dictionary.site.kind}
        return (set(self.kinds) | more) - {"pattern", "feature"}

    @property
    def taken(self) -> set[str]:
        """Kinds that the base run must take."""
        fixed = self.qk_fix and set(self.kinds) & {"q", "k"}
        return self.lent | ({"q", "k", "v", "z"} if fixed or "pattern" in self.kinds else set())

    def shapes(self, shape: ModelShape, length: int) -> dict[str, tuple[int, ...]]:
        """Array -> its axes behind the prompt, for prompts of one length."""
        width = {"head": shape.n_heads, "kv_head": shape.n_kv_heads, "neuron": shape.d_mlp}
        out: dict[str, tuple[int, ...]] = {}
        for kind in self.kinds:
            if kind == "feature":
                assert self.dictionary is not None
                out |= {part: (length,) for part in PARTS}
                out["feature"] = (length, self.dictionary.n_features)
                continue
            spec = KINDS[kind]
            dims = [shape.n_layers] * spec.per_layer + [length]
            dims += [width[d] for d in spec.dims[:1] if d in width]
            out[kind] = tuple(dims + [length] * (kind == "pattern" and self.keys))
        return out


def layered(kind: str) -> bool:
    """Whether estimates of a kind have a layer axis."""
    return kind not in PARTS and KINDS[kind].per_layer
