"""Erasing: one residual vector replaced, everything behind it run again, and nothing before it.

A change of H_l at position t reaches layers ≥ l and positions ≥ t alone. Rows that erase at one
position join a growing batch layer by layer, carry only the tokens from there on, and look back at
the clean run's keys and values. About a quarter of the arithmetic of a rerun is left, exactly.

Legend: B prompts of one length, T positions, R rows, S = T - t tokens a row carries, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.depth.walking import embedded, mlp_of
from interp.engine.depth.wavefront import TILE, output_distances

MODES = ("single", "later", "before")
"""Erase one position; the same, seen behind it alone; erase all positions before it."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """What erasing did.

    Args:
        away: ‖P - P̄‖₂ ``[boundary, target position, B, T]``, NaN where it is not measured.
        null: the largest of rows in which a residual was replaced by itself.
    """

    away: np.ndarray
    null: float


class _Clean:
    """The clean run: residual entering each layer, its keys and values, the last residual."""

    def __init__(self, blocks: Any, tokens: np.ndarray) -> None:
        self.blocks = blocks
        x = embedded(blocks, tokens)
        B, T, _ = x.shape
        self.position = torch.arange(T, device=x.device)
        self.resid, self.keys, self.values = [], [], []
        for block in blocks.layers:
            flat = x.flatten(0, 1)
            q, k, v = (s.unflatten(0, (B, T)) for s in block.qkv(flat, self.position.repeat(B)))
            self.resid.append(x)
            self.keys.append(k)
            self.values.append(v)
            z = block.attend(q, k, v, self.position).flatten(0, 1)
            x = _behind(block, flat, z).view_as(x)
        self.last = x


def _behind(block: Any, x_ND: Tensor, z_NHE: Tensor) -> Tensor:
    """The next residual of packed tokens, from what their heads gave."""
    attn = block.add_attn(block.attn_sum(z_NHE))
    mid = x_ND + attn
    return mid + mlp_of(block, x_ND if block.parallel else mid)


class Rows:
    """Rows that start at one position, joined at the layer where they differ.

    Args:
        clean: the clean run.
        start: first position they carry.
    """

    def __init__(self, clean: _Clean, start: int) -> None:
        self.clean, self.start = clean, start
        self.held: list[Tensor] = []

    def join(self, row: Tensor) -> None:
        """Add a row ``[B, S, D]``."""
        self.held.append(row)

    def stacked(self) -> Tensor:
        """All rows in whole tiles, ``[R, B, S, D]``."""
        return torch.stack(self.held + [self.held[0]] * (-len(self.held) % self.tile))

    def keep(self, out_RBSD: Tensor) -> None:
        """The rows behind a layer, padding left out."""
        self.held = list(out_RBSD[: len(self.held)])

    @property
    def tile(self) -> int:
        """Rows come in whole tiles in 16-bit dtypes."""
        return TILE if self.clean.last.element_size() < 4 else 1


def through(clean: _Clean, layer: int, packs: Sequence[Rows]) -> None:
    """Run a layer over all rows of several positions: products together, attention apart."""
    packs = [p for p in packs if p.held]
    if not packs:
        return
    block: Any = clean.blocks.layers[layer]
    rows = [p.stacked() for p in packs]
    sizes = [r.shape[0] * r.shape[1] * r.shape[2] for r in rows]
    flat = torch.cat([r.flatten(0, 2) for r in rows])
    own = [clean.position[p.start :] for p in packs]
    places = [o.repeat(r.shape[0] * r.shape[1]) for o, r in zip(own, rows, strict=True)]
    parts = [x.split(sizes) for x in block.qkv(flat, torch.cat(places))]
    found = []
    for pack, r, at, *qkv in zip(packs, rows, own, *parts, strict=True):
        n, t = r.shape[0], pack.start
        q, k, v = (x.unflatten(0, (n * r.shape[1], r.shape[2])) for x in qkv)
        if t:
            k = torch.cat([_shared(clean.keys[layer][:, :t], n), k], 1)
            v = torch.cat([_shared(clean.values[layer][:, :t], n), v], 1)
        found.append(block.attend(q, k, v, at).flatten(0, 1))
    out = _behind(block, flat, torch.cat(found))
    for pack, r, piece in zip(packs, rows, out.split(sizes), strict=True):
        pack.keep(piece.view_as(r))


def _shared(x_BSKE: Tensor, rows: int) -> Tensor:
    return x_BSKE[None].expand(rows, *x_BSKE.shape).flatten(0, 1)


def erase(
    blocks: Any,
    tokens: np.ndarray,
    means: Tensor,
    targets: Sequence[int],
    mode: str,
    *,
    boundaries: Sequence[int] | None = None,
    at_once: int = 4096,
    on_target: Callable[[float], None] = lambda share: None,
) -> Erasure:
    """Erase H_l at each position of ``targets`` and every boundary l.

    Args:
        blocks: the model.
        tokens: prompts ``[B, T]`` of one length.
        means: what is put in, ``[boundary, D]``.
        targets: positions.
        mode: one of ``MODES``.
        boundaries: layers before which a residual is erased (default all).
        at_once: tokens that run together, of as many positions as fit.
        on_target: told the share that is done.
    """
    with torch.no_grad():
        clean = _Clean(blocks, tokens)
        L = len(blocks.layers)
        chosen = list(range(L)) if boundaries is None else list(boundaries)
        (B, T), away = tokens.shape, []
        null, done = 0.0, 0
        for group in _groups(targets, (len(chosen) + 1) * B, T, mode, at_once):
            packs = [Rows(clean, 1 if mode == "before" else t) for t in group]
            for layer in range(L):
                for t, rows in zip(group, packs, strict=True):
                    if layer == chosen[0]:
                        rows.join(clean.resid[layer][:, rows.start :].clone())
                    if layer in chosen:
                        row = clean.resid[layer][:, rows.start :].clone()
                        gone = t - rows.start if mode == "before" else 1
                        row[:, :gone] = means[layer].to(row)
                        rows.join(row)
                through(clean, layer, packs)
            for t, rows in zip(group, packs, strict=True):
                seen = (t + 1 if mode == "later" else t) - rows.start
                last = torch.stack(rows.held)
                found = np.full((len(last), B, T), np.nan)
                found[:, :, rows.start :] = output_distances(
                    blocks, clean.last[:, rows.start :], last, np.full(len(last), seen)
                )
                away.append(found[1:])
                known = found[0][np.isfinite(found[0])]
                null = max(null, float(known.max(initial=0.0)))
                done += 1
                on_target(done / len(targets))
    return Erasure(np.stack(away, 1), null)


def _groups(
    targets: Sequence[int], rows: int, length: int, mode: str, at_once: int
) -> list[list[int]]:
    """Positions whose rows run together."""
    out: list[list[int]] = []
    held = 0
    for t in targets:
        size = rows * (length - (1 if mode == "before" else t))
        if not out or held + size > at_once:
            out.append([])
            held = 0
        out[-1].append(t)
        held += size
    return out
