"""Sweeps: many cells measured exactly, chunk by chunk, with progress, cancel and resume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine import memory
from interp.engine.apply import Final, PackedPass
from interp.engine.buckets import buckets_of
from interp.engine.costs import (
    Cost,
    bytes_of,
    naive_flops,
    row_flops,
    rows_cost,
)
from interp.engine.edges import check_edges
from interp.engine.metrics import Metric, Targets, check_metric, metric_named, targets_of
from interp.engine.noising import noised_buckets
from interp.engine.packing import Chunk, chunk_of
from interp.engine.plans import Cell, Plan, Row, make_plan
from interp.engine.undriven import Sweep, plain_sweep, undriven
from interp.terms import (
    Blocks,
    CapabilityError,
    Context,
    HookedModel,
    PromptPairs,
    TooLargeError,
)

LOGIT_BYTES = 64 * 2**20
"""Logits of the whole vocabulary stand for at most this many bytes at a time."""


@dataclass(frozen=True)
class Estimate:
    """What a sweep would take.

    Args:
        cells, rows, prompts: how many.
        flops: planned; naive_flops: one full forward a row.
        bytes: peak of a chunk.
        seconds: at the measured matmul rate.
    """

    cells: int
    rows: int
    prompts: int
    flops: float
    naive_flops: float
    bytes: float
    seconds: float


class _Work:
    """A sweep on its way: plans, targets and results."""

    def __init__(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        cells: Sequence[Cell],
        metric: Metric,
        direction: str,
        at: int | str,
        nulls: int,
        noise: np.ndarray | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.noise = noise
        self.blocks: Blocks = model.blocks
        self.shape = model.shape
        for cell in cells:
            check_edges(cell.edits, self.shape)
        self.pairs, self.metric, self.direction = pairs, metric, direction
        self.arrays: list[Any] = []
        if noise is None:
            buckets = buckets_of(pairs, direction, at)
        else:
            buckets = noised_buckets(pairs, at, noise)
        self.plans = [
            make_plan(
                cells, bucket, pairs, self.shape.n_layers, self.arrays, nulls=nulls, tick=tick
            )
            for bucket in buckets
        ]
        shape = (len(cells), len(pairs))
        self.sweep = Sweep(
            np.full(shape, np.nan),
            np.full(len(pairs), np.nan),
            np.full(len(pairs), np.nan),
            np.zeros(shape, bool),
            np.zeros(shape, bool),
            np.zeros(shape),
            np.zeros(shape, bool),
        )
        for plan in self.plans:
            self.sweep.inert[:, plan.bucket.rows] = plan.inert
            self.sweep.undefined[:, plan.bucket.rows] = plan.undefined
            self.sweep.telling[:, plan.bucket.rows] = plan.telling
        self.gated = any(b.gated for b in self.blocks.layers)
        self.flops = [
            [row_flops(row, plan, self.shape, self.gated) for row in plan.rows]
            for plan in self.plans
        ]

    @property
    def itemsize(self) -> int:
        return torch.empty(0, dtype=self.blocks.dtype).element_size()

    @property
    def columns(self) -> int:
        return self.shape.vocab if self.metric.full else 8

    # -- chunks ---------------------------------------------------------------------------------

    def chunks(self, limit: float, seconds: float) -> Iterator[tuple[int, list[int]]]:
        """(plan, row numbers) of each chunk: within the memory and about the time given.

        Prompts stay whole where they can, since each chunk runs its base and source runs itself;
        a prompt that takes longer is cut into parts of about equal cost.
        """
        rate = 0.6 * memory.matmul_rate(self.blocks.device, self.blocks.dtype, self.shape.d_model)
        for p, plan in enumerate(self.plans):
            by_prompt: list[list[int]] = [[] for _ in range(len(plan.bucket))]
            for r, row in enumerate(plan.rows):
                by_prompt[row.prompt].append(r)
            waiting: list[int] = []
            held = Cost(0, 0, 0)
            for own in by_prompt:
                own.sort(key=lambda r: plan.rows[r].start)
                cost = self.cost(p, own)
                if waiting and not self._fits(p, held + cost, limit, rate * seconds):
                    yield p, waiting
                    waiting, held = [], Cost(0, 0, 0)
                if waiting or self._fits(p, cost, limit, rate * seconds):
                    waiting += own
                    held += cost
                    continue
                for part in self._parts(p, own, limit, rate * seconds):
                    yield p, part
            if waiting:
                yield p, waiting

    def peak(self, p: int, cost: Cost) -> float:
        """Bytes that this much of a plan takes."""
        length = self.plans[p].bucket.length
        return bytes_of(cost, length, self.shape, self.itemsize, self.gated)

    def _fits(self, p: int, cost: Cost, limit: float, budget: float) -> bool:
        return self.peak(p, cost) <= limit and cost.flops <= 1.25 * budget

    def _parts(self, p: int, rows: list[int], limit: float, budget: float) -> Iterator[list[int]]:
        """One prompt's rows in parts; never so small that the runs outweigh them."""
        cost = self.cost(p, rows)
        runs = 2 * self.plans[p].bucket.length
        by_time = min(cost.flops / budget, cost.tokens / (24 * runs))
        fixed = self.peak(p, Cost(0, runs, 0))
        by_memory = (self.peak(p, cost) - fixed) / max(limit - fixed, 1.0)
        count = min(len(rows), max(1, math.ceil(max(by_time, by_memory))))
        weight = np.cumsum([self.flops[p][r] + 1.0 for r in rows])
        share = np.minimum((weight - weight[0]) * count / weight[-1], count - 1).astype(int)
        for part in range(count):
            chosen = [r for r, s in zip(rows, share, strict=True) if s == part]
            if chosen:
                yield chosen

    def cost(self, p: int, rows: Sequence[int]) -> Cost:
        """Cost of rows of a plan with their base and source runs."""
        return rows_cost(rows, self.flops[p], self.plans[p], self.shape, self.gated, self.columns)

    # -- running --------------------------------------------------------------------------------

    def measure(
        self, plan: Plan, rows: list[Row], on_layer: Callable[[float], None] = lambda _: None
    ) -> dict[str, np.ndarray]:
        """One chunk: metrics of its rows, base and source runs; ``on_layer`` hears its share."""
        chunk = chunk_of(rows, plan.bucket, self.shape.n_layers)
        with torch.no_grad():
            final = PackedPass(self.blocks, chunk, self.arrays, on_layer, self.noise).run()
            return self._scores(chunk, final)

    def _scores(self, chunk: Chunk, final: Final) -> dict[str, np.ndarray]:
        prompts = chunk.bucket.rows.tolist()
        targets = targets_of(self.pairs, prompts, self.metric, self.shape.vocab, self.blocks.device)
        if self.metric.clean:
            clean = final.source if self.direction == "denoising" else final.base
            targets = dataclasses.replace(
                targets, clean=torch.log_softmax(self._logits(final, clean, targets), -1)
            )
        every = np.arange(len(prompts))
        return {
            "patched": self._score(final, final.row, chunk.prompt[: chunk.n_own], targets),
            "base": self._score(final, final.base, every, targets),
            "source": self._score(final, final.source, every, targets),
            "moved": final.moved,
            "prompt": chunk.prompt[: chunk.n_own],
            "prompts": chunk.bucket.rows,
        }

    def _logits(self, final: Final, index: np.ndarray, targets: Targets) -> Tensor:
        flat = torch.from_numpy(index.ravel()).to(final.resid_MD.device)
        logits = self.blocks.unembed(final.resid_MD[flat], targets.columns)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.view(*index.shape, -1)

    def _score(
        self, final: Final, index: np.ndarray, prompt: np.ndarray, targets: Targets
    ) -> np.ndarray:
        """The metric of runs given by their metric tokens ``[run, at]``, in slices."""
        if not len(index):
            return np.zeros(0)
        width = self.shape.vocab if targets.columns is None else len(targets.columns)
        step = max(1, LOGIT_BYTES // (max(1, width) * index.shape[1] * 8))
        out = []
        for i in range(0, len(index), step):
            logits = self._logits(final, index[i : i + step], targets)
            which = torch.from_numpy(prompt[i : i + step]).to(logits.device)
            out.append(self.metric.score(logits, targets, which).double().cpu())
        return torch.cat(out).numpy()

    def keep(self, plan: Plan, rows: list[int], found: dict[str, np.ndarray]) -> None:
        """Write a chunk's numbers into the result."""
        s = self.sweep
        s.base[found["prompts"]] = found["base"]
        s.source[found["prompts"]] = found["source"]
        prompt = found["prompts"][found["prompt"]]
        cell = np.array([plan.rows[r].cell for r in rows])
        null = cell < 0
        if null.any():
            drift = np.abs(found["patched"][null] - found["base"][found["prompt"][null]])
            s.noise = max(s.noise, float(np.nanmax(drift)))
        s.patched[cell[~null], prompt[~null]] = found["patched"][~null]
        s.moved[cell[~null], prompt[~null]] = found["moved"][~null]
        s.chunks.append(len(rows))
        s.patched = np.where(s.inert, s.base, s.patched)


def sweep(
    model: HookedModel,
    pairs: PromptPairs,
    cells: Sequence[Cell],
    context: Context,
    *,
    metric: str = "logit_diff",
    direction: str = "denoising",
    at: int | str = "last",
    nulls: int = 1,
    seconds: float = memory.SECONDS,
    on_chunk: Any = None,
    label: str = "sweep",
    noise: np.ndarray | None = None,
) -> Sweep:
    """Measure every cell in every prompt exactly.

    Args:
        model: anything whose ``blocks`` can be driven.
        pairs: the prompts.
        cells: what to edit; values are ``"source"``, ``"zero"`` or arrays.
        context: progress, cancel, chunks kept for a resumed run, memory.
        metric: a key of ``METRICS``.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
        nulls: self-patched rows a prompt (the noise floor).
        seconds: planned time of a chunk.
        on_chunk: called with the unfinished ``Sweep`` after each chunk.
        label: names the chunks that are kept, where a method sweeps twice.
        noise: makes the base runs the clean prompts with this added to their embeddings,
            ``[prompt, position, d_model]``; the source runs are the clean prompts as they are.

    Raises:
        CapabilityError: noise on a model whose layers cannot be driven.
        TooLargeError: a single row does not fit in the memory given.
        CancelledError: from the context.
    """
    chosen = metric_named(metric)
    check_metric(chosen, pairs)
    why = undriven(model, cells)
    if why and noise is not None:
        raise CapabilityError(why, remedy="Load the model with backend='transformer_lens'.")
    if why:
        context.note("slow path", f"{why} Each cell is one whole forward pass.")
        return plain_sweep(model, pairs, cells, chosen, context, direction, at, on_chunk)
    work = _Work(
        model, pairs, cells, chosen, direction, at, nulls, noise, lambda: context.advance(0, 1)
    )
    partition = _partition(work, context, seconds, label)
    plans, total = work.plans, 0.0
    costs = []
    for p, rows in partition:
        costs.append(work.cost(p, rows).flops)
        total += costs[-1]
    work.sweep.flops = total
    work.sweep.naive = sum(naive_flops(plan, work.shape, work.gated) for plan in plans)
    done = 0.0
    context.advance(0, total)
    for i, ((p, rows), flops) in enumerate(zip(partition, costs, strict=True)):
        found = context.load_chunk(f"{label}-{i}")
        if found is None:
            at_start, share = done, flops

            def on_layer(part: float, at_start: float = at_start, share: float = share) -> None:
                context.advance(at_start + part * share, total)

            found = _measured(work, plans[p], rows, context, on_layer)
            context.save_chunk(f"{label}-{i}", found)
        work.keep(plans[p], rows, found)
        done += flops
        context.advance(done, total)
        if on_chunk is not None:
            on_chunk(work.sweep)
    context.note(f"{label}_partition" if label != "sweep" else "partition", work.sweep.chunks)
    context.note("flops", total)
    return work.sweep


def _partition(
    work: _Work, context: Context, seconds: float, label: str
) -> list[tuple[int, list[int]]]:
    """Chunks as an earlier try recorded them, else planned now and recorded."""
    kept = context.load_chunk(f"{label}-partition")
    if kept is not None:
        stops = np.cumsum(kept["size"])
        return [
            (int(p), rows.tolist())
            for p, rows in zip(kept["plan"], np.split(kept["row"], stops[:-1]), strict=True)
        ]
    chunks = list(work.chunks(context.memory, seconds))
    if chunks:
        context.save_chunk(
            f"{label}-partition",
            {
                "plan": np.array([p for p, _ in chunks]),
                "size": np.array([len(r) for _, r in chunks]),
                "row": np.concatenate([np.array(r) for _, r in chunks]),
            },
        )
    return chunks


def _measured(
    work: _Work, plan: Plan, rows: list[int], context: Context, on_layer: Callable[[float], None]
) -> dict[str, np.ndarray]:
    """One chunk; in halves where memory runs out."""
    try:
        return work.measure(plan, [plan.rows[r] for r in rows], on_layer)
    except (RuntimeError, MemoryError) as error:
        if not memory.out_of_memory(error):
            raise
        if len(rows) == 1:
            raise TooLargeError(
                "A single row of this sweep does not fit in memory.",
                remedy="Use shorter prompts, a smaller dtype, or a larger device.",
            ) from error
    memory.give_back(work.blocks.device)
    half = len(rows) // 2
    context.note("out_of_memory", f"chunk halved to {half} rows, continuing")
    return _joined(
        [
            _measured(work, plan, rows[:half], context, on_layer),
            _measured(work, plan, rows[half:], context, on_layer),
        ]
    )


def _joined(halves: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Two halves of a chunk as if it had run whole."""
    first, second = halves
    offset = len(first["prompts"])
    return {
        **{
            k: np.concatenate([first[k], second[k]])
            for k in ("patched", "base", "source", "moved", "prompts")
        },
        "prompt": np.concatenate([first["prompt"], second["prompt"] + offset]),
    }


def estimate(
    model: HookedModel,
    pairs: PromptPairs,
    cells: Sequence[Cell],
    *,
    metric: str = "logit_diff",
    direction: str = "denoising",
    at: int | str = "last",
    limit: float | None = None,
) -> Estimate:
    """Cells, FLOPs, memory and time of a sweep before it runs."""
    work = _Work(model, pairs, cells, metric_named(metric), direction, at, nulls=1)
    rate = 0.6 * memory.matmul_rate(work.blocks.device, work.blocks.dtype, work.shape.d_model)
    limit = memory.default_limit(work.blocks.device) if limit is None else limit
    flops = peak = rows = 0.0
    for p, numbers in work.chunks(limit, memory.SECONDS):
        cost = work.cost(p, numbers)
        flops += cost.flops
        rows += len(numbers)
        peak = max(peak, work.peak(p, cost))
    naive = sum(naive_flops(plan, work.shape, work.gated) for plan in work.plans)
    return Estimate(len(cells), int(rows), len(pairs), flops, naive, peak, flops / rate)
