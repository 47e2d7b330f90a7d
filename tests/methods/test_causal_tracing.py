"""CausalTracing: noise, restored states and their effects against plain hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.engine import Cell, sweep
from interp.methods import CausalTracing
from interp.models import load_model
from interp.terms import CapabilityError, Edit, PromptPairs, Site, UsageError, check_dataset
from tests.checkpoints import FAMILY_NAMES, hard_model
from tests.engine.driven import Remembering, driven, pairs_for, telling_pairs
from tests.twins import tracing as twin
from tests.twins.patching import logit_diff


def scores(logits: torch.Tensor, pairs: Any) -> np.ndarray:
    return logit_diff(logits, list(pairs.right), list(pairs.wrong)).detach().numpy()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_restored_states_equal_the_twin(family: str) -> None:
    module, model = driven(family)
    pairs = pairs_for(97, n=3, length=8)
    width = model.shape.d_model
    noise = torch.zeros(3, 8, width, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for i, where in enumerate(((2, 3), (3, 4), (2, 3))):
        noise[i, list(where)] = torch.randn(2, width, generator=generator, dtype=torch.float64)
    clean = torch.tensor(pairs.clean)
    places = [("resid_post", 1, 3), ("resid_post", 0, 2), ("attn_out", 2, 7), ("mlp_out", 0, 4)]
    if not model.shape.parallel:
        places.append(("resid_mid", 1, 7))
    places.append(("resid_pre", 3, None))
    cells = [Cell((Edit(Site(k, layer=n, position=p)),)) for k, n, p in places]
    cells.append(Cell((Edit(Site("embed")),)))
    found = sweep(model, pairs, cells, Remembering(), noise=noise.numpy())
    wanted = [scores(twin.traced_logits(module, family, clean, noise, *p), pairs) for p in places]
    noised = scores(twin.traced_logits(module, family, clean, noise), pairs)
    np.testing.assert_allclose(found.base, noised, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.source, scores(module(clean).logits, pairs), atol=1e-10)
    assert np.abs(found.source - found.base).max() > 0.1
    theirs = np.stack([*wanted, found.source])  # a clean embedding is the clean run
    assert np.abs(theirs - found.base).max(1).min() > 1e-4
    np.testing.assert_allclose(found.patched, theirs, rtol=0, atol=1e-10)
    assert found.noise <= 1e-10


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return load_model(hard_model("gpt2").double(), dtype="float64")


def with_subject(pairs: PromptPairs) -> PromptPairs:
    n = len(pairs.clean)
    return PromptPairs.from_tokens(
        pairs.clean, pairs.corrupt, pairs.right, pairs.wrong, slots={"subject": [(3, 4)] * n}
    )


def measure(method: CausalTracing, model: Any, task: Any) -> tuple[Any, Remembering]:
    context = Remembering()
    data = method.measure(model, task, context)
    check_dataset(data)
    return data, context


def test_effects_are_averages_over_draws_of_one_noise_each(gpt2: Any) -> None:
    module = hard_model("gpt2").double()
    pairs = with_subject(telling_pairs(module))
    method = CausalTracing(site="mlp_out", draws=3, metric="logit_diff", n_boot=0, seed=5)
    data, context = measure(method, gpt2, pairs)
    assert all(c.passed for c in context.checks), context.checks
    assert {c.name for c in context.checks} >= {"plain_forward", "patch_everything"}
    clean = torch.tensor(pairs.clean)
    embeddings = module.transformer.wte(clean).detach()
    assert data.attrs["noise_sd"] == pytest.approx(3 * float(embeddings[:, 3:5].std(correction=0)))
    before, after = [], []
    for draw in range(3):
        noise = torch.zeros_like(embeddings)
        rng = np.random.default_rng([5, draw])
        for i in range(len(pairs)):
            eps = rng.standard_normal((2, embeddings.shape[-1]))
            noise[i, 3:5] = torch.tensor(eps) * data.attrs["noise_sd"]
        before.append(scores(twin.traced_logits(module, "gpt2", clean, noise), pairs))
        logits = twin.traced_logits(module, "gpt2", clean, noise, "mlp_out", 0, 4)
        after.append(scores(logits, pairs))
    indirect = np.mean(after, 0) - np.mean(before, 0)
    total = scores(module(clean).logits, pairs) - np.mean(before, 0)
    cell = data.sel(layer=0, position=4)
    assert float(cell["effect_raw"]) == pytest.approx(indirect.mean(), abs=1e-9)
    assert float(cell["effect"]) == pytest.approx(indirect.mean() / total.mean(), abs=1e-9)
    np.testing.assert_allclose(data["total_effect"], total, atol=1e-9)
    assert abs(indirect.mean()) > 1e-3


def test_before_the_noise_nothing_is_restored_and_at_its_start_everything(gpt2: Any) -> None:
    pairs = with_subject(telling_pairs(gpt2.module()))
    data, _ = measure(CausalTracing(draws=2, n_boot=0, site="resid_pre", axes="layer"), gpt2, pairs)
    np.testing.assert_allclose(data["effect"], 1.0, atol=1e-9)
    grid, _ = measure(CausalTracing(draws=2, n_boot=0), gpt2, pairs)
    assert (grid["inert"].sel(position=[0, 1, 2]) == 1).all()
    assert (grid["effect"].sel(position=[0, 1, 2]) == 0).all()
    assert float(grid["inert"].sel(layer=0, position=3)) == 0


def test_without_a_subject_the_noise_stands_where_the_prompts_differ(gpt2: Any) -> None:
    pairs = telling_pairs(gpt2.module(), n=2)
    method = CausalTracing(draws=1, n_boot=0)
    data, _ = measure(method, gpt2, pairs)
    first = min(
        next(p for p, (a, b) in enumerate(zip(*both, strict=True)) if a != b)
        for both in zip(pairs.clean, pairs.corrupt, strict=True)
    )
    assert (data["inert"].sel(position=first - 1) == 1).all()
    assert (data["inert"].sel(position=first) == 0).any()


def test_windows_follow_the_papers_share_of_the_layers() -> None:
    assert CausalTracing(site="mlp_out").width(48) == 10
    assert CausalTracing(site="mlp_out").width(4) == 1
    assert CausalTracing(site="resid_post").width(48) == 1
    assert CausalTracing(site="attn_out", window=3).width(48) == 3


def test_what_does_not_fit_is_refused(gpt2: Any) -> None:
    with pytest.raises(UsageError, match="no slot of this task"):
        CausalTracing(slot="verb").measure(gpt2, pairs_for(97), Remembering())
    undriven = load_model(torch.nn.Linear(3, 3), example=torch.zeros(1, 3))
    noise = np.zeros((4, 9, 3))
    with pytest.raises(CapabilityError):
        sweep(undriven, pairs_for(97), [Cell((Edit(Site("embed")),))], Remembering(), noise=noise)
    with pytest.raises(UsageError, match="Noise was given as"):
        sweep(gpt2, pairs_for(97), [Cell((Edit(Site("embed")),))], Remembering(), noise=noise[1:])
