"""All paths at once are the gradient, and every prefix is the sum of its children."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.engine.gradients import rules
from interp.engine.gradients.active import run_blocks
from interp.engine.pulls import norm_pull, norm_push, pull_all
from interp.engine.traces import Maps, NormMap, trace
from interp.methods.observables.graph import MLP, Node, count_paths, read_nodes
from interp.methods.observables.reading import at_logits, heads_free, heads_of, through
from interp.methods.observables.search import Search
from interp.terms import CapabilityError, ModelShape, UsageError
from tests.checkpoints import FAMILY_NAMES, prompts
from tests.methods.observables import nets
from tests.models.wrapped import wrapped
from tests.twins import observables as twin

RMS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2")
"""Families whose norms keep float32 inside, in float64 too."""


def apart(a, b):
    """Largest difference in standard deviations of ``b``."""
    a, b = (np.asarray(x, float) for x in (a, b))
    assert a.shape == b.shape and b.std() > 0
    return np.abs(a - b).max() / b.std()


def readout(model, maps, rows):
    n = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    columns, bias = maps.unembedding((5, 12, 3))
    return (columns @ n).expand(rows, -1), (bias @ n).expand(rows), n


@pytest.mark.parametrize("act", ["gelu", "linear"])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_the_recursion_is_the_gradient_of_the_frozen_loops(parallel, post, rms, act):
    model = nets.plain(nets.weights(post=post), act=act, rms=rms, parallel=parallel)
    maps, ids = Maps(model), nets.tokens()
    run = trace(maps, ids)
    u, base, _ = readout(model, maps, len(ids))
    found = pull_all(maps, run, u, base=base)
    total = torch.einsum("rtd,rtd->r", found.embed, run.embed) + found.const + sum(found.remainder)
    for r, row in enumerate(ids):
        embed = list(model.table[torch.from_numpy(row)])
        o, slope = twin.frozen_gradient(embed, u=u[r], **nets.twin_of(model))
        assert apart(found.embed[r], torch.stack(slope)) < 1e-12
        assert float(total[r]) == pytest.approx(o, rel=1e-10, abs=1e-10)
    if act == "linear":
        bias = [w["b_out"] + w["b_in"] @ w["W_out"] for w in model.layers]
        if not post:
            y = found.at[-1][:, -1]
            assert torch.allclose(found.remainder[-1], y @ bias[-1])


def test_without_a_norm_before_the_sublayers_the_recursion_holds_too():
    model = nets.plain(nets.weights(pre=False, post=True), rms=True)
    maps, ids = Maps(model), nets.tokens()
    run = trace(maps, ids)
    u, base, _ = readout(model, maps, len(ids))
    embed = list(model.table[torch.from_numpy(ids[0])])
    _, slope = twin.frozen_gradient(embed, u=u[0], **nets.twin_of(model))
    assert apart(pull_all(maps, run, u).embed[0], torch.stack(slope)) < 1e-12


@pytest.mark.parametrize("treatment", ["frozen", "exact"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_on_every_family_the_recursion_is_autograd_with_patterns_held(family, treatment):
    model = wrapped(family)
    maps, ids = Maps(model), prompts(3, 9).numpy()
    run = trace(maps, ids)
    u, base, n = readout(model, maps, 3)
    found = pull_all(maps, run, u, treatment, base=base)
    leaf = run.embed.flatten(0, 1).clone().requires_grad_()
    preset = {"frozen": "frozen_norms", "exact": "none"}[treatment]
    cap, model.blocks.cap = model.blocks.cap, None
    try:
        with rules(model, preset, verify=False, attn="ah"):
            logits = run_blocks(model.blocks, ids, torch.tensor([5, 12, 3]), leaf)
            o = logits @ n
            (slope,) = torch.autograd.grad(o.sum(), leaf)
    finally:
        model.blocks.cap = cap
    close = 1e-5 if family in RMS else 1e-12
    assert apart(found.embed, slope.unflatten(0, (3, 9))) < close
    if treatment == "frozen":
        total = torch.einsum("rtd,rtd->r", found.embed, run.embed) + found.const
        total = total + sum(found.remainder)
        assert apart(total.detach(), o.detach()) < (1e-5 if family in RMS else 1e-10)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_on_every_family_shares_of_source_tokens_and_biases_are_what_heads_write(family):
    model = wrapped(family)
    maps = Maps(model)
    run = trace(maps, prompts(2, 9).numpy())
    u = readout(model, maps, 2)[0]
    at = at_logits(maps, run, u, "frozen")
    for layer in range(model.shape.n_layers):
        reads = heads_of(maps, layer, at, "frozen")
        whole = reads.share.sum(-1) + reads.bias
        assert apart(whole, reads.total) < (1e-5 if family in RMS else 1e-10)


@pytest.mark.parametrize("treatment", ["ignore", "norm", "frozen", "exact"])
@pytest.mark.parametrize("rms", [False, True])
def test_pulling_is_the_transpose_of_pushing_and_exact_is_autograd(rms, treatment):
    g = torch.Generator().manual_seed(0)
    gain, bias, y, x, w = torch.randn(5, 16, generator=g, dtype=torch.float64)
    norm = NormMap(gain, bias, not rms, 1e-5)
    scale = norm.scale(x)
    pulled = norm_pull(norm, y, treatment, x, scale)
    pushed = norm_push(norm, w, treatment, x, scale)
    assert float(pulled @ w) == pytest.approx(float(y @ pushed), rel=1e-12)
    leaf = x.clone().requires_grad_()
    held = norm.scale(leaf) if treatment == "exact" else scale
    (slope,) = torch.autograd.grad(norm.affine(leaf, held) @ y, leaf)
    if treatment in ("frozen", "exact"):
        assert torch.allclose(pulled, slope, rtol=1e-12, atol=1e-13)


def test_norms_without_a_run_are_refused_where_they_need_one():
    norm = NormMap(torch.ones(4), torch.zeros(4), True, 1e-5)
    for treatment in ("frozen", "exact"):
        with pytest.raises(UsageError, match="needs the divisors"):
            norm_pull(norm, torch.ones(4), treatment)


@pytest.mark.parametrize("treatment", ["ignore", "norm"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2"])
def test_the_batched_product_is_every_heads_own_product(family, treatment):
    maps = Maps(wrapped(family))
    u = torch.randn(2, maps.shape.d_model, dtype=torch.float64)
    at = at_logits(maps, None, u, treatment)
    layers = maps.shape.n_layers
    found = heads_free(maps, at, treatment, layers)
    assert found.shape == (2, layers, maps.shape.n_heads, maps.shape.d_model)
    for layer in range(layers):
        for head in range(maps.shape.n_heads):
            alone = through(maps, Node(layer, head), at, treatment)
            assert torch.allclose(alone.y[:, 0], found[:, layer, head], rtol=1e-10, atol=1e-12)


def test_virtual_heads_are_products_from_the_later_to_the_earlier():
    maps = Maps(wrapped("gpt2"))
    u = torch.randn(1, maps.shape.d_model, dtype=torch.float64)
    at = at_logits(maps, None, u, "ignore")
    for name in ("L3H2", "L1H4"):
        at = through(maps, read_nodes(name, maps.shape)[0], at, "ignore")
    late, early = maps.layer(3), maps.layer(1)
    expected = early.w_v[4] @ early.w_o[4] @ (late.w_v[2] @ late.w_o[2] @ u[0])
    assert torch.allclose(at.y[0, 0], expected, rtol=1e-10)


def test_grouped_queries_are_a_model_with_its_values_repeated():
    grouped = nets.weights(kv=2)
    repeated = [{**w, **{k: w[k].repeat_interleave(2, 0) for k in ("W_K", "W_V", "b_K", "b_V")}}
                for w in grouped]  # fmt: skip
    found = []
    for layers in (grouped, repeated):
        model = nets.plain(layers)
        maps = Maps(model)
        run = trace(maps, nets.tokens())
        u = readout(model, maps, 2)[0]
        search = Search(maps, run, u).beam(20, 3)
        found.append((pull_all(maps, run, u).embed, [p.name for p in search.ended]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    assert found[0][1] == found[1][1]


def test_float16_weights_are_refused():
    model = nets.plain(nets.weights())
    model.blocks.dtype = torch.float16
    with pytest.raises(CapabilityError, match="float16"):
        Maps(model)


# ------------------------------------------------------------------------------------------- paths


def searched(seed=0, layers=3, heads=3, length=4, act="linear", **knobs):
    model = nets.plain(nets.weights(layers, heads, heads, seed=seed), act=act)
    maps = Maps(model)
    run = trace(maps, nets.tokens(2, length))
    u = readout(model, maps, 2)[0]
    return model, maps, run, u, Search(maps, run, u, **knobs)


def test_three_layers_of_three_heads_have_6776_paths_that_sum_to_the_observable():
    model, maps, run, u, search = searched()
    assert count_paths(maps.shape, 4) == 6776
    found = search.exhaustive()
    assert len(found.ended) == 6776 == len({p.name for p in found.ended})
    whole = sum(p.value for p in found.ended)
    pulled = pull_all(maps, run, u)
    expected = torch.einsum("rtd,rtd->r", pulled.embed, run.embed).numpy()
    assert apart(whole, expected) < 1e-10
    assert apart(whole + found.constants, found.root.value) < 1e-10


def test_every_path_has_the_value_that_the_loops_give_it():
    model, maps, run, u, search = searched(layers=2, heads=2, length=3, act="gelu")
    ids = nets.tokens(2, 3)
    found = {
        tuple((n.layer, n.head, p) for n, p in path.steps): path.value[1]
        for path in search.exhaustive().ended
    }
    embed = list(model.table[torch.from_numpy(ids[1])])
    expected = twin.paths(embed, model.layers, model.final, u[1], act=model.act)
    assert found.keys() == expected.keys()
    assert apart([found[k] for k in expected], list(expected.values())) < 1e-10


@pytest.mark.parametrize("parallel", [False, True])
def test_a_beam_wide_enough_is_the_exhaustive_search(parallel):
    model = nets.plain(nets.weights(2, 2, 1, post=True), parallel=parallel)
    maps = Maps(model)
    run = trace(maps, nets.tokens(3, 3))
    u = readout(model, maps, 3)[0]
    whole, beam = Search(maps, run, u).exhaustive(), Search(maps, run, u).beam(10**6, 6)
    assert beam.n_dropped == 0 and len(whole.ended) == count_paths(maps.shape, 3)
    by_name = {p.name: p.value for p in whole.ended}
    assert all(np.allclose(by_name[p.name], p.value, rtol=1e-10, atol=1e-12) for p in beam.ended)
    assert len(beam.ended) == len(by_name)


@pytest.mark.parametrize("width", [1, 8, 40])
def test_what_a_beam_keeps_drops_and_holds_constant_is_the_whole(width):
    _, _, _, _, search = searched(act="gelu")
    found = search.beam(width, 3)
    parts = sum(p.value for p in found.ended) + found.left + found.dropped + found.constants
    assert apart(parts, found.root.value) < 1e-10
    assert len(found.ended) <= width and found.n_dropped > 0


def test_a_planted_path_through_the_last_mlp_its_own_layers_head_and_the_layer_below_is_found():
    layers = nets.weights(3, 3, 3, seed=5)
    for n, w in enumerate(layers):
        w["W_O"] *= 0.05
        w["W_out"] *= 1.0 if n == 2 else 0.05
    layers[2]["W_O"][1] *= 40
    layers[1]["W_O"][2] *= 40
    model = nets.plain(layers, act="relu")
    maps = Maps(model)
    run = trace(maps, nets.tokens(2, 4))
    u = readout(model, maps, 2)[0]
    found = Search(maps, run, u).beam(24, 3)
    whole = Search(maps, run, u).exhaustive()
    planted = (Node(2, MLP), Node(2, 1), Node(1, 2))
    for paths in (whole.ended, found.ended):
        longest = [p for p in paths if len(p.nodes) == 3]
        assert longest[0].nodes == planted
    assert [p.name for p in found.ended[:3]] == [p.name for p in whole.ended[:3]]


def test_signed_ranking_keeps_the_largest_and_contrast_is_linear_in_the_difference():
    _, maps, run, u, search = searched(act="gelu", signed=True)
    values = [p.value.mean() for p in search.beam(16, 3).ended]
    assert values == sorted(values, reverse=True)
    other = trace(maps, nets.tokens(2, 4, seed=9))
    contrast = Search(maps, run, u, other=other).exhaustive()
    total = Search(maps, run, u).exhaustive()
    swapped = {p.name: p for p in total.ended}
    for path in contrast.ended[:200]:
        whole = swapped[path.name]
        left = (whole.y * other.embed[:, path.position]).sum(-1).numpy()
        assert np.allclose(path.value, whole.value - left, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_pieces_and_the_order_of_prompts_change_nothing(monkeypatch, piece):
    from interp.methods.observables import search as module

    _, maps, run, u, search = searched(act="gelu")
    first = search.beam(12, 3)
    monkeypatch.setattr(module, "PIECE", piece)
    back = trace(maps, run.tokens[::-1].copy())
    again = Search(maps, back, u.flip(0)).beam(12, 3)
    assert [p.name for p in first.ended] == [p.name for p in again.ended]
    for a, b in zip(first.ended, again.ended, strict=True):
        assert np.allclose(a.value, b.value[::-1], rtol=1e-10, atol=1e-13)


def test_nodes_are_read_latest_first_and_refused_the_wrong_way_round():
    shape = ModelShape(4, 3, 3, 8, 4, 16, 10, None)
    assert read_nodes("MLP3, L3H1 < L0H2", shape) == (Node(3, MLP), Node(3, 1), Node(0, 2))
    for text in ("L0H2, L3H1", "L3H1, L3H0", "L9H0", "L1H3", "head 3", "L3H1, MLP3"):
        with pytest.raises(UsageError):
            read_nodes(text, shape)
