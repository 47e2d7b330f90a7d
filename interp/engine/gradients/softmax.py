"""The QK fix: a query's or key's estimate with the softmax's own finite change (kramar2024atp).

Softmax saturates, so a gradient through it misses what a large change of a score does. Here the
change of every attention row is computed, and only what follows it is linear:
``g_ij = ∂m/∂A_ij = ρ_z,i · v_j``.

Legend: R prompts, H heads, K key/value heads, T queries i, S keys j, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pattern_gradient(g_z_RTHE: Tensor, v_RSKE: Tensor) -> Tensor:
    """``g [R,H,T,S]``: gradient of the metric at every entry of the attention pattern."""
    groups = g_z_RTHE.shape[2] // v_RSKE.shape[2]
    v_RSHE = v_RSKE.repeat_interleave(groups, 2)
    return torch.einsum("rthe,rshe->rhts", g_z_RTHE.double(), v_RSHE.double())


def query_estimates(before_RHTS: Tensor, after_RHTS: Tensor, g_RHTS: Tensor) -> Tensor:
    """``Σ_j (A'_ij - A_ij) g_ij``, A' the row under the source's query: ``[R,T,H]``."""
    change = after_RHTS.double() - before_RHTS.double()
    return (change * g_RHTS).sum(-1).transpose(1, 2)


def key_estimates(a_RHTS: Tensor, delta_RHTS: Tensor, g_RHTS: Tensor) -> Tensor:
    """One key at a time replaced in every row that sees it: ``[R,S,H]``.

    ``Σ_i A(e^δ - 1)(g - ḡ) / (1 + A(e^δ - 1))``, δ the change of the score. Where A > ½, which at
    most one key of a row has, 1 - A is summed from the others.

    Args:
        a_RHTS: attention pattern of the base run.
        delta_RHTS: change of each score when its key is replaced; anything where A = 0.
        g_RHTS: gradient at the pattern.
    """
    a = a_RHTS.double()
    delta = torch.where(a > 0, delta_RHTS.double(), 0.0)
    rest = _others(a)
    # g_j - ḡ = (1 - A_j)(g_j - mean of the others), from the others where A_j is nearly 1
    centred = g_RHTS - (a * g_RHTS).sum(-1, keepdim=True)
    big = a > 0.5
    if bool(big.any()):
        others = torch.where(big, 0.0, a)
        mine = torch.where(big, g_RHTS, 0.0).sum(-1, keepdim=True)
        centred = torch.where(big, (others * (mine - g_RHTS)).sum(-1, keepdim=True), centred)
    # multiplied by e^-δ where δ > 0, so that nothing overflows
    up = delta > 0
    shrink = torch.exp(-delta.abs())
    top = torch.where(up, -torch.expm1(-delta.abs()), torch.expm1(-delta.abs()))
    below = torch.where(up, shrink * rest + a, rest + a * shrink)
    share = a * top * centred / below.clamp_min(1e-300)
    return torch.where(a > 0, share, 0.0).sum(2).transpose(1, 2)


def _others(a: Tensor) -> Tensor:
    """1 - A of every entry, from the sum of the others where A > ½."""
    big = a > 0.5
    others = torch.where(big, 0.0, a).sum(-1, keepdim=True)
    return torch.where(big, others, 1 - a)


def pattern_estimates(
    block: Any,
    base: dict[str, Tensor],
    source: dict[str, Tensor],
    g_z_RTHE: Tensor,
    v_RSKE: Tensor,
    position_T: Tensor,
) -> Tensor:
    """Estimates of replacing each entry of a layer's pattern, ``(A'_ij - A_ij) g_ij [R,T,H,S]``.

    Args:
        block: the layer.
        base: its q and k in the base run, before q/k-norms and rotary; source: the source run's.
        source: see ``base``.
        g_z_RTHE: gradient at z.
        v_RSKE: values where the gradient was taken.
        position_T: the positions.
    """

    def pattern(run: dict[str, Tensor]) -> Tensor:
        rows = len(run["q"])
        flat = (run[n].clone().flatten(0, 1) for n in ("q", "k"))
        q, k = block.turned(*flat, position_T.repeat(rows))
        return block.pattern(q.unflatten(0, (rows, -1)), k.unflatten(0, (rows, -1)), position_T)

    with torch.no_grad():
        change = pattern(source).double() - pattern(base).double()
        return (change * pattern_gradient(g_z_RTHE, v_RSKE)).transpose(1, 2)


def fixed(
    block: Any,
    base: dict[str, Tensor],
    source: dict[str, Tensor],
    g_z_RTHE: Tensor,
    position_T: Tensor,
) -> dict[str, Tensor]:
    """Estimates of a layer's queries ``[R,T,H]`` and keys ``[R,S,K]`` with the fix.

    Args:
        block: the layer.
        base: its q, k, v ``[R,T,·,E]`` in the base run, before q/k-norms and rotary.
        source: q, k of the source run at the base run's positions; either may be left out.
        g_z_RTHE: gradient at z.
        position_T: the positions.
    """

    def turned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(q)
        out = block.turned(q.flatten(0, 1), k.flatten(0, 1), position_T.repeat(rows))
        return out[0].unflatten(0, (rows, -1)), out[1].unflatten(0, (rows, -1))

    with torch.no_grad():
        q, k = turned(base["q"].clone(), base["k"].clone())
        a = block.pattern(q, k, position_T)
        g = pattern_gradient(g_z_RTHE, base["v"])
        found: dict[str, Tensor] = {}
        if "q" in source:
            q_new, _ = turned(source["q"].clone(), base["k"].clone())
            found["q"] = query_estimates(a, block.pattern(q_new, k, position_T), g)
        if "k" in source:
            _, k_new = turned(base["q"].clone(), source["k"].clone())
            delta = block.scores(q, k_new, position_T) - block.scores(q, k, position_T)
            each = key_estimates(a, delta, g)
            found["k"] = each.unflatten(-1, (block.n_kv_heads, -1)).sum(-1)
        return found
