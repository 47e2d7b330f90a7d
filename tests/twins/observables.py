"""The slow reference of observable propagation: a transformer in loops, frozen and differentiated.

Numbers alone: weights come as plain tensors, nothing of interp is imported. ``forward`` runs prompt
positions, heads and source positions one by one in float64, with layer norm or RMS norm, sequential
or parallel sublayers, with or without post-norms. Given patterns and divisors of another run it
computes with those, so that autograd has nothing to do with how they came about.
``paths`` walks every path by recursion (dunefsky2024observable).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

EPS = 1e-5


def centred(x: Tensor, rms: bool) -> Tensor:
    return x if rms else x - x.mean()


def divisor(x: Tensor, rms: bool, eps: float = EPS) -> Tensor:
    c = centred(x, rms)
    return torch.sqrt((c * c).mean() + eps)


class Frozen:
    """Patterns and divisors of one run, by name."""

    def __init__(self) -> None:
        self.kept: dict[Any, Tensor] = {}
        self.given = False

    def take(self, name: Any, value: Tensor) -> Tensor:
        if self.given:
            return self.kept[name]
        self.kept[name] = value.detach()
        return value


def norm(x: Tensor, part: Any, rms: bool, frozen: Frozen, name: Any) -> Tensor:
    if part is None:
        return x
    gain, bias = part
    scale = frozen.take(name, divisor(x, rms))
    return centred(x, rms) / scale * gain + bias


def mlp(x: Tensor, w: dict[str, Any], act: Any) -> Tensor:
    return act(x @ w["W_in"] + w["b_in"]) @ w["W_out"] + w["b_out"]


def forward(
    embed: list[Tensor],
    layers: list[dict[str, Any]],
    final: Any,
    u: Tensor,
    *,
    rms: bool,
    parallel: bool,
    act: Any,
    frozen: Frozen,
) -> Tensor:
    """o at the last position, for what stands at each position at first."""
    x = list(embed)
    for n, w in enumerate(layers):
        read = [norm(v, w["pre_attn"], rms, frozen, (n, "a", t)) for t, v in enumerate(x)]
        heads = len(w["W_O"])
        group = heads // len(w["W_V"])
        out = []
        for t in range(len(x)):
            total = w["b_O"]
            for h in range(heads):
                q = read[t] @ w["W_Q"][h] + w["b_Q"][h]
                scores = []
                for s in range(t + 1):
                    k = read[s] @ w["W_K"][h // group] + w["b_K"][h // group]
                    scores.append((q * k).sum() / math.sqrt(len(q)))
                pattern = frozen.take((n, h, t), torch.softmax(torch.stack(scores), 0))
                for s in range(t + 1):
                    v = read[s] @ w["W_V"][h // group] + w["b_V"][h // group]
                    total = total + pattern[s] * (v @ w["W_O"][h])
            out.append(norm(total, w["post_attn"], rms, frozen, (n, "ap", t)))
        middle = x if parallel else [a + b for a, b in zip(x, out, strict=True)]
        moved = []
        for t, v in enumerate(middle):
            h_in = norm(v, w["pre_mlp"], rms, frozen, (n, "m", t))
            moved.append(norm(mlp(h_in, w, act), w["post_mlp"], rms, frozen, (n, "mp", t)))
        x = [a + b + c for a, b, c in zip(x, out, moved, strict=True)]
    return (norm(x[-1], final, rms, frozen, "final") * u).sum()


def frozen_gradient(embed: list[Tensor], **model: Any) -> tuple[float, list[Tensor]]:
    """o of a run, and its gradient at every position's embedding with that run's constants."""
    frozen = Frozen()
    o = forward(embed, frozen=frozen, **model)
    frozen.given = True
    leaves = [e.clone().requires_grad_() for e in embed]
    again = forward(leaves, frozen=frozen, **model)
    assert abs(float((again - o).detach())) < 1e-9
    return float(o), list(torch.autograd.grad(again, leaves))


def paths(
    embed: list[Tensor],
    layers: list[dict[str, Any]],
    final: Any,
    u: Tensor,
    *,
    act: Any,
) -> dict[tuple[Any, ...], float]:
    """Value of every path to the embedding; layer norms, sequential, no post-norms, frozen."""
    frozen = Frozen()
    model = {"rms": False, "parallel": False, "act": act}
    forward(embed, layers, final, u, frozen=frozen, **model)
    slopes = _slopes(embed, layers, act, frozen)
    found: dict[tuple[Any, ...], float] = {}

    def back(y: Tensor, part: Any, name: Any) -> Tensor:
        v = part[0] * y
        return (v - v.mean()) / frozen.kept[name]

    def walk(y: Tensor, order: int, t: int, path: tuple[Any, ...]) -> None:
        found[path] = float(y @ embed[t])
        for n, w in enumerate(layers):
            if 2 * n + 1 < order:
                read = slopes[n][t].T @ y
                walk(back(read, w["pre_mlp"], (n, "m", t)), 2 * n + 1, t, (*path, (n, -1, t)))
            if 2 * n < order:
                for h in range(len(w["W_O"])):
                    group = len(w["W_O"]) // len(w["W_V"])
                    v = w["W_V"][h // group] @ (w["W_O"][h] @ y)
                    for s in range(t + 1):
                        moved = frozen.kept[(n, h, t)][s] * v
                        walk(back(moved, w["pre_attn"], (n, "a", s)), 2 * n, s, (*path, (n, h, s)))

    walk(back(u, final, "final"), 2 * len(layers), len(embed) - 1, ())
    return found


def _slopes(
    embed: list[Tensor], layers: list[dict[str, Any]], act: Any, frozen: Frozen
) -> list[list[Tensor]]:
    """Jacobian of every MLP at what it reads, ``[out, in]``, by layer and position."""
    seen: list[list[Tensor]] = []
    x = list(embed)
    for n, w in enumerate(layers):
        read = [norm(v, w["pre_attn"], False, frozen, (n, "a", t)) for t, v in enumerate(x)]
        group = len(w["W_O"]) // len(w["W_V"])
        for t in range(len(x)):
            total = w["b_O"].clone()
            for h in range(len(w["W_O"])):
                for s in range(t + 1):
                    v = read[s] @ w["W_V"][h // group] + w["b_V"][h // group]
                    total = total + frozen.kept[(n, h, t)][s] * (v @ w["W_O"][h])
            x[t] = x[t] + total
        reads = [norm(v, w["pre_mlp"], False, frozen, (n, "m", t)) for t, v in enumerate(x)]
        seen.append([
            torch.autograd.functional.jacobian(lambda h, w=w: mlp(h, w, act), r) for r in reads
        ])  # fmt: skip
        x = [a + mlp(r, w, act) for a, r in zip(x, reads, strict=True)]
    return seen
