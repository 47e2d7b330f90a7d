"""Observable: a linear read-out of the logits. FeatureVector: what reads it further back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.terms.errors import UsageError
from interp.terms.sites import Site

if TYPE_CHECKING:
    from interp.terms.inputs import PromptPairs

Stage = Literal["residual", "normalised", "affine"]
Treatment = Literal["ignore", "norm", "frozen", "exact"]

STAGES: dict[str, str] = {
    "residual": "the residual stream itself, before the norm",
    "normalised": "centred and divided by its scale, before gain and bias",
    "affine": "after gain and bias: what the values or the neurons read",
}
"""Where beside a norm a vector stands."""

TREATMENTS: dict[str, str] = {
    "ignore": "norms are passed over: no data is needed, directions only",
    "norm": "gain times √d over the length of the input (dunefsky2024observable)",
    "frozen": "the divisor of the run, held fixed: the norm is linear",
    "exact": "the norm's own derivative at the run",
}
"""How a vector passes a norm on its way back."""


@dataclass(frozen=True, eq=False)
class Observable:
    """``o = logits[last] · n``: weights n on tokens of the vocabulary.

    Args:
        name: what to call it.
        tokens: token ids with a weight, ``[token]``.
        weights: their weights, ``[token]``, or ``[prompt, token]`` where each prompt has its own.
        words: token id -> text, for labels.

    Raises:
        UsageError: no token, a token twice, another number of weights, or all weights zero.
    """

    name: str
    tokens: tuple[int, ...]
    weights: np.ndarray
    words: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(int(t) for t in self.tokens))
        object.__setattr__(self, "weights", np.asarray(self.weights, dtype=np.float64))
        if not self.tokens or len(set(self.tokens)) != len(self.tokens):
            raise UsageError(
                f"The observable {self.name!r} has {len(self.tokens)} tokens, some of them twice."
                if self.tokens
                else f"The observable {self.name!r} names no token.",
                remedy="Give each token once, on one side.",
            )
        if self.weights.ndim not in (1, 2) or self.weights.shape[-1] != len(self.tokens):
            raise UsageError(
                f"The observable {self.name!r} has {len(self.tokens)} tokens and weights of shape "
                f"{self.weights.shape}.",
                remedy="Give one weight a token, or [prompt, token].",
            )
        if not np.isfinite(self.weights).all() or not np.abs(self.weights).sum(-1).all():
            raise UsageError(
                f"The observable {self.name!r} is zero or not finite, so it measures nothing.",
                remedy="Give plus and minus tokens that differ.",
            )

    @classmethod
    def from_tokens(
        cls,
        plus: Sequence[int],
        minus: Sequence[int] = (),
        *,
        reduce: Literal["sum", "mean"] = "sum",
        name: str = "observable",
        words: Mapping[int, str] | None = None,
    ) -> Observable:
        """Logits of ``plus`` less logits of ``minus``, summed or averaged over each set.

        Raises:
            UsageError: a token on both sides, or none at all.
        """
        if both := set(plus) & set(minus):
            shown = ", ".join(repr((words or {}).get(t, t)) for t in sorted(both)[:4])
            raise UsageError(
                f"The observable {name!r} has {shown} among its plus and its minus tokens.",
                remedy="Give each token on one side.",
            )
        shares = [
            sign / (len(side) if reduce == "mean" else 1)
            for sign, side in ((1.0, plus), (-1.0, minus))
            for _ in side
        ]
        return cls(name, (*plus, *minus), np.array(shares), dict(words or {}))

    @classmethod
    def from_vector(cls, n: Any, *, name: str = "observable") -> Observable:
        """Weights on the whole vocabulary, ``[vocab]``; zeros are dropped."""
        n = np.asarray(n, dtype=np.float64)
        if n.ndim != 1:
            raise UsageError(f"An observable's vector has shape {n.shape}; wanted [vocab].")
        live = np.flatnonzero(n)
        return cls(name, tuple(live.tolist()), n[live])

    @classmethod
    def per_example(cls, pairs: PromptPairs, *, name: str = "right - wrong") -> Observable:
        """Mean of each prompt's right answers less the mean of its wrong ones.

        Raises:
            UsageError: answers are spans.
        """
        if pairs.answer_form != "set":
            raise UsageError(
                "An observable reads single tokens, and this task's answers are spans.",
                remedy="Take a task whose answers are single tokens, or name the tokens.",
            )
        tokens = sorted({t for side in (pairs.right, pairs.wrong) for row in side for t in row})
        place = {t: i for i, t in enumerate(tokens)}
        weights = np.zeros((len(pairs), len(tokens)))
        for row, sides in enumerate(zip(pairs.right, pairs.wrong, strict=True)):
            for sign, side in zip((1.0, -1.0), sides, strict=True):
                for t in side:
                    weights[row, place[t]] += sign / len(side)
        return cls(name, tuple(tokens), weights, dict(pairs.answer_text))

    @property
    def each(self) -> bool:
        """Whether every prompt has weights of its own."""
        return self.weights.ndim == 2

    @property
    def centred(self) -> bool:
        """Whether the weights sum to zero: else o changes when all logits move together."""
        size = np.abs(self.weights).sum(-1)
        return bool((np.abs(self.weights.sum(-1)) <= 1e-9 * size).all())

    def rows(self, rows: Any) -> np.ndarray:
        """Weights of these prompts, ``[row, token]``."""
        if self.each:
            return self.weights[np.asarray(rows)]
        return np.broadcast_to(self.weights, (len(rows), len(self.tokens)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "tokens": list(self.tokens),
            "weights": self.weights.tolist(),
            "words": {str(k): v for k, v in self.words.items()},
        }

    def hash(self) -> str:
        """sha256 of tokens and weights."""
        sha = hashlib.sha256(repr((self.tokens, self.weights.shape)).encode())
        sha.update(np.ascontiguousarray(self.weights).tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Reading:
    """Values of one site at one stage.

    Args:
        site: where they were read.
        stage: ``residual``, ``normalised`` or ``affine``.
        values: ``[prompt, position, d_model]``.
        weight_hash: of the model they were read from.
    """

    site: Site
    stage: Stage
    values: np.ndarray
    weight_hash: str


@dataclass(frozen=True, eq=False)
class FeatureVector:
    """The direction that an observable reads at a place further back in a model.

    Args:
        vec: ``[d_model]``.
        site: the site it reads (``resid_pre`` of a head's layer, ``resid_mid`` of an MLP's).
        stage: where beside that layer's norm (``STAGES``).
        path: the nodes it passed, latest first, as ``L9H6 < L5H1``.
        ln: how it passed norms (``TREATMENTS``).
        tangent: where MLPs on its way were linearised; empty where there are none.
        observable: the observable's name.
        weight_hash: of the model it was made from.

    Raises:
        UsageError: an unknown stage or treatment, or a vector that is no vector.
    """

    vec: np.ndarray
    site: Site
    stage: Stage
    path: str
    ln: Treatment
    tangent: str
    observable: str
    weight_hash: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "vec", np.asarray(self.vec, dtype=np.float64))
        if self.stage not in STAGES or self.ln not in TREATMENTS:
            raise UsageError(
                f"A feature vector was given stage {self.stage!r} and norms {self.ln!r}.",
                remedy=f"Stages: {', '.join(STAGES)}. Norms: {', '.join(TREATMENTS)}.",
            )
        if self.vec.ndim != 1 or not np.isfinite(self.vec).all():
            raise UsageError(
                f"A feature vector has shape {self.vec.shape}; wanted [d_model], finite."
            )

    @property
    def norm(self) -> float:
        """|y|."""
        return float(np.linalg.norm(self.vec))

    @property
    def unit(self) -> np.ndarray:
        """The direction, length one.

        Raises:
            UsageError: the vector is zero.
        """
        if not self.norm:
            raise UsageError(
                f"The feature vector of {self.path} is zero, so it has no direction.",
                remedy="Take a node that reads this observable.",
            )
        return self.vec / self.norm

    def score(self, run: Reading) -> np.ndarray:
        """x·y at every position, ``[prompt, position]``.

        Raises:
            UsageError: values of another site, stage, width or model.
        """
        own = (self.site.kind, self.site.layer, self.stage)
        given = (run.site.kind, run.site.layer, run.stage)
        if own != given:
            raise UsageError(
                f"This feature vector reads {self.site} ({self.stage}), and values of {run.site} "
                f"({run.stage}) were given.",
                remedy="Read the values at the vector's own site and stage.",
            )
        if run.weight_hash != self.weight_hash:
            raise UsageError(
                "This feature vector was made from another model's weights.",
                remedy="Make it again from this model.",
            )
        if run.values.shape[-1] != len(self.vec):
            raise UsageError(
                f"The vector has {len(self.vec)} coordinates and the values {run.values.shape[-1]}."
            )
        return run.values @ self.vec

    def scaled(self, factor: float) -> FeatureVector:
        """The same vector times a number."""
        return replace(self, vec=self.vec * factor)
