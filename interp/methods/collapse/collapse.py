"""Collapse: how far features and classifier have collapsed, by layer and over training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from interp.engine.features import LinearHead
from interp.methods.collapse.pairs import Target
from interp.methods.collapse.quantities import QUANTITIES, Options
from interp.methods.collapse.snapshot import Plan, Snapshot, dataset
from interp.methods.collapse.sources import source_of
from interp.terms import (
    Check,
    Context,
    HookedModel,
    LabelledInputs,
    Method,
    ModelRef,
    PromptPairs,
    ResultRef,
    Texts,
    UsageError,
    unknown_name,
)


class Collapse(Method):
    """Neural collapse: metrics NC1 to NC5 of features, class means and classifier.

    With C the centred class means, Σ_W the covariance within classes and W, b the linear head:
    nc1 = tr(Σ_W Σ_B†)/K; nc2 holds Gram matrices of C and W against the simplex frame (``_of``:
    uncentred, against the orthogonal frame); nc3 holds W Cᵀ against the frame; nc4 is the share
    of samples whose nearest class mean agrees with the head. Features come in batches and are
    never held as classes × classes × width. Classes without samples are left out of every mean.

    Where class means cannot form a frame (more classes than dimensions, K > D; ReLU features under
    cross-entropy with unequal classes) another geometry is optimal: a large nc2 there is no lack
    of training. Under deep ReLU features low rank, not full collapse of all layers, is optimal.
    """

    title: ClassVar[str] = "Neural collapse"
    question: ClassVar[str] = "Have features and classifier collapsed to a symmetric frame?"
    citations: ClassVar[tuple[str, ...]] = (
        "papyan2020prevalence", "zhu2021geometric", "han2022neural", "tirer2023perturbation",
        "galanti2022role", "dang2023neural", "wu2024linguistic", "ammar2024neco",
        "sukenik2024neural", "jiang2024generalized", "dang2024neural",
    )  # fmt: skip

    sites: tuple[str, ...] | None = Field(default=None, max_length=256)
    """Where features are read: paths of modules (body.3, head:input) or kinds of sites
    (resid_post), by depth; empty for what every linear map reads."""
    pool: Literal["flatten", "mean", "last", "cls"] = "flatten"
    """How an activation with positions or pixels becomes one row."""
    quantities: tuple[str, ...] | None = Field(default=None, max_length=64)
    """Which metrics; all if empty."""
    center: Literal["class", "sample"] = "class"
    """The centre of the class means: their own mean, or that of all samples."""
    target: Literal["auto", "etf", "of"] = "auto"
    """The frame of the Gram matrices: simplex (etf), orthogonal (of), or by whether the head has
    a bias."""
    kernel: Literal["log", "distance", "riesz"] = "log"
    """Kernel of the distance of two class means in GNC2."""
    riesz_s: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Power of the Riesz kernel."""
    one_pass: bool = False
    """Count in a single pass: cheaper to feed, no nearest means, a small NC1 is not resolved."""
    max_pairs: Annotated[int, Field(ge=1, le=10**9)] = 10_000_000
    """Above so many pairs of classes a random part is looked at."""
    head: str | None = None
    """Path of the final linear map; found by itself if empty."""
    ood: ResultRef | None = None
    """A Collapse result on other inputs, whose mean NC5 compares with."""
    checkpoints: tuple[ModelRef, ...] = Field(default=(), max_length=2000)
    """Models of a training run, in order; the metrics then run along epochs."""
    geometry_at: float | None = None
    """Epoch whose class means, lengths and Gram matrices are drawn; the last one if empty."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the pairs that are drawn."""

    def measure(
        self,
        model: HookedModel,
        task: LabelledInputs | Texts | PromptPairs,
        context: Context,
    ) -> xr.Dataset:
        """Quantities, along ``epoch`` where there are checkpoints.

        Of any layer ``[layer]``, of the head a number, of a deep linear head ``[boundary]``; the
        geometry of the head's features by ``label``.
        """
        refs = list(self.checkpoints)
        epochs = [epoch_of(r, n) for n, r in enumerate(refs)] if refs else None
        shown = self.shown(epochs)
        ood = self.other_mean(context)
        models: list[ModelRef | None] = [*refs] or [None]
        snapshots: list[Snapshot] = []
        source = None
        for number, ref in enumerate(models):
            opened = model if ref is None else context.model(str(ref))
            source = source_of(self, opened, task, context.memory // 4)
            plan = self.plan(source.head, number == shown, not isinstance(task, LabelledInputs))
            snapshots.append(source.take(plan, ood))
            context.advance(number + 1, len(models))
        assert source is not None
        tell(snapshots, context, source.head, source.rows)
        return dataset(
            snapshots,
            epochs,
            self.attrs(source.head),
            getattr(task, "label_text", None),
            shown,
            None if isinstance(task, LabelledInputs) else _texts(model),
        )

    def shown(self, epochs: Sequence[float] | None) -> int:
        """Which of these epochs is drawn.

        Raises:
            UsageError: ``geometry_at`` is none of them.
        """
        if self.geometry_at is None or not epochs:
            return len(epochs or (0,)) - 1
        if self.geometry_at not in epochs:
            raise UsageError(
                f"geometry_at was given as {self.geometry_at:g}; wanted one of the epochs "
                f"{', '.join(f'{e:g}' for e in epochs)}.",
                remedy="Leave it empty for the last one.",
            )
        return list(epochs).index(self.geometry_at)

    def names(self) -> tuple[str, ...]:
        """The quantities asked for.

        Raises:
            UsageError: one that does not exist.
        """
        for name in self.quantities or ():
            if name not in QUANTITIES:
                raise unknown_name("quantity", name, QUANTITIES)
        wanted = self.quantities or tuple(QUANTITIES)
        return tuple(n for n in wanted if self.ood or self.quantities or n != "nc5")

    def plan(self, head: LinearHead, geometry: bool = True, frequent: bool = False) -> Plan:
        """How a snapshot is taken of a network with this head."""
        names = self.names()
        if not head.weights and self.quantities is None:
            names = tuple(n for n in names if QUANTITIES[n].needs != "head")
        return Plan(
            names,
            Options(self.kernel, self.riesz_s, self.max_pairs, self.seed),
            self.center,
            self.frame(head),
            self.one_pass,
            geometry,
            frequent,
        )

    def frame(self, head: LinearHead) -> Target:
        """The target: as asked, or a simplex where the head has a bias or is not there."""
        if self.target != "auto":
            return self.target
        return "of" if head.weights and head.bias is None else "etf"

    def attrs(self, head: LinearHead) -> dict[str, Any]:
        """Facts of the dataset."""
        said = head.reason or " ".join(head.names)
        return {
            "center": self.center, "target": self.frame(head), "head": said,
            "kernel": self.kernel if self.kernel != "riesz" else f"riesz, s = {self.riesz_s:g}",
            "caution": CAUTION,
        }  # fmt: skip

    def other_mean(self, context: Context) -> Tensor | None:
        """Mean of other inputs' features.

        Raises:
            UsageError: the result named has none.
        """
        if self.ood is None:
            return None
        data = context.result(str(self.ood)).data
        if "global_mean" not in data:
            raise UsageError(
                f"The result {self.ood} holds no mean of features.",
                remedy="Give a result of Collapse on the other inputs.",
            )
        return torch.as_tensor(np.asarray(data["global_mean"].values, float))


def _texts(model: HookedModel) -> Callable[[list[int]], list[str]]:
    """Tokens in words, or as numbers where nothing knows their words."""
    reader = model.tokenizer
    return (lambda ids: list(map(str, ids))) if reader is None else reader.texts


CAUTION = (
    "More classes than dimensions (K > D), ReLU features with unequal classes, or deep ReLU "
    "layers have other optimal geometries than this frame."
)


def epoch_of(ref: str, number: int) -> float:
    """The epoch in a checkpoint's name (its last number), or its place in the list."""
    found = re.findall(r"\d+", str(ref).rstrip("/").rpartition("@")[2].rpartition("/")[2])
    return float(found[-1]) if found else float(number)


def tell(snapshots: Sequence[Snapshot], context: Context, head: LinearHead, rows: int) -> None:
    """The lines of the trust panel."""
    facts = snapshots[-1].facts
    context.check(
        Check(
            "rows_counted",
            "rows counted less rows given",
            abs(facts["rows"] - rows),
            0.0,
            note="Σ n_k = N: nothing was lost or counted twice.",
        )
    )
    context.check(
        Check(
            "rank",
            "rank of the class means at the last place",
            facts["rank"],
            note=f"{facts['classes']:.0f} classes have samples; a frame needs rank "
            f"{facts['classes'] - 1:.0f}.",
        )
    )
    context.check(
        Check(
            "fewest_samples",
            "fewest samples of a class",
            facts["fewest"],
            2.0,
            at_least=True,
            note="A class with one sample has no spread: NC1 and CDNV are then too small.",
        )
    )
    if facts["resolution"]:
        least = min(float(s.facts["smallest_nc1"]) for s in snapshots)
        context.check(
            Check(
                "resolution",
                "smallest NC1 of one pass",
                least,
                facts["resolution"],
                at_least=True,
                note="Below it one pass shows rounding; use two passes (one_pass=False).",
            )
        )
    if not head.weights:
        context.note("no_head", f"NC3, NC4 and the classifier's NC2 are left out: {head.reason}.")
