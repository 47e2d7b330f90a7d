"""Pulls: a vector at a node's output becomes a vector at its input, patterns held fixed.

Observable propagation's steps (dunefsky2024observable): a head is ``W_V W_O y``, an MLP the
gradient of ``y · MLP``, a norm is passed in one of four ways (``terms.TREATMENTS``), with γ the
gain, c what the norm makes of x (mean off, or x itself), P the centring, σ the divisor:

    ignore   y                      (behind a sublayer, where nothing else scales it: γ·y)
    norm     √d γ·y / |x|           (without a run |x| is left out)
    frozen   P(γ·y) / σ
    exact    P(v - c (c·v)/(dσ²)) / σ,  v = γ·y

``pull_all`` follows all paths at once. Legend as in traces.py; B further vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.engine.traces import LayerMaps, LayerTrace, Maps, NormMap, Trace
from interp.terms import UsageError

POST = ("post_attn", "post_mlp")


def norm_pull(
    norm: NormMap | None,
    y: Tensor,
    treatment: str,
    x: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    post: bool = False,
) -> Tensor:
    """y ``[…, D]`` at a norm's output becomes y at its input.

    Args:
        norm: its parts, None where there is no norm.
        y: what is read at its output.
        treatment: ``ignore``, ``norm``, ``frozen`` or ``exact``.
        x: what it read in the run ``[…, D]``; None without a run.
        scale: its divisor in the run ``[…]``.
        post: it stands behind a sublayer.

    Raises:
        UsageError: ``frozen`` or ``exact`` without a run.
    """
    if norm is None or (treatment == "ignore" and not post):
        return y
    v = norm.gain * y
    if treatment == "ignore":
        return v
    if treatment == "norm":
        v = v * math.sqrt(y.shape[-1])
        return v if x is None else v / x.norm(dim=-1, keepdim=True)
    if x is None or scale is None:
        raise UsageError(
            f"Norms were to be passed {treatment!r}, which needs the divisors of a run.",
            remedy="Give a task, or take ln='ignore' or 'norm'.",
        )
    if treatment == "exact":
        c = norm.centred(x)
        v = v - c * ((c * v).sum(-1) / (x.shape[-1] * scale**2))[..., None]
    return norm.centred(v) / scale[..., None]


def norm_push(
    norm: NormMap | None, w: Tensor, treatment: str, x: Tensor, scale: Tensor | None
) -> Tensor:
    """What a norm makes of w ``[…, D]``, biases out: the transpose of ``norm_pull``."""
    if norm is None or scale is None or treatment == "ignore":
        return w
    if treatment == "norm":
        return norm.gain * w * (math.sqrt(w.shape[-1]) / x.norm(dim=-1, keepdim=True))
    w = norm.centred(w)
    if treatment == "exact":
        c = norm.centred(x)
        w = w - c * ((c * w).sum(-1) / (x.shape[-1] * scale**2))[..., None]
    return norm.gain * w / scale[..., None]


def layer_norm_pull(
    maps: LayerMaps, name: str, y: Tensor, treatment: str, run: LayerTrace | None
) -> Tensor:
    """``norm_pull`` of one of a layer's norms, with what it read in a run."""
    norm = maps.norms[name]
    if run is None or norm is None:
        return norm_pull(norm, y, treatment, post=name in POST)
    return norm_pull(norm, y, treatment, run.read_by(name), run.scales[name], post=name in POST)


def ov_pull(maps: LayerMaps, y: Tensor) -> Tensor:
    """``W_V W_O y`` of every head: ``[…, D]`` becomes ``[…, H, D]`` (two thin products)."""
    z = torch.einsum("hed,...d->...he", maps.w_o, y).unflatten(-2, (-1, maps.groups))
    return torch.einsum("kde,...kge->...kgd", maps.w_v, z).flatten(-3, -2)


def all_heads(maps: Maps, u: Tensor, treatment: str) -> Tensor:
    """What every head reads of u ``[B, D]`` without a run, ``[B, layer, H, D]``; one product.

    Post-norms multiply by their gain; norms before attention as ``treatment`` says, ``frozen`` and
    ``exact`` being refused.
    """
    layers = [maps.layer(n) for n in range(maps.shape.n_layers)]
    y = torch.stack([layer_norm_pull(m, "post_attn", u, treatment, None) for m in layers], 1)
    z = torch.einsum("lhed,bld->blhe", torch.stack([m.w_o for m in layers]), y)
    w_v = torch.stack([m.w_v for m in layers])
    z = z.unflatten(-2, (w_v.shape[1], -1))
    out = torch.einsum("lkde,blkge->blkgd", w_v, z).flatten(-3, -2)
    if treatment == "ignore" or layers[0].norms["pre_attn"] is None:
        return out
    gains = torch.stack([norm_pull(m.norms["pre_attn"], torch.ones_like(u[0]), treatment)
                         for m in layers])  # fmt: skip
    return out * gains[:, None]


def start(maps: Maps, run: Trace | None, u: Tensor, treatment: str) -> Tensor:
    """y at the last residual's last position ``[R, D]`` for what the final norm's output reads."""
    if run is None:
        return norm_pull(maps.final, u, treatment)
    return norm_pull(maps.final, u, treatment, run.last[:, -1], run.scale[:, -1])


@dataclass(eq=False)
class Pulled:
    """All paths at once.

    Args:
        at: y at resid_pre of each layer, and behind the last, ``[R, T, D]``.
        writes: y at the sum of heads of each layer, before a post-norm ``[R, T, D]``.
        const: what biases give o ``[R]``.
        remainder: what an MLP gives beyond its tangent, bias in, ``[layer, R]``.
    """

    at: list[Tensor] = field(default_factory=list)
    writes: list[Tensor] = field(default_factory=list)
    const: Tensor = field(default_factory=lambda: torch.zeros(0))
    remainder: list[Tensor] = field(default_factory=list)

    @property
    def embed(self) -> Tensor:
        """y at the embedding."""
        return self.at[0]


def pull_all(
    maps: Maps,
    run: Trace,
    u: Tensor,
    treatment: str = "frozen",
    *,
    base: Tensor | None = None,
    say: Callable[[int], None] = lambda layer: None,
) -> Pulled:
    """Pull an observable through every path at once, patterns fixed, MLPs at their own tangent.

    ``o = Σ_s y[s]·embed[s] + const + Σ remainder`` where norms are frozen; with linear MLPs the
    remainder is their bias. Pulls from the last position.

    Args:
        maps: the model.
        run: a run.
        u: what is read behind the final norm, ``[R, D]``.
        treatment: of norms.
        base: bias of the observable itself ``[R]``.
        say: told each layer that is done.
    """
    y = torch.zeros_like(run.last)
    y[:, -1] = start(maps, run, u, treatment)
    const = torch.zeros_like(y[:, 0, 0]) if base is None else base.to(y).clone()
    if maps.final is not None:
        const += (u * maps.final.bias).sum(-1)
    found = Pulled(at=[y], writes=[y] * len(run.layers), remainder=[const * 0] * len(run.layers))
    for n in range(len(run.layers) - 1, -1, -1):
        part, seen = maps.layer(n), run.layers[n]
        through, rest, bias = mlp_step(part, seen, y, treatment)
        found.remainder[n] = rest
        const += bias
        below = y if part.block.parallel else y + through
        pulled, bias, found.writes[n] = _attention(part, seen, below, treatment)
        const += bias
        y = below + pulled + (through if part.block.parallel else 0)
        found.at.insert(0, y)
        say(n)
    found.const = const
    return found


def mlp_step(
    part: LayerMaps, seen: LayerTrace, y: Tensor, treatment: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y at the residual the MLP reads ``[R, T, D]``, remainder and biases ``[R]``."""
    inner = layer_norm_pull(part, "post_mlp", y, treatment, seen)
    norm = part.norms["pre_mlp"]
    h = seen.mid if norm is None else norm.affine(seen.mid, seen.scales["pre_mlp"])
    slope, value = part.mlp_pull(h, inner)
    rest = (value - (slope * h).sum(-1)).sum(-1)
    bias = _bias(part.norms["post_mlp"], y) + _bias(norm, slope)
    return layer_norm_pull(part, "pre_mlp", slope, treatment, seen), rest, bias


def _attention(
    part: LayerMaps, seen: LayerTrace, y: Tensor, treatment: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y at resid_pre, biases, and y at the sum of heads."""
    inner = layer_norm_pull(part, "post_attn", y, treatment, seen)
    z_RTHE = torch.einsum("hed,rtd->rthe", part.w_o, inner)
    v_RSHE = torch.einsum("rhts,rthe->rshe", seen.pattern, z_RTHE)
    v_RSKE = v_RSHE.unflatten(2, (-1, part.groups)).sum(3)
    read = torch.einsum("kde,rske->rsd", part.w_v, v_RSKE)
    bias = _bias(part.norms["post_attn"], y) + (inner @ part.b_o).sum(-1)
    bias = bias + (v_RSKE * value_bias(part)).sum((-1, -2, -3))
    return layer_norm_pull(part, "pre_attn", read, treatment, seen), bias, inner


def value_bias(part: LayerMaps) -> Tensor:
    """What values hold whatever the residual is: ``b_V + β W_V`` ``[K, E]``."""
    norm = part.norms["pre_attn"]
    if norm is None:
        return part.b_v
    return part.b_v + torch.einsum("d,kde->ke", norm.bias, part.w_v)


def _bias(norm: NormMap | None, y: Tensor) -> Tensor:
    """β of a norm read by y, summed over positions."""
    if norm is None:
        return torch.zeros_like(y[:, 0, 0])
    return (y @ norm.bias).sum(-1)
