"""Costs: FLOPs and bytes of a sweep before it runs (docs/performance.md has the formulas)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.engine.edges import EDGE
from interp.engine.plans import INNER, PRE, Plan, Row
from interp.terms import ModelShape

SLACK = 1.25
"""Indices, norms and scores come on top of what is counted."""

MLP_BYTES = 48 * 2**20
"""The MLP runs in slices whose neurons take about this much."""


@dataclass(frozen=True)
class Cost:
    """What one row or one sweep takes.

    Args:
        flops: floating-point operations (a multiply-add counts two).
        tokens: packed tokens at the widest point.
        rows: rows.
    """

    flops: float
    tokens: float
    rows: int

    def __add__(self, other: Cost) -> Cost:
        """Both; of rows of different prompts, whose base and source runs are their own."""
        return Cost(self.flops + other.flops, self.tokens + other.tokens, self.rows + other.rows)


def layer_flops(shape: ModelShape, gated: bool) -> tuple[float, float, float]:
    """FLOPs a token and layer: all linear maps, its key/value share, its MLP share."""
    d, kv = shape.d_model, shape.n_kv_heads * shape.d_head
    attn = 2 * d * (2 * shape.n_heads * shape.d_head + 2 * kv)
    mlp = 2 * d * shape.d_mlp * (3 if gated else 2)
    return attn + mlp, 4 * d * kv, mlp


def row_flops(row: Row, plan: Plan, shape: ModelShape, gated: bool) -> float:
    """FLOPs of one row: R(l, p) of the cost model, plus what its entry takes."""
    layers = shape.n_layers
    c, kv, mlp = layer_flops(shape, gated)
    n = plan.bucket.length - row.start
    pairs = 4 * shape.n_heads * shape.d_head
    span = np.arange(row.start + 1, plan.bucket.length + 1).sum()
    full = n * c + pairs * span
    at = plan.bucket.at.shape[1]
    last = n * kv + at * (c - kv) + pairs * at * plan.bucket.length
    flops = 0.0
    if row.live < layers:
        flops += (layers - 1 - row.live) * full + last
    for layer, kind, _, _, places, *_ in row.parts:
        if kind == EDGE and layer < layers:
            flops += len(places) * (c - mlp)
        if kind not in PRE and kind not in INNER and layer == row.live - 1:
            flops += len(places) * (mlp if kind in ("z", "attn_out", "resid_mid") else 0)
            flops += len(places) * (2 * shape.d_model * shape.d_head if kind == "z" else 0)
    return flops


def row_tokens(row: Row, plan: Plan) -> int:
    """Tokens a row carries, the copies of its edges' readers among them."""
    copies = sum(len(part[4]) for part in row.parts if part[1] == EDGE)
    return plan.bucket.length - row.start + copies


def rows_cost(
    numbers: Sequence[int],
    flops_of: Sequence[float],
    plan: Plan,
    shape: ModelShape,
    gated: bool,
    columns: int,
) -> Cost:
    """Cost of rows with the base and source runs that they need.

    Args:
        numbers: which rows of the plan.
        flops_of: ``row_flops`` of each row of the plan.
        plan: the rows.
        shape: the model's sizes.
        gated: whether its MLPs are gated.
        columns: unembedding columns a metric position needs.
    """
    rows = [plan.rows[n] for n in numbers]
    prompts = {r.prompt for r in rows}
    c, _, _ = layer_flops(shape, gated)
    runs = 2 * len(prompts) * plan.bucket.length
    flops = sum(flops_of[n] for n in numbers) + shape.n_layers * runs * c
    flops += 2 * shape.d_model * columns * len(rows) * plan.bucket.at.shape[1]
    tokens = runs + sum(row_tokens(r, plan) for r in rows)
    return Cost(flops, tokens, len(rows))


def bytes_of(cost: Cost, length: int, shape: ModelShape, itemsize: int, gated: bool) -> float:
    """Peak bytes of a packed pass: residuals, q, k, v, z, expanded keys and values, neurons."""
    heads = shape.n_heads * shape.d_head
    kv = shape.n_kv_heads * shape.d_head
    neurons = (2 + gated) * min(itemsize * cost.tokens * shape.d_mlp, MLP_BYTES)
    packed = cost.tokens * (7 * shape.d_model + 3 * heads + 2 * kv)
    return SLACK * (itemsize * (packed + 2 * cost.rows * length * kv) + neurons)


def naive_flops(plan: Plan, shape: ModelShape, gated: bool) -> float:
    """FLOPs of one full forward a row with the unembedding of every position."""
    c, _, _ = layer_flops(shape, gated)
    n = plan.bucket.length
    forward = shape.n_layers * (n * c + 4 * shape.n_heads * shape.d_head * n * n)
    return len(plan.rows) * (forward + 2 * shape.d_model * shape.vocab * n)
