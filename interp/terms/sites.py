"""Site: a named place in a model where a value can be read or edited."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp.terms.errors import UsageError, unknown_name


@dataclass(frozen=True)
class SiteKind:
    """What a kind of site holds.

    Args:
        name: the identifier, in TransformerLens's terms.
        title: words for a label.
        dims: axes of the value after ``[batch, position]``.
        per_layer: whether one exists in each layer.
        residual: whether the value lives in the residual stream (width d_model).
    """

    name: str
    title: str
    dims: tuple[str, ...]
    per_layer: bool = True
    residual: bool = False

    @property
    def head_axis(self) -> str | None:
        """``head`` or ``kv_head`` where the value is split by heads."""
        return next((d for d in self.dims if d in ("head", "kv_head")), None)


def _kinds() -> dict[str, SiteKind]:
    resid = [
        SiteKind("resid_pre", "residual stream before the layer", ("d_model",), residual=True),
        SiteKind("resid_mid", "residual stream after attention", ("d_model",), residual=True),
        SiteKind("resid_post", "residual stream after the layer", ("d_model",), residual=True),
        SiteKind("attn_out", "attention output", ("d_model",), residual=True),
        SiteKind("mlp_out", "MLP output", ("d_model",), residual=True),
    ]
    heads = [
        SiteKind("z", "head output before W_O", ("head", "d_head")),
        SiteKind("q", "queries", ("head", "d_head")),
        SiteKind("k", "keys", ("kv_head", "d_head")),
        SiteKind("v", "values", ("kv_head", "d_head")),
        SiteKind("pattern", "attention pattern", ("head", "key")),
    ]
    mlp = [
        SiteKind("mlp_post", "MLP neurons", ("neuron",)),
        SiteKind("feature", "dictionary features", ("feature",)),
    ]
    scales = [
        SiteKind("ln1_scale", "divisor of the norm before attention", ()),
        SiteKind("ln1_post_scale", "divisor of the norm after attention", ()),
        SiteKind("ln2_scale", "divisor of the norm before the MLP", ()),
        SiteKind("ln2_post_scale", "divisor of the norm after the MLP", ()),
        SiteKind("q_norm_scale", "divisor of the query norm", ("head",)),
        SiteKind("k_norm_scale", "divisor of the key norm", ("kv_head",)),
        SiteKind("ln_final_scale", "divisor of the final norm", (), per_layer=False),
    ]
    ends = [
        SiteKind("embed", "token embedding", ("d_model",), per_layer=False, residual=True),
        SiteKind("logits", "logits", ("vocab",), per_layer=False),
        SiteKind("input", "raw input", (), per_layer=False),
        SiteKind("module", "output of a module", (), per_layer=False),
    ]
    return {k.name: k for k in (*ends[:1], *resid, *heads, *mlp, *scales, *ends[1:])}


KINDS: dict[str, SiteKind] = _kinds()
"""Every kind of site. ``embed`` is the token embedding, before a position embedding is added."""

Position = int | tuple[int, ...] | str | None


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model: kind, and where a kind repeats, its layer, head, neuron or position.

    Args:
        kind: one of ``KINDS``.
        layer: counted from 0; None for kinds that exist once.
        head: query head (z, q, pattern) or key/value head (k, v); None means all.
        neuron: index in ``mlp_post``; None means all.
        feature: index in a dictionary; None means all.
        dictionary: name of the dictionary the feature belongs to.
        position: an index, a tuple of them, a task's slot name, or None for all.
        key: source position of a pattern entry; None means all.
        path: module path, for kind ``module`` only.

    Raises:
        UsageError: unknown kind, or a field that the kind does not have.
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    feature: int | None = None
    dictionary: str | None = None
    position: Position = field(default=None, compare=True)
    key: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("site", self.kind, KINDS)
        kind = KINDS[self.kind]
        if isinstance(self.position, list):
            object.__setattr__(self, "position", tuple(self.position))
        for name, fits in (
            ("layer", kind.per_layer),
            ("head", kind.head_axis is not None),
            ("neuron", self.kind == "mlp_post"),
            ("feature", self.kind == "feature"),
            ("key", self.kind == "pattern"),
            ("path", self.kind == "module"),
        ):
            if getattr(self, name) is not None and not fits:
                raise UsageError(f"Site {self.kind!r} has no {name}, but {name} was given.")
        if self.kind == "module" and not self.path:
            raise UsageError("Site 'module' needs the path of a module, as in 'layers.3.conv'.")

    @property
    def spec(self) -> SiteKind:
        """The kind's description."""
        return KINDS[self.kind]

    def at(self, position: Position) -> Site:
        """The same site at ``position``."""
        return replace(self, position=position)

    @property
    def whole(self) -> Site:
        """The tensor this site is a part of: same kind, layer and path, nothing selected."""
        return Site(self.kind, layer=self.layer, dictionary=self.dictionary, path=self.path)

    def __str__(self) -> str:
        parts = [self.kind if self.path is None else f"module:{self.path}"]
        if self.layer is not None:
            parts.append(f"L{self.layer}")
        for letter, value in (("H", self.head), ("N", self.neuron), ("F", self.feature)):
            if value is not None:
                parts.append(f"{letter}{value}")
        if self.position is not None:
            pos = self.position
            parts.append("@" + (",".join(map(str, pos)) if isinstance(pos, tuple) else str(pos)))
        if self.key is not None:
            parts.append(f"<-{self.key}")
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Fields that are set, as plain JSON."""
        out: dict[str, Any] = {"kind": self.kind}
        for name in ("layer", "head", "neuron", "feature", "dictionary", "position", "key", "path"):
            value = getattr(self, name)
            if value is not None:
                out[name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Site:
        """The inverse of ``to_json``."""
        data = dict(data)
        if isinstance(data.get("position"), Sequence) and not isinstance(data["position"], str):
            data["position"] = tuple(data["position"])
        return cls(**data)

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read the form that ``str`` writes, as ``"z L3 H1 @-1"``."""
        words = text.split()
        if not words:
            raise UsageError("An empty text names no site.", remedy="Write e.g. 'resid_pre L3'.")
        kind, path = (words[0].split(":", 1) + [None])[:2]  # type: ignore[list-item]
        fields: dict[str, Any] = {"kind": kind, "path": path}
        names = {"L": "layer", "H": "head", "N": "neuron", "F": "feature"}
        for word in words[1:]:
            if match := re.fullmatch(r"([LHNF])(\d+)", word):
                fields[names[match[1]]] = int(match[2])
            elif match := re.fullmatch(r"<-(\d+)", word):
                fields["key"] = int(match[1])
            elif match := re.fullmatch(r"@(-?\d+(?:,-?\d+)*)", word):
                numbers = tuple(int(n) for n in match[1].split(","))
                fields["position"] = numbers[0] if len(numbers) == 1 else numbers
            elif word.startswith("@") and len(word) > 1:
                fields["position"] = word[1:]
            else:
                raise UsageError(
                    f"{word!r} in {text!r} names no part of a site.",
                    remedy="Write e.g. 'z L3 H1 @-1' (layer, head, position).",
                )
        return cls(**fields)
