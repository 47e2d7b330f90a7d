"""AttributionPatching: grids on the axes of patching, refusals, statistics, its trust panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from interp.methods import ActivationPatching, AttributionPatching
from interp.methods.attribution import attribution_patching as room
from interp.methods.attribution import trust
from interp.models import load_model
from interp.terms import CapabilityError, PromptPairs, UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, pairs_for, telling_pairs
from tests.models.plain import MLP_SITES, SITES
from tests.twins import attribution as twin


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return load_model(hard_model("gpt2").double(), dtype="float64", verify=False)


@pytest.fixture(scope="module")
def llama() -> Any:
    return load_model(hard_model("llama"), verify=False)


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    return telling_pairs(hard_model("gpt2").double())


def measure(method: AttributionPatching, model: Any, task: PromptPairs) -> tuple[Any, Remembering]:
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
        ("attn_out", "layer", ("layer",)),
        ("embed", "auto", ("position",)),
        ("z", "auto", ("layer", "head")),
        ("z", "layer,head,position", ("layer", "head", "position")),
        ("v", "auto", ("layer", "kv_head")),
        ("mlp_post", "auto", ("layer", "neuron")),
    ],
)
def test_a_grid_has_the_axes_of_its_site(
    llama: Any, site: str, axes: str, dims: tuple[str, ...]
) -> None:
    method = AttributionPatching(site=site, axes=axes, n_boot=50)  # type: ignore[arg-type]
    data, context = measure(method, llama, telling_pairs(llama.module(), n=3, length=7))
    sizes = {"layer": 4, "position": 7, "head": 6, "kv_head": 2, "neuron": 80}
    assert data["attribution"].dims == dims
    assert data["attribution"].shape == tuple(sizes[d] for d in dims)
    assert all(checks(context).values()), [c for c in context.checks if not c.passed]
    assert float(np.abs(data["attribution"]).max()) > 1e-3


@pytest.mark.parametrize("axes", ["layer,head", "layer,head,position"])
def test_a_grid_estimates_the_cells_that_patching_measures(
    gpt2: Any, pairs: PromptPairs, axes: str
) -> None:
    """Same axes, same normalisation, same order of cells: on a small enough patch they agree."""
    near = PromptPairs.from_tokens(pairs.clean, pairs.corrupt, pairs.right, pairs.wrong)
    exact = ActivationPatching(site="z", axes=axes, verify=0).measure(gpt2, near, Remembering())
    data, _ = measure(AttributionPatching(site="z", axes=axes, ig_steps=24, verify=0), gpt2, near)
    assert data["attribution"].dims == exact["effect"].dims
    assert np.abs(data["attribution"] - exact["effect"]).max() < 2e-3
    assert np.abs(exact["effect"]).max() > 0.1


def test_the_attribution_is_the_twins_ratio_of_means(gpt2: Any, pairs: PromptPairs) -> None:
    module = hard_model("gpt2").double()
    data, _ = measure(AttributionPatching(site="mlp_out", direction="noising"), gpt2, pairs)
    est = (
        twin.estimates(
            module,
            "gpt2",
            torch.tensor(pairs.clean),
            torch.tensor(pairs.corrupt),
            "mlp_out",
            2,
            list(pairs.right),
            list(pairs.wrong),
        )
        .sum(-1)
        .numpy()
    )
    gap = float((data["metric_source"] - data["metric_base"]).mean())
    assert gap == pytest.approx(data.attrs["mean_gap"])
    np.testing.assert_allclose(data["attribution"].sel(layer=2), est.mean(0) / gap, atol=1e-9)
    np.testing.assert_allclose(data["prompt_attribution"].sel(layer=2), est, atol=1e-9)


def test_slots_and_chosen_layers_are_parts_of_the_whole_grid(gpt2: Any, pairs: PromptPairs) -> None:
    slots = {"last": (8,) * 4, "pair": ((4, 5),) * 4}
    named = PromptPairs.from_tokens(
        pairs.clean, pairs.corrupt, pairs.right, pairs.wrong, slots=slots
    )
    whole, _ = measure(AttributionPatching(site="z", axes="layer,head,position"), gpt2, named)
    part, _ = measure(
        AttributionPatching(site="z", axes="layer,head,slot", layers=(-1, 0)), gpt2, named
    )
    raw = whole["attribution_raw"]
    assert part["attribution_raw"].dims == ("layer", "head", "slot")
    assert part["layer"].values.tolist() == [3, 0]
    np.testing.assert_allclose(
        part["attribution_raw"].sel(slot="last"), raw.sel(layer=[3, 0], position=8), atol=1e-12
    )
    np.testing.assert_allclose(
        part["attribution_raw"].sel(slot="pair"),
        raw.sel(layer=[3, 0], position=[4, 5]).sum("position"),
        atol=1e-12,
    )


def test_the_largest_cells_stand_beside_their_measured_effects(
    gpt2: Any, pairs: PromptPairs
) -> None:
    data, _ = measure(AttributionPatching(site="mlp_out", rules="relp", verify=4), gpt2, pairs)
    exact = ActivationPatching(site="mlp_out", verify=0).measure(gpt2, pairs, Remembering())
    assert data.sizes["top"] == 4
    for i, name in enumerate(data["name"].values):
        layer, position = (int(word[1:]) for word in str(name).split())
        wanted = float(exact["effect_raw"].sel(layer=layer, position=position))
        assert float(data["verified_effect"][i]) == pytest.approx(wanted, abs=1e-9)
        mine = float(data["attribution_raw"].sel(layer=layer, position=position))
        assert float(data["verified_estimate"][i]) == mine
    sizes = np.abs(data["verified_estimate"].values)
    assert (np.diff(sizes) <= 0).all() and sizes[0] == float(np.abs(data["attribution_raw"]).max())


def test_sizes_are_a_ranking_and_say_so(gpt2: Any, pairs: PromptPairs) -> None:
    signed, _ = measure(AttributionPatching(site="z"), gpt2, pairs)
    sizes, _ = measure(AttributionPatching(site="z", prompt_reduce="abs"), gpt2, pairs)
    assert (signed["attribution"].attrs["signed"], sizes["attribution"].attrs["signed"]) == (1, 0)
    assert (sizes["attribution"] >= np.abs(signed["attribution"]) - 1e-12).all()
    drop, _ = measure(AttributionPatching(site="attn_out", grad_drop=True), gpt2, pairs)
    assert (drop["attribution"] >= 0).all() and "GradDrop" in drop["attribution"].attrs["long_name"]


def test_rules_and_direction_stand_in_the_title_and_the_provenance(llama: Any) -> None:
    task = pairs_for(97)
    data, context = measure(
        AttributionPatching(rules="relp", attn_rule="ah", direction="noising"), llama, task
    )
    title = data["attribution"].attrs["long_name"]
    assert "relp, attn ah" in title and "noising" in title
    note = context.notes["rules"]
    assert note["rules"]["attn"] == "ah" and note["replaced"]["attn"] == 4 and note["bit_equal"]
    assert context.notes["passes"]["forwards"] == 2 and context.notes["passes"]["backwards"] == 1


def test_prompts_that_say_the_same_have_no_share_of_a_gap(gpt2: Any) -> None:
    one = pairs_for(97, n=1)
    both = PromptPairs.from_tokens(
        [one.clean[0], one.corrupt[0]],
        [one.corrupt[0], one.clean[0]],
        [one.right[0]] * 2,
        [one.wrong[0]] * 2,
    )
    data, _ = measure(AttributionPatching(), gpt2, both)
    assert np.isnan(data["attribution"]).all() and "gap" in data.attrs["undefined_reason"]
    assert np.isfinite(data["attribution_raw"]).all()


def test_where_nothing_differs_cells_are_inert(gpt2: Any, pairs: PromptPairs) -> None:
    data, _ = measure(AttributionPatching(site="resid_pre"), gpt2, pairs)
    assert (data["inert"].sel(position=[0, 1]) == 1).all()
    assert (data["inert"].sel(position=8, layer=3) == 0).all()


# -- the trust panel ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ("none", {"verified", "own_graph", "first_order"}),
        ("relp", {"rules_active", "rules_exact", "verified", "first_order", "conservation"}),
        (
            "relp_ah",
            {
                "rules_active",
                "rules_exact",
                "verified",
                "first_order",
                "conservation",
                "frozen_network",
            },
        ),
    ],
)
def test_the_panel_says_what_holds_for_these_rules(
    gpt2: Any, pairs: PromptPairs, rules: Any, names: set[str]
) -> None:
    _, context = measure(AttributionPatching(rules=rules, site="mlp_out"), gpt2, pairs)
    assert set(checks(context)) == names and all(checks(context).values())
    bound = {c.name for c in context.checks if c.tolerance is not None}
    assert ("conservation" in bound) == ("frozen_network" in bound) == (rules == "relp_ah")


def skewed(honest: Callable[..., Any]) -> Callable[..., Any]:
    def attribute(*args: Any, **kwargs: Any) -> Any:
        found = honest(*args, **kwargs)
        found.values = {k: 1.5 * v for k, v in found.values.items()}
        return found

    return attribute


@pytest.mark.parametrize("name", ["own_graph", "first_order"])
def test_a_wrong_gradient_turns_the_panel_amber(
    gpt2: Any, pairs: PromptPairs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method = AttributionPatching(site="mlp_out", verify=0)
    assert checks(measure(method, gpt2, pairs)[1])[name]
    monkeypatch.setattr(room, "attribute", skewed(room.attribute))
    assert not checks(measure(method, gpt2, pairs)[1])[name]


@pytest.mark.parametrize(
    ("function", "name", "change"),
    [
        ("conservation", "conservation", lambda t: (1.01 * t[0], t[1], t[2])),
        ("frozen_effect", "frozen_network", lambda t: (1.01 * t[0], t[1])),
    ],
)
def test_broken_rules_turn_the_panel_amber(
    gpt2: Any,
    pairs: PromptPairs,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    name: str,
    change: Callable[[Any], Any],
) -> None:
    method = AttributionPatching(site="mlp_out", rules="relp_ah", verify=0)
    assert checks(measure(method, gpt2, pairs)[1])[name]
    honest = getattr(trust, function)
    monkeypatch.setattr(trust, function, lambda *a, **k: change(honest(*a, **k)))
    assert not checks(measure(method, gpt2, pairs)[1])[name]


def test_rules_that_are_not_active_turn_the_panel_amber() -> None:
    from interp.engine.gradients import PRESETS, Active

    weak = Active(PRESETS["relp"], {"norm": 9}, {"norm": 9}, {"norm": 0.3}, {"norm": 1e-7})
    assert [c.passed for c in trust.of_rules(weak)] == [False, True]
    loud = Active(PRESETS["relp"], {"norm": 9}, {"norm": 9}, {"norm": 0.3}, {"norm": 0.1}, False)
    assert [c.passed for c in trust.of_rules(loud)] == [True, False]


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "given", "wanted"),
    [
        ({"site": "resid_pre", "axes": "layer,head"}, "no grid over", "layer,position"),
        ({"site": "mlp_post", "axes": "layer,position"}, "no grid over", "layer,neuron"),
        ({"layers": (9,)}, r"Layers \[9\]", "there are 4"),
        ({"positions": (40,)}, r"Positions \[40\]", "counted from 0"),
        ({"axes": "layer,slot"}, "names no slots", "positions"),
        ({"metric": "span_logprob"}, "token spans", "logit_diff"),
        ({"metric": "kl", "direction": "noising"}, "least at the clean run", "denoising"),
        ({"rules": "relp", "ig_steps": 5}, "do not go together", "ig_steps=0"),
        ({"rules": "relp", "qk_fix": True, "site": "q"}, "do not go together", "qk_fix=False"),
        ({"qk_fix": True}, "do not go together", "site='q'"),
        (
            {"qk_fix": True, "site": "k", "grad_drop": True},
            "do not go together",
            "one after the other",
        ),
        ({"ig_steps": 3, "grad_drop": True}, "do not go together", "ig_steps=0"),
        ({"at": "subject"}, "no slot", "last"),
    ],
)
def test_knobs_that_do_not_fit_are_refused_with_a_remedy(
    gpt2: Any, knobs: dict[str, Any], given: str, wanted: str
) -> None:
    with pytest.raises(UsageError, match=given) as caught:
        AttributionPatching(**knobs).measure(gpt2, pairs_for(97), Remembering())
    assert wanted in str(caught.value)


def test_too_many_paths_are_refused_before_they_are_walked(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_PATHS", 23)
    with pytest.raises(UsageError, match="there are 24"):
        AttributionPatching(site="z", ig_steps=2).measure(gpt2, pairs_for(97), Remembering())


# -- models that cannot be driven -----------------------------------------------------------------


def tiny() -> Any:
    from tests.models.plain import Tiny

    torch.manual_seed(0)
    net = Tiny(vocab=13, layers=2, d_model=8, heads=2, d_head=4, d_mlp=16, length=8).double()
    sites = {**SITES, **MLP_SITES, "n_heads": 2}
    return load_model(
        net, backend="torch_module", example=torch.zeros(1, 5, dtype=torch.long), site_map=sites
    )


def test_a_mapped_module_is_attributed_through_its_own_graph() -> None:
    model = tiny()
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 13, (3, 5))
    corrupt = clean.copy()
    corrupt[:, 1] = (clean[:, 1] + 1) % 13
    task = PromptPairs.from_tokens(clean.tolist(), corrupt.tolist(), [1, 2, 3], [4, 5, 6])
    data, context = measure(AttributionPatching(site="z", verify=3), model, task)
    assert data["attribution_raw"].shape == (2, 2) and np.abs(data["attribution_raw"]).max() > 1e-4
    assert all(checks(context).values())
    with pytest.raises(CapabilityError, match="engine can drive"):
        AttributionPatching(site="q", qk_fix=True).measure(model, task, Remembering())


@pytest.mark.parametrize("rules", ["none", "relp_ah"])
def test_bfloat16_estimates_follow_those_of_float64(rules: Any) -> None:
    found = []
    for dtype in ("float64", "bfloat16"):
        model = load_model(hard_model("gpt2"), dtype=dtype, verify=False)
        data, context = measure(
            AttributionPatching(site="z", rules=rules, verify=2), model, pairs_for(97)
        )
        assert all(checks(context).values())
        found.append(data["attribution_raw"].values.ravel())
    assert np.corrcoef(*found)[0, 1] > 0.98 and np.abs(found[0]).max() > 0.01
