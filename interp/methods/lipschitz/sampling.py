"""Lower bounds: gradients at points inside the box, and at points that an ascent visits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interp.engine.affine import Network, rows_that_fit
from interp.methods.lipschitz.preactivations import Box

CORNERS = 4
"""One sampled point in so many is a corner of the box."""

STARTS = 4
"""So many of a row's best sampled points are climbed from."""

STEPS = 12
"""Steps of the ascent from each of them."""

WIDEST_BLUR = 0.3
"""How wide a ReLU's switch is at first, over the mean size of what it reads."""


def draw_points(box: Box, n: int, generator: torch.Generator) -> Tensor:
    """The centre, then ``n`` points of every box, a quarter at corners: ``[box, n + 1, *in]``."""
    low, high = box.lower[:, None], box.upper[:, None]
    shape = (len(box), n, *box.lower.shape[1:])
    share = torch.rand(shape, generator=generator, dtype=torch.float64).to(low.device)
    corners = (torch.arange(n) % CORNERS == CORNERS - 1).to(low.device)
    corners = corners.reshape(1, n, *(1,) * (low.dim() - 2))
    share = torch.where(corners, (share > 0.5).to(share.dtype), share)
    return torch.cat([(low + high) / 2, low + share * (high - low)], 1)


def largest_gradients(
    network: Network, box: Box, seeds: Tensor, n: int, seed: int, memory: int
) -> Tensor:
    """The largest L1 norm of each row's gradient that was found, ``[box, J]``: a lower bound.

    Args:
        network: the network.
        box: where to look.
        seeds: rows, ``[box or 1, J, *output]``.
        n: points drawn in each box.
        seed: of the draws.
        memory: bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, inputs = seeds.shape[1], box.lower.shape[1:]
    points = draw_points(box, n, generator)
    starts = min(STARTS, points.shape[1])
    best = torch.zeros(len(box), rows, starts, dtype=torch.float64, device=network.device)
    where = box.lower[:, None, None].expand(-1, rows, starts, *inputs).clone()
    widest = max(part.size for part in network)
    step = rows_that_fit(memory, 4 * 8 * rows * widest)
    for i in range(len(box)):
        own = seeds[min(i, len(seeds) - 1)]
        for some in points[i].split(step):
            norms = network.gradients(some, own).flatten(2).abs().sum(-1)
            every = torch.cat([best[i], norms.T], 1)
            best[i], index = every.topk(starts, 1)
            places = torch.cat([where[i], some[None].expand(rows, *some.shape)], 1)
            where[i] = places[torch.arange(rows, device=index.device)[:, None], index]
    every = seeds.expand(len(box), *seeds.shape[1:])[:, :, None, None]
    every = every.expand(-1, -1, starts, -1, *seeds.shape[2:]).flatten(0, 2)
    low, high = (
        t[:, None, None].expand_as(where).reshape(-1, *inputs) for t in (box.lower, box.upper)
    )
    found = best.flatten()
    start = where.reshape(-1, *inputs)
    step = rows_that_fit(memory, 16 * 8 * widest)
    for a in range(0, len(start), step):
        part = slice(a, a + step)
        lo, hi = low[part], high[part]

        def move(x: Tensor, slope: Tensor, k: int, lo: Tensor = lo, hi: Tensor = hi) -> Tensor:
            x = x + slope.sign() * (hi - lo) / 2 / (k + 1)
            return torch.minimum(torch.maximum(x, lo), hi)

        found[part] = climb(network, start[part], every[part], row_sums, move, found[part])
    return found.reshape(best.shape).amax(-1)


def row_sums(jacobians: Tensor) -> Tensor:
    """The largest row's L1 norm, ``[point, row, *in]`` -> ``[point]``."""
    return jacobians.flatten(2).abs().sum(-1).amax(1)


def climb(
    network: Network,
    x: Tensor,
    seeds: Tensor,
    measure: Callable[[Tensor], Tensor],
    move: Callable[[Tensor, Tensor, int], Tensor],
    best: Tensor,
    steps: int = STEPS,
) -> Tensor:
    """Projected gradient ascent of a Jacobian's norm from each point: the best of each.

    The norm is constant wherever no ReLU switches, so the ascent follows the gradient of the norm
    with blurred switches, ever sharper; what counts is the exact norm at the points it visits, so
    the result is a lower bound whatever the ascent does.

    Args:
        network: the network.
        x: where to start ``[point, *in]``.
        seeds: rows of outputs, ``[point or 1, row, *out]``.
        measure: the norm, ``[point, row, *in]`` -> ``[point]``.
        move: point, slope and step number -> the next point.
        best: what is known already ``[point]``.
        steps: how many.
    """
    for k in range(steps):
        with torch.enable_grad():
            here = x.detach().requires_grad_(True)
            blurred = network.gradients(here, seeds, blur=WIDEST_BLUR * (1 - k / steps) + 0.02)
            total = measure(blurred).sum()
            slope = torch.autograd.grad(total, here)[0] if total.requires_grad else None
        if slope is None:
            return best
        x = move(x, slope, k)
        best = torch.maximum(best, measure(network.gradients(x, seeds)))
    return best
