"""Lower bounds: gradients at points inside the box, and at points that an ascent visits."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.engine.affine import Network, rows_that_fit
from interp.methods.lipschitz.preactivations import Box

CORNERS = 4
"""One sampled point in so many is a corner of the box."""

STEPS = 8
"""Steps of the ascent from the best sampled point."""


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
    rows = seeds.shape[1]
    points = draw_points(box, n, generator)
    best = torch.zeros(len(box), rows, dtype=torch.float64, device=network.device)
    where = box.lower[:, None].expand(-1, rows, *box.lower.shape[1:]).clone()
    widest = max(part.size for part in network)
    step = rows_that_fit(memory, 4 * 8 * rows * widest)
    for i in range(len(box)):
        own = seeds[min(i, len(seeds) - 1)]
        for start in range(0, points.shape[1], step):
            some = points[i, start : start + step]
            norms = network.gradients(some, own).flatten(2).abs().sum(-1)
            top, index = norms.max(0)
            better = top > best[i]
            best[i] = torch.where(better, top, best[i])
            where[i][better] = some[index[better]]
    return _ascend(network, box, seeds, best, where)


def _ascend(network: Network, box: Box, seeds: Tensor, best: Tensor, where: Tensor) -> Tensor:
    """Projected steps along the sign of each row's own gradient; the norm is kept where larger."""
    for i in range(len(box)):
        own = seeds[min(i, len(seeds) - 1)]
        x, row = where[i].clone(), torch.arange(own.shape[0], device=where.device)
        reach = (box.upper[i] - box.lower[i]) / 2
        for k in range(STEPS):
            g = network.gradients(x, own)[row, row]
            best[i] = torch.maximum(best[i], g.flatten(1).abs().sum(-1))
            x = x + g.sign() * reach / (k + 1)
            x = torch.minimum(torch.maximum(x, box.lower[i]), box.upper[i])
    return best
