"""Edges and paths: one reader's own copy of the residual, against hooks on the raw module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.engine import Cell, sweep
from interp.engine.edges import all_edges
from interp.terms import Edit, Site, UsageError
from tests.checkpoints import FAMILY_NAMES
from tests.engine.driven import Remembering, driven, pairs_for
from tests.twins import edges as twin
from tests.twins.patching import logit_diff

VOCAB = 97
LAYERS = 4


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any]]:
    return {name: driven(name) for name in FAMILY_NAMES}


def scores(logits: torch.Tensor, pairs: Any) -> np.ndarray:
    return logit_diff(logits, list(pairs.right), list(pairs.wrong)).detach().numpy()


def writer(node: tuple[Any, ...], position: Any = None) -> Site:
    if node[0] == "embed":
        return Site("embed", position=position)
    if node[0] == "mlp":
        return Site("mlp_out", layer=node[1], position=position)
    return Site("z", layer=node[1], head=node[2], position=position)


def reader(node: tuple[Any, ...]) -> Site:
    if node[0] == "logits":
        return Site("logits")
    if node[0] == "mlp":
        return Site("mlp_out", layer=node[1])
    return Site(node[0], layer=node[1], head=node[2])


def edge(u: Any, v: Any, with_: Any = "source", position: Any = None) -> Edit:
    return Edit(writer(u, position), with_, reader=reader(v))


SINGLE = [
    (("embed",), ("q", 0, 1)),
    (("embed",), ("k", 2, 1)),
    (("embed",), ("mlp", 1)),
    (("embed",), ("logits",)),
    (("z", 0, 5), ("q", 1, 0)),
    (("z", 1, 2), ("k", 3, 0)),
    (("z", 0, 3), ("v", 2, 1)),
    (("z", 2, 4), ("q", 3, 5)),
    (("z", 1, 0), ("mlp", 2)),
    (("z", 3, 1), ("logits",)),
    (("mlp", 0), ("v", 3, 1)),
    (("mlp", 1), ("mlp", 3)),
    (("mlp", 3), ("logits",)),
]
SAME_LAYER = [(("z", 1, 3), ("mlp", 1)), (("z", 3, 3), ("mlp", 3))]


def singles(model: Any) -> list[tuple[Any, Any]]:
    return SINGLE if model.shape.parallel else [*SINGLE, *SAME_LAYER]


def twins(module: Any, family: str, model: Any, pairs: Any, edges: Any, **knobs: Any) -> np.ndarray:
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    heads = {"n_heads": model.shape.n_heads, "n_kv_heads": model.shape.n_kv_heads}
    logits = twin.edge_logits(module, family, base, source, edges, **heads, **knobs)
    return scores(logits, pairs)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_an_edge_equals_the_twin(models: Any, family: str) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3, length=8)
    wanted, cells = [], []
    for u, v in singles(model):
        for position in (None, 5, 7):
            cells.append(Cell((edge(u, v, position=position),)))
            wanted.append(twins(module, family, model, pairs, [(u, v)], position=position))
    found = sweep(model, pairs, cells, Remembering())
    theirs = np.stack(wanted)
    assert np.abs(theirs - found.base).max() >= 0.1 * theirs.std()
    np.testing.assert_allclose(found.patched, theirs, rtol=0, atol=1e-9 * max(1, theirs.std()))
    alive = np.abs(theirs - found.base).max(1) > 1e-6
    assert alive[::3].sum() >= len(singles(model)) - 2  # nearly every whole edge does something


CHAIN = [
    (("embed",), ("q", 1, 0)),
    (("z", 0, 1), ("q", 1, 0)),
    (("z", 0, 2), ("q", 1, 0)),
    (("z", 0, 2), ("mlp", 2)),
    (("mlp", 0), ("k", 2, 1)),
    (("z", 1, 0), ("v", 2, 0)),
    (("z", 1, 0), ("v", 3, 1)),
    (("mlp", 2), ("logits",)),
    (("z", 2, 3), ("logits",)),
    (("z", 2, 4), ("logits",)),
]


@pytest.mark.parametrize("zero", [False, True], ids=["source", "zero"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_edges_together_equal_the_twin(models: Any, family: str, zero: bool) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3, length=8)
    with_ = "zero" if zero else "source"
    cells = [Cell(tuple(edge(u, v, with_) for u, v in CHAIN[:n])) for n in (3, 7, 10)]
    wanted = np.stack(
        [twins(module, family, model, pairs, CHAIN[:n], zero=zero) for n in (3, 7, 10)]
    )
    found = sweep(model, pairs, cells, Remembering())
    assert np.abs(wanted - found.base).min(1).max() > 1e-3
    np.testing.assert_allclose(found.patched, wanted, rtol=0, atol=1e-9 * max(1, wanted.std()))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_all_edges_out_of_a_writer_are_its_node_patch(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB)
    out: dict[Site, list[Site]] = {}
    for u, v in all_edges(model.shape):
        out.setdefault(u, []).append(v)
    chosen = [Site("embed"), Site("z", layer=0, head=4), Site("mlp_out", layer=1)]
    chosen += [Site("z", layer=3, head=2), Site("z", layer=2, head=0)]
    edges = [Cell(tuple(Edit(u, reader=v) for v in out[u])) for u in chosen]
    nodes = [Cell((Edit(u),)) for u in chosen]
    found = sweep(model, pairs, [*edges, *nodes], Remembering())
    n = len(chosen)
    assert (np.abs(found.patched[n:] - found.base).max(1) > 1e-4).all()
    np.testing.assert_allclose(found.patched[:n], found.patched[n:], rtol=0, atol=1e-9)
    fewer = [Cell(c.edits[: len(c.edits) // 2]) for c in edges]
    less = sweep(model, pairs, fewer, Remembering())
    assert (np.abs(less.patched - found.patched[n:]).max(1) > 1e-4).all()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_path_with_frozen_heads_equals_the_twin(models: Any, family: str) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3, length=8)
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    heads = {"n_heads": model.shape.n_heads, "n_kv_heads": model.shape.n_kv_heads}
    wanted = [
        scores(twin.path_logits(module, family, base, source, u, v, **heads), pairs)
        for u, v in singles(model)
    ]
    cells = [Cell((edge(u, v),), frozen=True) for u, v in singles(model)]
    found = sweep(model, pairs, cells, Remembering())
    theirs = np.stack(wanted)
    np.testing.assert_allclose(found.patched, theirs, rtol=0, atol=1e-9 * max(1, theirs.std()))
    direct = sweep(model, pairs, [Cell(c.edits) for c in cells], Remembering())
    apart = np.abs(direct.patched - found.patched).max(1)
    assert (apart > 1e-4).sum() >= 5  # MLPs in between carry something
    whole = sweep(model, pairs, cells, Remembering(memory=150_000), seconds=1e-9)
    assert len(whole.chunks) > 1
    np.testing.assert_allclose(whole.patched, found.patched, rtol=0, atol=1e-10)


def test_gpt2_small_has_as_many_edges_as_the_formula_says() -> None:
    from interp.terms import ModelShape

    def formula(L: int, H: int, K: int) -> int:
        each = [(H + 2 * K) * (1 + n * (H + 1)) + 1 + n * (H + 1) + H for n in range(L)]
        return sum(each) + 1 + L * (H + 1)

    for L, H, K in ((12, 12, 12), (4, 6, 2)):
        shape = ModelShape(L, H, K, 64, 8, 256, 97, None)
        assert len(all_edges(shape)) == formula(L, H, K)
    assert formula(12, 12, 12) == 32_491


@pytest.mark.parametrize(
    ("u", "v", "given"),
    [
        (("z", 2, 0), ("q", 2, 0), "before"),
        (("mlp", 1), ("mlp", 1), "before"),
        (("z", 0, 6), ("q", 2, 0), "6 heads"),
        (("z", 0, 0), ("k", 2, 2), "2 key/value heads"),
        (("z", 0, 0), ("q", 4, 0), "4 layers"),
    ],
)
def test_edges_that_do_not_exist_are_refused(models: Any, u: Any, v: Any, given: str) -> None:
    _, model = models["llama"]
    with pytest.raises(UsageError, match=given):
        sweep(model, pairs_for(VOCAB), [Cell((edge(u, v),))], Remembering())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_a_node_edited_in_the_same_cell_is_not_counted_twice(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB)
    for u, v in ((("z", 1, 2), ("q", 3, 1)), (("mlp", 1), ("logits",))):
        node = Edit(writer(u))
        found = sweep(model, pairs, [Cell((node, edge(u, v))), Cell((node,))], Remembering())
        assert np.abs(found.patched[1] - found.base).max() > 1e-3
        np.testing.assert_allclose(found.patched[0], found.patched[1], rtol=0, atol=1e-10)
    both = Cell((Edit(Site("embed")), edge(("embed",), ("q", 1, 0))))
    with pytest.raises(UsageError, match="as a node and along an edge"):
        sweep(model, pairs, [both], Remembering())


def test_only_writers_and_readers_have_edges(models: Any) -> None:
    _, model = models["llama"]
    for edit in (
        Edit(Site("resid_pre", layer=1), reader=Site("logits")),
        Edit(Site("z", layer=1), reader=Site("logits")),
        Edit(Site("embed"), reader=Site("z", layer=1, head=0)),
        Edit(Site("embed"), reader=Site("q", layer=1)),
    ):
        with pytest.raises(UsageError, match="along no edge"):
            sweep(model, pairs_for(VOCAB), [Cell((edit,))], Remembering())
