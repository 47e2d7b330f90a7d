"""The table of refusals: family, site and reason. A 'no' that is not here is a failure."""

from __future__ import annotations

import pytest

from interp.terms import KINDS, CapabilityError, Site, UsageError
from tests.models.wrapped import FAMILY_NAMES, prompts, wrapped

NEVER = {
    "feature": "dictionary",
    "input": "tokens",
    "module": "torch_module",
    "graph": "not only linear",
}
"""What no transformer back-end offers, with a word of the reason."""

PRE_NORM = {"ln1_post_scale": "no norm after attention", "ln2_post_scale": "no norm after the MLP"}
NO_QK = {"q_norm_scale": "no norm of the queries", "k_norm_scale": "no norm of the keys"}

REFUSED: dict[str, dict[str, str]] = {
    "gpt2": {**PRE_NORM, **NO_QK},
    "gpt_neo": {**PRE_NORM, **NO_QK},
    "gpt_neox": {**PRE_NORM, **NO_QK, "resid_mid": "no residual between"},
    "llama": {**PRE_NORM, **NO_QK},
    "mistral": {**PRE_NORM, **NO_QK},
    "qwen2": {**PRE_NORM, **NO_QK},
    "qwen3": PRE_NORM,
    "gemma2": NO_QK,
    "olmo2": {"ln1_scale": "no norm before attention", "ln2_scale": "no norm before the MLP"},
}
"""Family -> what its architecture does not have."""


@pytest.mark.parametrize("backend", ("transformer_lens", "nnsight", "torch_module"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_refusal_stands_in_the_table(family: str, backend: str):
    model = wrapped(family, backend)
    wanted = {**NEVER, **REFUSED[family]}
    if backend == "torch_module":
        del wanted["module"]
    refused = {c.name: c.reason for c in model.capabilities() if not c.ok}
    assert set(refused) == set(wanted)
    for name, word in wanted.items():
        assert word in refused[name]
    names = [c.name for c in model.capabilities()]
    assert names == [*KINDS, "blocks", "weights", "grad", "generate", "graph"]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_the_table_allows_is_listed_and_read_and_what_it_refuses_says_why(family: str):
    model, tokens = wrapped(family), prompts(1, 6)
    kinds = {s.kind for s in model.sites}
    assert kinds == set(KINDS) - set(NEVER) - set(REFUSED[family])
    for kind, word in REFUSED[family].items():
        with pytest.raises(CapabilityError, match=word):
            model.run(tokens, read=[Site(kind, layer=0)])
    with pytest.raises(CapabilityError, match="not only linear"):
        model.graph()


def test_any_module_of_a_checkpoint_is_read_by_path_under_plain_hooks():
    model, tokens = wrapped("llama", "torch_module"), prompts(1, 6)
    gate = Site("module", path="model.layers.1.mlp.gate_proj")
    assert model.run(tokens, read=[gate]).reads[gate].shape == (1, 6, model.shape.d_mlp)
    with pytest.raises(UsageError, match="gate_proj"):
        model.run(tokens, read=[Site("module", path="model.layers.1.mlp.gate_pro")])


def test_a_sequential_neox_has_the_residual_between_its_sublayers():
    from interp.models import load_model
    from tests.checkpoints import hard_model

    model = load_model(hard_model("gpt_neox", use_parallel_residual=False))
    assert model.can("resid_mid") and not model.shape.parallel
    assert all(c.passed for c in model.checks), model.checks
