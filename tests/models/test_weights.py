"""Weights by head and neuron: TransformerLens's orientation, by reference, nothing padded."""

from __future__ import annotations

import pytest
import torch

from interp.models.blocks import ModelBlocks
from interp.models.families import shape_of
from interp.models.weights import LAYER_NAMES, ModelWeights
from tests.checkpoints import FAMILY_NAMES, hard_model

X = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain(block):
    """A block without norms and rotary, so that its pieces are its weights alone."""
    for name in ("pre_attn", "post_attn", "pre_mlp", "post_mlp", "q_norm", "k_norm", "rotary"):
        setattr(block, name, None)
    return block


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_by_head_give_the_blocks_queries_keys_values_and_writes(family):
    module = hard_model(family, seed=2).double()
    weights = ModelWeights(module)
    for index, block in enumerate(map(plain, ModelBlocks(module).layers)):
        w = weights.layer(index)
        with torch.no_grad():
            q, k, v = block.qkv(X, torch.zeros(5, dtype=torch.long))
            for value, weight, bias in ((q, w.W_Q, w.b_Q), (k, w.W_K, w.b_K), (v, w.W_V, w.b_V)):
                by_head = torch.einsum("nd,hde->nhe", X, weight) + (0 if bias is None else bias)
                assert (by_head - value).abs().max() < 1e-12 * value.std() * 100
            for head in range(block.n_heads):
                given = block.head_write(v[:, head // (block.n_heads // block.n_kv_heads)], head)
                wanted = v[:, head // (block.n_heads // block.n_kv_heads)] @ w.W_O[head]
                assert (given - wanted).abs().max() < 1e-12
            total = block.attn_sum(q)
            wanted = torch.einsum("nhe,hed->nd", q, w.W_O) + (0 if w.b_O is None else w.b_O)
            assert (total - wanted).abs().max() < 1e-10 * total.std()
            before = X @ w.W_in + (0 if w.b_in is None else w.b_in)
            if w.W_gate is None:
                wanted = block.act(before)
            else:
                gate = X @ w.W_gate + (0 if w.b_gate is None else w.b_gate)
                wanted = block.act(gate) * before
            neurons = block.neurons(X)
            assert (neurons - wanted).abs().max() < 1e-12 * neurons.std() * 100
            wanted = neurons @ w.W_out + (0 if w.b_out is None else w.b_out)
            assert (block.mlp_sum(neurons) - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_shapes_follow_the_protocol_and_kv_heads_are_not_padded(family):
    module = hard_model(family)
    w, s = ModelWeights(module), shape_of(module)
    L, H, K, D, E, F = (s.n_layers, s.n_heads, s.n_kv_heads, s.d_model, s.d_head, s.d_mlp)
    assert w.W_E.shape == (s.vocab, D) and w.W_U.shape == (D, s.vocab)
    assert w.W_Q.shape == (L, H, D, E) and w.W_O.shape == (L, H, E, D)
    assert w.W_K.shape == w.W_V.shape == (L, K, D, E)
    assert w.W_in.shape == (L, D, F) and w.W_out.shape == (L, F, D)
    assert (w.b_Q is None) or w.b_Q.shape == (L, H, E)
    assert (w.W_pos is not None) == (family in ("gpt2", "gpt_neo"))
    for name in LAYER_NAMES:
        stacked = getattr(w, name)
        for layer in range(L):
            one = getattr(w.layer(layer), name)
            assert (stacked is None) == (one is None), name
            assert stacked is None or torch.equal(stacked[layer], one), name


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_layer_weights_are_views_of_the_modules_parameters(family):
    module = hard_model(family)
    w = ModelWeights(module)
    storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
    for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_gate", "b_Q", "b_K", "b_O"):
        value = getattr(w.layer(1), name)
        assert value is None or value.untyped_storage().data_ptr() in storages, name
    before = w.W_Q.clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    assert torch.allclose(w.W_Q, 2 * before)


def test_gemmas_gain_is_what_the_vector_is_multiplied_by():
    module = hard_model("gemma2")
    gain = ModelWeights(module).layer(0).ln1_w
    assert torch.equal(gain, 1 + module.model.layers[0].input_layernorm.weight)
    assert ModelWeights(module).embed_scale == pytest.approx(48**0.5)


def test_gradients_flow_to_the_parameters_through_a_stacked_view():
    module = hard_model("llama")
    ModelWeights(module).W_K.sum().backward()
    for layer in module.model.layers:
        assert torch.equal(layer.self_attn.k_proj.weight.grad, torch.ones(16, 48))


def test_a_weight_that_does_not_exist_is_an_attribute_error():
    weights = ModelWeights(hard_model("gpt2"))
    with pytest.raises(AttributeError, match="W_X"):
        _ = weights.W_X
    with pytest.raises(AttributeError, match="W_X"):
        _ = weights.layer(0).W_X
    assert weights.W_gate is None and weights.q_norm_w is None
