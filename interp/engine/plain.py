"""Plain: the same cells by ordinary forward passes of the back-end, one cell at a time.

It serves three ends: to verify cells of the packed engine, to sweep models whose layers cannot be
driven, and to read the values that mean and resample edits put in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.buckets import Bucket, buckets_of
from interp.engine.metrics import Metric, targets_of
from interp.engine.plain_edges import edge_edits
from interp.engine.plans import Cell, positions_of
from interp.terms import CapabilityError, Edit, HookedModel, PromptPairs, Site


def pick_positions(logits: Tensor, at: np.ndarray) -> Tensor:
    """Logits ``[prompt, at, vocab]`` at the positions ``at [prompt, at]``."""
    rows = torch.arange(len(at), device=logits.device)[:, None]
    return logits[rows, torch.from_numpy(at).to(logits.device)]


def metric_logits(
    model: HookedModel,
    tokens: np.ndarray,
    at: np.ndarray,
    *,
    edits: Sequence[Edit] = (),
    read: Sequence[Site] = (),
) -> tuple[Tensor, Any]:
    """Logits ``[prompt, at, vocab]`` at the metric positions ``at [prompt, at]``, and the reads.

    Only these positions are unembedded.
    """
    wanted, place = np.unique(at, return_inverse=True)
    run = model.run(tokens, edits=edits, read=read, positions=wanted)
    logits = pick_positions(run.logits, place.reshape(at.shape))
    return logits if logits.dtype == torch.float64 else logits.float(), run.reads


def _scored(
    pairs: PromptPairs,
    metric: Metric,
    bucket: Bucket,
    logits: Tensor,
    clean: Tensor | None,
) -> np.ndarray:
    targets = targets_of(pairs, bucket.rows.tolist(), metric, logits.shape[-1], logits.device)
    if targets.columns is not None:
        logits = logits[..., targets.columns]
    if clean is not None:
        targets = dataclasses.replace(targets, clean=clean)
    every = torch.arange(len(bucket), device=logits.device)
    return metric.score(logits, targets, every).double().cpu().numpy()


def plain_metrics(
    model: HookedModel,
    pairs: PromptPairs,
    cells: Sequence[Cell],
    metric: Metric,
    *,
    direction: str,
    at: int | str = "last",
) -> np.ndarray:
    """Metric of each cell in each prompt ``[cell, prompt]``, by whole forward passes.

    Args:
        model: any adapter; only its ``run`` is used.
        pairs: the prompts.
        cells: what to edit; an empty cell gives the base run.
        metric: what to score.
        direction: ``"denoising"`` or ``"noising"``.
        at: where the metric is read.
    """
    out = np.full((len(cells), len(pairs)), np.nan)
    for bucket in buckets_of(pairs, direction, at):
        wanted = {e.site.whole for c in cells for e in c.edits if _lent(e)}
        with torch.no_grad():
            source, reads = metric_logits(
                model, bucket.source, bucket.at_source, read=sorted(wanted, key=str)
            )
            clean = _clean(model, bucket, source, direction) if metric.clean else None
            for c, cell in enumerate(cells):
                logits = patched_logits(model, cell, bucket, pairs, reads)
                if logits is not None:
                    out[c, bucket.rows] = _scored(pairs, metric, bucket, logits, clean)
    return out


def patched_logits(
    model: HookedModel, cell: Cell, bucket: Bucket, pairs: PromptPairs, reads: Any = None
) -> Tensor | None:
    """Logits ``[prompt, at, vocab]`` of a bucket's base run under a cell's edits.

    None where positions do not match.

    ``reads`` are the source run's values by whole site, read now if None. Prompts whose edited
    positions differ run singly.
    """
    if reads is None:
        sites = {e.site.whole for e in cell.edits if _lent(e)}
        reads = model.run(bucket.source, read=sorted(sites, key=str), positions=[-1]).reads
    reader = _reader(cell)
    every = np.arange(len(bucket))
    places = [[positions_of(e.site, bucket, int(i), pairs) for i in every] for e in cell.edits]
    groups = [every] if all(map(_alike, places)) else [every[i : i + 1] for i in every]
    parts = []
    for rows in groups:
        small = Bucket(*(getattr(bucket, f.name)[rows] for f in dataclasses.fields(Bucket)))
        index = torch.from_numpy(rows)
        lent = {s: v[index.to(v.device)] for s, v in reads.items()}
        edits = _resolved(cell, small, pairs, lent)
        if edits is None:
            return None
        if reader is not None:
            writer = [dataclasses.replace(e, reader=None) for e in edits]
            edits = edge_edits(model, small.base, writer, reader, cell.frozen)
        parts.append(metric_logits(model, small.base, small.at, edits=edits)[0])
    return torch.cat(parts)


def _reader(cell: Cell) -> Site | None:
    """The reader of a cell that is one edge; None of a cell without edges."""
    readers = [e.reader for e in cell.edits if e.reader is not None]
    if not readers:
        return None
    if len(cell.edits) > 1 or readers[0].position is not None:
        raise CapabilityError(
            "Several edges together, or a reader at chosen positions, are measured by the packed "
            "engine alone.",
            remedy="Load the model with backend='transformer_lens', or measure single edges.",
        )
    return readers[0]


def plain_source(
    model: HookedModel,
    pairs: PromptPairs,
    metric: Metric,
    *,
    direction: str,
    at: int | str = "last",
) -> np.ndarray:
    """Metric of the source run in each prompt, ``[prompt]``."""
    out = np.full(len(pairs), np.nan)
    for bucket in buckets_of(pairs, direction, at):
        with torch.no_grad():
            logits, _ = metric_logits(model, bucket.source, bucket.at_source)
            clean = _clean(model, bucket, logits, direction) if metric.clean else None
            out[bucket.rows] = _scored(pairs, metric, bucket, logits, clean)
    return out


def _lent(edit: Edit) -> bool:
    return isinstance(edit.with_, str) and edit.with_ == "source"


def _clean(model: HookedModel, bucket: Bucket, source: Tensor, direction: str) -> Tensor:
    if direction == "noising":
        source, _ = metric_logits(model, bucket.base, bucket.at)
    return torch.log_softmax(source, -1)


def _resolved(cell: Cell, bucket: Bucket, pairs: PromptPairs, reads: Any) -> list[Edit] | None:
    """Edits with their values, for a whole bucket at once; None where positions do not match."""
    out = []
    for edit in cell.edits:
        places = [positions_of(edit.site, bucket, i, pairs) for i in range(len(bucket))]
        if _lent(edit):
            match = [bucket.match[i, p] for i, p in enumerate(places)]
            if edit.site.position is None:
                keep = [m >= 0 for m in match]
                places = [p[k] for p, k in zip(places, keep, strict=True)]
                match = [m[k] for m, k in zip(match, keep, strict=True)]
            if any((m < 0).any() for m in match):
                return None
            out += _each(edit, places, match, reads[edit.site.whole])
        elif isinstance(edit.with_, str):
            out += _each(edit, places, places, None)
        else:
            out += _arrays(edit, places, bucket)
    return out


def _alike(places: list[np.ndarray]) -> bool:
    return all(len(p) == len(places[0]) and (p == places[0]).all() for p in places)


def _each(
    edit: Edit, places: list[np.ndarray], match: list[np.ndarray], values: Tensor | None
) -> list[Edit]:
    """The edit at its positions (the same in every prompt here), with the values lent to it."""
    site = edit.site
    where = site.at(tuple(int(p) for p in places[0]))
    if values is None:
        return [dataclasses.replace(edit, site=where)]
    lent = torch.stack([v[m] for v, m in zip(values, match, strict=True)])
    return [dataclasses.replace(edit, site=where, with_=_part(lent, site))]


def _arrays(edit: Edit, places: list[np.ndarray], bucket: Bucket) -> list[Edit]:
    site = edit.site
    array = torch.as_tensor(edit.with_)
    fixed = (site.head, site.neuron, site.feature, site.key)
    dims = len(site.spec.dims) - sum(f is not None for f in fixed)
    if array.ndim < dims + 2:
        array = array.reshape(*[1] * (dims + 2 - array.ndim), *array.shape)
    rows = bucket.rows if array.shape[0] > 1 else np.zeros(len(bucket), dtype=np.int64)
    parts = [
        array[r][p if array.shape[1] > 1 else np.zeros_like(p)]
        for r, p in zip(rows, places, strict=True)
    ]
    where = site.at(tuple(int(p) for p in places[0]))
    return [dataclasses.replace(edit, site=where, with_=torch.stack(parts))]


def _part(value: Tensor, site: Site) -> Tensor:
    """The head or neuron a site selects, of ``[prompt, position, *site dims]``."""
    for index in (site.head, site.neuron):
        if index is not None:
            value = value[:, :, index]
    return value if site.key is None else value[..., site.key]


def read_values(
    model: HookedModel,
    pairs: PromptPairs,
    sites: Sequence[Site],
    *,
    direction: str,
    at: int | str = "last",
) -> dict[Site, list[Tensor]]:
    """Values of whole sites in the source run of each prompt, ``[position, *site dims]`` each."""
    out: dict[Site, list[Tensor]] = {s: [torch.empty(0)] * len(pairs) for s in sites}
    for bucket in buckets_of(pairs, direction, at):
        with torch.no_grad():
            reads = model.run(bucket.source, read=sites).reads
        for site in sites:
            for i, row in enumerate(bucket.rows):
                out[site][row] = reads[site][i]
    return out
