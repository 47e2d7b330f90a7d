"""Nodes: names of writers and readers, and which of them a person chose."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from interp.terms import ModelShape, Site, UsageError

WRITER_WORDS = "all, embed, heads, mlps, or names such as L0H1 and MLP2"
READER_WORDS = "all, q, k, v, heads, mlps, logits, or names such as L3H1, L3H1.q and MLP2"


def writer_name(site: Site) -> str:
    """``embed``, ``L0H1`` or ``MLP2``."""
    if site.kind == "embed":
        return "embed"
    return f"MLP{site.layer}" if site.kind == "mlp_out" else f"L{site.layer}H{site.head}"


def reader_name(site: Site, shape: ModelShape) -> str:
    """``L3H1.q``, ``L3KV0.k`` where key/value heads are shared, ``MLP2`` or ``logits``."""
    if site.kind in ("logits", "mlp_out"):
        return "logits" if site.kind == "logits" else f"MLP{site.layer}"
    shared = site.kind != "q" and shape.n_kv_heads < shape.n_heads
    return f"L{site.layer}{'KV' if shared else 'H'}{site.head}.{site.kind}"


def chosen_writers(text: str, sites: Sequence[Site]) -> list[Site]:
    """The writers that a text names, in the model's order.

    Raises:
        UsageError: a word that names none of them.
    """
    groups = {"heads": "z", "mlps": "mlp_out", "embed": "embed"}

    def fits(word: str, site: Site) -> bool:
        return groups.get(word) == site.kind or word.lower() == writer_name(site).lower()

    return _chosen(text, sites, fits, "writer", WRITER_WORDS)


def chosen_readers(text: str, sites: Sequence[Site], shape: ModelShape) -> list[Site]:
    """The readers that a text names; a head alone names its q, k and v (of its group).

    Raises:
        UsageError: a word that names none of them.
    """
    groups = {"q": "q", "k": "k", "v": "v", "mlps": "mlp_out", "logits": "logits"}
    group_size = max(1, shape.n_heads // max(1, shape.n_kv_heads))

    def fits(word: str, site: Site) -> bool:
        if groups.get(word) == site.kind or (word == "heads" and site.kind in "qkv"):
            return True
        if word.lower() == reader_name(site, shape).lower():
            return True
        head = re.fullmatch(r"L(\d+)H(\d+)(?:\.([qkv]))?", word, re.IGNORECASE)
        if head is None or site.kind not in ("q", "k", "v") or site.layer != int(head[1]):
            return False
        mine = int(head[2]) if site.kind == "q" else int(head[2]) // group_size
        return site.head == mine and (head[3] or site.kind).lower() == site.kind

    return _chosen(text, sites, fits, "reader", READER_WORDS)


def _chosen(
    text: str, sites: Sequence[Site], fits: Callable[[str, Site], bool], what: str, words: str
) -> list[Site]:
    found: set[Site] = set()
    for word in (w.strip() for w in text.split(",") if w.strip()):
        here = [s for s in sites if word == "all" or fits(word, s)]
        if not here:
            raise UsageError(f"{word!r} is no {what} of this model.", remedy=f"Use {words}.")
        found.update(here)
    if not found:
        raise UsageError(f"No {what} was named.", remedy=f"Use {words}.")
    return [s for s in sites if s in found]
