"""Vectors refuse what they do not read, effects are path patching's, and batches change nothing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import interp
from interp.engine.traces import Maps, trace
from interp.methods import (
    FeatureCoupling,
    FeaturePaths,
    FeatureScores,
    FeatureSteering,
    HeadFeatures,
    PathPatching,
)
from interp.methods.observables.effects import Chain
from interp.methods.observables.graph import MLP, Node, Prefix
from interp.methods.observables.inputs import Readout
from interp.methods.observables.probes import auroc, logistic, r_squared
from interp.methods.observables.vectors import feature_vector, read_stage
from interp.terms import (
    FeatureVector,
    LabelledInputs,
    Observable,
    PromptPairs,
    Reading,
    Site,
    TooLargeError,
    UsageError,
)
from tests.engine.driven import Remembering, telling_pairs
from tests.methods.observables import nets
from tests.models.wrapped import raw, wrapped


class Company(Remembering):
    """A context that also holds results."""

    def __init__(self, memory=10**9, **results):
        super().__init__(memory)
        self.results = results

    def result(self, ref):
        return SimpleNamespace(data=self.results[str(ref)])


def measured(method, model, task, **results):
    context = Company(**results)
    return method.measure(model, task, context), {c.name: c for c in context.checks}


@pytest.fixture(scope="module")
def gpt2():
    return wrapped("gpt2")


@pytest.fixture(scope="module")
def pairs():
    return telling_pairs(raw("gpt2"), n=6, length=8)


# ----------------------------------------------------------------------------------------- vectors


def vector(**changes):
    fields = {
        "vec": np.arange(4.0), "site": Site("resid_pre", layer=2), "stage": "residual",
        "path": "L2H0", "ln": "frozen", "tangent": "", "observable": "o", "weight_hash": "h",
    }  # fmt: skip
    return FeatureVector(**{**fields, **changes})


def test_a_vector_scores_values_of_its_own_place():
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    found = vector().score(Reading(Site("resid_pre", layer=2), "residual", values, "h"))
    assert np.allclose(found, values @ np.arange(4.0))
    assert vector().scaled(2).norm == pytest.approx(2 * vector().norm)


@pytest.mark.parametrize(
    "wrong",
    [
        {"site": Site("resid_mid", layer=2)},
        {"site": Site("resid_pre", layer=1)},
        {"stage": "affine"},
        {"weight_hash": "other"},
        {"values": np.zeros((1, 1, 5))},
    ],
    ids=["kind", "layer", "stage", "model", "width"],
)
def test_a_vector_refuses_values_of_another_place(wrong):
    fields = {
        "site": Site("resid_pre", layer=2), "stage": "residual",
        "values": np.zeros((1, 1, 4)), "weight_hash": "h",
    }  # fmt: skip
    with pytest.raises(UsageError):
        vector().score(Reading(**{**fields, **wrong}))


def test_a_zero_vector_has_no_direction_and_a_bad_one_is_no_vector():
    with pytest.raises(UsageError, match="zero"):
        _ = vector(vec=np.zeros(4)).unit
    for wrong in ({"vec": np.zeros((2, 2))}, {"stage": "between"}, {"vec": [np.nan]}):
        with pytest.raises(UsageError):
            vector(**wrong)


@pytest.mark.parametrize("ln", ["ignore", "norm", "frozen", "exact"])
def test_every_treatment_gives_vectors_at_the_stage_it_says(gpt2, pairs, ln):
    data, checks = measured(HeadFeatures(observable="#5 / #9", ln=ln), gpt2, pairs)
    assert data.attrs["stage"] == ("affine" if ln == "ignore" else "residual")
    assert data["vector"].shape == (1, 4, 6, 48) and float(data["norm"].min()) > 0
    taken = feature_vector(data, gpt2, "L2H3")
    assert taken.site == Site("resid_pre", layer=2) and taken.ln == ln
    assert np.allclose(taken.vec, data["vector"].values[0, 2, 3])
    assert all(c.passed for c in checks.values() if c.name not in ("least_cosine",))


def test_a_frozen_vector_reads_what_the_head_gives_the_observable(gpt2):
    """One prompt, all attention on one token: share = x·y there."""
    pairs = PromptPairs.from_tokens([[4]], [[7]], [5], [9])
    data, _ = measured(HeadFeatures(observable="#5 / #9"), gpt2, pairs)
    maps = Maps(gpt2)
    run = trace(maps, np.array(pairs.clean))
    for layer in (0, 3):
        y = feature_vector(data, gpt2, f"L{layer}H1")
        read = read_stage(maps, run, y.site, y.stage, gpt2.weight_hash)
        x = y.score(read)[0, 0]
        scale = float(run.layers[layer].scales["pre_attn"][0, 0])
        ranked = float(data["norm"][0, layer, 1])
        assert ranked == pytest.approx(y.norm * scale, rel=1e-9), "the divisor is left out"
        bias = maps.layer(layer)
        held = bias.b_v[1] + maps.layer(layer).norms["pre_attn"].bias @ bias.w_v[1]
        u = Readout.of(maps, Observable.from_tokens([5], [9])).vector([0])
        back = maps.final.centred(maps.final.gain * u[0]) / run.scale[0, -1]
        rest = float(held @ (bias.w_o[1] @ back))
        assert x + rest == pytest.approx(float(data["attribution"][0, layer, 1]), rel=1e-9)


def test_vectors_of_another_model_or_of_no_run_are_refused(gpt2, pairs):
    data, _ = measured(HeadFeatures(observable="#5 / #9"), gpt2, pairs)
    with pytest.raises(UsageError, match="another model"):
        feature_vector(data, wrapped("llama"), "L1H0")
    with pytest.raises(UsageError, match="no feature vectors"):
        feature_vector(data.drop_vars("vector"), gpt2)
    for node, observable in (("L9H0", ""), ("", "other"), ("L1H0, L0H1", "")):
        with pytest.raises(UsageError):
            feature_vector(data, gpt2, node, observable)


def test_an_observable_that_changes_sides_has_no_mean_vector(gpt2):
    pairs = PromptPairs.from_tokens(
        [[4, 1], [8, 2]], [[7, 1], [3, 2]], [5, 9], [9, 5]
    )  # o turns round from one prompt to the next
    data, _ = measured(HeadFeatures(ln="ignore"), gpt2, pairs)
    with pytest.raises(UsageError, match="prompt to prompt"):
        feature_vector(data, gpt2, "L2H1")


def test_without_a_task_vectors_come_from_the_weights_alone(gpt2):
    data, checks = measured(HeadFeatures(observable="#5 / #9; #7 / #3"), gpt2, None)
    assert data["norm"].shape == (2, 4, 6) and data.attrs["ln"] == "norm"
    assert checks["product"].passed and "direct_effect" not in data
    behind, _ = measured(HeadFeatures(observable="#5 / #9", behind="L3H1, L2H0"), gpt2, None)
    assert behind["norm"].shape == (1, 2, 6)
    with pytest.raises(UsageError, match="linear"):
        measured(HeadFeatures(observable="#5 / #9", behind="MLP3"), gpt2, None)


def test_behind_an_mlp_stand_its_own_layers_heads_and_before_the_first_head_nothing(gpt2, pairs):
    spec = HeadFeatures(observable="#5 / #9", behind="MLP2")
    data, _ = measured(spec, gpt2, pairs)
    assert data["norm"].shape == (1, 3, 6) and np.isnan(data["mlp_norm"].values[0, 2])
    assert np.isfinite(data["mlp_norm"].values[0, :2]).all() and "direct_effect" not in data
    for task in (pairs, None):
        with pytest.raises(UsageError, match="No head writes"):
            measured(HeadFeatures(observable="#5 / #9", behind="L0H1"), gpt2, task)


def test_an_observable_that_moves_with_all_logits_is_flagged(gpt2):
    _, checks = measured(HeadFeatures(observable="#5 #7 / #9"), gpt2, None)
    assert not checks["centred"].passed
    _, checks = measured(HeadFeatures(observable="#5 / #9"), gpt2, None)
    assert checks["centred"].passed


def test_a_readout_that_lies_along_the_residual_is_flagged(gpt2, pairs):
    maps = Maps(gpt2)
    run = trace(maps, np.array(pairs.clean[:1]))
    c = maps.final.centred(run.last[0, -1]) / maps.final.gain
    n = np.linalg.lstsq(maps.unembedding(tuple(range(97)))[0].numpy(), c.numpy(), rcond=None)[0]
    from interp.methods.observables import head_features as module

    observable = Observable("along", tuple(range(97)), n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "observables_of", lambda *a: [observable])
        _, checks = measured(HeadFeatures(), gpt2, pairs.select([0]))
    assert not checks["least_cosine"].passed


def test_behind_a_soft_cap_the_observable_is_read_by_the_caps_own_slope():
    model, pairs = wrapped("gemma2"), telling_pairs(raw("gemma2"), n=3, length=6)
    maps = Maps(model)
    run = trace(maps, np.array(pairs.clean))
    readout = Readout.of(maps, Observable.from_tokens([5], [9]))
    last = run.last[:, -1].clone().requires_grad_()
    z = maps.final.affine(last, maps.final.scale(last)) @ readout.columns
    o = (torch.tanh(z / maps.cap) * maps.cap) @ readout.weights([0])[0]
    (slope,) = torch.autograd.grad(o.sum(), last)
    from interp.methods.observables.reading import at_logits

    u = readout.slope(maps, run, np.arange(3))
    found = at_logits(maps, run, u, "exact").y[:, 0]
    assert torch.allclose(found, slope, rtol=1e-8, atol=1e-12)
    assert not torch.allclose(u, readout.vector(np.arange(3)), rtol=0.01)
    one, _ = measured(HeadFeatures(observable="#5 / #9"), model, pairs)
    two, _ = measured(HeadFeatures(observable="#5 / #9", after_cap=True), model, pairs)
    assert (two["norm"].values < one["norm"].values).all()
    with pytest.raises(UsageError, match="soft cap"):
        measured(HeadFeatures(observable="#5 / #9", after_cap=True), model, None)


# ----------------------------------------------------------------------------------------- effects


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2", "gpt_neox"])
def test_direct_effects_are_path_patching_into_the_logits(family):
    model, pairs = wrapped(family), telling_pairs(raw(family), n=4, length=7)
    data, _ = measured(HeadFeatures(), model, pairs)
    patched, _ = measured(
        PathPatching(senders="heads", receivers="logits", direction="noising", n_boot=0, verify=0),
        model, pairs,
    )  # fmt: skip
    expected = -patched["effect_raw"].values[:, 0].reshape(data["direct_effect"].shape[1:])
    found = data["direct_effect"].values[0]
    assert np.abs(found).max() > 0.01
    assert np.abs(found - expected).max() < 1e-5 * np.abs(found).max()


def chained(live, steps, seed=0):
    model = nets.plain(nets.weights(seed=seed))
    maps = Maps(model)
    clean, corrupt = nets.tokens(2, 4), nets.tokens(2, 4, seed=8)
    run, other = trace(maps, clean), trace(maps, corrupt)
    readout = Readout.of(maps, Observable.from_tokens([5], [12]))
    path = Prefix(steps, -1, steps[-1][1], run.embed[:, 0], np.zeros(2), True)
    found = Chain(maps, run, other, live).effect(path, readout, np.arange(2))
    return model, maps, run, other, readout, found


def test_a_path_through_a_head_and_an_mlp_is_patched_step_by_step():
    """By hand: the head's value at 1 changes, the MLP of the layer above sees that change alone."""
    steps = ((Node(2, MLP), 3), (Node(1, 2), 1))
    model, maps, run, other, readout, found = chained(False, steps)
    for r in range(2):
        w, block = model.layers[1], model.blocks.layers[1]
        x = run.layers[1].resid[r, 1]
        moved = x + other.embed[r, 1] - run.embed[r, 1]
        values = [block.pre_attn(v) @ w["W_V"][1] for v in (x, moved)]
        write = run.layers[1].pattern[r, 2, 3, 1] * (values[1] - values[0]) @ w["W_O"][2]
        top = model.blocks.layers[2]
        mid = run.layers[2].mid[r, 3]
        out = [top.mlp_sum(top.neurons(m[None]))[0] for m in (mid, mid + write)]
        last = run.last[r, -1]
        o = [
            float(model.blocks.final_norm(v) @ (model.weights.W_U[:, 5] - model.weights.W_U[:, 12]))
            for v in (last, last + out[1] - out[0])
        ]
        assert found[r] == pytest.approx(o[0] - o[1], rel=1e-9)


def test_with_keys_live_the_patterns_answer_too():
    steps = ((Node(2, 3), 1),)
    model, maps, run, other, readout, live = chained(True, steps)
    fixed = chained(False, steps)[-1]
    assert np.abs(live - fixed).max() > 1e-3
    block = model.blocks.layers[2]
    x = run.layers[2].resid.clone()
    x[:, 1] += other.embed[:, 1] - run.embed[:, 1]
    places = torch.arange(4)
    q, k, v = (a.unflatten(0, (2, 4)) for a in block.qkv(x.flatten(0, 1), places.repeat(2)))
    z = block.mix(block.pattern(q, k, places), v)[:, -1, 3]
    change = (z - run.layers[2].z[:, -1, 3]) @ model.layers[2]["W_O"][3]
    last = run.last[:, -1]
    o = [readout.value(maps, a, np.arange(2)) for a in (last, last + change)]
    assert np.allclose(live, (o[0] - o[1]).numpy(), rtol=1e-9)


def test_paths_found_are_the_same_whatever_the_order_of_prompts(gpt2, pairs):
    spec = FeaturePaths(width=12, max_depth=3, verify=4)
    one, checks = measured(spec, gpt2, pairs)
    back, _ = measured(spec, gpt2, pairs.select(range(len(pairs))[::-1]))
    assert (one["path_name"].values == back["path_name"].values).all()
    for name in ("score", "effect", "effect_live", "attribution", "flow"):
        assert np.allclose(one[name], back[name], rtol=1e-8, atol=1e-11, equal_nan=True)
    assert np.allclose(one["value"], back["value"][:, ::-1], rtol=1e-8, atol=1e-11)
    assert checks["all_paths"].passed


def test_routes_add_up_over_source_tokens_to_their_paths(gpt2, pairs):
    data, checks = measured(
        FeaturePaths(objective="total", width=512, max_depth=1, verify=0), gpt2, pairs
    )
    assert checks["conservation"].passed
    values = {}
    for name, value in zip(data["path_name"].values, data["score"].values, strict=True):
        route = " < ".join(part.split("@")[0] for part in str(name).split(" < "))
        values[route] = values.get(route, 0.0) + value
    whole = data["source"].mean("prompt").sum("position")
    short = [r for r in data["route"].values if r.count("<") == 1]
    assert short
    for route in short:  # all its paths are among the ones kept
        assert float(whole.sel(route=route)) == pytest.approx(values[route], rel=1e-8)


def test_a_conservation_that_is_broken_turns_the_check(gpt2, pairs, monkeypatch):
    from interp.methods.observables import search as module

    monkeypatch.setattr(module, "value_bias", lambda maps: maps.b_v * 0)
    _, checks = measured(FeaturePaths(objective="total", verify=0), gpt2, pairs)
    assert not checks["conservation"].passed


def test_unaligned_prompts_and_too_many_paths_are_refused(gpt2, pairs):
    uneven = PromptPairs.from_tokens([[4, 1], [8, 2, 3]], [[7, 1], [3, 2, 3]], [5, 9], [9, 5])
    with pytest.raises(UsageError, match="one length"):
        measured(FeaturePaths(), gpt2, uneven)
    with pytest.raises(TooLargeError, match="beam"):
        measured(FeaturePaths(search="exhaustive"), gpt2, pairs)
    with pytest.raises(TooLargeError, match="fewer prompts"):
        FeaturePaths().measure(gpt2, pairs, Company(memory=1000))
    with pytest.raises(UsageError, match="searched for one"):
        measured(FeaturePaths(observable="#1 / #2; #3 / #4"), gpt2, pairs)


def test_batches_of_prompts_and_their_order_change_no_vector(gpt2, pairs, monkeypatch):
    one, _ = measured(HeadFeatures(observable="#5 / #9"), gpt2, pairs)
    back, _ = measured(HeadFeatures(observable="#5 / #9"), gpt2, pairs.select(range(6)[::-1]))
    few, _ = HeadFeatures(observable="#5 / #9").measure(gpt2, pairs, Company(memory=10)), None
    for other in (back, few):
        for name in ("norm", "vector", "direct_effect", "attribution", "mlp_vector", "mlp_norm"):
            assert np.allclose(one[name], other[name], rtol=1e-9, atol=1e-12), name


# ------------------------------------------------------------------------------------------ scores


def test_auroc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    for n in (5, 40, 300):
        label = rng.permutation(np.arange(n) % 2)
        score = rng.integers(0, 5, n).astype(float)
        assert auroc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert np.isnan(auroc(np.ones(3), np.ones(3)))
    assert np.isnan(r_squared(np.ones(3), np.arange(3.0)))


def test_logistic_regression_finds_a_separating_direction():
    rng = np.random.default_rng(1)
    label = np.arange(80) % 2
    x = rng.normal(size=(80, 6)) + label[:, None] * np.array([2.0, 0, 0, 0, 0, 0])
    found = logistic(x, label, 0)
    assert abs(found[0]) > 2 * np.abs(found[1:]).max()
    assert auroc(x @ logistic(x[:2], label[:2], 0), label) > 0.5


def vectors_for(gpt2, pairs):
    return measured(HeadFeatures(observable="#5 / #9"), gpt2, pairs)[0]


def answered(pairs):
    """The same prompts, asked for tokens 5 and 9, sides turned by prompt."""
    right = [(5,) if i % 2 else (9,) for i in range(len(pairs))]
    wrong = [(9,) if i % 2 else (5,) for i in range(len(pairs))]
    return dataclasses.replace(pairs, right=tuple(right), wrong=tuple(wrong), ref=None)


@pytest.mark.parametrize("aggregate", ["last", "mean", "max"])
def test_scores_are_the_vectors_own_and_curves_leave_sizes_out_that_there_are_not(gpt2, aggregate):
    pairs = answered(telling_pairs(raw("gpt2"), n=8, length=6))
    data = vectors_for(gpt2, pairs)
    spec = FeatureScores(
        vectors="v", node="L2H3", train_sizes=(1, 2, 50), draws=3, n_boot=20, aggregate=aggregate
    )
    found, _ = measured(spec, gpt2, pairs, v=data)
    maps = Maps(gpt2)
    y = feature_vector(data, gpt2, "L2H3")
    run = trace(maps, np.array(pairs.clean))
    tokens = y.score(read_stage(maps, run, y.site, y.stage, gpt2.weight_hash))
    expected = {"last": tokens[:, -1], "mean": tokens.mean(1), "max": tokens.max(1)}[aggregate]
    assert np.allclose(found["score"].values[:8], expected)
    assert found["truth"].values[:4].tolist() == [0, 1, 0, 1]
    learned = found["learning"].sel(component="regression").values
    assert np.isfinite(learned[:2]).all() and np.isnan(learned[2])
    free = found["learning"].sel(component="feature vector").values
    assert len(set(free.tolist())) == 1


def test_labelled_texts_are_scored_and_what_is_none_is_refused(gpt2, pairs):
    data = vectors_for(gpt2, pairs)
    ids = np.random.default_rng(0).integers(0, 97, (16, 6))
    spec = FeatureScores(vectors="v", train_sizes=(1,), draws=2, n_boot=10)
    found, _ = measured(spec, gpt2, LabelledInputs(ids, np.arange(16) % 2), v=data)
    assert 0 <= float(found["auroc"].sel(component="feature vector")) <= 1
    for wrong in (
        LabelledInputs(ids.astype(float), np.arange(16) % 2),
        LabelledInputs(ids, np.arange(16) % 3),
        LabelledInputs(ids[:2], np.array([0, 1])),
        pairs,
    ):
        with pytest.raises(UsageError):
            measured(spec, gpt2, wrong, v=data)


# ---------------------------------------------------------------------------- coupling and steering


def test_couplings_of_two_observables_hold_every_token_within_its_extremes(gpt2, pairs):
    data, _ = measured(HeadFeatures(observable="#5 / #9; #7 / #3"), gpt2, pairs)
    found, checks = measured(FeatureCoupling(vectors="v", node="L1H2"), gpt2, pairs, v=data)
    y1, y2 = data["vector"].values[:, 1, 2]
    assert float(found["coupling"][1, 2]) == pytest.approx(y1 @ y2 / (y1 @ y1), rel=1e-9)
    assert checks["within_extremes"].passed and checks["product_of_couplings"].passed
    k, seen = found["scatter"].values
    slope = np.polyfit(k, seen, 1)[0]
    assert float(found["slope"]) == pytest.approx(slope, rel=1e-6)
    one, _ = measured(HeadFeatures(observable="#5 / #9"), gpt2, pairs)
    with pytest.raises(UsageError, match="between two"):
        measured(FeatureCoupling(vectors="v"), gpt2, None, v=one)
    other, _ = measured(HeadFeatures(observable="#7 / #3", ln="ignore"), gpt2, pairs)
    with pytest.raises(UsageError, match="same ln"):
        measured(FeatureCoupling(vectors="v", other="w", node="L1H2"), gpt2, None, v=one, w=other)


@pytest.mark.parametrize("node", ["L2H3", "MLP1"])
@pytest.mark.parametrize("where", ["last", "all"])
def test_no_dose_is_no_change_and_a_small_one_has_the_predicted_slope(gpt2, where, node):
    pairs = answered(telling_pairs(raw("gpt2"), n=4, length=6))
    data = vectors_for(gpt2, pairs)
    spec = FeatureSteering(
        vectors="v", node=node, where=where, alpha=(-1e-4, 0.0, 1e-4, 1.0), tokens=2, neutral="",
        n_boot=20,
    )  # fmt: skip
    found, checks = measured(spec, gpt2, pairs, v=data)
    each = found["prompt_effect"].values
    assert np.abs(each[:, :, 1]).max() == 0 and checks["nothing"].passed
    assert np.abs(each[0, :, 3]).min() > 1e-3
    fixed, told = each[1, :, 2], each[2, :, 2]
    assert np.abs(told).max() > 0
    assert np.abs(fixed - told).max() < 0.01 * np.abs(told).max()
    # with patterns live the slope is another
    assert np.abs(each[0, :, 2] - told).max() > 1e-3 * np.abs(told).max()


def test_a_vector_moves_its_observable_on_a_shipped_model_further_than_random_ones(tmp_path):
    model = interp.load_model("zoo:ioi")
    task = interp.load_task("pronouns:n=12", model)
    store = interp.Store(tmp_path)
    vectors = interp.run(
        HeadFeatures(observable="she / he; her / him"), model, task, store=store, progress=False
    )
    spec = FeatureSteering(vectors=vectors.run_id, alpha=(-1, 0, 1), tokens=1, n_boot=50)
    result = interp.run(spec, model, task, store=store, progress=False)
    effect = result.data["effect"].sel(component="feature vector").values
    assert effect[0] < 0 < effect[2]
    assert {c.name: c for c in result.checks}["beats_random"].passed
    assert result.data["kl"].shape == (2, 3)
    assert result.figures()
