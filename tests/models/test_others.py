"""Encoders, encoder–decoders, experts, state-space models: read and refuse by the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.models import load_model, others
from interp.models.loading import quiet
from interp.terms import KINDS, CapabilityError, Edit, RefusedError, Site, UsageError
from tests.checkpoints import prompts, save_checkpoint

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
EXPERTS = {**SIZES, "num_key_value_heads": 2, "num_experts_per_tok": 2}
STATE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "state_size": 8,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ENDS = {
    "decoder_start_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "vocab_size": 97,
    "d_model": 48,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "BertForMaskedLM": SIZES,
    "BertModel": SIZES,
    "RobertaForMaskedLM": {**SIZES, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "DistilBertForMaskedLM": {
        "vocab_size": 97,
        "dim": 48,
        "n_layers": 3,
        "n_heads": 6,
        "hidden_dim": 80,
        "max_position_embeddings": 64,
    },
    "T5ForConditionalGeneration": {
        **ENDS,
        "d_kv": 8,
        "d_ff": 80,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 6,
    },
    "BartForConditionalGeneration": {
        **ENDS,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 6,
        "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 80,
        "max_position_embeddings": 64,
        "forced_eos_token_id": None,
    },
    "MixtralForCausalLM": {**EXPERTS, "num_local_experts": 4},
    "Qwen3MoeForCausalLM": {
        **EXPERTS,
        "head_dim": 8,
        "num_experts": 4,
        "moe_intermediate_size": 40,
    },
    "OlmoeForCausalLM": {**EXPERTS, "num_experts": 4, "eos_token_id": 0},
    "MambaForCausalLM": STATE,
    "Mamba2ForCausalLM": {
        **STATE,
        "num_heads": 12,
        "head_dim": 8,
        "n_groups": 2,
        "expand": 2,
        "chunk_size": 8,
    },
}
"""A tiny configuration of each row of the table."""

ADDS = ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM")
"""Rows whose sublayers add to the residual, so that the telescope can be checked."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each architecture, random, with large weights, on disk."""
    import transformers

    found = {}
    for name, fields in CONFIGS.items():
        kind: Any = getattr(transformers, name)
        torch.manual_seed(0)
        with quiet():
            module = kind(kind.config_class(**fields)).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        found[name] = save_checkpoint(module, tmp_path_factory.mktemp("others") / name)
    return found


def other(value: torch.Tensor) -> torch.Tensor:
    return value.flip(1) * 1.3 + 0.1


def test_every_row_of_the_table_is_tried_here():
    assert set(CONFIGS) == set(others.OTHERS)
    assert {r.kind for r in others.OTHERS.values()} == set(others.WHY)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_transformer_back_ends_refuse_and_say_what_opens_it(
    name: str, folders: dict[str, Path]
):
    why = others.OTHERS[name].why
    for backend in ("transformer_lens", "nnsight"):
        with pytest.raises(RefusedError, match=f"{name} {why}.*torch_module.*resid_pre"):
            load_model(folders[name], backend=backend)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plain_wrapping_reads_edits_and_differentiates_what_the_row_names(
    name: str, folders: dict[str, Path]
):
    model: Any = load_model(folders[name], backend="torch_module", dtype="float64")
    assert all(c.passed for c in model.checks), [c for c in model.checks if not c.passed]
    assert ("telescopes" in {c.name for c in model.checks}) == (name in ADDS)
    tokens, row = prompts(2, 8) % 90 + 5, others.OTHERS[name]
    assert {s.kind for s in model.sites} == {*row.sites, "logits"}
    assert model.shape.n_layers == 3 and model.shape.d_model == 48
    run = model.run(tokens, read=model.sites, grad=True)
    assert run.logits.shape[:2] == tokens.shape
    inner = [s for s in model.sites if s.kind != "logits"]
    grads = torch.autograd.grad(run.logits[:, -1, 3].sum(), [run.reads[s] for s in inner])
    for site, grad in zip(inner, grads, strict=True):
        assert float(grad.abs().max()) > 0, site
        value = run.reads[site].detach()
        if site.spec.head_axis is not None:
            assert value.shape[2] == (2 if site.kind in "kv" and name in ADDS else 6)
        edited = model.run(tokens, edits=[Edit(site, other(value))], positions=[-1])
        assert min(edited.fired) > 0, site
        if site.layer in (0, None):
            assert not torch.allclose(edited.logits[:, 0], run.logits[:, -1]), site


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_row_does_not_name_is_refused_with_its_reason(name: str, folders: dict[str, Path]):
    model: Any = load_model(folders[name], backend="torch_module", verify=False)
    row, tokens = others.OTHERS[name], prompts(1, 6) % 90 + 5
    no = {c.name: c.reason for c in model.capabilities() if not c.ok}
    kinds = set(KINDS) - {*row.sites, "logits", "module"}
    assert set(no) == kinds | {"blocks", "weights", "graph"} | (
        {"generate"} if row.kind.startswith("encoder") else set()
    )
    for kind in kinds - {"feature", "input"}:
        assert no[kind] == f"not held for {name}, which {row.why}."
    with pytest.raises(CapabilityError, match=row.why):
        model.run(tokens, read=[Site("pattern", layer=0)])
    with pytest.raises(CapabilityError, match="whole pass"):
        _ = model.blocks
    with pytest.raises(UsageError, match="vocabulary of 97"):
        model.run([[5, 97]])


def test_the_output_is_the_untouched_modules(folders: dict[str, Path]):
    import transformers

    for name in ("BertForMaskedLM", "MixtralForCausalLM", "MambaForCausalLM"):
        tokens = prompts(2, 9) % 90 + 5
        with quiet(), torch.no_grad():
            wanted = getattr(transformers, name).from_pretrained(folders[name]).eval()(tokens)
        model: Any = load_model(folders[name], backend="torch_module")
        assert torch.allclose(model.run(tokens).logits, wanted.logits, atol=1e-4)


def test_a_mixture_of_experts_is_patched_cell_by_cell_and_the_cost_is_named(
    folders: dict[str, Path],
):
    model: Any = load_model(folders["Qwen3MoeForCausalLM"], backend="torch_module")
    pairs = interp.PromptPairs.from_tokens([[4, 7, 1, 2, 8]], [[4, 7, 3, 2, 8]], [9], [8])
    method = interp.methods.ActivationPatching(site="resid_pre")
    result = interp.run(method, model, pairs, progress=False)
    effect = result.data["effect_raw"]
    gap = float(result.data.attrs.get("gap", abs(effect).max()))
    assert float(abs(effect).max()) >= 0.1 * gap > 0
    assert float(abs(effect.isel(position=slice(0, 2))).max()) < 1e-4, "a causal model"
    assert "whole forward pass" in result.provenance["slow path"]


def test_a_live_module_of_the_table_needs_no_example(folders: dict[str, Path]):
    import transformers

    with quiet():
        live = transformers.BertForMaskedLM.from_pretrained(folders["BertForMaskedLM"])
    model: Any = load_model(live)
    assert model.backend == "torch_module" and Site("z", layer=2) in model.sites
    model.run([[5, 6]], edits=[Edit(Site("embed"), "zero")])


def test_listing_says_what_to_do_with_such_a_folder(folders: dict[str, Path]):
    from interp.models import list_models

    listed = {m.title: m for m in list_models([folders["BertModel"].parent])}
    assert any("torch_module" in m.reason and not m.ok for m in listed.values())
