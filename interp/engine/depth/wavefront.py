"""Wavefront: every skip of every layer in one pass with a growing batch, exactly.

Row 0 is the clean run, row 1 a copy (the null row: what it differs by is noise), then the edited
rows, each joining behind the layer it skips. Layers are called once for all rows, so a row costs
the layers behind its skip alone: L + n·L(L-1)/2 block calls for n variants, where a loop takes
(n·L + 1)·L. Effects are read where attention and MLP add, in float32 or better.

Legend: B prompts of one length, T positions, R rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth.walking import (
    LOGIT_BYTES,
    check_finite,
    embedded,
    layer_step,
    mlp_of,
    wide,
)

PARTS = ("layer", "attention", "MLP")
TILE = 8
"""In 16-bit dtypes a ragged last row of a product may round otherwise: rows come in eights."""

VANISHING = 1e-6
"""A contribution below this share of the residual's length is no denominator."""


@dataclass(frozen=True)
class Skip:
    """One layer skipped at positions ``start`` … ``stop - 1``.

    Args:
        part: ``layer``, ``attention`` or ``MLP``.
        layer: which.
        start: first position skipped; stop: one past the last.
        stop: see ``start``.
        seen: first position at which effects are measured.
    """

    part: str
    layer: int
    start: int
    stop: int
    seen: int


@dataclass(frozen=True, eq=False)
class Fill:
    """What stands in for what a skipped part adds.

    Args:
        kind: ``zero``, ``mean`` or ``resample``.
        attn: means of what attention adds, ``[layer, D]``; mlp: of what the MLP adds.
        mlp: see ``attn``.
        donor: for each prompt of the batch the tokens of another, ``[B, T]``.
    """

    kind: str = "zero"
    attn: Tensor | None = None
    mlp: Tensor | None = None
    donor: np.ndarray | None = None

    def at(self, layer: int, attn: Tensor, mlp: Tensor) -> tuple[Tensor, Tensor]:
        """Stand-ins of the shape of ``attn`` and ``mlp``; those are the donor's own additions."""
        if self.kind == "zero":
            return torch.zeros_like(attn), torch.zeros_like(mlp)
        if self.kind == "mean":
            assert self.attn is not None and self.mlp is not None
            return self.attn[layer].to(attn).expand_as(attn), self.mlp[layer].to(mlp).expand_as(mlp)
        return attn, mlp


@dataclass(frozen=True, eq=False)
class Skipped:
    """What skips did.

    Args:
        effect: ‖c_l - c̄_l‖/‖c_l‖ ``[skip, layer, B, T]``; 0 before the skip, NaN where it is not
            measured or c_l vanishes.
        output: ‖P - P̄‖₂ ``[skip, B, T]``, NaN where it is not measured.
        null_effect: the largest of the null row; null_output: likewise.
        null_output: see ``null_effect``.
        vanishing: (prompt, position, layer) cells whose c_l vanishes.
    """

    effect: np.ndarray
    output: np.ndarray
    null_effect: float
    null_output: float
    vanishing: int


def changed(clean: Tensor, others: Iterable[Tensor], resid: Tensor, clamp: bool) -> Tensor:
    """‖c - c̄‖/‖c‖ ``[R, B, T]`` of contributions c ``[B, T, D]`` and c̄, one of them a row."""
    c = wide(clean)
    size = c.norm(dim=-1)
    floor = VANISHING * wide(resid).norm(dim=-1)
    found = [(wide(o) - c).norm(dim=-1) for o in others]
    away = torch.stack(found) if found else c.new_empty(0, *c.shape[:-1])
    if clamp:
        return away / size.clamp_min(VANISHING)
    return away / torch.where(size > floor, size, torch.full_like(size, torch.nan))


class _Growing:
    """Rows ``[R, B, T, D]`` that join as the pass goes up."""

    def __init__(self, first: Tensor, rows: int) -> None:
        self.tile = TILE if first.element_size() < 4 else 1
        most = -(-(first.shape[0] + rows) // self.tile) * self.tile
        self.held = first.new_empty(most, *first.shape[1:])
        self.n = len(first)
        self.held[: self.n] = first

    @property
    def padded(self) -> Tensor:
        """The rows, filled up with copies of row 0 to whole tiles."""
        width = -(-self.n // self.tile) * self.tile
        self.held[self.n : width] = self.held[0]
        return self.held[:width]

    def join(self, rows: Sequence[Tensor]) -> None:
        """Add rows ``[B, T, D]``."""
        for row in rows:
            self.held[self.n] = row
            self.n += 1


def skip_wavefront(
    blocks: Any,
    tokens: np.ndarray,
    skips: Sequence[Skip],
    fill: Fill,
    *,
    clamp: bool = False,
    on_layer: Callable[[float], None] = lambda share: None,
) -> Skipped:
    """One pass for all of these skips; the caller chooses so many that they fit.

    Args:
        blocks: the model.
        tokens: prompts ``[B, T]`` of one length.
        skips: what to skip, in any order.
        fill: what stands in.
        clamp: divide by max(‖c‖, 1e-6) instead of leaving a vanishing c undefined.
        on_layer: told the share that is done.
    """
    with torch.no_grad():
        order = sorted(range(len(skips)), key=lambda i: skips[i].layer)
        work = _Pass(blocks, tokens, [skips[i] for i in order], fill, clamp)
        found = work.run(on_layer)
    back = np.argsort(order, kind="stable")
    return Skipped(found.effect[back], found.output[back], *(
        getattr(found, k) for k in ("null_effect", "null_output", "vanishing")
    ))  # fmt: skip


class _Pass:
    """One growing batch on its way up; ``skips`` are sorted by layer."""

    def __init__(
        self, blocks: Any, tokens: np.ndarray, skips: list[Skip], fill: Fill, clamp: bool
    ) -> None:
        self.blocks, self.skips, self.fill, self.clamp = blocks, skips, fill, clamp
        x = embedded(blocks, tokens)
        first = [x, x]
        if fill.donor is not None:
            first.append(embedded(blocks, fill.donor))
        self.fixed = len(first)
        self.rows = _Growing(torch.stack(first), len(skips))
        L, (B, T) = len(blocks.layers), tokens.shape
        dtype = np.float64 if wide(x).dtype == torch.float64 else np.float32
        self.effect = np.zeros((len(skips), L, B, T), dtype)
        self.null = np.zeros((L, B, T), dtype)
        self.vanishing = 0

    def run(self, on_layer: Callable[[float], None]) -> Skipped:
        L = len(self.blocks.layers)
        for layer, block in enumerate(self.blocks.layers):
            self._layer(layer, block)
            on_layer(0.8 * (layer + 1) / L)
        output, null = self._outputs(on_layer)
        for i, skip in enumerate(self.skips):
            self.effect[i, :, :, : skip.seen] = np.nan
        seen = min((s.seen for s in self.skips), default=0)
        quiet = self.null[:, :, seen:]
        floor = float(np.nanmax(quiet)) if np.isfinite(quiet).any() else 0.0
        return Skipped(self.effect, output, floor, null, self.vanishing)

    def _layer(self, layer: int, block: Any) -> None:
        x = self.rows.padded
        shape = x.shape
        attn, mlp, out = (y.view(shape) for y in layer_step(block, x.flatten(0, 1)))
        n = self.rows.n
        check_finite(out[0], layer)
        clean = wide(attn[0]) + wide(mlp[0])
        added = (wide(attn[r]) + wide(mlp[r]) for r in (1, *range(self.fixed, n)))
        ratios = changed(clean, added, x[0], self.clamp).cpu().numpy()
        self.null[layer] = ratios[0]
        self.effect[: n - self.fixed, layer] = ratios[1:]
        seen = min((s.seen for s in self.skips), default=0)
        self.vanishing += int(np.isnan(ratios[0][:, seen:]).sum())
        fresh = [s for s in self.skips[n - self.fixed :] if s.layer == layer]
        donor = self.fixed - 1
        made = self._spawned(
            block, layer, fresh, x[0], (attn[0], mlp[0]), (attn[donor], mlp[donor])
        )
        spawned = changed(clean, (c for _, c in made), x[0], self.clamp)
        start = n - self.fixed
        self.effect[start : start + len(made), layer] = spawned.cpu().numpy()
        self.rows.held[: len(out)] = out
        following = out[0]
        for skip, (row, _) in zip(fresh, made, strict=True):
            new = following.clone()
            new[:, skip.start : skip.stop] = row[:, skip.start : skip.stop]
            self.rows.join([new])

    def _spawned(
        self,
        block: Any,
        layer: int,
        fresh: Sequence[Skip],
        x: Tensor,
        own: tuple[Tensor, Tensor],
        donor: tuple[Tensor, Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """For each new row its next residual and its contribution, where it is skipped or not."""
        attn0, mlp0 = own
        attn_, mlp_ = self.fill.at(layer, *donor)
        whole: dict[str, tuple[Tensor, Tensor]] = {}
        for part in dict.fromkeys(s.part for s in fresh):
            a = attn0 if part == "MLP" else attn_
            m = mlp0 if part == "attention" else mlp_
            if part == "attention" and not block.parallel:
                m = mlp_of(block, (x + a).flatten(0, 1)).view_as(x)
            whole[part] = (x + a + m, wide(a) + wide(m))
        out = []
        clean = wide(attn0) + wide(mlp0)
        for skip in fresh:
            row, added = whole[skip.part]
            c = clean.clone()
            c[:, skip.start : skip.stop] = added[:, skip.start : skip.stop]
            out.append((row, c))
        return out

    def _outputs(self, on_layer: Callable[[float], None]) -> tuple[np.ndarray, float]:
        """‖P - P̄‖ of every row ``[skip, B, T]``, a few positions at a time, and the null row's."""
        rows = self.rows.held[: self.rows.n]
        keep = [1, *range(self.fixed, self.rows.n)]
        B, T = rows.shape[1:3]
        seen = np.array([min((s.seen for s in self.skips), default=0)] +
                        [s.seen for s in self.skips])  # fmt: skip
        away = output_distances(self.blocks, rows[0], rows[keep], seen, on_layer)
        null = float(np.nanmax(away[0])) if np.isfinite(away[0]).any() else 0.0
        return away[1:].reshape(-1, B, T), null


def output_distances(
    blocks: Any,
    clean: Tensor,
    rows: Tensor,
    seen: np.ndarray,
    on_layer: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """‖softmax(unembed row) - softmax(unembed clean)‖₂ ``[R, B, T]``, NaN before ``seen[R]``.

    All rows of a few tokens at a time, the clean one among them (same batch, same rounding).
    """
    R, B, T, D = rows.shape
    out = np.full((R, B * T), np.nan)
    base_ND, rows_RND = clean.reshape(B * T, D), rows.reshape(R, B * T, D)
    width = int(blocks.unembed(base_ND[:1]).shape[-1])
    for b in range(B):
        t = int(seen.min(initial=T))
        while t < T:
            live = np.flatnonzero(seen <= t)
            later = seen[seen > t]
            end = min(T, int(later.min()) if len(later) else T)
            step = max(1, LOGIT_BYTES // (4 * width * (len(live) + 1)))
            stop = min(end, t + step)
            part = slice(b * T + t, b * T + stop)
            index = torch.from_numpy(live).to(rows.device)
            stacked = torch.cat([base_ND[None, part], rows_RND[index, part]])
            logits = wide(blocks.unembed(stacked.reshape(-1, D)))
            p = torch.softmax(logits, -1).unflatten(0, (len(live) + 1, stop - t))
            out[live, part] = p[1:].sub_(p[:1]).norm(dim=-1).cpu().numpy()
            t = stop
        on_layer(0.8 + 0.2 * (b + 1) / B)
    return out.reshape(R, B, T)


def local_skips(
    blocks: Any,
    tokens: np.ndarray,
    skips: Sequence[Skip],
    fill: Fill,
    *,
    at_once: int,
    clamp: bool = False,
    on_layer: Callable[[float], None] = lambda share: None,
) -> Skipped:
    """Each later layer alone is fed the residual without what the skipped part added.

    Nothing is passed on, so these are direct dependences: L(L-1)/2 one-layer calls. The output is
    the direct effect: the last residual without it, unembedded. Arguments as ``skip_wavefront``;
    ``at_once`` rows stand in one call.
    """
    with torch.no_grad():
        L, (B, T) = len(blocks.layers), tokens.shape
        x = embedded(blocks, tokens)
        donor = None if fill.donor is None else embedded(blocks, fill.donor)
        dtype = np.float64 if wide(x).dtype == torch.float64 else np.float32
        effect = np.zeros((len(skips), L, B, T), dtype)
        missing: list[Tensor] = []
        floor, vanishing = 0.0, 0
        for layer, block in enumerate(blocks.layers):
            live = [i for i, s in enumerate(skips) if s.layer < layer]
            attn, mlp, following = layer_step(block, x)
            check_finite(following, layer)
            clean = wide(attn) + wide(mlp)
            for start in range(0, len(live), at_once):
                group = live[start : start + at_once]
                rows = torch.stack([x, x, *(_without(x, missing, skips[i]) for i in group)])
                a, m, _ = layer_step(block, rows.flatten(0, 1))
                added = (wide(a) + wide(m)).view(rows.shape)
                ratios = changed(added[0], added[1:], x, clamp).cpu().numpy()
                effect[group, layer] = ratios[1:]
                known = ratios[0][np.isfinite(ratios[0])]
                floor = max(floor, float(known.max(initial=0.0)))
            zero = changed(clean, clean[None], x, clamp)
            vanishing += int(
                torch.isnan(zero[..., min((s.seen for s in skips), default=0) :]).sum()
            )
            own = [i for i, s in enumerate(skips) if s.layer == layer]
            stepped = None if donor is None else layer_step(block, donor)
            a_, m_ = fill.at(layer, *((attn, mlp) if stepped is None else stepped[:2]))
            missing.append(torch.stack([attn - a_, mlp - m_]))
            for i in own:
                gone = clean - wide(_without(torch.zeros_like(x), missing, skips[i]).neg())
                effect[i, layer] = changed(clean, gone[None], x, clamp)[0].cpu().numpy()
            x = following
            donor = None if stepped is None else stepped[2]
            on_layer((layer + 1) / L)
        rows = torch.stack([x, *(_without(x, missing, s) for s in skips)])
        seen = np.array([min((s.seen for s in skips), default=0), *(s.seen for s in skips)])
        away = output_distances(blocks, x, rows, seen)
        for i, skip in enumerate(skips):
            effect[i, :, :, : skip.seen] = np.nan
    return Skipped(effect, away[1:], floor, float(np.nanmax(away[0])), vanishing)


def _without(x: Tensor, missing: Sequence[Tensor], skip: Skip) -> Tensor:
    """The residual less what the skipped part added beyond its stand-in."""
    attn, mlp = missing[skip.layer]
    gone = {"layer": attn + mlp, "attention": attn, "MLP": mlp}[skip.part]
    out = x.clone()
    out[:, skip.start : skip.stop] -= gone[:, skip.start : skip.stop]
    return out
