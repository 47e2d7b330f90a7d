"""Reading: vectors that heads and MLPs read of an observable, with a run or from the weights alone.

Legend: R prompts, Q positions at which a vector stands, T/S positions of a run, H heads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.engine.pulls import all_heads, layer_norm_pull, norm_pull, ov_pull, start, value_bias
from interp.engine.traces import LayerMaps, LayerTrace, Maps, NormMap, Trace
from interp.methods.observables.angles import cosine
from interp.methods.observables.graph import MLP, Node
from interp.terms import UsageError


@dataclass(frozen=True, eq=False)
class Standing:
    """Vectors that stand in the residual behind some node.

    Args:
        y: ``[R, Q, D]``.
        places: position of each of the Q, empty without a run.
        run: the run, or None.
    """

    y: Tensor
    places: Tensor
    run: Trace | None

    def seen(self, layer: int) -> LayerTrace | None:
        """The run's values of a layer at these places ``[R, Q, …]``; patterns ``[R, H, Q, S]``."""
        if self.run is None:
            return None
        whole, at = self.run.layers[layer], self.places
        return LayerTrace(
            whole.resid[:, at],
            whole.mid[:, at],
            whole.pattern[:, :, at],
            whole.attn_sum[:, at],
            whole.mlp_sum[:, at],
            whole.z[:, at],
            {name: scale[:, at] for name, scale in whole.scales.items()},
        )


def at_logits(maps: Maps, run: Trace | None, u: Tensor, treatment: str) -> Standing:
    """What the logits read at the last position; u is ``[R, D]`` behind the final norm."""
    y = start(maps, run, u, treatment)[:, None]
    last = [] if run is None else [run.length - 1]
    return Standing(y, torch.tensor(last, device=y.device, dtype=torch.long), run)


def through(maps: Maps, node: Node, at: Standing, treatment: str) -> Standing:
    """The vectors that a node reads of the vectors that stand behind it.

    Raises:
        UsageError: an MLP without a run.
    """
    part, seen = maps.layer(node.layer), at.seen(node.layer)
    if node.head == MLP:
        if seen is None:
            raise UsageError(
                f"{node.name} is no linear map: to pass it, it must be made linear at a run.",
                remedy="Give a task, or leave MLPs out.",
            )
        inner = layer_norm_pull(part, "post_mlp", at.y, treatment, seen)
        norm = part.norms["pre_mlp"]
        h = seen.mid if norm is None else norm.affine(seen.mid, seen.scales["pre_mlp"])
        slope = part.mlp_pull(h, inner)[0]
        return Standing(layer_norm_pull(part, "pre_mlp", slope, treatment, seen), at.places, at.run)
    inner = layer_norm_pull(part, "post_attn", at.y, treatment, seen)
    z = inner @ part.w_o[node.head].T
    if seen is None or at.run is None:
        read = z @ part.w_v[node.head // part.groups].T
        return Standing(layer_norm_pull(part, "pre_attn", read, treatment, None), at.places, None)
    moved = torch.einsum("rqs,rqe->rse", seen.pattern[:, node.head], z)
    read = moved @ part.w_v[node.head // part.groups].T
    whole = at.run.layers[node.layer]
    places = torch.arange(at.run.length, device=read.device)
    return Standing(layer_norm_pull(part, "pre_attn", read, treatment, whole), places, at.run)


def heads_free(maps: Maps, at: Standing, treatment: str, below: int) -> Tensor:
    """Without a run: what every head of the layers under ``below`` reads, ``[R, layer, H, D]``."""
    return all_heads(maps, at.y[:, 0], treatment)[:, :below]


@dataclass(frozen=True, eq=False)
class HeadReads:
    """What the heads of one layer read of an observable.

    Args:
        vector: ``[R, H, D]``, each source position weighed by its attention.
        share: of o that each source position gives by each head ``[R, H, S]``.
        bias: of o by the head whatever its input ``[R, H]``.
        total: the head's write read by the observable ``[R, H]``; share + bias where norms are
            frozen.
        cosine: of the angle its norm turns the vector by, weighed likewise ``[R, H]``.
        reach: length of the vector for an input that the norm has divided ``[R, H]``: comparable
            between layers.
    """

    vector: Tensor
    share: Tensor
    bias: Tensor
    total: Tensor
    cosine: Tensor
    reach: Tensor


def heads_of(maps: Maps, layer: int, at: Standing, treatment: str) -> HeadReads:
    """What every head of a layer reads, with a run."""
    part, seen = maps.layer(layer), at.seen(layer)
    assert seen is not None and at.run is not None
    whole = at.run.layers[layer]
    inner = layer_norm_pull(part, "post_attn", at.y, treatment, seen)
    z = torch.einsum("hed,rqd->rqhe", part.w_o, inner)
    read = ov_pull(part, inner)
    weight = seen.pattern.transpose(1, 2)  # [R, Q, H, S]
    vector, share = _weighed(part, whole, read, weight, treatment)
    split = z.unflatten(2, (-1, part.groups))
    held = torch.einsum("ke,rqkge->rqkg", value_bias(part), split).flatten(2)
    bias = (held * weight.sum(-1)).sum(1)
    total = (seen.z * z).sum((1, 3))
    norm = part.norms["pre_attn"]
    summed = torch.einsum("rqh,rqhd->rhd", weight.sum(-1), read)
    reach = normed_length(norm, summed, treatment)
    turned = torch.ones_like(bias)
    if norm is not None and treatment != "ignore":
        turned = _turned(norm, read, weight, whole.resid)
    return HeadReads(vector, share, bias, total, turned, reach)


def normed_length(norm: NormMap | None, read: Tensor, treatment: str) -> Tensor:
    """Length of a vector at a norm's output ``[…, D]``, for an input divided by its scale.

    For x standard normal behind the division this is the spread of what x gives o; it leaves out
    the length of the residual, which grows from layer to layer.
    """
    if norm is None or treatment == "ignore":
        return read.norm(dim=-1)
    v = norm.gain * read
    return (v if treatment == "norm" else norm.centred(v)).norm(dim=-1)


def _weighed(
    part: LayerMaps, whole: LayerTrace, read: Tensor, weight: Tensor, treatment: str
) -> tuple[Tensor, Tensor]:
    """``Σ_{q,s} A[q,s] N_sᵀ read[q]`` ``[R, H, D]`` and ``Σ_q A[q,s] x_s · N_sᵀ read[q]``."""
    norm, x = part.norms["pre_attn"], whole.resid
    if norm is None or treatment == "ignore":
        vector = torch.einsum("rqhs,rqhd->rhd", weight, read)
        return vector, torch.einsum("rqhs,rqhd,rsd->rhs", weight, read, x)
    scale = whole.scales["pre_attn"]
    if treatment == "norm":
        factor = x.shape[-1] ** 0.5 / x.norm(dim=-1)
        v = norm.gain * read
        vector = torch.einsum("rqhs,rs,rqhd->rhd", weight, factor, v)
        return vector, torch.einsum("rqhs,rs,rqhd,rsd->rhs", weight, factor, v, x)
    v = norm.centred(norm.gain * read)
    c = norm.centred(x)
    vector = torch.einsum("rqhs,rs,rqhd->rhd", weight, 1 / scale, v)
    dots = torch.einsum("rqhd,rsd->rqhs", v, c)
    share = torch.einsum("rqhs,rs,rqhs->rhs", weight, 1 / scale, dots)
    if treatment == "exact":
        bent = weight * dots / (x.shape[-1] * scale**3)[:, None, None]
        vector = vector - torch.einsum("rqhs,rsd->rhd", bent, c)
        share = share - (bent * c.square().sum(-1)[:, None, None]).sum(1)
    return vector, share


def _turned(norm: NormMap, read: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """cos θ of the norm ``[R, H]``, source positions weighed by attention."""
    found = cosine(norm, read[:, :, :, None], x[:, None, None])
    mean = (weight * found.nan_to_num(1.0)).sum((1, 3))
    return mean / weight.sum((1, 3)).clamp_min(1e-30)


def mlp_at(part: LayerMaps, y: Tensor, x0: Tensor, treatment: str) -> tuple[Tensor, Tensor]:
    """What an MLP made linear at ``x0`` ``[B, D]`` reads of y ``[B, D]``: at its residual.

    Returns:
        the vector, and its length for an input that the norm has divided ``[B]``.
    """
    pre, post = part.norms["pre_mlp"], part.norms["post_mlp"]
    h = x0 if pre is None else pre.affine(x0, pre.scale(x0))
    summed = part.mlp(h).detach().to(y)
    inner = norm_pull(
        post, y, treatment, summed, None if post is None else post.scale(summed), post=True
    )
    slope = part.mlp_pull(h, inner)[0]
    scale = None if pre is None else pre.scale(x0)
    length = normed_length(pre, slope, treatment)
    return norm_pull(pre, slope, treatment, x0, scale), length


def mlp_value(part: LayerMaps, y: Tensor, x: Tensor) -> Tensor:
    """``g(x) = y · MLP(x)`` with norms and biases; y ``[B, D]``, x ``[B, n, D]`` -> ``[B, n]``."""
    pre, post = part.norms["pre_mlp"], part.norms["post_mlp"]
    h = x if pre is None else pre.affine(x, pre.scale(x))
    with torch.no_grad():
        out = part.mlp(h).to(y)
    out = out if post is None else post.affine(out, post.scale(out))
    return (out * y[:, None]).sum(-1)
