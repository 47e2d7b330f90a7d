"""Relevance: shares of the metric on one run, by tokens and by nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.methods import Relevance
from interp.methods.attribution import trust
from interp.models import load_model
from interp.terms import CapabilityError, PromptPairs, UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, pairs_for
from tests.twins.attribution import ruled
from tests.twins.patching import logit_diff, tapped

RULES = {
    "attnlrp": {"norm": True, "act": True, "gate": "half", "attn": "uniform"},
    "cplrp": {"norm": True, "act": True, "gate": "value", "attn": "ah"},
    "none": {"norm": False, "act": False, "gate": "grad", "attn": "grad"},
}


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return load_model(hard_model("gpt2").double(), dtype="float64", verify=False)


def measure(method: Relevance, model: Any, task: PromptPairs) -> tuple[Any, Remembering]:
    context = Remembering()
    data = method.measure(model, task, context)
    check_dataset(data)
    return data, context


@pytest.mark.parametrize("rules", sorted(RULES))
@pytest.mark.parametrize("side", ["clean", "corrupt"])
def test_a_token_heatmap_is_the_twins_value_times_gradient(
    gpt2: Any, rules: Any, side: Any
) -> None:
    module, task = hard_model("gpt2").double(), pairs_for(97)
    data, context = measure(Relevance(rules=rules, side=side), gpt2, task)
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        kept.append(x)
        return x

    tokens = torch.tensor(getattr(task, side))
    with ruled(module, "gpt2", **RULES[rules]), tapped(module, "gpt2", "embed", 0, keep):
        value = logit_diff(module(tokens).logits, list(task.right), list(task.wrong))
        value.sum().backward()
    assert kept[0].grad is not None
    wanted = (kept[0] * kept[0].grad).sum(-1).detach().numpy()
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(data["prompt_relevance"], wanted, atol=1e-9)
    np.testing.assert_allclose(data["relevance"], wanted.mean(0), atol=1e-9)
    np.testing.assert_allclose(data["metric_value"], value.detach().numpy(), atol=1e-9)
    assert data["relevance"].dims == ("position",) and side in data["relevance"].attrs["long_name"]
    assert (context.notes["rules"]["present"] == {}) == (rules == "none")


@pytest.mark.parametrize(
    ("site", "axes", "dims"),
    [
        ("resid_pre", "auto", ("layer", "position")),
        ("z", "auto", ("layer", "head")),
        ("mlp_post", "auto", ("layer", "neuron")),
        ("attn_out", "layer", ("layer",)),
    ],
)
def test_relevance_is_read_at_any_site(
    gpt2: Any, site: Any, axes: Any, dims: tuple[str, ...]
) -> None:
    data, context = measure(Relevance(site=site, axes=axes), gpt2, pairs_for(97))
    assert data["relevance"].dims == dims and np.abs(data["relevance"]).max() > 1e-4
    assert all(c.passed for c in context.checks)


def test_conservation_is_asserted_for_the_set_that_conserves(
    gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = pairs_for(97)

    def line(**knobs: Any) -> Any:
        _, context = measure(Relevance(**knobs), gpt2, task)
        return next(c for c in context.checks if c.name == "conservation")

    assert line(rules="relp_ah").passed and line(rules="relp_ah").tolerance is not None
    assert line(rules="attnlrp").tolerance is None and abs(line(rules="attnlrp").value - 1) > 0.01
    honest = trust.conservation
    monkeypatch.setattr(
        trust, "conservation", lambda *a, **k: (lambda t: (t[0], 0.0, t[2]))(honest(*a, **k))
    )
    assert not line(rules="relp_ah").passed  # the constants' share was left out


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"axes": "layer,position"}, "no grid over"),
        ({"metric": "span_logprob"}, "token spans"),
    ],
)
def test_what_does_not_fit_is_refused(gpt2: Any, knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Relevance(**knobs).measure(gpt2, pairs_for(97), Remembering())


def test_relevance_needs_layers_that_can_be_driven() -> None:
    from tests.methods.attribution.test_attribution_patching import tiny

    task = PromptPairs.from_tokens([[1, 2]], [[3, 2]], [1], [2])
    with pytest.raises(CapabilityError):
        Relevance(rules="none").measure(tiny(), task, Remembering())


@pytest.mark.parametrize("site", ["q", "k"])
def test_a_norm_of_its_own_leaves_a_query_no_relevance_unless_its_rule_passes_through(
    site: str,
) -> None:
    model = load_model(hard_model("qwen3"), verify=False)
    task = pairs_for(97)
    left, said = measure(Relevance(site=site, n_boot=0), model, task)
    through, silent = measure(Relevance(site=site, n_boot=0, qk_norm_rule="linear"), model, task)
    size = [float(np.abs(d["relevance"]).max()) for d in (left, through)]
    assert size[0] < 1e-3 * size[1]
    checks = [{c.name: c for c in seen.checks}["scale_matters"] for seen in (said, silent)]
    assert [c.passed for c in checks] == [False, True]
    assert "qk_norm_rule=linear" in checks[0].note
