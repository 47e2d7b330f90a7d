"""Site maps: where a hand-written network keeps a transformer's sites.

A map is plain data, so that it travels in provenance::

    {"n_heads": 4,
     "embed": "embed",
     "resid_pre": "blocks.{layer}:input",
     "z": {"path": "blocks.{layer}.mix", "side": "input", "axes": "batch position (head d_head)"},
     "pattern": {"path": "blocks.{layer}.pattern", "axes": "batch head position key"}}

``{layer}`` runs over the layers. ``axes`` names the axes of the tensor as it flows there; a group
in brackets is one axis that splits, the last name of the group running fastest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from interp.terms import KINDS, UsageError, near_misses, unknown_name

SIZES = ("n_heads", "n_kv_heads", "n_layers", "n_ctx")
"""Keys of a map that are numbers, not sites."""

FORBIDDEN = ("input", "logits", "module", "feature")
"""Kinds that need no entry, or cannot have one."""


@dataclass(frozen=True)
class Axes:
    """How a raw tensor's axes become ``[batch, position, *site dims]``, and back.

    Args:
        names: the raw axes in order, a group as a tuple.
        order: the site's axes in order.
        sizes: widths of the axes in groups that are known (heads).
    """

    names: tuple[tuple[str, ...], ...]
    order: tuple[str, ...]
    sizes: Mapping[str, int]

    def decode(self, raw: Tensor) -> Tensor:
        """The site's value, a view where possible."""
        if raw.dim() != len(self.names):
            words = " ".join(f"({' '.join(g)})" if len(g) > 1 else "".join(g) for g in self.names)
            raise UsageError(
                f"The site map says '{words}' and the tensor has shape {tuple(raw.shape)}.",
                remedy="Name each axis once, in order.",
            )
        for axis in reversed(range(raw.dim())):
            group = self.names[axis]
            if len(group) > 1:
                widths = [self.sizes.get(n, -1) for n in group]
                if (
                    raw.shape[axis] % -_product(widths)
                    if -1 in widths
                    else (raw.shape[axis] != _product(widths))
                ):
                    raise UsageError(
                        f"An axis of {raw.shape[axis]} does not split into "
                        f"({' '.join(group)}) with {dict(self.sizes)}."
                    )
                raw = raw.unflatten(axis, widths)
        return raw.permute([self._flat.index(n) for n in self.order])

    def encode(self, value: Tensor, raw: Tensor) -> Tensor:
        """``raw`` with the site's value in place."""
        value = value.permute([self.order.index(n) for n in self._flat])
        return value.reshape(raw.shape)

    @property
    def _flat(self) -> tuple[str, ...]:
        return tuple(n for group in self.names for n in group)


def _product(widths: list[int]) -> int:
    out = 1
    for width in widths:
        out *= width
    return out


@dataclass(frozen=True)
class Spot:
    """One entry of a map, read and checked.

    Args:
        path: module path; ``{layer}`` where it repeats.
        side: ``input`` or ``output``.
        axes: names of the raw axes, or None for the site's own order.
        eps: for a norm's divisor, what is added to the mean square; None takes the module's.
        centred: for a norm's divisor, whether the mean is taken away; None asks the module.
        in_place: the tensor is the skip connection too, so an edit writes into it.
    """

    path: str
    side: str
    axes: str | None
    eps: float | None = None
    centred: bool | None = None
    in_place: bool = False


@dataclass(frozen=True)
class SiteMap:
    """A map, read and checked against a module.

    Args:
        spots: kind -> where.
        n_layers: how many layers the paths have.
        n_heads: heads a layer, 0 without.
        n_kv_heads: key/value heads a layer.
        n_ctx: longest prompt, or None.
    """

    spots: Mapping[str, Spot]
    n_layers: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    n_ctx: int | None = None

    def axes(self, kind: str) -> Axes:
        """The layout of a kind's tensor."""
        order = ("batch", "position", *KINDS[kind].dims)
        words = self.spots[kind].axes
        names = read_axes(words, kind) if words else tuple((n,) for n in order)
        sizes = {"head": self.n_heads, "kv_head": self.n_kv_heads}
        return Axes(names, order, {k: v for k, v in sizes.items() if v})


def read_axes(words: str, kind: str) -> tuple[tuple[str, ...], ...]:
    """Read ``"batch position (head d_head)"``.

    Raises:
        UsageError: not each of the site's axes once.
    """
    wanted = ("batch", "position", *KINDS[kind].dims)
    said = words.replace("query", "position")
    if "kv_head" in wanted:
        said = re.sub(r"\bhead\b", "kv_head", said)
    names = tuple(
        tuple(a.split() if a else [b]) for a, b in re.findall(r"\(([^)]*)\)|([a-z_]+)", said)
    )
    if sorted(n for g in names for n in g) != sorted(wanted):
        raise UsageError(
            f"The axes of {kind!r} are given as {words!r}; wanted {', '.join(wanted)}, each once.",
            remedy="Put a split axis in brackets: 'batch position (head d_head)'.",
        )
    return names


def read_site_map(given: Mapping[str, Any] | None, module: nn.Module) -> SiteMap:
    """Read a map and hold it against the module.

    Raises:
        UsageError: an unknown kind or key, a path that is not there (with near misses), or heads
            without their number.
    """
    if given is None:
        return SiteMap({})
    sizes = {k: given[k] for k in SIZES if given.get(k) is not None}
    spots = {kind: _spot(kind, entry) for kind, entry in given.items() if kind not in SIZES}
    layers = sizes.get("n_layers") or _count(spots, module)
    for kind, spot in spots.items():
        _check_paths(kind, spot, module, layers)
        if spot.axes:
            read_axes(spot.axes, kind)
        split = KINDS[kind].head_axis is not None
        if split and not sizes.get("n_heads") and spot.axes and "(" in spot.axes:
            raise UsageError(
                f"{kind!r} splits into heads and the site map does not say how many.",
                remedy="Add n_heads to the site map.",
            )
    heads = int(sizes.get("n_heads", 0))
    return SiteMap(
        spots, int(layers), heads, int(sizes.get("n_kv_heads", heads)), sizes.get("n_ctx")
    )


def _spot(kind: str, entry: Any) -> Spot:
    if kind not in KINDS or kind in FORBIDDEN:
        raise unknown_name("site for a site map", kind, [k for k in KINDS if k not in FORBIDDEN])
    fields: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"path": str(entry)}
    known = ("path", "side", "axes", "eps", "centred", "in_place")
    for key in fields:
        if key not in known:
            raise unknown_name(f"field of a site map's {kind!r}", str(key), known)
    path, colon, side = str(fields.get("path", "")).partition(":")
    side = str(fields.get("side", side or "output"))
    if side not in ("input", "output"):
        raise UsageError(
            f"The site map puts {kind!r} at the {side!r} of {path!r}; wanted input or output."
        )
    if KINDS[kind].per_layer and "{layer}" not in path:
        raise UsageError(
            f"The site map's path for {kind!r} is {path!r}, which names no layer.",
            remedy="Write {layer} where the layer's number stands, as in 'blocks.{layer}.attn'.",
        )
    in_place = bool(fields.get("in_place", kind == "resid_mid" and side == "input"))
    return Spot(path, side, fields.get("axes"), fields.get("eps"), fields.get("centred"), in_place)


def _count(spots: Mapping[str, Spot], module: nn.Module) -> int:
    """How many layers the map's paths have in the module."""
    modules = dict(module.named_modules())
    found = 0
    for spot in spots.values():
        if "{layer}" in spot.path:
            n = 0
            while spot.path.format(layer=n) in modules:
                n += 1
            found = max(found, n)
    return found


def _check_paths(kind: str, spot: Spot, module: nn.Module, layers: int) -> None:
    modules = dict(module.named_modules())
    for layer in range(max(1, layers)):
        path = spot.path.format(layer=layer)
        if path not in modules:
            close = near_misses(path, modules)
            raise UsageError(
                f"The site map puts {kind!r} at {path!r}, and the module has no such part.",
                remedy=f"Did you mean {' or '.join(map(repr, close))}?" if close else "",
            )
        if "{layer}" not in spot.path:
            return
