"""Gradients: the rules against their twin, what conserves and what does not, the counts."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.engine import Cell, metric_named, plain_metrics, sweep
from interp.engine.gradients import (
    PRESETS,
    RuleSet,
    attribute,
    conservation,
    forms,
    frozen_effect,
    integrate,
    integrate_modules,
    own_estimates,
    quadrature,
    record,
    relevance,
    rule_set,
    rules,
    run_blocks,
    small_patch_slope,
)
from interp.engine.gradients.parts import Swap
from interp.engine.gradients.passes import LayerPass, layer_of
from interp.engine.gradients.softmax import key_estimates, query_estimates
from interp.models import load_model
from interp.models.blocks import LayerBlock
from interp.terms import CapabilityError, Edit, InterpError, PromptPairs, Site, UsageError
from tests.checkpoints import FAMILY_NAMES, hard_model
from tests.engine.driven import Remembering, driven, pairs_for, telling_pairs
from tests.models.wrapped import wrapped
from tests.twins import attribution as twin
from tests.twins.patching import patched_logits

KINDS = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "mlp_post",
)
SETS = ("relp", "relp_ah", "attnlrp", "cplrp", "relp_no_identity")
EXACT = ("gpt2", "gpt_neox")  # the other families keep float32 islands in a float64 model
TWINS = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "olmo2")


def close(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference in standard deviations, of grids with content."""
    assert found.shape == wanted.shape
    assert np.nanstd(wanted) > 1e-4
    return float(np.nanmax(np.abs(found - wanted)) / np.nanstd(wanted))


def values(model: Any, pairs: PromptPairs, kind: str, **knobs: Any) -> np.ndarray:
    return attribute(model, pairs, [kind], Remembering(), **knobs).values[kind]


@pytest.fixture(scope="module")
def gpt2() -> tuple[Any, Any, PromptPairs]:
    module, model = driven("gpt2")
    return module, model, telling_pairs(module)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, Any, PromptPairs]:
    module, model = driven("llama")
    return module, model, telling_pairs(module)


# -- plain gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_estimates_equal_those_of_the_back_ends_own_graph(family: str, backend: str) -> None:
    model, pairs = wrapped(family, backend), pairs_for(97)
    kinds = [k for k in KINDS if not (k == "resid_mid" and model.shape.parallel)]
    found = attribute(model, pairs, kinds, Remembering())
    for kind in kinds:
        own = own_estimates(
            model, pairs, kind, metric="logit_diff", direction="denoising", at="last"
        )
        assert close(found.values[kind], own) < (1e-9 if family in EXACT else 1e-5), kind
    assert np.abs(found.source - found.base).max() > 0.1


def test_a_gradient_taken_at_the_other_run_is_another_one(gpt2: Any) -> None:
    _, model, pairs = gpt2
    one = values(model, pairs, "z")
    other = -values(model, pairs, "z", direction="noising")
    assert close(one, other) > 0.1


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "z", "mlp_post"])
def test_kept_and_recomputed_layers_give_the_same_gradients(llama: Any, kind: str) -> None:
    _, model, pairs = llama
    kept = attribute(model, pairs, [kind], Remembering())
    streamed = attribute(model, pairs, [kind], Remembering(memory=1))
    assert (kept.streamed, streamed.streamed) == (0, len(pairs))
    assert close(streamed.values[kind], kept.values[kind]) < 1e-10


def test_rows_in_another_order_and_other_lengths_beside_change_nothing(gpt2: Any) -> None:
    _, model, pairs = gpt2
    order = [2, 0, 3, 1]
    straight, turned = values(model, pairs, "z"), values(model, pairs.select(order), "z")
    assert close(turned, straight[order]) < 1e-10
    short = pairs_for(97, n=2, length=7, seed=5)
    mixed = PromptPairs.from_tokens(
        [*short.clean, *pairs.clean],
        [*short.corrupt, *pairs.corrupt],
        [*short.right, *pairs.right],
        [*short.wrong, *pairs.wrong],
    )
    found = values(model, mixed, "z")
    assert close(found[2:], straight) < 1e-10
    assert np.isnan(found[:2, :, 7:]).all() and np.isfinite(found[:2, :, :7]).all()


def test_two_forwards_and_one_backward_serve_all_nodes(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, pairs = gpt2
    layers, seen = model.blocks.layers, {"forwards": 0, "backwards": 0}
    honest = LayerBlock.attn_sum

    def counted(self: Any, z: Tensor) -> Tensor:
        out = honest(self, z)
        seen["forwards"] += 1
        if out.requires_grad:
            out.register_hook(lambda g: seen.update(backwards=seen["backwards"] + 1))
        return out

    monkeypatch.setattr(LayerBlock, "attn_sum", counted)
    found = attribute(model, pairs, KINDS, Remembering())
    assert seen == {"forwards": 2 * len(layers), "backwards": len(layers)}
    assert found.passes == {"forwards": 2, "backwards": 1} and len(found.values) == len(KINDS)
    with rules(model, "relp"):
        seen.update(forwards=0, backwards=0)
        attribute(model, pairs, KINDS, Remembering())
    assert seen == {"forwards": 2 * len(layers), "backwards": len(layers)}


def test_finished_batches_are_not_run_again(gpt2: Any) -> None:
    _, model, pairs = gpt2
    context = Remembering(memory=1)
    first = attribute(model, pairs, ["z"], context)
    context.saved.clear()
    again = attribute(model, pairs, ["z"], context)
    assert context.saved == [] and (again.values["z"] == first.values["z"]).all()


def test_what_both_runs_share_is_run_once_and_the_last_layer_ends_at_the_metric(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = gpt2
    pairs = pairs_for(97, length=9, shared=4)
    first = min(
        next(p for p in range(9) if a[p] != b[p])
        for a, b in zip(pairs.clean, pairs.corrupt, strict=True)
    )
    tokens: list[tuple[int, bool]] = []
    honest = LayerBlock.attn_sum

    def counted(self: Any, z: Tensor) -> Tensor:
        tokens.append((len(z), z.requires_grad))
        return honest(self, z)

    monkeypatch.setattr(LayerBlock, "attn_sum", counted)
    attribute(model, pairs, ["embed", "z", "mlp_out"], Remembering())
    source, base = tokens[:4], tokens[4:]
    assert [n for n, _ in source] == [36, 36, 36, 4] and not any(g for _, g in source)
    assert [n for n, _ in base] == [4 * (9 - first)] * 3 + [4] and all(g for _, g in base)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("preset", ["none", "relp", "attnlrp"])
def test_sharing_a_beginning_changes_no_estimate(
    family: str, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.engine.gradients.batch import Batch
    from interp.engine.gradients.passes import WHOLE

    model, pairs = wrapped(family), pairs_for(97, n=3, shared=4)
    kinds = [k for k in KINDS if not (k == "resid_mid" and model.shape.parallel)]
    with rules(model, preset, verify=False):
        short = attribute(model, pairs, kinds, Remembering())
        steps = attribute(model, pairs, ["z"], Remembering(), steps=(0.3, 0.8))
        monkeypatch.setattr(Batch, "_reach", lambda self: WHOLE)
        long = attribute(model, pairs, kinds, Remembering())
        slow = attribute(model, pairs, ["z"], Remembering(), steps=(0.3, 0.8))
    bound = 1e-9 if family in EXACT else 1e-4
    for kind in kinds:
        assert close(short.values[kind], long.values[kind]) < bound, kind
    assert close(steps.values["z"], slow.values["z"]) < bound
    np.testing.assert_allclose(short.base, long.base, rtol=1e-5 if bound > 1e-8 else 1e-10)


# -- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_estimates_of_patterns_are_the_back_ends_own_gradients(family: str) -> None:
    model, pairs = wrapped(family), pairs_for(97)
    found = attribute(model, pairs, ["pattern"], Remembering()).values["pattern"]
    own = own_estimates(
        model, pairs, "pattern", metric="logit_diff", direction="denoising", at="last"
    )
    assert found.shape == (4, 4, 9, model.shape.n_heads)
    assert close(found, own) < 2e-4  # the modules' own softmax is float32
    each = attribute(model, pairs, ["pattern"], Remembering(), keys=True).values["pattern"]
    assert each.shape == (*found.shape, 9)
    np.testing.assert_allclose(each.sum(-1), found, atol=1e-12)
    assert (each[:, :, 2, :, 3:] == 0).all()  # nothing looks ahead


def test_a_small_change_of_a_pattern_is_its_estimate(gpt2: Any) -> None:
    module, _, pairs = gpt2
    model = load_model(copy.deepcopy(module), dtype="float64", verify=False)
    estimate = attribute(model, pairs, ["pattern"], Remembering(), keys=True).values["pattern"]
    source, base = (
        model.run(np.array(t), read=[Site("pattern", layer=2)]).reads[Site("pattern", layer=2)]
        for t in (pairs.clean, pairs.corrupt)
    )
    head, query, key, h = 1, 8, 6, 1e-3
    way = (source - base)[:, :, head, key]
    site = Site("pattern", layer=2, head=head, position=query, key=key)
    moved = [
        plain_metrics(
            model,
            pairs,
            [Cell((Edit(site, (base[:, :, head, key] + s * h * way).detach().numpy()),))],
            metric_named("logit_diff"),
            direction="denoising",
        )[0]
        for s in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * h)
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(estimate[:, 2, query, head, key], slope, atol=1e-6)


def test_the_uniform_rule_leaves_a_pattern_half(gpt2: Any) -> None:
    _, model, pairs = gpt2
    # the last layer's pattern: nothing but the product stands between it and the norm behind
    plain = attribute(model, pairs, ["pattern"], Remembering()).values["pattern"][:, 3]
    with rules(model, RuleSet(attn="uniform"), verify=False):
        half = attribute(model, pairs, ["pattern"], Remembering()).values["pattern"][:, 3]
    assert close(half, 0.5 * plain) < 1e-9


# -- the rules against the twin -------------------------------------------------------------------


@pytest.mark.parametrize("family", TWINS)
@pytest.mark.parametrize("preset", ["none", "relp", "attnlrp", "cplrp"])
def test_each_set_of_rules_is_its_twins_hand_written_backward(family: str, preset: str) -> None:
    module, model = driven(family)
    pairs = pairs_for(97)
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    chosen = PRESETS[preset]
    given = (
        None
        if preset == "none"
        else {
            "norm": chosen.norm == "linear",
            "act": chosen.act == "identity",
            "gate": chosen.gate,
            "attn": chosen.attn,
        }
    )
    with rules(model, preset):
        found = attribute(model, pairs, ["resid_pre", "mlp_out", "z"], Remembering()).values
    for kind, layer in (("resid_pre", 0), ("mlp_out", 1), ("z", 1), ("resid_pre", 3)):
        wanted = twin.estimates(
            module, family, base, source, kind, layer, list(pairs.right), list(pairs.wrong), given
        )
        if kind == "z":
            wanted = wanted.unflatten(-1, (6, -1))
        wanted = wanted.sum(-1).numpy()
        assert close(found[kind][:, layer], wanted) < (1e-8 if family in EXACT else 2e-4), kind


def test_the_twin_goes_red_when_a_rule_is_left_out(llama: Any) -> None:
    module, model, pairs = llama
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    with rules(model, "relp"):
        found = values(model, pairs, "resid_pre")[:, 0]
    full = {"norm": True, "act": True, "gate": "half", "attn": "grad"}
    for left_out in ({"norm": False}, {"act": False}, {"gate": "value"}, {"attn": "ah"}):
        wanted = (
            twin.estimates(
                module,
                "llama",
                base,
                source,
                "resid_pre",
                0,
                list(pairs.right),
                list(pairs.wrong),
                {**full, **left_out},
            )
            .sum(-1)
            .numpy()
        )
        assert close(found, wanted) > 0.02, left_out


# -- the context manager --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("preset", SETS)
def test_rules_prove_that_they_are_active_and_leave_values_alone(family: str, preset: str) -> None:
    _, model = driven(family)
    tokens = np.array(pairs_for(97).clean)
    with torch.no_grad():
        before = run_blocks(model.blocks, tokens)
    start = model.blocks.embed(torch.tensor(tokens).flatten(), torch.arange(9).repeat(4)).detach()
    plain = run_blocks(model.blocks, tokens, None, start.clone().requires_grad_())
    with rules(model, preset) as active:
        with torch.enable_grad():
            inside = run_blocks(model.blocks, tokens, None, start.clone().requires_grad_())
    assert torch.equal(plain, inside)
    assert active.bit_equal and active.replaced == active.present
    layers = len(model.blocks.layers)
    norms = layers * (4 if family == "gemma2" else 2) + 1
    gated = family in twin.GATED
    assert active.present["norm"] == norms and active.present.get("gate", 0) == layers * gated
    quiet = preset == "relp_no_identity" or (preset == "cplrp" and gated)
    assert active.present.get("act", 0) == layers * (not quiet)
    assert min(active.changed.values()) > 1e-3 and min(active.least.values()) > 1e-3
    with torch.no_grad():
        assert torch.equal(run_blocks(model.blocks, tokens), before)


def state(model: Any) -> list[Any]:
    return [dict(vars(o)) for o in (model.blocks, *model.blocks.layers)]


def test_exceptions_restore_the_model(llama: Any) -> None:
    _, model, _ = llama
    before = state(model)
    with pytest.raises(ZeroDivisionError), rules(model, "cplrp"):
        assert state(model) != before
        raise ZeroDivisionError
    assert state(model) == before
    with rules(model, "cplrp"):
        pass


def test_rules_inside_rules_are_refused_and_leave_the_outer_ones_in_force(gpt2: Any) -> None:
    _, model, _ = gpt2
    with rules(model, "relp"):
        inside = state(model)
        with pytest.raises(UsageError, match="do not nest"), rules(model, "cplrp"):
            pass
        assert state(model) == inside
    assert state(model) != inside


@pytest.mark.parametrize(
    ("kind", "name"), [("norm", "pre_mlp"), ("act", "act"), ("attn", "attention")]
)
def test_a_rule_that_does_nothing_is_named_with_its_place(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    _, model, _ = gpt2
    honest = Swap.install

    def lazy(self: Swap) -> None:
        honest(self)
        part = [p for p in self.parts if p.kind == kind and name in p.where][1]
        part.ruled = part.plain  # type: ignore[method-assign]

    monkeypatch.setattr(Swap, "install", lazy)
    before = state(model)
    with (
        pytest.raises(InterpError, match=f"{kind}.*changes nothing at layer 1"),
        rules(model, "relp_ah"),
    ):
        pass
    assert state(model) == before


def test_a_part_that_is_never_reached_is_an_error(gpt2: Any) -> None:
    _, model, _ = gpt2
    block = model.blocks.layers[2]
    block.add_attn = lambda x: x  # stands in for a wrapper that goes around the part
    block.neurons = lambda x: block.w_in(block.pre_mlp(x))
    try:
        with (
            pytest.raises(InterpError, match="layer 2 activation.*never reaches"),
            rules(model, "relp"),
        ):
            pass
    finally:
        del block.add_attn, block.neurons


def test_a_rule_that_changes_values_is_an_error(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "stopped", lambda value, form: form)
    with pytest.raises(InterpError, match="changes the model's values"), rules(gpt2[1], "relp"):
        pass


def test_a_rule_the_model_has_no_part_for_is_an_error(gpt2: Any) -> None:
    with (
        pytest.raises(InterpError, match="no part it is for"),
        rules(gpt2[1], RuleSet(gate="half")),
    ):
        pass
    with (
        pytest.raises(InterpError, match="no part it is for"),
        rules(gpt2[1], RuleSet(qk_norm="linear")),
    ):
        pass


def test_an_activation_that_is_not_zero_at_zero_has_no_identity_rule(gpt2: Any) -> None:
    _, model, _ = gpt2
    block = model.blocks.layers[1]
    honest, block.act = block.act, torch.sigmoid
    try:
        with pytest.raises(UsageError, match="layer 1 is not 0 at 0"), rules(model, "relp"):
            pass
    finally:
        block.act = honest


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"preset": "reln"}, "relp"),
        ({"preset": "relp", "attn": "ahh"}, "ah"),
        ({"preset": "relp", "moe": "half"}, "no rule for"),
    ],
)
def test_unknown_rules_are_refused(gpt2: Any, knobs: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words), rules(gpt2[1], **knobs):
        pass


def test_single_rules_of_a_set_can_be_changed() -> None:
    changed = rule_set("relp", attn="ah")
    assert changed.attn == "ah" and changed.name == "relp, attn ah"
    assert rule_set("relp", attn="grad") == PRESETS["relp"]


@pytest.mark.parametrize(
    ("family", "kind"), [("qwen3", "qk_norm"), ("olmo2", "qk_norm"), ("gemma2", "cap")]
)
def test_norms_of_queries_and_soft_caps_have_rules_of_their_own(family: str, kind: str) -> None:
    _, model = driven(family)
    pairs = pairs_for(97)
    plain = values(model, pairs, "resid_pre")
    rule = {"qk_norm": "linear", "cap": "identity"}[kind]
    with rules(model, RuleSet(**{kind: rule})) as active:
        found = values(model, pairs, "resid_pre")
    assert active.present[kind] == (8 if kind == "qk_norm" else 5)
    assert close(found, plain) > 1e-3


# -- closed forms ---------------------------------------------------------------------------------


def test_no_rules_are_the_plain_gradient(llama: Any) -> None:
    _, model, pairs = llama
    plain = values(model, pairs, "z")
    with rules(model, "none") as active:
        assert (values(model, pairs, "z") == plain).all()
    assert active.present == {}


@pytest.mark.parametrize("act", [F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu])
def test_closed_forms_are_the_divided_ones_and_finite_at_zero(act: Any) -> None:
    from interp.models import kernels

    known = {"gelu": kernels.gelu, "silu": kernels.silu}.get(
        getattr(act, "__name__", ""), kernels.gelu_tanh
    )
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)
    x = x[x.abs() > 1e-3]
    torch.testing.assert_close(forms.factor(known, x), act(x) / x, rtol=1e-9, atol=1e-12)
    assert forms.factor(known, torch.zeros(1)).item() == pytest.approx(0.5)
    assert torch.isfinite(forms.factor(torch.tanh, torch.zeros(1))).all()


def test_half_and_uniform_are_a_half_and_a_quarter_of_the_plain_gradients() -> None:
    a, u = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for rule, shares in (("half", (0.5, 0.5)), ("value", (0.0, 1.0))):
        grads = torch.autograd.grad(forms.product(a, u, rule).sum(), (a, u), allow_unused=True)
        wanted = shares[0] * u, shares[1] * a
        for g, w in zip(grads, wanted, strict=True):
            torch.testing.assert_close(torch.zeros_like(w) if g is None else g, w)
    assert torch.equal(forms.product(a, u, "half"), a * u)
    _, model = driven("gpt2", num_hidden_layers=1)
    pairs = pairs_for(97)
    plain = relevance(model, pairs, ["q", "k", "v"], Remembering()).values
    with rules(model, RuleSet(attn="uniform")):
        found = relevance(model, pairs, ["q", "k", "v"], Remembering()).values
    for kind, share in (("q", 0.25), ("k", 0.25), ("v", 0.5)):
        assert close(found[kind], share * plain[kind]) < 1e-10


# -- what holds -----------------------------------------------------------------------------------


def straighten(model: Any, tokens: np.ndarray) -> None:
    """No norms, identity activation, attention patterns fixed at a run's."""
    x = torch.randn(
        tokens.size, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    places = torch.arange(tokens.shape[1])
    for block in model.blocks.layers:
        q, k, v = (t.unflatten(0, tokens.shape) for t in block.qkv(x, places.repeat(len(tokens))))
        fixed = block.pattern(q, k, places)[:1].detach()
        block.pre_attn = block.pre_mlp = None
        block.act = lambda y: y
        block.attend = lambda q, k, v, p, b=block, a=fixed: b.mix(
            a[0][:, p.expand(len(v), p.shape[-1])][..., : v.shape[1]].transpose(0, 1), v
        )
    model.blocks.final_norm = None


def test_on_a_linear_network_every_estimate_is_the_exact_effect() -> None:
    _, model = driven("gpt2", seed=3)
    pairs = pairs_for(97)
    straighten(model, np.array(pairs.clean))
    cells = [
        Cell((Edit(Site(kind, layer=2, position=7), "source"),))
        for kind in ("resid_pre", "attn_out", "mlp_out", "v")
    ]
    model.sites = ()
    points = quadrature(1, "midpoint")
    exact, _, _ = integrate(model, pairs, cells, Remembering(), points=points)
    ends = _moved(model, pairs, cells)
    np.testing.assert_allclose(exact, ends, atol=1e-10)
    found = attribute(model, pairs, ["resid_pre", "attn_out", "mlp_out", "v"], Remembering())
    for row, kind in zip(ends, ("resid_pre", "attn_out", "mlp_out", "v"), strict=True):
        est = found.values[kind][:, 2, 7]
        est = est.sum(-1) if kind == "v" else est
        np.testing.assert_allclose(est, row, atol=1e-9)
        assert np.abs(row).max() > 0.01
    with pytest.raises(InterpError, match="changes nothing"), rules(model, RuleSet(act="identity")):
        pass
    with rules(model, "relp", verify=False):
        ruled = attribute(model, pairs, ["resid_pre"], Remembering())
    np.testing.assert_allclose(ruled.values["resid_pre"][:, 2, 7], ends[0], rtol=1e-3, atol=1e-5)


def _moved(model: Any, pairs: PromptPairs, cells: list[Cell]) -> np.ndarray:
    """Exact effects by rows at α = 1, for networks whose fused attention was taken away."""
    from interp.engine.buckets import buckets_of
    from interp.engine.gradients.paths import Walk

    (bucket,) = buckets_of(pairs, "denoising")
    walk = Walk(model.blocks, 97, pairs, bucket, metric_named("logit_diff"), cells)
    ones = torch.ones(len(pairs), dtype=torch.float64)
    with torch.no_grad():
        return np.stack([walk.moved([c], ones).numpy() - walk.base for c in range(len(cells))])


def test_the_error_of_an_estimate_is_of_second_order(gpt2: Any) -> None:
    module, _, pairs = gpt2
    model = load_model(copy.deepcopy(module), dtype="float64", verify=False)
    site = Site("mlp_out", layer=1, position=8)
    estimate = values(model, pairs, "mlp_out")[:, 1, 8]
    source, base = (
        model.run(np.array(t), read=[site.whole]).reads[site.whole]
        for t in (pairs.clean, pairs.corrupt)
    )
    errors = []
    for step in (0.02, 0.01):
        cell = Cell((Edit(site, (base + step * (source - base)).numpy()),))
        moved, still = plain_metrics(
            model, pairs, [cell, Cell(())], metric_named("logit_diff"), direction="denoising"
        )
        errors.append(np.abs(moved - still - step * estimate).max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    slope = small_patch_slope(
        model, pairs, site, metric="logit_diff", direction="denoising", at="last", step=1e-3
    )
    np.testing.assert_allclose(estimate, slope, atol=1e-5 * np.abs(slope).max() + 1e-7)
    with rules(model, "relp"):
        ruled = values(model, pairs, "mlp_out")[:, 1, 8]
    assert abs(float(ruled @ slope / (slope @ slope)) - 1) > 0.01  # RelP is not first-order


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3", "olmo2"])
def test_relevance_is_conserved_by_one_set_and_only_with_its_constants(family: str) -> None:
    _, model = driven(family)
    pairs = pairs_for(97)
    ratios = {}
    for preset in ("none", "relp", "relp_ah", "cplrp", "attnlrp"):
        with rules(model, preset, verify=False):
            parts = [conservation(model, pairs, layer=n) for n in (0, 2)]
        ratios[preset] = [(cut + more) / value for cut, more, value in parts]
        if preset == "relp_ah" and family in ("gpt2", "gpt_neox"):
            assert all(abs(cut / value - 1) > 0.1 for cut, _, value in parts)
    tolerance = 1e-9 if family in EXACT else 1e-4  # eps of a norm of small values
    np.testing.assert_allclose(ratios["relp_ah"], 1, atol=tolerance)
    np.testing.assert_allclose(ratios["cplrp"], 1, atol=tolerance)
    assert all(abs(r - 1) > 0.01 for p in ("none", "attnlrp") for r in ratios[p])


def test_relevance_at_the_cut_is_what_conservation_adds_up(gpt2: Any) -> None:
    _, model, pairs = gpt2
    with rules(model, "relp_ah", verify=False):
        found = relevance(model, pairs, ["resid_pre", "embed"], Remembering())
        cut, _, value = conservation(model, pairs, layer=2)
    assert found.values["resid_pre"][:, 2].sum() == pytest.approx(cut, rel=1e-9)
    assert found.base.sum() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("preset", ["relp_ah", "cplrp"])
def test_in_the_frozen_network_the_estimate_is_the_exact_effect(family: str, preset: str) -> None:
    _, model = driven(family)
    pairs = pairs_for(97)
    for site in (
        Site("z", layer=1, head=2),
        Site("mlp_out", layer=2, position=5),
        Site("embed", position=5),
        Site("mlp_post", layer=1, neuron=7, position=5),
    ):
        cell = Cell((Edit(site, "source"),))
        exact, estimate = frozen_effect(
            model,
            pairs,
            cell,
            PRESETS[preset],
            metric="logit_diff",
            direction="denoising",
            at="last",
        )
        np.testing.assert_allclose(estimate, exact, atol=1e-9)
        assert np.abs(exact).max() > 1e-4
        live = _moved(model, pairs, [cell])[0]
        assert np.abs(live - exact).max() > 1e-5


def test_a_reference_lends_to_its_own_prompts_alone(gpt2: Any) -> None:
    _, model, pairs = gpt2
    tokens = np.array(pairs.clean)
    with torch.no_grad():
        before = run_blocks(model.blocks, tokens)
        with rules(model, "frozen_norms", reference=tokens) as active:
            same = run_blocks(model.blocks, tokens)
            other = run_blocks(model.blocks, np.array(pairs.corrupt))
            with pytest.raises(UsageError, match="prompts of the reference"):
                run_blocks(model.blocks, tokens[:2])
        live = run_blocks(model.blocks, np.array(pairs.corrupt))
    assert active.reference and not active.bit_equal
    torch.testing.assert_close(same, before, rtol=0, atol=1e-12)
    assert (other - live).abs().max() > 1e-3
    lent = record(model, "frozen_norms", tokens)
    with pytest.raises(UsageError, match="lends nothing to"), rules(model, "relp", reference=lent):
        pass


def test_heads_add_up_to_attention(llama: Any) -> None:
    _, model, pairs = llama
    found = attribute(model, pairs, ["z", "attn_out"], Remembering()).values
    assert close(found["z"].sum(-1), found["attn_out"]) < 1e-10


def ungrouped(module: Any) -> Any:
    """The same function with a key/value head for every query head."""
    groups = module.config.num_attention_heads // module.config.num_key_value_heads
    wide = hard_model("llama", num_key_value_heads=module.config.num_attention_heads).double()
    weights = module.state_dict()
    for name in weights:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            w = weights[name].unflatten(0, (module.config.num_key_value_heads, -1))
            weights[name] = w.repeat_interleave(groups, 0).flatten(0, 1)
    wide.load_state_dict(weights)
    return wide


def test_a_group_is_the_sum_of_its_ungrouped_copies(llama: Any) -> None:
    from interp.models.blocks import ModelBlocks
    from interp.models.families import shape_of

    module, model, pairs = llama
    wide = ungrouped(module)
    other = SimpleNamespace(blocks=ModelBlocks(wide), shape=shape_of(wide))
    for fix in (False, True):
        for kind in ("k",) if fix else ("k", "v", "q"):
            mine = values(model, pairs, kind, qk_fix=fix)
            theirs = values(other, pairs, kind, qk_fix=fix)
            if kind != "q":
                theirs = theirs.reshape(*theirs.shape[:-1], 2, 3).sum(-1)
            assert close(mine, theirs) < 1e-9


# -- the QK fix and GradDrop ----------------------------------------------------------------------


def test_the_qk_fix_of_two_keys_is_the_exact_flip() -> None:
    """Values ±1, a gap of 8 logits flipped: the gradient sees −0.011, the fix the whole −1.9987."""
    q = torch.zeros(2, 1, dtype=torch.float64)
    q[1] = 1.0
    k = torch.tensor([[0.0], [8.0]], dtype=torch.float64)
    s = (q @ k.T).masked_fill(torch.ones(2, 2).triu(1).bool(), -torch.inf)
    a = s.softmax(-1)
    g = torch.tensor([[0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    after = ((-q) @ k.T).masked_fill(torch.ones(2, 2).triu(1).bool(), -torch.inf).softmax(-1)
    shaped = [t[None, None] for t in (a, after, g)]
    assert float(query_estimates(*shaped)[0, 1, 0]) == pytest.approx(-1.9987, abs=1e-4)
    slope = (a[1] * (g[1] - (a[1] * g[1]).sum()) * (after[1].log() - a[1].log())).sum()
    gradient = (a[1] * (g[1] - (a[1] * g[1]).sum()) * torch.tensor([0.0, -16.0])).sum()
    assert float(gradient) == pytest.approx(-0.0107, abs=1e-3) and abs(slope) < 0.1
    delta = torch.tensor([[0.0, 0.0], [0.0, -16.0]], dtype=torch.float64)
    key = key_estimates(shaped[0], delta[None, None], shaped[2])
    assert float(key[0, 1, 0]) == pytest.approx(-1.9987, abs=1e-4)


@pytest.mark.parametrize("peak", [1.0, 6.0, 40.0])
def test_the_qk_fix_is_the_softmax_computed_again(peak: float) -> None:
    draw = torch.Generator().manual_seed(2)
    T, E = 7, 3
    q, k, q_new, k_new = (
        torch.randn(T, E, dtype=torch.float64, generator=draw) * peak**0.5 for _ in range(4)
    )
    g = torch.randn(T, T, dtype=torch.float64, generator=draw)
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    s, s_k = (((q @ x.T) / 2).masked_fill(later, -torch.inf) for x in (k, k_new))
    a, after = s.softmax(-1), ((q_new @ k.T) / 2).masked_fill(later, -torch.inf).softmax(-1)
    queries = query_estimates(a[None, None], after[None, None], g[None, None])[0, :, 0]
    keys = key_estimates(a[None, None], (s_k - s)[None, None], g[None, None])[0, :, 0]
    for i in range(T):
        wanted = twin.softmax_query(q, k, g, q_new[i], i, 0.5)
        assert float(queries[i]) == pytest.approx(float(wanted), abs=1e-12)
        wanted = twin.softmax_key(q, k, g, k_new[i], i, 0.5)
        assert float(keys[i]) == pytest.approx(float(wanted), abs=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_the_qk_fix_agrees_better_with_patching(family: str) -> None:
    model, pairs = wrapped(family), pairs_for(97, n=6)
    for kind in ("q", "k"):
        heads = model.shape.n_heads if kind == "q" else model.shape.n_kv_heads
        cells = [
            Cell((Edit(Site(kind, layer=n, head=h, position=p), "source"),))
            for n in range(4)
            for h in range(heads)
            for p in (5, 8)
        ]
        found = sweep(model, pairs, cells, Remembering())
        exact = (found.patched - found.base).reshape(4, heads, 2, 6)
        errors = {}
        for fix in (False, True):
            mine = values(model, pairs, kind, qk_fix=fix)[:, :, [5, 8]]
            errors[fix] = np.abs(np.moveaxis(mine, 0, -1).swapaxes(1, 2) - exact).mean()
        assert errors[True] < errors[False]
        assert np.abs(exact).max() > 0.1


class Sine:
    """A layer on a residual of width one: its MLP adds ``scale · sin x``, attention nothing."""

    parallel = gated = False
    n_heads = n_kv_heads = d_head = d_mlp = 1

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (x[:, None],) * 3

    def turned(self, q: Tensor, k: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
        return 0 * q

    def attn_sum(self, z: Tensor) -> Tensor:
        return z[:, 0]

    def neurons(self, x: Tensor) -> Tensor:
        return self.scale * torch.sin(x)

    def add_attn(self, x: Tensor) -> Tensor:
        return x

    add_mlp = mlp_sum = add_attn


def test_grad_drop_finds_what_cancels() -> None:
    """m = x − sin x at 0, moved by 2: the gradient is 0, the effect 1.09, the blocked score 2."""
    blocks = SimpleNamespace(
        layers=[Sine(-1.0), Sine(0.0)],
        device=torch.device("cpu"),
        dtype=torch.float64,
        final_norm=None,
        embed=lambda ids, _: ids[:, None].double(),
        token_embed=lambda ids: ids[:, None].double(),
        unembed=lambda x, columns: torch.cat([x, 0 * x, 0 * x], 1)[:, columns],
    )
    shape = SimpleNamespace(
        n_layers=2, n_heads=1, n_kv_heads=1, d_model=1, d_head=1, d_mlp=1, vocab=3, parallel=False
    )
    model = SimpleNamespace(blocks=blocks, shape=shape, sites=())
    pairs = PromptPairs.from_tokens([[1, 2]], [[1, 0]], [0], [1])
    plain = attribute(model, pairs, ["resid_pre", "mlp_out"], Remembering())
    assert plain.values["resid_pre"][0, 0, 1] == pytest.approx(0)
    assert plain.source[0] - plain.base[0] == pytest.approx(2 - np.sin(2))
    dropped = attribute(
        model, pairs, ["resid_pre", "mlp_out", "embed"], Remembering(), grad_drop=True
    )
    assert dropped.values["resid_pre"][0, 0, 1] == pytest.approx(2)
    assert dropped.values["embed"][0, 1] == pytest.approx(2)
    # the MLP's own layer counts nothing; with layer 1 blocked its estimate is −sin 2
    assert dropped.values["mlp_out"][0, 0, 1] == pytest.approx(np.sin(2))


def test_grad_drop_is_the_mean_of_blocked_backward_passes(llama: Any) -> None:
    _, model, pairs = llama
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_mid"]
    found = attribute(model, pairs, kinds, Remembering(), grad_drop=True).values
    total = {k: np.zeros_like(v) for k, v in found.items()}
    for blocked in model.blocks.layers:
        honest = blocked.add_attn, blocked.add_mlp
        blocked.add_attn = lambda x, f=honest[0]: f(x).detach()
        blocked.add_mlp = lambda x, f=honest[1]: f(x).detach()
        try:
            own = model.blocks.layers.index(blocked)
            est = attribute(model, pairs, kinds, Remembering()).values
        finally:
            del blocked.add_attn, blocked.add_mlp
        for kind in ("attn_out", "mlp_out"):
            est[kind][:, own] = 0  # the gradient is cut behind the node
        for kind in kinds:
            total[kind] += np.abs(est[kind])
    streamed = attribute(model, pairs, kinds, Remembering(memory=1), grad_drop=True).values
    for kind in kinds:
        assert close(found[kind], total[kind] / 3) < 1e-10
        assert close(streamed[kind], found[kind]) < 1e-10


# -- integrated gradients -------------------------------------------------------------------------


def test_a_nodes_path_tends_to_the_exact_effect(gpt2: Any) -> None:
    module, model, pairs = gpt2
    cells = [
        Cell((Edit(s, "source"),))
        for s in (
            Site("z", layer=1, head=2),
            Site("mlp_out", layer=2, position=5),
            Site("k", layer=1, head=0),
            Site("resid_post", layer=2, position=8),
        )
    ]
    exact = _moved(model, pairs, cells)
    wanted = twin.logit_diff(
        patched_logits(
            module,
            "gpt2",
            torch.tensor(pairs.corrupt),
            torch.tensor(pairs.clean),
            "mlp_out",
            2,
            position=5,
        ),
        list(pairs.right),
        list(pairs.wrong),
    ).numpy()
    found, base, _ = integrate(model, pairs, cells, Remembering(), points=(0.5,))
    np.testing.assert_allclose(exact[1], wanted - base, atol=1e-9)
    error = {}
    for rule in ("midpoint", "left"):
        for steps in (8, 16, 32):
            got, _, _ = integrate(
                model, pairs, cells, Remembering(), points=quadrature(steps, rule)
            )
            error[rule, steps] = np.abs(got - exact).max(1)
    fast = error["midpoint", 16] / error["midpoint", 32]
    slow = error["left", 16] / error["left", 32]
    assert (np.abs(fast - 4) < 0.5).all() and (np.abs(slow - 2) < 0.3).all()
    small = integrate(model, pairs, cells, Remembering(memory=1), points=quadrature(8, "midpoint"))
    np.testing.assert_allclose(
        small[0],
        integrate(model, pairs, cells, Remembering(), points=quadrature(8, "midpoint"))[0],
        atol=1e-12,
    )


def test_the_embeddings_path_adds_up_to_the_gap(gpt2: Any) -> None:
    _, model, pairs = gpt2
    off = []
    for steps in (40, 80, 160):
        found = attribute(
            model, pairs, ["embed"], Remembering(), steps=quadrature(steps, "midpoint")
        )
        off.append(np.abs(found.values["embed"].sum(1) - (found.source - found.base)).max())
    assert off[2] < 0.3 * off[1] < 0.09 * 4 * off[0] and off[2] < 1e-3
    other = attribute(model, pairs, ["mlp_out"], Remembering(), steps=quadrature(20, "midpoint"))
    gap = other.source - other.base
    assert np.abs(other.values["mlp_out"].sum((1, 2)) - gap).max() > 0.1


def modules_moved(model: Any, pairs: PromptPairs) -> dict[str, np.ndarray]:
    """Exact effect of each module's whole output: heads of a layer together, MLPs, embeddings."""
    layers = range(len(model.blocks.layers))
    cells = [Cell((Edit(Site("embed"), "source"),))]
    cells += [Cell((Edit(Site(k, layer=n), "source"),)) for k in ("z", "mlp_out") for n in layers]
    exact = _moved(model, pairs, cells)
    return {"embed": exact[:1], "z": exact[1 : 1 + len(layers)], "mlp_out": exact[-len(layers) :]}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_modules_nodes_add_up_to_its_exact_effect(family: str) -> None:
    _, model = driven(family)
    pairs = pairs_for(97)
    exact = modules_moved(model, pairs)
    for kind, wanted in exact.items():
        off = []
        for steps in (48, 96):
            found = integrate_modules(
                model, pairs, kind, Remembering(), points=quadrature(steps, "midpoint")
            )
            est = found.values[kind]
            est = (
                est.sum(-1)[:, None]
                if kind == "embed"
                else est.sum((-1, -2) if est.ndim == 4 else -1)
            )
            off.append(np.abs(est.T - wanted).max(1))
        assert np.abs(wanted).max() > 0.1
        assert (off[1] < 0.3 * off[0] + 1e-4).all() and off[1].max() < 0.05 * np.abs(wanted).max()
        assert found.passes == {"forwards": 2 + 96 * 9, "backwards": 96 * 9}
    plain = attribute(model, pairs, ["z"], Remembering()).values["z"].sum((-1, -2)).T
    assert np.abs(plain - exact["z"]).max() > 0.05 * np.abs(exact["z"]).max()
    small = integrate_modules(model, pairs, "z", Remembering(memory=1), points=(0.2, 0.7))
    whole = integrate_modules(model, pairs, "z", Remembering(), points=(0.2, 0.7))
    assert close(small.values["z"], whole.values["z"]) < 1e-9


def test_the_published_code_averages_over_all_modules_paths(gpt2: Any) -> None:
    _, model, pairs = gpt2
    points = (0.0, 0.5)
    found = integrate_modules(
        model, pairs, "mlp_out", Remembering(), points=points, repo=True
    ).values["mlp_out"]
    base, source = (
        LayerPass(model.blocks, np.array(t), {"embed", "z", "mlp_out"}).forward()
        for t in (pairs.corrupt, pairs.clean)
    )
    layers = model.blocks.layers
    modules = [("embed", -1), *((k, n) for n in range(len(layers)) for k in ("z", "mlp_out"))]
    total = np.zeros_like(found)
    for kind, layer in modules:
        for alpha in points:
            total += _along_one(model, pairs, base, source, kind, layer, alpha)
    assert close(found, total / (len(points) * len(modules))) < 1e-9


def _along_one(
    model: Any, pairs: PromptPairs, base: Any, source: Any, kind: str, layer: int, alpha: float
) -> np.ndarray:
    """Estimates of every MLP by the gradient of one run with one module's output moved by α."""
    blocks, rows = model.blocks, len(pairs)
    place = torch.arange(base.length)
    position = place.repeat(rows)

    def step(k: str, n: int) -> Tensor:
        return (source.values(n)[k] - base.values(n)[k]).flatten(0, 1)

    x = blocks.embed(base.tokens_N, position)
    x = (x + alpha * step("embed", -1) if kind == "embed" else x).detach().requires_grad_()
    kept = []
    for n, block in enumerate(blocks.layers):

        def take(k: str, value: Tensor, n: int = n) -> Tensor:
            if (k, n) == (kind, layer):
                own = base.values(n)[k].flatten(0, 1)
                value = (own + alpha * step(k, n)).detach().requires_grad_()
            if k == "mlp_out":
                kept.append(value)
            return value

        x = layer_of(block, x, position, place, rows, take)
    last = x.unflatten(0, (rows, -1))[:, -1]
    logits = blocks.unembed(last, None)
    right, wrong = (torch.tensor(a) for a in (pairs.right, pairs.wrong))
    each = torch.arange(rows)[:, None]
    metric = logits[each, right].mean(1) - logits[each, wrong].mean(1)
    grads = torch.autograd.grad(metric.sum(), kept)
    est = [(step("mlp_out", n) * g).sum(-1) for n, g in enumerate(grads)]
    return torch.stack([e.unflatten(0, (rows, -1)) for e in est], 1).detach().numpy()


@pytest.mark.parametrize("kind", ["resid_pre", "q", "mlp_post"])
def test_paths_of_modules_lead_to_what_modules_write(gpt2: Any, kind: str) -> None:
    with pytest.raises(UsageError, match="not written by one"):
        integrate_modules(gpt2[1], gpt2[2], kind, Remembering())


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"metric": "kl", "direction": "noising"}, "least at the clean run"),
        ({"metric": "accuracy"}, "jumps"),
        ({"metric": "rank"}, "jumps"),
        ({"metric": "span_logprob"}, "token spans"),
    ],
)
def test_metrics_without_a_useful_gradient_are_refused(
    gpt2: Any, knobs: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        attribute(gpt2[1], gpt2[2], ["z"], Remembering(), **knobs)


def test_kl_is_differentiated_where_its_gradient_is_not_zero(gpt2: Any) -> None:
    found = values(gpt2[1], gpt2[2], "z", metric="kl")
    assert np.abs(found).max() > 1e-3


def test_prompts_of_unequal_length_are_refused(gpt2: Any) -> None:
    pairs = PromptPairs.from_tokens(
        [[1, 2, 3, 4]], [[1, 5, 4]], [5], [6], span_map=((((1, 3), (1, 2)),),)
    )
    with pytest.raises(UsageError, match="4 clean and 3 corrupt"):
        attribute(gpt2[1], pairs, ["z"], Remembering())


def test_grad_drop_needs_two_layers() -> None:
    _, model = driven("gpt2", num_hidden_layers=1)
    with pytest.raises(UsageError, match="this model has one"):
        attribute(model, pairs_for(97), ["z"], Remembering(), grad_drop=True)


def test_a_parallel_block_has_no_resid_mid() -> None:
    _, model = driven("gpt_neox")
    with pytest.raises(CapabilityError, match="resid_mid"):
        attribute(model, pairs_for(97), ["resid_mid"], Remembering())


# -- plain modules --------------------------------------------------------------------------------


def picture_net(act: nn.Module, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.InstanceNorm2d(4, affine=True) if norm else nn.Identity(),
            act,
            nn.Conv2d(4, 4, 3),
            nn.GroupNorm(2, 4) if norm else nn.Identity(),
            act,
            nn.Flatten(),
            nn.Linear(64, 5),
            nn.LayerNorm(5) if norm else nn.Identity(),
        )
        .double()
        .eval()
    )


def jacobian(net: Any, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda y: net(y)[0], x)


@pytest.mark.parametrize(
    "act",
    [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.Softplus()],
)
def test_function_rules_make_any_module_linear_at_its_input(act: nn.Module) -> None:
    net = picture_net(act)
    x, y = torch.randn(2, 1, 1, 6, 6, dtype=torch.float64)
    before = net(x)
    with rules(net, "linear", probe=x) as active:
        held = x.clone().requires_grad_()
        assert torch.equal(net(held), before)
        matrix = jacobian(net, x)
    assert active.present["norm"] == 3 and active.present.get("act", 0) == (
        0 if isinstance(act, nn.ReLU) else 2
    )
    assert torch.equal(net(x), before)
    if isinstance(act, nn.ReLU):
        return
    with rules(net, "linear", reference=x):
        torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)
        moved = net(x + 0.1 * y) - net(x)
        step = torch.einsum("cbihw,bihw->c", matrix, 0.1 * y)
        torch.testing.assert_close(moved[0], step, rtol=1e-6, atol=1e-9)
    assert (net(x + 0.1 * y) - net(x) - moved).abs().max() > 1e-4


def test_without_norms_a_relu_net_needs_no_rule() -> None:
    net = picture_net(nn.ReLU(), norm=False)
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    plain = jacobian(net, x)
    with rules(net, "linear", probe=x) as active:
        assert torch.equal(jacobian(net, x), plain)
    assert active.present == {}


class Attends(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.proj = fused, nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.proj(x).chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return F.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1) @ v


def test_fused_and_written_out_attention_take_the_same_rule() -> None:
    torch.manual_seed(1)
    nets = [Attends(True).double(), Attends(False).double()]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    found = []
    for net in nets:
        with rules(net, RuleSet(attn="ah"), probe=x) as active:
            found.append(jacobian(net, x))
        assert active.present == {"attn": 1}
    torch.testing.assert_close(*found)
    assert (jacobian(nets[0], x) - found[0]).abs().max() > 1e-3


def test_a_plain_module_says_what_its_rules_need() -> None:
    net, x = picture_net(nn.GELU()), torch.randn(1, 1, 6, 6, dtype=torch.float64)
    with pytest.raises(UsageError, match="probe="), rules(net, "linear"):
        pass
    with (
        pytest.raises(InterpError, match="no call of this module"),
        rules(nn.Linear(3, 3), RuleSet(norm="linear"), probe=torch.randn(2, 3)),
    ):
        pass
    hidden = nn.MultiheadAttention(6, 2, batch_first=True)

    class Wrap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = hidden

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x, x, x, need_weights=False)[0]

    with (
        pytest.raises(CapabilityError, match="hides its softmax"),
        rules(Wrap(), RuleSet(attn="ah"), probe=torch.randn(1, 3, 6)),
    ):
        pass
    with pytest.raises(ZeroDivisionError), rules(net, "linear", probe=x):
        raise ZeroDivisionError
    with rules(net, "linear", probe=x):
        pass
