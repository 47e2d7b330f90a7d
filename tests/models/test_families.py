"""The family table, and the hard checkpoints: each is what it claims to be."""

from __future__ import annotations

import pytest
import torch

from interp.models.families import FAMILIES, family_of, layer_facts, shape_of
from interp.models.registry import MODELS
from interp.terms import KINDS, RefusedError
from tests.checkpoints import FAMILY_NAMES, hard_model, prompts

TOKENS = prompts(rows=6, length=12)


def logits(module):
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


def patterns(module):
    """Attention patterns of an eager twin, one ``[batch, head, query, key]`` a layer."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False, output_attentions=True).attentions


def relative_entropy(pattern):
    """Mean entropy of the queries that see more than one key, over that of a uniform pattern."""
    pattern = pattern.double()
    seen = (pattern > 0).sum(-1)
    entropy = -(pattern * torch.where(pattern > 0, pattern, 1.0).log()).sum(-1)
    return (entropy / seen.clamp(min=2).log())[seen > 1].mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_hard_checkpoint_has_wide_logits_and_peaked_attention(family, seed):
    module = hard_model(family, seed=seed)
    assert logits(module).std() >= 1.0
    entropies = [relative_entropy(p) for p in patterns(module)]
    assert sum(entropies) / len(entropies) <= 0.8


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_hard_checkpoint_has_random_biases_and_gains(family):
    vectors = {n: p for n, p in hard_model(family).named_parameters() if p.ndim == 1}
    assert vectors
    for name, value in vectors.items():
        assert value.std() > 0.15, name
        assert value.abs().max() > 0.2, name


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_hard_checkpoint_has_fewer_key_value_heads_where_the_family_can(family):
    shape = shape_of(hard_model(family))
    if family in ("gpt2", "gpt_neo", "gpt_neox"):
        assert shape.n_kv_heads == shape.n_heads
    else:
        assert shape.n_kv_heads < shape.n_heads


@pytest.mark.parametrize("family", ["gpt_neo", "mistral", "gemma2"])
def test_hard_checkpoint_has_a_window_shorter_than_a_prompt(family):
    module = hard_model(family)
    row = family_of(module)
    windows = [layer_facts(row, module.config, n).window for n in range(4)]
    assert any(w is not None and w < TOKENS.shape[1] for w in windows)
    if family != "mistral":
        assert None in windows, "the family alternates windows with full attention"


@pytest.mark.parametrize("cap", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_soft_caps_of_the_hard_checkpoint_bite(cap):
    module = hard_model("gemma2")
    capped = logits(module)
    bare = logits(hard_model("gemma2", **{cap: None}))
    assert (capped - bare).abs().max() > 0.1 * capped.std()


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_qk_norm_gains_of_the_hard_checkpoint_matter(family):
    module = hard_model(family)
    before = logits(module)
    row = family_of(module)
    with torch.no_grad():
        for layer in module.get_submodule(row.layers):
            layer.get_submodule(row.q_norm).weight.fill_(1.0)
    assert (logits(module) - before).abs().max() > 0.1 * before.std()


def test_a_seed_decides_a_hard_checkpoint_alone():
    one, two, other = hard_model("llama", seed=5), hard_model("llama", seed=5), hard_model("llama")
    torch.manual_seed(123)
    assert torch.equal(logits(one), logits(two))
    assert not torch.equal(logits(one), logits(other))


def test_building_a_hard_checkpoint_leaves_the_random_state_alone():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    hard_model("gpt2")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_path_of_the_table_names_a_module(architecture):
    row = FAMILIES[architecture]
    module = hard_model(row.name)
    layer = module.get_submodule(row.layers)[0]
    for path in (row.embed, row.final_norm, row.unembed, row.position_embed, row.rotary):
        assert path is None or module.get_submodule(path) is not None
    names = (
        "attention",
        "q",
        "k",
        "v",
        "o",
        "mlp",
        "w_in",
        "w_out",
        "gate",
        "pre_attn",
        "post_attn",
        "pre_mlp",
        "post_mlp",
        "q_norm",
        "k_norm",
    )
    for name in names:
        path = getattr(row, name)
        assert path is None or layer.get_submodule(path) is not None, name


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_place_holds_a_tensor_of_its_sites_width(family):
    """Every place of the table is caught by a plain hook and has the width its kind promises."""
    module = hard_model(family)
    row, shape = family_of(module), shape_of(module)
    layer = module.get_submodule(row.layers)[1]
    d = {
        "d_model": shape.d_model,
        "neuron": shape.d_mlp,
        "vocab": shape.vocab,
        "head": shape.n_heads * shape.d_head,
        "kv_head": shape.n_kv_heads * shape.d_head,
    }
    caught: dict[str, torch.Size] = {}

    def catch(kind, value):
        while isinstance(value, tuple):
            value = value[0]
        caught[kind] = getattr(value, "logits", value).shape

    for kind in KINDS:
        place = row.place(kind)
        if place is None or (kind == "resid_mid" and row.parallel(module.config)):
            continue
        owner = module if place.absolute else layer
        target = owner.get_submodule(place.path) if place.path else owner
        if place.side == "input":
            target.register_forward_pre_hook(
                lambda m, a, k, kind=kind: catch(kind, a or (k["hidden_states"],)), with_kwargs=True
            )
        else:
            target.register_forward_hook(lambda m, a, out, kind=kind: catch(kind, out))
    logits(module)
    for kind, found in caught.items():
        place = row.place(kind)
        wanted = d[KINDS[kind].dims[0]] * (3 if place.part else 1)
        assert found == (*TOKENS.shape, wanted), kind
    assert len(caught) >= 11


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(RefusedError, match="LlamaForCausalLM"):
        family_of({"architectures": ["FancyForCausalLM"]})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_has_a_hard_model_in_the_zoo(architecture):
    row = FAMILIES[architecture]
    card = MODELS[f"random-{row.name}".replace("_", "-")]
    assert card.architecture == architecture
