"""Layer gains are what linear algebra says, leave no hook behind, and never claim to certify."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.methods import LayerGain
from interp.methods.lipschitz.singular import top_singular
from interp.terms import CapabilityError, LabelledInputs, Texts, UsageError
from tests.checkpoints import hard_model
from tests.methods.lipschitz import nets
from tests.models.wrapped import prompts


def inputs(n, *shape, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, *shape))
    return LabelledInputs(x, np.zeros(n, dtype=int))


def hooks(module):
    return sum(
        len(d) for m in module.modules()
        for d in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks,
                  m._full_backward_hooks if hasattr(m, "_full_backward_hooks") else {})
    )  # fmt: skip


def test_lanczos_finds_the_largest_singular_value_of_each_row():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 9, 14, generator=generator, dtype=torch.float64)
    matrices[3] = 0
    x = torch.randn(4, 14, dtype=torch.float64, requires_grad=True)
    y = (matrices @ x[..., None])[..., 0] * 1.0
    top = top_singular(y, x, 14, generator)
    exact = torch.linalg.svd(matrices)
    assert torch.allclose(top.value, exact.S[:, 0], rtol=1e-9)
    along = (top.vector * exact.Vh[:, 0]).sum(-1).abs()[:3]
    assert torch.allclose(along, torch.ones(3, dtype=torch.float64), atol=1e-6)
    few = top_singular(y, x, 2, generator)
    assert (few.value[:3] < top.value[:3]).all() and (few.residual[:3] > 1e-3).all()


def test_a_linear_layer_moved_along_its_top_singular_vector_gains_its_norm():
    module = nn.Sequential(nn.Linear(6, 5)).double()
    data = interp.run(
        LayerGain(perturbation="singular"), nets.wrap(module, (6,)), inputs(3, 6)
    ).data
    norm = float(torch.linalg.matrix_norm(module[0].weight.detach(), 2))
    assert float(data["absolute_gain"][0]) == pytest.approx(norm, rel=1e-6)
    assert float(data["certified"][0]) == pytest.approx(norm, rel=1e-9)
    random = interp.run(LayerGain(), nets.wrap(module, (6,)), inputs(3, 6)).data
    assert float(random["absolute_gain"][0]) < 0.95 * norm


def test_cm_and_gain_are_their_definitions():
    module = nets.random_stack((6, 9, 9, 4))
    model = nets.wrap(module, (6,))
    task = inputs(3, 6)
    spec = LayerGain(perturbation="pgd", radius=0.05, steps=6)
    data = interp.run(spec, model, task).data
    from interp.methods.lipschitz.probe import Probe, depth_of

    probe = Probe(model, task.inputs, depth_of(model, ()))
    delta = spec._ascent(probe, torch.Generator().manual_seed(0)).numpy()
    x = task.inputs
    assert np.allclose(np.linalg.norm(delta, axis=1), 0.05 * np.linalg.norm(x, axis=1))
    a, b = torch.tensor(x), torch.tensor(x + delta)
    cm = [np.linalg.norm(delta, axis=1) / np.linalg.norm(x, axis=1)]
    with torch.no_grad():
        for part in module:
            a, b = part(a), part(b)
            cm.append(((a - b).norm(dim=1) / a.norm(dim=1)).numpy())
    cm = np.stack(cm, 1)
    assert np.allclose(data["prompt_cm"].values, cm[:, 1:], rtol=1e-9)
    gain = np.median(cm[:, 1:] / cm[:, :-1], axis=0)
    assert np.allclose(data["gain"].values, gain, rtol=1e-9)
    order = np.argsort(-gain, kind="stable")[:3]
    assert list(data["vulnerable_layer"].values) == list(order)
    assert np.allclose(data["vulnerable"].values, gain[order])


def test_a_relu_never_gains_and_a_layer_never_more_than_its_norm():
    for perturbation in ("random", "pgd", "singular"):
        model = nets.wrap(nets.random_stack((6, 9, 9, 4), seed=4), (6,))
        result = interp.run(LayerGain(perturbation=perturbation, radius=0.2), model, inputs(5, 6))
        data = result.data
        relu = [i for i, n in enumerate(data["layer_name"].values) if n in ("1", "3")]
        assert (data["absolute_gain"].values[relu] <= 1 + 1e-12).all()
        assert (data["absolute_gain"].values <= data["certified"].values * (1 + 1e-9)).all()
        assert next(c for c in result.checks if c.name == "gain_at_most_norm").passed


def test_each_relu_is_counted_once():
    model = nets.wrap(nets.random_stack((6, 9, 9, 9, 4)), (6,))
    names = list(interp.run(LayerGain(), model, inputs(2, 6)).data["layer_name"].values)
    assert names == ["0", "1", "2", "3", "4", "5", "6"]


def test_ascent_and_the_singular_vector_move_the_end_further_than_chance():
    model = nets.wrap(nets.random_stack((8, 16, 16, 4), nn.Tanh), (8,))
    last = {
        p: float(
            interp.run(LayerGain(perturbation=p, radius=0.01), model, inputs(6, 8)).data["cm"][-1]
        )
        for p in ("random", "pgd", "singular")
    }
    assert last["pgd"] > 1.3 * last["random"] and last["singular"] > 1.3 * last["random"]


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "torch_module"])
def test_block_gains_are_the_dense_jacobians_and_no_hook_is_left(backend):
    raw = hard_model("gpt2").double().eval()
    model = interp.load_model(raw, backend=backend, dtype="float64")
    tokens = prompts(2, 5).tolist()
    before = hooks(model.module())
    result = interp.run(LayerGain(steps=40), model, Texts(tuple(map(tuple, tokens))))
    assert hooks(model.module()) == before
    block = raw.transformer.h[1]
    with torch.no_grad():
        resid = raw.transformer(torch.tensor(tokens), output_hidden_states=True).hidden_states[1]

    def first(module, x):
        out = module(x)
        return out[0] if isinstance(out, tuple) else out

    for k in range(2):

        def dense(f, k=k):
            j = torch.autograd.functional.jacobian(f, resid[k : k + 1])
            return float(torch.linalg.matrix_norm(j.reshape(resid[0].numel(), -1), 2))

        whole = dense(lambda x: first(block, x))
        attention = dense(lambda x: first(block.attn, block.ln_1(x)))
        found = result.data["prompt_jacobian"].sel(layer=1).isel(prompt=k)
        assert float(found.sel(component="block")) == pytest.approx(whole, rel=1e-4)
        assert float(found.sel(component="attention")) == pytest.approx(attention, rel=1e-4)
    assert not np.isclose(whole, attention, rtol=0.05)
    assert result.data["jacobian"].attrs["certificate"] == "estimate"
    assert result.data["jacobian"].attrs["certified"] == 0


def test_prompts_of_different_lengths_stand_in_their_own_rows():
    model = interp.load_model("zoo:random-gpt2", dtype="float64", verify=False)
    rows = ((5, 6, 7, 8), (9, 10, 11), (12, 13, 14, 15))
    spec = LayerGain(perturbation="singular", steps=30)
    whole = interp.run(spec, model, Texts(rows)).data
    for i, row in enumerate(rows):
        alone = interp.run(spec, model, Texts((row,))).data
        assert np.allclose(
            whole["prompt_jacobian"][..., i], alone["prompt_jacobian"][..., 0], rtol=1e-4
        )
        assert np.allclose(whole["prompt_cm"][i], alone["prompt_cm"][0], rtol=1e-2)


def test_lanczos_that_has_not_converged_turns_amber():
    model = interp.load_model("zoo:random-gpt2", verify=False)
    result = interp.run(LayerGain(steps=1), model, Texts(((5, 6, 7, 8),)))
    assert not next(c for c in result.checks if c.name == "lanczos_converged").passed


def test_a_network_with_gelu_has_gains_and_no_certified_norms():
    module = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    data = interp.run(LayerGain(perturbation="pgd"), nets.wrap(module, (6,)), inputs(2, 6)).data
    assert data["gain"].shape == (4,) and "certified" not in data
    assert all(v.attrs["certificate"] == "estimate" for v in data.data_vars.values())


def test_chosen_places_are_read_in_order_and_unknown_ones_refused():
    model = nets.wrap(nets.random_stack((6, 9, 9, 4)), (6,))
    data = interp.run(LayerGain(sites=("1", "4")), model, inputs(2, 6)).data
    assert list(data["layer_name"].values) == ["1", "4"]
    with pytest.raises(UsageError, match="no part 'nowhere'"):
        interp.run(LayerGain(sites=("nowhere",)), model, inputs(2, 6))
    with pytest.raises((CapabilityError, UsageError)):
        interp.run(LayerGain(), interp.load_model("zoo:random-gpt2", verify=False), inputs(2, 6))
