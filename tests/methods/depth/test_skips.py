"""Skips: one growing batch gives what a whole run for every skip gives, and calls fewer layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.engine.depth import Fill, Skip, local_skips, skip_wavefront, walk
from interp.methods import METHODS
from interp.terms import CancelledError, RefusedError, UsageError
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering
from tests.methods.depth.models import (
    FAMILIES,
    batch_of,
    close,
    gpt2,
    loaded,
    pair,
    pairs,
    rows,
    silent_from,
    texts,
)
from tests.twins import depth as twin

SkipMap = METHODS["skip_map"]
PARTS = ("layer", "attention", "MLP")


def fills(model, tokens):
    """Every stand-in, with what the twin puts in: per layer attention's and the MLP's."""
    steps = list(walk(model.blocks, tokens.numpy()))
    attn = torch.stack([s.attn[:, 1:].mean((0, 1)) for s in steps])
    mlp = torch.stack([s.mlp[:, 1:].mean((0, 1)) for s in steps])
    donor = np.roll(tokens.numpy(), 1, 0)
    lent = list(walk(model.blocks, donor))
    whole = torch.zeros_like(steps[0].attn)
    return {
        "zero": (Fill("zero"), lambda s: (None, None)),
        "mean": (Fill("mean", attn, mlp), lambda s: (whole + attn[s], whole + mlp[s])),
        "resample": (Fill("resample", donor=donor), lambda s: (lent[s].attn, lent[s].mlp)),
    }


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_wavefront_equals_a_run_for_every_skip(family, kind):
    model, plain = pair(family)
    tokens = rows()
    T = tokens.shape[1]
    with torch.no_grad():
        fill, stand = fills(model, tokens)[kind]
        skips = [
            Skip(part, s, 1, stop, seen)
            for part in PARTS
            for stop, seen in ((T, 1), (4, 4), (7, 7))
            for s in range(4)
        ]
        found = skip_wavefront(model.blocks, tokens.numpy(), skips, fill)
        for i, k in enumerate(skips):
            effect, output = twin.skip(
                plain, tokens, k.part, k.layer, k.start, k.stop, *stand(k.layer)
            )
            assert close(found.effect[i][:, :, k.seen :], effect[:, :, k.seen :])
            assert close(found.output[i][:, k.seen :], output[:, k.seen :])
            assert np.isnan(found.output[i][:, : k.seen]).all()
        assert np.nanmax(found.output) > 0.1 and found.null_output == found.null_effect == 0
        if kind == "zero":
            own = [found.effect[i, s.layer] for i, s in enumerate(skips) if s.part == "layer"]
            for o, s in zip(own, [s for s in skips if s.part == "layer"], strict=True):
                assert close(o[:, s.seen :], 1.0 if s.stop == T else 0.0, 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_local_skips_equal_a_layer_fed_by_hand(family):
    model, plain = pair(family)
    tokens = rows()
    with torch.no_grad():
        skips = [Skip(part, s, 1, tokens.shape[1], 1) for part in PARTS for s in range(4)]
        found = local_skips(model.blocks, tokens.numpy(), skips, Fill(), at_once=2)
        for i, k in enumerate(skips):
            for layer in range(k.layer + 1, 4):
                want = twin.local(plain, tokens, k.part, k.layer, layer, 1)
                assert close(found.effect[i, layer][:, 1:], want[:, 1:])
        assert np.nanmax(found.effect) > 0.1


def counted(model, work):
    """Prompt-layers run: tokens through queries (whole calls) and through MLPs alone (half)."""
    calls = {"attention": 0, "MLP": 0}

    def watch(block, name, kind):
        own = getattr(block, name)

        def call(x, *rest):
            calls[kind] += len(x)
            return own(x, *rest)

        setattr(block, name, call)
        return own

    kept = [
        (b, n, watch(b, n, k))
        for b in model.blocks.layers
        for n, k in (("qkv", "attention"), ("neurons", "MLP"))
    ]
    try:
        work()
    finally:
        for block, name, _ in kept:
            delattr(block, name)
    return calls


def test_layers_are_called_as_often_as_the_triangle_says():
    model, _ = pair("gpt2", num_hidden_layers=8)
    tokens = rows(2, 6).numpy()
    stops = [(6, 1), (3, 3), (4, 4)]
    skips = [Skip(p, s, 1, a, b) for p in PARTS for a, b in stops for s in range(8)]
    calls = counted(model, lambda: skip_wavefront(model.blocks, tokens, skips, Fill()))
    null = 8
    assert calls["attention"] / tokens.size == 260 + null
    extra = 8  # the residual behind a skipped attention passes the MLP, once for all t
    assert calls["MLP"] / tokens.size == 260 + null + extra
    assert (9 * 8 + 1) * 8 == 584


def test_layers_without_attention_hand_nothing_to_later_tokens():
    module = hard_model("gpt2").double()
    with torch.no_grad():
        for block in module.transformer.h[2:]:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
    model, task = loaded(module), texts(2, 20)
    data = SkipMap(modes=("current", "future"), n_boot=0).measure(model, task, Remembering())
    output = data["output"].sel(part="layer", stat="max")
    assert (output.sel(mode="future", layer_skipped=slice(1, None)) == 0).all()
    assert (output.sel(mode="future", layer_skipped=0) > 0.01).all()
    assert (output.sel(mode="current") > 0.01).all()


def test_layers_that_add_nothing_are_undefined_and_their_skip_does_nothing():
    model = loaded(silent_from(hard_model("gpt2").double(), 2))
    context = Remembering()
    data = SkipMap(n_boot=0, parts=PARTS).measure(model, texts(3, 9), context)
    assert (data["output"].sel(layer_skipped=slice(2, None)) == 0).all()
    assert np.isnan(data["effect"].sel(layer_skipped=slice(0, 1), layer=slice(2, None))).all()
    assert np.isfinite(data["effect"].sel(layer_skipped=0, layer=slice(0, 1))).all()
    assert data.attrs["n_undefined"] == 2 * 3 * 8
    clamped = SkipMap(n_boot=0, on_zero="clamp").measure(model, texts(3, 9), Remembering())
    assert np.isfinite(clamped["effect"]).all()


def test_a_layer_of_biases_alone_is_felt_by_zero_and_not_by_its_mean():
    module = hard_model("gpt2").double()
    with torch.no_grad():
        module.transformer.h[1].attn.c_proj.weight.zero_()
        module.transformer.h[1].mlp.c_proj.weight.zero_()
    model = loaded(module)
    for kind, low, high in (("mean", -1, 1e-12), ("zero", 0.01, 2)):
        data = SkipMap(with_=kind, n_boot=0).measure(model, texts(3, 9), Remembering())
        value = float(data["output"].sel(layer_skipped=1, stat="max").item())
        assert low < value < high


def test_depth_score_counts_layers_from_zero():
    from interp.methods.depth.arrays import depth_score

    assert depth_score(np.ones(12)) == pytest.approx(5.5)
    assert depth_score(np.eye(12)[7]) == pytest.approx(7)
    assert np.isnan(depth_score(np.zeros(4)))


def test_chunks_of_any_size_give_the_same_maps(monkeypatch):
    from interp.methods.depth import skip_map

    model, task = gpt2(), texts(4, 14)
    maps = []
    for limit in (10**6, 60):
        monkeypatch.setattr(skip_map, "tokens_at_once", lambda *_, limit=limit: limit)
        spec = SkipMap(parts=PARTS, modes=("current", "future", "local"), n_boot=20)
        maps.append(spec.measure(model, task, Remembering()))
    for name in ("effect", "output", "depth_score"):
        assert close(maps[0][name], maps[1][name], 1e-9)


def test_a_cancelled_map_goes_on_from_its_finished_pieces(monkeypatch):
    from interp.methods.depth import skip_map

    monkeypatch.setattr(skip_map, "tokens_at_once", lambda *_: 300)
    model, task = gpt2(), texts(6, 9)
    spec = SkipMap(n_boot=0)
    whole = spec.measure(model, task, Remembering())
    first = Remembering(cancel_after=14)
    with pytest.raises(CancelledError):
        spec.measure(model, task, first)
    assert first.chunks
    again = Remembering()
    again.chunks = dict(first.chunks)
    assert np.array_equal(spec.measure(model, task, again)["effect"], whole["effect"], True)
    assert not set(first.chunks) & set(again.saved)


def test_bfloat16_shows_its_null_row_and_identity_rows_stay_at_zero():
    model = loaded(silent_from(hard_model("gpt2"), 2), "bfloat16")
    context = Remembering()
    data = SkipMap(n_boot=0).measure(model, texts(3, 9), context)
    assert any(c.name == "null_row" for c in context.checks)
    assert (
        float(data["output"].sel(layer_skipped=slice(2, None)).max()) <= data.attrs["noise_floor"]
    )


@pytest.mark.parametrize(
    ("spec", "task", "words"),
    [
        ({"modes": ("future",)}, texts(3, 12), "13 or more"),
        ({"with_": "resample"}, texts(1, 12), "two prompts of each length"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_remedy(spec, task, words):
    with pytest.raises(UsageError, match=words):
        SkipMap(**spec).measure(gpt2(), task, Remembering())


@pytest.mark.parametrize("method", ["skip_map", "layer_statistics", "residual_erasure"])
def test_numbers_that_are_not_finite_are_refused_with_their_site(method):
    module = hard_model("gpt2").double()
    with torch.no_grad():
        module.transformer.h[2].mlp.c_proj.bias.fill_(float("inf"))
    with pytest.raises(RefusedError, match="resid_post L2"):
        METHODS[method]().measure(loaded(module), texts(), Remembering())


def test_one_layer_is_too_few():
    with pytest.raises(UsageError, match="deeper"):
        SkipMap().measure(gpt2(num_hidden_layers=1), texts(), Remembering())


def test_pairs_are_read_on_their_clean_side():
    model = gpt2()
    a = SkipMap(n_boot=0).measure(model, pairs(), Remembering())
    b = SkipMap(n_boot=0).measure(model, texts(), Remembering())
    assert np.array_equal(a["effect"], b["effect"], equal_nan=True)
    assert batch_of(model, pairs()).answers[:, -1].all()
