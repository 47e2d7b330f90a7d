"""ActivationPatching: its grids, its statistics, its refusals and its trust panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from interp.engine import Sweep
from interp.methods import ActivationPatching, VerifyCell
from interp.methods.patching import activation_patching as room
from interp.methods.patching.values import derangement
from interp.models import load_model
from interp.terms import CapabilityError, PromptPairs, Site, TaskError, UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, pairs_for, telling_pairs
from tests.twins import patching as twin


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return load_model(hard_model("gpt2").double(), dtype="float64")


@pytest.fixture(scope="module")
def llama() -> Any:
    return load_model(hard_model("llama"))


def measure(method: ActivationPatching, model: Any, task: PromptPairs) -> tuple[Any, Remembering]:
    context = Remembering()
    data = method.measure(model, task, context)
    check_dataset(data)
    return data, context


def checks(context: Remembering) -> dict[str, bool]:
    return {c.name: c.passed for c in context.checks}


@pytest.mark.parametrize(
    ("site", "axes", "dims"),
    [
        ("resid_pre", "auto", ("layer", "position")),
        ("resid_pre", "layer", ("layer",)),
        ("embed", "auto", ("position",)),
        ("attn_out", "layer,position", ("layer", "position")),
        ("z", "auto", ("layer", "head")),
        ("z", "layer,head,position", ("layer", "head", "position")),
        ("v", "auto", ("layer", "kv_head")),
        ("k", "layer,head,position", ("layer", "kv_head", "position")),
    ],
)
def test_a_grid_has_the_axes_of_its_site(
    llama: Any, site: str, axes: str, dims: tuple[str, ...]
) -> None:
    method = ActivationPatching(site=site, axes=axes, n_boot=50)  # type: ignore[arg-type]
    data, context = measure(method, llama, telling_pairs(llama.module(), n=3, length=7))
    assert data["effect"].dims == dims
    sizes = {"layer": 4, "position": 7, "head": 6, "kv_head": 2}
    assert data["effect"].shape == tuple(sizes[d] for d in dims)
    assert all(checks(context).values()), [c for c in context.checks if not c.passed]
    assert float(np.abs(data["effect"]).max()) > 0.1


def test_effects_are_zero_for_nothing_and_one_for_everything(gpt2: Any) -> None:
    pairs = telling_pairs(hard_model("gpt2").double())
    data, _ = measure(ActivationPatching(site="resid_pre", axes="layer"), gpt2, pairs)
    np.testing.assert_allclose(data["effect"], 1.0, atol=1e-9)
    before, _ = measure(ActivationPatching(site="resid_pre", positions=(0, 1)), gpt2, pairs)
    assert (before["effect"] == 0).all() and (before["inert"] == 1).all()


def test_the_effect_is_the_twins_ratio_of_means(gpt2: Any) -> None:
    module = hard_model("gpt2").double()
    pairs = telling_pairs(module)
    data, _ = measure(ActivationPatching(site="mlp_out", direction="noising"), gpt2, pairs)
    base, source = torch.tensor(pairs.clean), torch.tensor(pairs.corrupt)

    def score(logits: torch.Tensor) -> np.ndarray:
        return twin.logit_diff(logits.detach(), list(pairs.right), list(pairs.wrong)).numpy()

    gap = (score(module(source).logits) - score(module(base).logits)).mean()
    for layer, position in ((0, 4), (1, 8), (3, 8)):
        logits = twin.patched_logits(
            module, "gpt2", base, source, "mlp_out", layer, position=position
        )
        wanted = (score(logits) - score(module(base).logits)).mean() / gap
        found = float(data["effect"].sel(layer=layer, position=position))
        assert found == pytest.approx(wanted, abs=1e-9)
    np.testing.assert_allclose(data["metric_base"], score(module(base).logits), atol=1e-9)


@pytest.mark.parametrize("with_", ["zero", "mean", "resample"])
def test_ablations_put_the_named_value_in_place(gpt2: Any, with_: str) -> None:
    pairs = pairs_for(97)
    module = hard_model("gpt2").double()
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    lent = twin.read(module, "gpt2", "attn_out", 3, source)
    order = derangement(4, 0)
    value = {
        "zero": torch.zeros_like(lent),
        "mean": lent.mean(0, keepdim=True).expand_as(lent),
        "resample": lent[order],
    }[with_]
    data, context = measure(ActivationPatching(site="attn_out", with_=with_), gpt2, pairs)  # type: ignore[arg-type]
    logits = twin.patched_logits(module, "gpt2", base, None, "attn_out", 3, position=8, value=value)
    wanted = twin.logit_diff(logits.detach(), list(pairs.right), list(pairs.wrong)).numpy()
    found = data["patched_metric"].sel(layer=3, position=8)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert np.abs(wanted - data["metric_base"]).max() > 0.01
    assert checks(context)["plain_forward"]
    assert sorted(order) == [0, 1, 2, 3] and (order != np.arange(4)).all()


def test_a_window_edits_neighbouring_layers_together(gpt2: Any) -> None:
    pairs = telling_pairs(hard_model("gpt2").double())
    whole, _ = measure(ActivationPatching(site="attn_out", window=7, axes="layer"), gpt2, pairs)
    one, _ = measure(ActivationPatching(site="attn_out", window=1, axes="layer"), gpt2, pairs)
    # centred on layer 3 of 4, a window of 7 covers every layer, as does one centred on layer 0
    assert float(whole["effect"][3]) == pytest.approx(float(whole["effect"][0]), abs=1e-9)
    assert abs(float(whole["effect"][3]) - float(one["effect"][3])) > 1e-3


def test_the_packed_grid_agrees_with_a_plain_forward_cell(llama: Any) -> None:
    pairs = telling_pairs(hard_model("llama"))
    data, _ = measure(ActivationPatching(site="z", axes="layer,head,position"), llama, pairs)
    one = VerifyCell(site="z", layer=2, head=3, position=8).measure(llama, pairs, Remembering())
    check_dataset(one)
    wanted = float(data["effect"].sel(layer=2, head=3, position=8))
    assert float(one["effect"]) == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted) > 1e-3


def test_prompts_that_say_the_same_have_no_share_of_a_gap(gpt2: Any) -> None:
    pairs = pairs_for(97, n=2)
    both = PromptPairs.from_tokens(
        [pairs.clean[0], pairs.corrupt[0]],
        [pairs.corrupt[0], pairs.clean[0]],
        [pairs.right[0]] * 2,
        [pairs.wrong[0]] * 2,
    )
    data, _ = measure(ActivationPatching(), gpt2, both)
    assert np.isnan(data["effect"]).all()
    assert "gap" in data.attrs["undefined_reason"]
    assert np.isfinite(data["effect_raw"]).all()


def test_a_position_without_a_counterpart_is_undefined(gpt2: Any) -> None:
    rng = np.random.default_rng(3)
    clean = rng.integers(0, 97, (1, 9))
    corrupt = np.delete(clean, 3, 1)
    corrupt[0, 3] = (clean[0, 4] + 1) % 97
    pairs = PromptPairs.from_tokens(
        corrupt.tolist(), clean.tolist(), [[5]], [[6]], span_map=((((3, 4), (3, 5)),),)
    )
    data, _ = measure(ActivationPatching(n_boot=0), gpt2, pairs)  # base: 9 tokens, source: 8
    lost = np.isnan(data["effect_raw"].sel(layer=1).values)
    assert lost.tolist() == [False] * 3 + [True] + [False] * 5


def tampered(monkeypatch: pytest.MonkeyPatch, change: Callable[[Sweep], None]) -> None:
    honest = room.sweep

    def sweep(*args: Any, **kwargs: Any) -> Sweep:
        found = honest(*args, **kwargs)
        change(found)
        return found

    monkeypatch.setattr(room, "sweep", sweep)


def noisy(found: Sweep) -> None:
    found.noise = 1.0


def leaky(found: Sweep) -> None:
    found.patched[0] += 1.0


def still(found: Sweep) -> None:
    assert found.telling[3].any()
    found.moved[3] = 0.0


def wrong(found: Sweep) -> None:
    found.patched[1:] *= 1.5


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (noisy, "noise_floor"),
        (leaky, "patch_everything"),
        (still, "edits_fired"),
        (wrong, "plain_forward"),
    ],
)
def test_each_trust_check_turns_amber(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[Sweep], None], name: str
) -> None:
    method, pairs = ActivationPatching(axes="layer", site="attn_out", n_boot=0), pairs_for(97)
    assert checks(measure(method, gpt2, pairs)[1])[name]
    tampered(monkeypatch, change)
    assert not checks(measure(method, gpt2, pairs)[1])[name]


def test_partial_grids_are_offered_while_it_runs(gpt2: Any) -> None:
    context = Remembering(memory=150_000)
    ActivationPatching(n_boot=0).measure(gpt2, pairs_for(97), context)
    assert context.partials > 2
    assert context.progress[-1][0] == pytest.approx(context.progress[-1][1])


def test_statistics_travel_with_the_effect(gpt2: Any) -> None:
    data, _ = measure(ActivationPatching(axes="layer", site="attn_out"), gpt2, pairs_for(97, n=6))
    low, high = data["effect_ci"].values
    assert (low <= data["effect"].values + 1e-9).all()
    assert (high >= data["effect"].values - 1e-9).all()
    assert ((data["p_value"] > 0) & (data["p_value"] <= 1)).all()
    assert (data["p_fwer"] >= data["p_value"] - 1e-12).all()
    assert data.attrs["small_sample"] == 1 and data.attrs["direction"] == "denoising"


@pytest.mark.parametrize(
    ("knobs", "given", "wanted"),
    [
        ({"site": "resid_pre", "axes": "layer,head"}, "no sweep over", "layer,position"),
        ({"site": "z", "axes": "layer,slot"}, "no sweep over", "layer,head,slot"),
        ({"layers": (9,)}, r"Layers \[9\]", "there are 4"),
        ({"positions": (40,)}, r"Positions \[40\]", "counted from 0"),
        ({"axes": "layer,slot"}, "names no slots", "positions"),
        ({"metric": "span_logprob"}, "token spans", "logit_diff"),
        ({"at": "subject"}, "no slot", "last"),
    ],
)
def test_knobs_that_do_not_fit_are_refused_with_a_remedy(
    gpt2: Any, knobs: dict[str, Any], given: str, wanted: str
) -> None:
    with pytest.raises(UsageError, match=given) as caught:
        ActivationPatching(**knobs).measure(gpt2, pairs_for(97), Remembering())
    assert wanted in str(caught.value)


def test_prompts_of_unequal_length_sweep_over_layers_unless_asked(gpt2: Any) -> None:
    a, b = pairs_for(97, n=2, length=7), pairs_for(97, n=2, length=9)
    mixed = PromptPairs.from_tokens(
        [*a.clean, *b.clean], [*a.corrupt, *b.corrupt], [*a.right, *b.right], [*a.wrong, *b.wrong]
    )
    data, _ = measure(ActivationPatching(site="attn_out", n_boot=0), gpt2, mixed)
    assert data["effect"].dims == ("layer",)
    with pytest.raises(UsageError, match="differ in length"):
        ActivationPatching(axes="layer,position").measure(gpt2, mixed, Remembering())


def test_a_parallel_block_has_no_resid_mid() -> None:
    model = load_model(hard_model("gpt_neox"))
    with pytest.raises(CapabilityError, match="resid_mid"):
        ActivationPatching(site="resid_mid").measure(model, pairs_for(97), Remembering())


def test_equal_prompts_are_refused_at_birth() -> None:
    with pytest.raises(TaskError, match="nothing to patch"):
        PromptPairs.from_tokens([[1, 2]], [[1, 2]], [3], [4])


def test_the_estimate_counts_the_cells(gpt2: Any) -> None:
    guess = ActivationPatching(site="z").estimate(gpt2, pairs_for(97))
    assert guess["cells"] == 24 and guess["flops"] > 0
    assert guess["naive_flops"] > guess["flops"]
    assert Site("z", layer=0) in gpt2.sites


@pytest.mark.parametrize("with_", ["mean", "resample"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "gpt_neox"])
@pytest.mark.parametrize("site", ["q", "k"])
def test_given_queries_and_keys_stand_where_the_back_end_edits_them(
    family: str, site: str, with_: str
) -> None:
    model = load_model(hard_model(family))
    pairs = telling_pairs(model.module())
    method = ActivationPatching(site=site, with_=with_, n_boot=0, verify=6)  # type: ignore[arg-type]
    data, context = measure(method, model, pairs)
    assert checks(context)["plain_forward"], context.checks[-1]
    assert float(np.abs(data["effect_raw"]).max()) > 1e-3


def test_a_screen_finds_the_same_top_cells_and_measures_them_exactly(llama: Any) -> None:
    pairs = telling_pairs(hard_model("llama"))
    knobs: dict[str, Any] = {"site": "z", "axes": "layer,head,position", "n_boot": 0}
    whole, _ = measure(ActivationPatching(**knobs), llama, pairs)
    rough, context = measure(ActivationPatching(screen=20, **knobs), llama, pairs)
    best = np.argsort(-np.abs(whole["effect_raw"].values.ravel()))[:8]
    assert (rough["exact"].values.ravel()[best] == 1).all()
    exact = rough["exact"].values == 1
    np.testing.assert_allclose(
        rough["effect"].values[exact], whole["effect"].values[exact], atol=1e-5
    )
    assert exact.sum() == 20
    found = {c.name: c for c in context.checks}["screen_agreement"]
    assert found.passed and found.value < 1.0
    assert not np.array_equal(rough["effect"].values[~exact], whole["effect"].values[~exact])


def test_a_screen_that_disagrees_turns_amber() -> None:
    from interp.engine import Screened
    from interp.methods.patching.trust import check_screen

    context = Remembering()
    empty = np.zeros((1, 1))
    sweep = Sweep(*[empty] * 7)  # type: ignore[arg-type]
    check_screen(context, Screened(sweep, np.ones(5, bool), 0.5))
    assert not context.checks[0].passed
