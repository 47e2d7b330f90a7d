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
            x = _behind(block, flat, block.attend(q, k, v, self.position)).view_as(x)
        self.last = x


def _behind(block: Any, x_ND: Tensor, z_RTHE: Tensor) -> Tensor:
    """The next residual of packed tokens, from what their heads gave."""
    attn = block.add_attn(block.attn_sum(z_RTHE.flatten(0, 1)))
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

    def through(self, layer: int) -> None:
        """Run a layer over all rows."""
        if not self.held:
            return
        clean, t = self.clean, self.start
        block, n = clean.blocks.layers[layer], len(self.held)
        rows = torch.stack(self.held + [self.held[0]] * (-n % self.tile))
        R, B, S, D = rows.shape
        own = clean.position[t:]
        flat = rows.view(R * B * S, D)
        q, k, v = (s.unflatten(0, (R * B, S)) for s in block.qkv(flat, own.repeat(R * B)))
        if t:
            k = torch.cat([_shared(clean.keys[layer][:, :t], R), k], 1)
            v = torch.cat([_shared(clean.values[layer][:, :t], R), v], 1)
        out = _behind(block, flat, block.attend(q, k, v, own)).view(R, B, S, D)
        self.held = list(out[:n])

    @property
    def tile(self) -> int:
        """Rows come in whole tiles in 16-bit dtypes."""
        return TILE if self.clean.last.element_size() < 4 else 1


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
        on_target: told the share that is done.
    """
    with torch.no_grad():
        clean = _Clean(blocks, tokens)
        L = len(blocks.layers)
        chosen = list(range(L)) if boundaries is None else list(boundaries)
        (B, T), away = tokens.shape, []
        null = 0.0
        for number, t in enumerate(targets):
            start = 1 if mode == "before" else t
            gone = slice(0, t - start if mode == "before" else 1)
            rows = Rows(clean, start)
            for layer in range(L):
                if layer == chosen[0]:
                    rows.join(clean.resid[layer][:, start:].clone())
                if layer in chosen:
                    row = clean.resid[layer][:, start:].clone()
                    row[:, gone] = means[layer].to(row)
                    rows.join(row)
                rows.through(layer)
            seen = {"single": t, "later": t + 1, "before": t}[mode] - start
            last = torch.stack(rows.held)
            found = np.full((len(last), B, T), np.nan)
            found[:, :, start:] = output_distances(
                blocks, clean.last[:, start:], last, np.full(len(last), seen)
            )
            away.append(found[1:])
            known = found[0][np.isfinite(found[0])]
            null = max(null, float(known.max(initial=0.0)))
            on_target((number + 1) / len(targets))
    return Erasure(np.stack(away, 1), null)
