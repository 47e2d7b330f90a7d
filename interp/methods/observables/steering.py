"""Steering: a direction added to the residual stream of every prompt, dose by dose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.engine.pulls import mlp_step, pull_all
from interp.engine.traces import Maps, Trace, trace
from interp.methods.observables.graph import Node
from interp.methods.observables.inputs import Readout, array
from interp.methods.observables.vectors import read_stage
from interp.terms import Context, Edit, FeatureVector, HookedModel, PromptPairs, Site

ROWS = 64
"""Prompts at a time."""


@dataclass(frozen=True, eq=False)
class Steered:
    """What doses did.

    Args:
        change: of the observable ``[prompt, dose]``.
        written: share of prompts after which a plus word is written, less those with a minus
            word ``[dose]``.
        flipped: share of prompts on which the observable is above 0 ``[dose]``.
    """

    change: np.ndarray
    written: np.ndarray
    flipped: np.ndarray


class Steering:
    """A vector's site on a task's clean prompts.

    Args:
        model: any back-end.
        maps: its maps.
        task: the prompts.
        readout: the observable.
        vector: whose site is edited.
        where: ``last`` or ``all`` positions.
        context: told of progress.
        length: unit of a dose; the median length of the residual on these prompts if None.
    """

    def __init__(
        self,
        model: HookedModel,
        maps: Maps,
        task: PromptPairs,
        readout: Readout,
        vector: FeatureVector,
        where: str,
        context: Context,
        length: float | None = None,
    ) -> None:
        self.model, self.maps, self.task, self.readout = model, maps, task, readout
        self.vector, self.where, self.context = vector, where, context
        self.site = Site(vector.site.kind, layer=vector.site.layer)
        self.batches = self._batches()
        self.runs = [trace(maps, tokens) for _, tokens in self.batches]
        self.length = self._median() if length is None else length
        self.examples: list[str] = []

    def _batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for rows in self.task.buckets().values():
            for i in range(0, len(rows), ROWS):
                some = np.array(rows[i : i + ROWS])
                found.append((some, np.array([self.task.clean[r] for r in some])))
        return found

    def _median(self) -> float:
        sizes = [
            np.linalg.norm(
                read_stage(self.maps, run, self.vector.site, "residual", "").values, axis=-1
            ).ravel()
            for run in self.runs
        ]
        return float(np.median(np.concatenate(sizes)))

    def _edits(
        self, direction: np.ndarray, alpha: float, length: int, prompt: int, patterns: list[Edit]
    ) -> list[Edit]:
        """The vector added where it is asked for, from the prompt's last token on in any case."""
        site = self.site
        if self.where == "last":
            site = site.at(tuple(range(prompt - 1, length)))
        return [Edit(site, alpha * self.length * direction, "add"), *patterns]

    def _held(self, run: Trace) -> list[Edit]:
        """Every later layer's pattern held at the run's."""
        first = self.site.layer or 0
        first += int(self.site.kind == "resid_mid")
        return [
            Edit(Site("pattern", layer=n), array(run.layers[n].pattern.transpose(1, 2)))
            for n in range(first, len(run.layers))
        ]

    def _observed(self, tokens: np.ndarray, rows: np.ndarray, edits: list[Edit]) -> np.ndarray:
        """o behind edits, with the logits' soft cap undone ``[R]``."""
        columns = torch.tensor(self.readout.observable.tokens)
        with torch.no_grad():
            logits = self.model.run(tokens, edits=edits, positions=[-1], vocab=columns).logits[
                :, -1
            ]
        logits = logits.double()
        if self.readout.cap is not None:
            logits = torch.atanh((logits / self.readout.cap).clamp(-1 + 1e-12, 1 - 1e-12))
            logits = logits * self.readout.cap
        return array((logits.cpu() * self.readout.weights(rows).double().cpu()).sum(-1))

    def doses(
        self,
        direction: np.ndarray,
        doses: tuple[float, ...],
        tokens: int,
        *,
        fixed: bool = False,
        show: bool = False,
    ) -> Steered:
        """Change of o, what is written, and how often o is above 0."""
        change = np.zeros((len(self.task), len(doses)))
        above, said = np.zeros(len(doses)), np.zeros(len(doses))
        for (rows, prompts), run in zip(self.batches, self.runs, strict=True):
            held = self._held(run) if fixed else []
            before = self._observed(prompts, rows, held)
            for j, alpha in enumerate(doses):
                length = prompts.shape[1]
                edits = self._edits(direction, alpha, length, length, held) if alpha else held
                after = self._observed(prompts, rows, edits)
                change[rows, j] = after - before
                above[j] += (after > 0).sum()
                if tokens:
                    said[j] += self._written(prompts, rows, direction, alpha, tokens, show)
                if self.context.cancelled():
                    self.context.advance(0, 1)
        n = len(self.task)
        return Steered(change, said / n, above / n)

    def _written(
        self,
        prompts: np.ndarray,
        rows: np.ndarray,
        direction: np.ndarray,
        alpha: float,
        count: int,
        show: bool,
    ) -> float:
        """Prompts greedily continued by a plus word first, less those by a minus word."""
        tokens, start = prompts, prompts.shape[1]
        limit = self.model.shape.n_ctx
        for _ in range(count if limit is None else min(count, limit - start)):
            edits = self._edits(direction, alpha, tokens.shape[1], start, []) if alpha else []
            with torch.no_grad():
                logits = self.model.run(tokens, edits=edits, positions=[-1]).logits[:, -1]
            tokens = np.concatenate([tokens, logits.argmax(-1).cpu().numpy()[:, None]], 1)
        written = tokens[:, start:]
        if show:
            self._remember(written[0], alpha)
        weight = self.readout.observable.rows(rows)
        place = {t: i for i, t in enumerate(self.readout.observable.tokens)}
        total = 0.0
        for r, row in enumerate(written):
            first = next((weight[r, place[t]] for t in row.tolist() if t in place), 0.0)
            total += float(np.sign(first))
        return total

    def _remember(self, ids: np.ndarray, alpha: float) -> None:
        """Keep the first prompt's continuation, one a dose."""
        if len(self.examples) < 41 and self.model.tokenizer is not None:
            self.examples.append(f"{alpha:g}: {self.model.tokenizer.decode(ids.tolist())}")

    def slopes(self, direction: np.ndarray) -> np.ndarray:
        """What all paths predict a unit dose gives o, patterns fixed ``[prompt]``."""
        out = np.zeros(len(self.task))
        layer = self.site.layer or 0
        for (rows, _), run in zip(self.batches, self.runs, strict=True):
            found = pull_all(self.maps, run, self.readout.vector(rows), "exact")
            y = found.at[layer]
            if self.site.kind == "resid_mid":
                y = found.at[layer + 1]
                y = y + mlp_step(self.maps.layer(layer), run.layers[layer], y, "exact")[0]
            y = y[:, -1] if self.where == "last" else y.sum(1)
            out[rows] = array(y) @ direction * self.length
        return out

    def divergence(self, direction: np.ndarray, doses: tuple[float, ...]) -> np.ndarray:
        """Mean KL of the next token, plain from steered ``[dose]``, in nats."""
        out = np.zeros(len(doses))
        for _, prompts in self.batches:
            length = prompts.shape[1]
            with torch.no_grad():
                plain = self.model.run(prompts, positions=[-1]).logits[:, -1].double()
                plain = plain.log_softmax(-1)
                for j, alpha in enumerate(doses):
                    edits = self._edits(direction, alpha, length, length, []) if alpha else []
                    moved = self.model.run(prompts, edits=edits, positions=[-1]).logits[:, -1]
                    moved = moved.double().log_softmax(-1)
                    out[j] += float((plain.exp() * (plain - moved)).sum())
        return out / len(self.task)


def most_answered(
    maps: Maps,
    tokens: np.ndarray,
    rows: Sequence[int],
    readout: Readout,
    vectors: np.ndarray,
    where: str,
) -> Node:
    """The head whose direction all paths together predict to move o furthest for its dose.

    Args:
        maps: the model.
        tokens: prompts of one length ``[prompt, position]``.
        rows: their numbers in the task.
        readout: the observable.
        vectors: one a head ``[layer, head, D]``.
        where: ``last`` or ``all`` positions.
    """
    run = trace(maps, tokens)
    found = pull_all(maps, run, readout.vector(rows), "exact")
    best, most = Node(0, 0), -np.inf
    for layer, heads in enumerate(vectors):
        y = found.at[layer]
        y = array((y[:, -1] if where == "last" else y.sum(1)).mean(0))
        length = np.linalg.norm(heads, axis=-1)
        dose = float(np.median(np.linalg.norm(array(run.layers[layer].resid), axis=-1)))
        slope = np.where(length > 0, heads @ y / np.maximum(length, 1e-300), -np.inf) * dose
        if slope.max() > most:
            best, most = Node(layer, int(slope.argmax())), float(slope.max())
    return best


def spread_of(each: np.ndarray, n_boot: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of means over prompts; each ``[line, prompt, dose]``."""
    n = each.shape[1]
    if n < 2 or not n_boot:
        return each.mean(1) * np.nan, each.mean(1) * np.nan
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_boot) / n
    means = np.einsum("bn,lnd->bld", drawn, each)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high
