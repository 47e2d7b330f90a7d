"""What an adapter proves when it wraps a model, as lines of the trust panel.

A failing line is shown (amber), never hidden and never raised: a number that cannot be trusted is
marked. Values are relative to the standard deviation of what is compared; the tolerance follows
the dtype and grows with depth (rounding accumulates layer by layer).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.models.adapter import PER_LAYER
from interp.terms import Check, Edit, InterpError, Site

if TYPE_CHECKING:
    from interp.models.adapter import Adapter

UNIT: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-1,
    torch.float16: 1.25e-2,
}
"""Tolerance for one layer, relative to the standard deviation, by dtype."""

FELT = 1e-9
"""The least change of the logits, relative to their deviation, that counts as an effect. An edit
that does nothing at all changes them by exactly 0; one lost in rounding is reported as such."""


def tolerance(dtype: torch.dtype, depth: int) -> float:
    """Relative tolerance of a value that went through ``depth`` layers."""
    unit = UNIT.get(dtype, 1e-5)
    if dtype in (torch.bfloat16, torch.float16):
        return unit * math.sqrt(max(1, depth))
    return unit * (max(1, depth) if dtype == torch.float32 else 1)


def spread(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the standard deviation of ``b``; NaN if either is not finite.

    Args:
        a: any shape.
        b: the same shape.
    """
    a, b = a.detach().double(), b.detach().double()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return math.nan
    scale = float(b.std()) if b.numel() > 1 else float(b.abs().max())
    return float((a - b).abs().max()) / (scale or 1.0)


def self_checks(model: Adapter, probe: Tensor, reference: Tensor) -> tuple[Check, ...]:
    """Every self-check of a wrapped transformer.

    Args:
        model: the wrapped model.
        probe: token ids ``[1, T]``.
        reference: logits ``[1, T, vocab]`` of the unwrapped model on ``probe``.
    """
    try:
        return (
            unedited(model, probe, reference),
            *blocks_agree(model, probe, reference),
            *telescopes(model, probe),
            *edits_work(model, probe),
        )
    except InterpError as error:
        return (_broken("self_checks", "self-checks of the wrapped model", str(error)),)


def _broken(name: str, title: str, note: str) -> Check:
    return Check(name, title, math.nan, 0.0, note=note)


def unedited(model: Adapter, probe: Tensor, reference: Tensor) -> Check:
    """Unedited logits against the unwrapped model's."""
    logits = model.run(probe).logits
    return Check(
        "unwrapped_logits",
        "logits of the wrapped model against the unwrapped one",
        spread(logits, reference.to(logits.device)),
        tolerance(model.dtype, model.shape.n_layers),
        note="Largest difference in standard deviations. A larger one means that the back-end "
        "computes another function than the model.",
    )


def blocks_agree(model: Adapter, probe: Tensor, reference: Tensor) -> tuple[Check, ...]:
    """The engine's layers against the unwrapped model; nothing where there are no blocks."""
    if not model.can("blocks"):
        return ()
    return (
        Check(
            "blocks_logits",
            "logits of the engine's layers against the unwrapped model",
            spread(blocks_logits(model, probe), reference.to(model.device)),
            tolerance(model.dtype, model.shape.n_layers),
            note="The sweeps run on these layers, so their effects are as exact as this.",
        ),
    )


def blocks_logits(model: Adapter, probe: Tensor) -> Tensor:
    """Logits ``[1, T, vocab]`` by driving the blocks over one prompt ``[1, T]``."""
    blocks = model.blocks
    tokens = probe[0].to(blocks.device)
    position = torch.arange(len(tokens), device=blocks.device)
    with torch.no_grad():
        resid = blocks.embed(tokens, position)
        for block in blocks.layers:
            q, k, v = block.qkv(resid, position)
            z = block.attend(q[None], k[None], v[None], position)[0]
            attn = block.add_attn(block.attn_sum(z))
            read = resid if block.parallel else resid + attn
            mlp = block.add_mlp(block.mlp_sum(block.neurons(read)))
            resid = resid + attn + mlp
        return blocks.unembed(resid)[None]


def telescopes(model: Adapter, probe: Tensor) -> tuple[Check, ...]:
    """resid_pre + attn_out + mlp_out against resid_post, the worst layer, also under an edit.

    Nothing where a model has no residual stream that it names.
    """
    parts = [k for k in ("attn_out", "mlp_out") if model.can(k)]
    if not parts or not model.can("resid_pre") or not model.can("resid_post"):
        return ()
    worst, note = 0.0, "What is called attn_out and mlp_out is exactly what a layer adds."
    layers = range(model.shape.n_layers)
    sites = {(k, i): Site(k, layer=i) for i in layers for k in ("resid_pre", *parts, "resid_post")}
    reads = model.run(probe, read=tuple(sites.values())).reads
    for i in layers:
        total = reads[sites["resid_pre", i]].double()
        for kind in parts:
            total = total + reads[sites[kind, i]].double()
        worst = _worse(worst, spread(total, reads[sites["resid_post", i]]))
    if model.can("resid_mid") and "mlp_out" in parts:
        kept = _mid_reaches_the_next(model, probe, reads[sites["resid_pre", 0]])
        note += "" if kept <= worst else " Worst after an edit of resid_mid."
        worst = _worse(worst, kept)
    return (
        Check(
            "telescopes",
            "residual + attention + MLP = next residual, in every layer",
            worst,
            tolerance(model.dtype, 1),
            note=note,
        ),
    )


def _mid_reaches_the_next(model: Adapter, probe: Tensor, like: Tensor) -> float:
    """resid_mid edited: its new value + mlp_out against resid_post, in layer 0.

    A hook on the MLP's norm alone would leave the skip connection as it was.
    """
    mid, out, post = (Site(k, layer=0) for k in ("resid_mid", "mlp_out", "resid_post"))
    value = _shifted(like)
    reads = model.run(probe, edits=[Edit(mid, value)], read=(out, post)).reads
    return spread(value.double() + reads[out].double(), reads[post])


def _worse(a: float, b: float) -> float:
    return b if math.isnan(b) or b > a else a


def edits_work(model: Adapter, probe: Tensor) -> tuple[Check, ...]:
    """Self-patch is the identity; an edit at each site is felt; doubled divisors are felt.

    One pass a site with two rows: in the first the site gets its own value, in the second another
    one. A middle layer and the ends stand for their kinds: the other layers are the same modules
    under other numbers, and ``telescopes`` has read them all.
    """
    layer = model.shape.n_layers // 2
    have = [c.name for c in model.capabilities() if c.ok]
    unread = _unread(model, layer)
    sites = [Site(k, layer=layer) for k in PER_LAYER if k in have and k not in unread]
    sites += [
        Site(k)
        for k in ("embed", "ln_final_scale", "logits", "input")
        if k in have and (k != "logits" or probe.dim() > 1)
    ]
    rows = probe[:1].repeat(2, *([1] * (probe.dim() - 1)))
    base = model.run(rows, read=sites)
    identity = _Extreme(0.0)
    felt = {False: _Extreme(math.inf), True: _Extreme(math.inf)}
    for site in sites:
        scale = site.kind.endswith("_scale")
        value = base.reads[site].clone()
        value[1:] = 2 * value[1:] if scale else _shifted(value[1:])
        run = model.run(rows, edits=[Edit(site, value)], read=[site])
        identity.highest(spread(run.logits[:1], base.logits[:1]), site)
        moved = spread(run.logits[1:], base.logits[1:])
        there = torch.equal(run.reads[site], value.to(run.reads[site].dtype))
        felt[scale].lowest(moved if there else 0.0, site)
    return (
        Check(
            "identity_patch",
            "patching any site with its own value changes nothing",
            identity.value,
            tolerance(model.dtype, 1),
            note=f"Largest at {identity.where}.",
        ),
        _felt("edits_fire", "an edit at every kind of site changes the logits", felt[False]),
        *(
            (_felt("scales_fire", "doubling every norm's divisor changes the logits", felt[True]),)
            if felt[True].where
            else ()
        ),
    )


def _unread(model: Adapter, layer: int) -> tuple[str, ...]:
    """Divisors that nothing can feel: an MLP whose input weights are all 0 reads no norm."""
    if not model.can("ln2_scale") or not model.can("blocks"):
        return ()
    block: Any = model.blocks.layers[layer]
    weights = [w.weight for w in (block.w_in, block.w_gate) if w is not None]
    return () if any(bool(w.any()) for w in weights) else ("ln2_scale",)


class _Extreme:
    """The worst value seen, and where; a NaN is worse than anything."""

    def __init__(self, value: float) -> None:
        self.value, self.where = value, ""

    def highest(self, value: float, site: Site) -> None:
        """Keep the larger."""
        if math.isnan(value) or value > self.value or not self.where:
            self.value, self.where = value, str(site)

    def lowest(self, value: float, site: Site) -> None:
        """Keep the smaller."""
        if math.isnan(value) or value < self.value:
            self.value, self.where = value, str(site)


def _shifted(value: Tensor) -> Tensor:
    """Another value of the same size: the positions in reverse order, and a little more.

    Of a value that is 0 everywhere (a part that adds nothing) another one rises from 0 to 1 along
    the last axis: a constant would be lost in a norm that subtracts the mean.
    """
    turned = value.flip(1) if value.dim() > 1 else value
    size = value.std() if value.numel() > 1 else value.abs().sum()
    ramp = torch.linspace(0, 1, value.shape[-1], dtype=value.dtype, device=value.device)
    return turned * 1.5 + torch.where(size > 0, size * 0.25, ramp)


def _felt(name: str, title: str, least: _Extreme) -> Check:
    note = f"Smallest at {least.where}, in standard deviations of the logits."
    if not least.value >= FELT:
        note += (
            " Either the model does not use this part, or the edit does not reach it: do not "
            "trust effects there."
        )
    return Check(name, title, least.value, FELT, at_least=True, note=note)
