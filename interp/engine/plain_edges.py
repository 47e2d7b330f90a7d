"""Plain edges: one edge or path by ordinary forward passes of the back-end, to verify the engine.

Three or four whole passes an edge: the writer's change, what the reader makes of it in a pass of
its own, and the base run with only that reader's output put in place (wang2023interpretability).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.terms import Edit, HookedModel, Site

WRITES = {"embed": "embed", "z": "attn_out", "mlp_out": "mlp_out"}


def edge_edits(
    model: HookedModel, tokens: Any, writer: Sequence[Edit], reader: Site, frozen: bool
) -> list[Edit]:
    """Node edits that make of the base run one in which a reader alone sees an edited writer.

    Args:
        model: any adapter.
        tokens: the base run's, ``[prompt, position]``.
        writer: the writer's edits as a node, with their values.
        reader: whose copy of the residual changes.
        frozen: hold later attention at the base run and compute the MLPs between anew, instead of
            the writer's direct change alone.
    """
    if frozen:
        edits = [*writer, *_held(model, tokens, writer)]
    else:
        edits = [_direct(model, tokens, writer, reader)]
    if reader.kind == "logits":
        return edits
    value = _read(model, tokens, edits, [reader.whole])[reader.whole]
    value = value if reader.head is None else value[:, :, reader.head]
    return [Edit(reader, value)]


def _read(model: HookedModel, tokens: Any, edits: Sequence[Edit], sites: Sequence[Site]) -> Any:
    return model.run(tokens, edits=edits, read=sites, positions=[-1]).reads


def _direct(model: HookedModel, tokens: Any, writer: Sequence[Edit], reader: Site) -> Edit:
    """The writer's change added to the residual where the reader stands."""
    site = Site(WRITES[writer[0].site.kind], layer=writer[0].site.layer)
    before = _read(model, tokens, [], [site])[site]
    after = _read(model, tokens, writer, [site])[site]
    if reader.kind == "logits":
        stage = Site("resid_post", layer=model.shape.n_layers - 1)
    elif reader.kind == "mlp_out" and not model.shape.parallel:
        stage = Site("resid_mid", layer=reader.layer)
    else:
        stage = Site("resid_pre", layer=reader.layer)
    return Edit(stage, after - before, mode="add")


def _held(model: HookedModel, tokens: Any, writer: Sequence[Edit]) -> list[Edit]:
    """All heads behind the writer as in the base run."""
    layer = writer[0].site.layer
    first = 0 if layer is None else layer + 1
    sites = [Site("z", layer=n) for n in range(first, model.shape.n_layers)]
    reads = _read(model, tokens, [], sites)
    return [Edit(site, reads[site]) for site in sites]
