"""Statistics, lens, erasure, gradients and Jacobians equal references written with loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.engine.depth import erase, walk
from interp.engine.depth.corpus import corpus_of
from interp.engine.depth.integrating import Path, integrated
from interp.engine.depth.jacobians import TokenMap, exact, from_identity
from interp.methods import METHODS
from interp.methods.depth.effective import effective_depths, soft
from interp.methods.depth.outliers import share_above
from interp.methods.depth.running import rank_of, support_of
from interp.terms import TaskError, Texts, UsageError
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


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_equal_a_loop_over_tokens(family):
    model, plain = pair(family)
    model.id, task = "x", texts()
    data = METHODS["layer_statistics"](n_boot=0).measure(model, task, Remembering())
    with torch.no_grad():
        want = twin.statistics(plain, rows())
    assert close(data["relative"].sel(part="layer"), want["relative"])
    assert close(data["cosine"].sel(part="layer"), want["cosine"])
    assert close(1 - data["influence"].sel(part="layer"), want["rho"])
    assert close(data["curvature"].values[:-1], want["curvature"][:-1])
    assert np.abs(data["cosine"]).max() > 0.05


def test_layers_that_add_nothing_have_no_contribution_influence_or_angle():
    model = loaded(silent_from(hard_model("gpt2").double(), 2))
    data = METHODS["layer_statistics"](n_boot=0).measure(model, texts(), Remembering())
    late = {"layer": slice(2, None)}
    assert float(np.abs(data["relative"].sel(late)).max()) == 0
    assert float(np.abs(data["influence"].sel(late)).max()) < 1e-12
    assert float(data["angular"].sel(gap=1, boundary=slice(2, 3)).max()) < 1e-7
    assert float(data["influence"].sel(part="layer", layer=0)) > 0.01
    lens = METHODS["logit_lens"]().measure(model, texts(), Remembering())
    assert float(lens["kl_mean"].sel(boundary=slice(2, None)).max()) < 1e-10
    assert float(lens["overlap_mean"].sel(boundary=slice(2, None)).min()) == 1
    jacobian = METHODS["block_jacobian"]().measure(model, texts(), Remembering())
    assert float(jacobian["identity"].sel(late).max()) == 0
    assert float(jacobian["identity"].sel(layer=0)) > 0.1
    grad = jacobian["boundary_gradient"].values
    assert grad[2:] == pytest.approx(grad[-1]) and grad[0] != pytest.approx(grad[-1])


def test_padding_is_never_needed_since_lengths_are_batched_apart():
    model = gpt2()
    mixed = Texts((*texts(2, 9).tokens, *texts(2, 6, seed=4).tokens))
    both = METHODS["layer_statistics"](n_boot=0).measure(model, mixed, Remembering())
    alone = [
        METHODS["layer_statistics"](n_boot=0).measure(model, t, Remembering())["relative"].values
        for t in (texts(2, 9), texts(2, 6, seed=4))
    ]
    want = (16 * alone[0] + 10 * alone[1]) / 26
    assert close(both["relative"], want)
    even = METHODS["layer_statistics"](n_boot=0, weighting="prompt").measure(
        model, mixed, Remembering()
    )
    assert close(even["relative"], (alone[0] + alone[1]) / 2)


def test_rank_and_support_of_known_patterns():
    T = 16
    even = torch.ones(T, T, dtype=torch.float64).tril()
    even = (even / even.sum(-1, keepdim=True))[None, None]
    assert float(rank_of(even, "numerical")) == T - 1
    sink = torch.zeros(1, 1, T, T, dtype=torch.float64)
    sink[..., 0] = 1
    assert float(rank_of(sink, "numerical")) == 1 == pytest.approx(float(rank_of(sink, "stable")))
    assert support_of(even)[0, 0, -1] == pytest.approx(T)
    assert support_of(sink)[0, 0, -1] == pytest.approx(1)


def test_gaussian_weights_have_the_normal_share_of_outliers():
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    assert share_above([weight]) == pytest.approx(0.1587, abs=1e-3)
    assert np.isnan(share_above([torch.ones(3, 3)]))


def test_effective_depth_of_a_curve_with_one_early_dip():
    kl = np.array([2, 0.4, 3, 3, 2.8, 2.5, 0.9, 0.1])
    overlap = np.array([0, 0, 0.1, 0.5, 0.2, 0.4, 0.6, 0.9])
    cosines = np.array([[-1, 1, -1, -1, 1, 1, 1, 1]], float)
    found = effective_depths(cosines, np.stack([kl, overlap]))
    assert found[:6].tolist() == [1, 4, 1, 6, 3, 5]
    assert found[6] == pytest.approx(soft(kl)) == pytest.approx(3.07, abs=5e-3)
    assert np.isnan(effective_depths(np.ones((1, 8)), None)).all()


class Stored:
    """A context that has one result."""

    def __new__(cls, data, model, task, method="logit_lens"):
        context = Remembering()
        result = type("R", (), {})()
        result.data = data
        result.spec = {
            "method": method,
            "model": {"weight_hash": model.weight_hash},
            "task": {"hash": task.hash()},
        }
        context.result = lambda ref: result
        return context


def test_a_lens_run_gives_the_other_definitions_and_a_foreign_one_is_refused():
    model, task = gpt2(), texts()
    lens = METHODS["logit_lens"]().measure(model, task, Remembering())
    spec = METHODS["layer_statistics"](lens_result="run", n_boot=20)
    data = spec.measure(model, task, Stored(lens, model, task))
    kl = lens["kl_mean"].sel(kl_direction="lens_final").values[1:]
    assert data["effective_depth"].sel(definition="KL, mean layer") == pytest.approx(soft(kl), 1e-5)
    assert "effective_depth_ci" in data
    with pytest.raises(UsageError, match="another task"):
        spec.measure(model, task, Stored(lens, model, texts(seed=3)))
    with pytest.raises(UsageError, match="skip_map"):
        spec.measure(model, task, Stored(lens, model, task, "skip_map"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_equals_norm_and_unembedding_by_hand(family):
    model, plain = pair(family)
    model.run = lambda t, **_: type(
        "R", (), {"logits": plain.module(input_ids=torch.as_tensor(t), use_cache=False).logits}
    )()
    data = METHODS["logit_lens"]().measure(model, texts(), Remembering())
    with torch.no_grad():
        want = torch.stack(twin.lens(plain, rows())).permute(0, 2, 1, 3)
    assert close(data["kl"], want, 1e-5)
    assert float(data["kl"].isel(boundary=-1).max()) == 0
    assert float(data["kl"].isel(boundary=0).max()) > 0.1


def test_the_lens_between_attention_and_mlp_is_the_next_boundary_of_a_silent_mlp():
    module = hard_model("gpt2").double()
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.weight.zero_()
        module.transformer.h[1].mlp.c_proj.bias.zero_()
    spec = METHODS["logit_lens"](middles=True)
    data = spec.measure(loaded(module), texts(), Remembering())
    kl, between = data["kl_mean"], data["kl_between"]
    assert close(between.sel(layer=1), kl.sel(boundary=2), 1e-6)
    assert not close(between.sel(layer=0), kl.sel(boundary=1), 1e-3)


@pytest.mark.parametrize("mode", ["single", "later", "before"])
@pytest.mark.parametrize("family", FAMILIES)
def test_erasing_with_the_prefix_reused_equals_a_rerun(family, mode):
    model, plain = pair(family)
    tokens = rows()
    with torch.no_grad():
        steps = list(walk(model.blocks, tokens.numpy()))
        means = torch.stack([s.resid[:, 1:].mean((0, 1)) for s in steps])
        found = erase(model.blocks, tokens.numpy(), means, range(1, 9), mode)
        for layer in range(4):
            for t in range(1, 9):
                places = list(range(1, t)) if mode == "before" else [t]
                want = twin.erased(plain, tokens, means[layer], layer, places)
                first = t + 1 if mode == "later" else t
                if first < 9:
                    assert close(found.away[layer, t - 1][:, first:], want[:, first:])
                assert np.isnan(found.away[layer, t - 1][:, :first]).all()
                if mode == "single":
                    assert float(want[:, :t].max()) < 1e-14
    assert np.nanmax(found.away) > 0.1 and found.null < 1e-12


def test_erased_maps_take_the_answers_positions():
    model = gpt2()
    data = METHODS["residual_erasure"]().measure(model, pairs(), Remembering())
    tokens = rows()
    batch = batch_of(model, pairs())
    from interp.methods.depth.contributions import residual_means

    means = residual_means(model, corpus_of(model, pairs()), 10**6)
    away = erase(model.blocks, batch.tokens, means, [3], "single").away[:, 0, :, -1]
    assert close(data["prompt_effect"].sel(mode="single", position=3), away.T, 1e-5)
    assert data["effect"].shape == (1, 4, tokens.shape[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients_equal_a_loop_and_complete(family):
    model, plain = pair(family)
    task = pairs()
    path = Path(model.blocks, batch_of(model, task), 10**6)
    tokens, answers = rows(), [5, 6, 7]
    for layer in (0, 2):
        found = integrated(path, "residual", layer, 8, "positions", None)
        want, moved = twin.gradients(plain, tokens, layer + 1, answers, 8)
        assert close(found["ig"], want.detach(), 1e-9)
        assert close(found["moved"], moved, 1e-9)


def test_four_times_the_steps_leave_a_sixteenth_of_the_residual():
    model = gpt2()
    path = Path(model.blocks, batch_of(model, pairs()), 10**6)
    for target in ("residual", "attention", "MLP"):
        left = [
            np.abs(integrated(path, target, 0, n, "positions", None)["left"]).max()
            for n in (64, 256)
        ]
        assert left[0] / left[1] == pytest.approx(16, rel=0.3)


def test_the_last_boundary_depends_on_the_predicting_position_alone():
    model = gpt2()
    context = Remembering()
    data = METHODS["depth_gradients"]().measure(model, pairs(), context)
    assert float(np.abs(data["ig"].sel(layer=3, position=slice(0, 7))).max()) == 0
    assert float(np.abs(data["ig"].sel(layer=0)).max()) > 1e-4
    (check,) = (c for c in context.checks if c.name == "completeness")
    assert check.passed
    with pytest.raises(TaskError, match="answer_mask"):
        METHODS["depth_gradients"]().measure(model, texts(), Remembering())


@pytest.mark.parametrize("family", FAMILIES)
def test_jacobians_equal_autograd_through_the_whole_layer(family):
    model, plain = pair(family)
    tokens = rows(2, 6)
    for layer, step in enumerate(walk(model.blocks, tokens.numpy())):
        mapped = TokenMap(step.block, step.resid.detach(), torch.tensor([1]), torch.tensor([4]))
        found = exact(mapped, 10**6)[0]
        want = twin.jacobian(plain, tokens, layer, 1, 4)
        assert close(found, want.detach(), 1e-9)
        probes = from_identity(mapped, 400, torch.Generator().manual_seed(0), 10**6)[0]
        whole = float((found - torch.eye(len(found))).square().sum())
        error = float(probes.std() / 20)
        assert abs(float(probes.mean()) - whole) < 5 * error


def test_gradients_of_the_loss_equal_autograd_on_the_module():
    module = hard_model("gpt2").double()
    model, task = loaded(module), texts()
    data = METHODS["block_jacobian"]().measure(model, task, Remembering())
    tokens = rows()
    module.zero_grad()
    logp = module(input_ids=tokens, use_cache=False).logits.log_softmax(-1)[:, :-1]
    loss = -logp.gather(-1, tokens[:, 1:, None]).mean()
    loss.backward()
    assert data.attrs["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    for n, block in enumerate(module.transformer.h):
        for part, own in (
            ("attention", (block.attn.c_attn, block.attn.c_proj)),
            ("MLP", (block.mlp.c_fc, block.mlp.c_proj)),
        ):
            size = sum(float(m.weight.grad.square().sum()) for m in own) ** 0.5
            got = float(data["weight_gradient"].sel(part=part, layer=n))
            assert got == pytest.approx(size, rel=1e-9)
