"""ActivationPatching at patterns and neurons, and with means, constants and additions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.methods import ActivationPatching
from interp.methods.patching.values import derangement
from interp.models import load_model
from interp.terms import PromptPairs, UsageError, check_dataset
from tests.checkpoints import FAMILY_NAMES, hard_model
from tests.engine.driven import Remembering, pairs_for, telling_pairs
from tests.twins import patching as twin


@pytest.fixture(scope="module")
def llama() -> Any:
    return load_model(hard_model("llama").double(), dtype="float64")


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    return telling_pairs(hard_model("llama").double(), n=3, length=7)


def measure(method: ActivationPatching, model: Any, task: PromptPairs) -> tuple[Any, Remembering]:
    context = Remembering()
    data = method.measure(model, task, context)
    check_dataset(data)
    failed = [c for c in context.checks if not c.passed]
    assert not failed, failed
    return data, context


def score(logits: torch.Tensor, pairs: PromptPairs) -> np.ndarray:
    return twin.logit_diff(logits.detach(), list(pairs.right), list(pairs.wrong)).numpy()


def test_patterns_by_head_by_query_and_by_entry(llama: Any, pairs: PromptPairs) -> None:
    knobs: dict[str, Any] = {"site": "pattern", "n_boot": 0, "verify": 4}
    heads, _ = measure(ActivationPatching(**knobs), llama, pairs)
    assert heads["effect"].dims == ("layer", "head")
    rows, _ = measure(ActivationPatching(axes="layer,head,query", **knobs), llama, pairs)
    data, _ = measure(
        ActivationPatching(axes="layer,head,query,key", layers=(3,), **knobs), llama, pairs
    )
    assert data["effect"].dims == ("layer", "head", "query", "key")
    ahead = np.triu(np.ones((7, 7), bool), 1)
    assert np.isnan(data["effect_raw"].values[:, :, ahead]).all()
    assert np.isfinite(data["effect_raw"].values[:, :, ~ahead]).all()
    # in the last layer only the last query reaches the metric: its row is the head
    last = rows["patched_metric"].sel(layer=3, query=6)
    np.testing.assert_allclose(last, heads["patched_metric"].sel(layer=3), atol=1e-10)
    assert (rows["inert"].sel(layer=3, query=5) == 1).all()
    assert float(np.abs(last - rows["metric_base"]).max()) > 1e-3
    module = hard_model("llama").double()
    module.set_attn_implementation("eager")
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    logits = twin.patched_pattern_logits(module, "llama", base, source, 3, 2, 6, n_heads=6, key=4)
    found = data["patched_metric"].sel(layer=3, head=2, query=6, key=4)
    np.testing.assert_allclose(found, score(logits, pairs), atol=2e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    "knobs",
    [
        {"with_": "mean"},
        {"with_": "resample"},
        {"with_": "constant", "constant": (0.2,)},
        {"with_": "zero"},
        {"with_": "source", "mode": "add"},
    ],
    ids=lambda k: f"{k['with_']}{k.get('mode', '')}",
)
def test_patterns_take_every_value_that_the_twin_takes(family: str, knobs: dict[str, Any]) -> None:
    module = hard_model(family).double()
    module.set_attn_implementation("eager")
    task = telling_pairs(module, n=3, length=7)
    model = load_model(hard_model(family).double(), dtype="float64", verify=False)
    fields: dict[str, Any] = {"site": "pattern", "n_boot": 0, "verify": 2, "layers": (1, 3)}
    rows, _ = measure(ActivationPatching(axes="layer,head,query", **fields, **knobs), model, task)
    heads = model.shape.n_heads
    base, source = torch.tensor(task.corrupt), torch.tensor(task.clean)
    lent = []
    block = module.get_submodule(twin.PARTS[family]["layers"])[1]
    name = {"gpt2": "attn", "gpt_neo": "attn.attention", "gpt_neox": "attention"}
    part = block.get_submodule(name.get(family, "self_attn"))
    handle = part.register_forward_hook(lambda _, __, out: lent.append(out[1].detach().double()))
    with torch.no_grad():
        module(source)
    handle.remove()
    order = derangement(3, 0)
    row = {
        "mean": lent[0].mean(0, keepdim=True).expand_as(lent[0]),
        "resample": lent[0][torch.from_numpy(order)],
        "constant": 0.2 * (lent[0] > 0).any(0, keepdim=True).expand_as(lent[0]).double(),
        "zero": torch.zeros_like(lent[0]),
        "source": lent[0],
    }[knobs["with_"]][:, 2, 6]
    logits = twin.patched_pattern_logits(
        module,
        family,
        base,
        source,
        1,
        2,
        6,
        n_heads=heads,
        row=row,
        add=knobs.get("mode") == "add",
    )
    found = rows["patched_metric"].sel(layer=1, head=2, query=6)
    np.testing.assert_allclose(found, score(logits, task), atol=2e-5)  # eager rows are float32
    assert np.abs(found - rows["metric_base"]).max() > 1e-3


def test_neurons_are_chosen_by_attribution_and_measured_exactly(
    llama: Any, pairs: PromptPairs
) -> None:
    module = hard_model("llama").double()
    knobs: dict[str, Any] = {"site": "mlp_post", "n_boot": 0}
    data, _ = measure(ActivationPatching(top=12, verify=3, **knobs), llama, pairs)
    assert data["effect"].dims == ("neuron",) and data.sizes["neuron"] == 12
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    for i in (0, 7, 11):
        layer, unit = int(data["neuron_layer"][i]), int(data["neuron_index"][i])
        logits = twin.patched_logits(module, "llama", base, source, "mlp_post", layer, unit=unit)
        np.testing.assert_allclose(
            data["patched_metric"][:, i], score(logits, pairs), rtol=0, atol=1e-9
        )
    apart = np.corrcoef(data["attribution"], data["effect_raw"])[0, 1]
    assert apart > 0.5, "the estimate has nothing to do with the effect"
    some = ", ".join(f"L{n}N{u}" for n in (0, 2) for u in range(0, 80, 8))
    others, _ = measure(ActivationPatching(neurons=some, **knobs), llama, pairs)
    assert np.abs(others["effect_raw"]).mean() < np.abs(data["effect_raw"]).mean()
    name = str(data["neuron"].values[0])
    one, _ = measure(
        ActivationPatching(neurons=name, axes="neuron,position", **knobs), llama, pairs
    )
    assert one["effect"].dims == ("neuron", "position") and one.sizes["position"] == 7


@pytest.mark.parametrize(
    ("site", "knobs"),
    [
        ("attn_out", {"with_": "mean", "mean_over": "prompts"}),
        ("attn_out", {"with_": "mean", "mean_over": "prompts,positions"}),
        ("mlp_out", {"with_": "constant", "constant": (0.3,)}),
        ("resid_pre", {"with_": "constant", "constant": (0.5,), "mode": "add"}),
        ("attn_out", {"with_": "source", "mode": "add"}),
    ],
)
def test_given_values_stand_where_the_twin_puts_them(
    llama: Any, pairs: PromptPairs, site: str, knobs: dict[str, Any]
) -> None:
    module = hard_model("llama").double()
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    data, _ = measure(ActivationPatching(site=site, n_boot=0, **knobs), llama, pairs)  # type: ignore[arg-type]
    lent = twin.read(module, "llama", site, 2, source)
    present = twin.read(module, "llama", site, 2, base)
    value = {
        "mean": lent.mean((0, 1) if "positions" in knobs.get("mean_over", "") else 0, keepdim=True),
        "constant": torch.full_like(lent, knobs.get("constant", (0,))[0]),
        "source": lent,
    }[knobs["with_"]].expand_as(lent)
    value = present + value if knobs.get("mode") == "add" else value
    logits = twin.patched_logits(module, "llama", base, None, site, 2, position=5, value=value)
    found = data["patched_metric"].sel(layer=2, position=5)
    np.testing.assert_allclose(found, score(logits, pairs), atol=1e-9)
    assert np.abs(found - data["metric_base"]).max() > 1e-2


@pytest.mark.parametrize("site", ["z", "k", "mlp_post"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2"])
def test_a_constant_at_heads_and_neurons_holds_by_plain_passes(family: str, site: str) -> None:
    model = load_model(hard_model(family))
    task = telling_pairs(model.module(), n=2, length=6)
    knobs: dict[str, Any] = {"neurons": "L0N1,L2N7,L3N3"} if site == "mlp_post" else {}
    method = ActivationPatching(
        site=site, with_="constant", constant=(0.7,), n_boot=0, verify=3, **knobs
    )  # type: ignore[arg-type]
    data, context = measure(method, model, task)
    assert "plain_forward" in {c.name for c in context.checks}
    assert float(np.abs(data["effect_raw"]).max()) > 1e-3


def test_a_mean_over_positions_serves_prompts_of_unequal_length(llama: Any) -> None:
    a, b = pairs_for(97, n=2, length=7), pairs_for(97, n=2, length=9)
    mixed = PromptPairs.from_tokens(
        [*a.clean, *b.clean], [*a.corrupt, *b.corrupt], [*a.right, *b.right], [*a.wrong, *b.wrong]
    )
    knobs: dict[str, Any] = {"site": "attn_out", "with_": "mean", "n_boot": 0}
    with pytest.raises(UsageError, match="one length") as caught:
        ActivationPatching(**knobs).measure(llama, mixed, Remembering())
    assert "mean_over" in str(caught.value)
    data, _ = measure(ActivationPatching(mean_over="prompts,positions", **knobs), llama, mixed)
    assert data["effect_raw"].shape == (4,)


@pytest.mark.parametrize(
    ("knobs", "given", "wanted"),
    [
        ({"site": "mlp_post", "neurons": "L9N1"}, "'L9N1' is no neuron", "L2N17"),
        ({"site": "mlp_post", "axes": "layer,position"}, "no sweep over", "neuron,position"),
        (
            {"site": "pattern", "with_": "mean", "mean_over": "prompts,positions"},
            "no common mean",
            "mean_over='prompts'",
        ),
        ({"site": "pattern", "with_": "constant", "constant": (0.1, 0.2)}, "one number", "single"),
        ({"site": "feature"}, "belong to a dictionary", "zoo:NAME"),
        ({"site": "z", "dictionary": "x"}, "belong to a dictionary", "neither"),
        ({"site": "z", "with_": "constant", "constant": (1.0, 2.0)}, "2 constants", "one number"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    llama: Any, pairs: PromptPairs, knobs: dict[str, Any], given: str, wanted: str
) -> None:
    with pytest.raises(UsageError, match=given) as caught:
        ActivationPatching(**knobs).measure(llama, pairs, Remembering())
    assert wanted in str(caught.value)
