from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from interp.models import load_model
from interp.terms import CapabilityError, Edit, Site, UsageError
from tests.models.wrapped import FAMILY_NAMES, close, prompts, raw, wrapped
from tests.twins.sites import Tapped

# Norms of the Llama kind compute in float32 whatever the model's dtype; the twin's own do not.
LOOSE = 3e-6


def other(value: torch.Tensor) -> torch.Tensor:
    """Another value of the same size."""
    return value.flip(0) * 1.25 + 0.1 * value.std()


def tolerance(family: str, kind: str) -> float:
    exact = family in ("gpt2", "gpt_neox") or not kind.endswith("_scale")
    return 1e-10 if exact and family not in ("gpt_neo", "gemma2") else LOOSE


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_site_reads_what_the_untouched_module_computes(family: str):
    model, tokens = wrapped(family), prompts()
    run = model.run(tokens, read=model.sites)
    for site in model.sites:
        if site.kind == "logits" or site.layer not in (None, 1):
            continue
        twin = Tapped(raw(family), family, site.kind, site.layer or 0, lambda v: v)
        with torch.no_grad():
            twin(tokens)
        assert twin.value is not None
        assert close(run.reads[site], twin.value) < tolerance(family, site.kind), site


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_an_edit_at_every_site_gives_the_logits_of_the_untouched_module_so_edited(family: str):
    model, tokens = wrapped(family), prompts()
    base = model.run(tokens).logits
    for site in model.sites:
        if site.kind == "logits" or site.layer not in (None, 1):
            continue
        twin = Tapped(raw(family), family, site.kind, site.layer or 0, other)
        with torch.no_grad():
            expected = twin(tokens)
        run = model.run(tokens, edits=[Edit(site, twin.value)], read=[site])
        assert close(run.logits, expected) < tolerance(family, site.kind), site
        assert close(base, expected) > 0.05, f"{site}: the edit does nothing to compare"
        assert torch.equal(run.reads[site], twin.value), site
        assert run.fired[0] > 0


def test_unedited_logits_are_the_untouched_modules_in_every_family():
    tokens = prompts()
    for family in FAMILY_NAMES:
        with torch.no_grad():
            expected = raw(family)(input_ids=tokens).logits
        assert close(wrapped(family).run(tokens).logits, expected) < 1e-10, family


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_gradients_are_the_slopes_that_edits_show(family: str):
    model, tokens = wrapped(family), prompts(2, 8)
    sites = [s for s in model.sites if s.layer in (None, 1)]
    run = model.run(tokens, read=sites, grad=True)
    metric = run.logits[:, -1, 3].sum() - run.logits[:, -1, 5].sum()
    grads = torch.autograd.grad(metric, [run.reads[s] for s in sites])
    generator = torch.Generator().manual_seed(2)
    small = 1e-3 if family not in ("gpt2", "gpt_neox") else 1e-5  # float32 islands are rough
    for site, grad in zip(sites, grads, strict=True):
        value = run.reads[site].detach()
        way = torch.randn(value.shape, generator=generator, dtype=value.dtype) * value.std()
        ends = [
            model.run(tokens, edits=[Edit(site, value + s * small * way)]).logits for s in (1, -1)
        ]
        up, down = (float((x[:, -1, 3] - x[:, -1, 5]).sum()) for x in ends)
        slope = (up - down) / (2 * small)
        assert float((grad * way).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3), site


def test_a_selected_read_is_the_part_of_the_whole_and_can_be_differentiated():
    model, tokens = wrapped("llama"), prompts(2, 9)
    whole = model.run(tokens, read=[Site(k, layer=1) for k in ("k", "pattern", "mlp_post")]).reads
    k, pattern, mlp = (whole[Site(n, layer=1)] for n in ("k", "pattern", "mlp_post"))
    parts = {
        Site("k", layer=1, head=1): k[:, :, 1],
        Site("k", layer=1, head=1, position=-2): k[:, -2, 1],
        Site("k", layer=1, position=(1, 4)): k[:, [1, 4]],
        Site("pattern", layer=1, head=2, position=5, key=3): pattern[:, 5, 2, 3],
        Site("pattern", layer=1, position=(5, 6), key=3): pattern[:, [5, 6], :, 3],
        Site("mlp_post", layer=1, neuron=7): mlp[:, :, 7],
    }
    run = model.run(tokens, read=parts, grad=True)
    for site, expected in parts.items():
        assert torch.equal(run.reads[site].detach(), expected), site
    grads = torch.autograd.grad(run.logits[:, -1].square().sum(), list(run.reads.values()))
    assert all(float(g.abs().max()) > 0 for g in grads)


def test_an_edit_of_a_part_leaves_the_rest_as_it_was():
    model, tokens = wrapped("gpt_neox"), prompts(2, 9)
    site = Site("v", layer=1)
    base = model.run(tokens, read=[site]).reads[site]
    edits = [Edit(Site("v", layer=1, head=1, position=3), torch.full((base.shape[-1],), 2.0))]
    edits.append(Edit(Site("v", layer=1, position=(4, 6)), 0.5, mode="add"))
    run = model.run(tokens, edits=edits, read=[site])
    expected = base.clone()
    expected[:, 3, 1] = 2
    expected[:, [4, 6]] += 0.5
    assert close(run.reads[site], expected) < 1e-12
    assert run.fired[1] == pytest.approx(0.5)


def test_a_key_value_head_is_read_and_edited_once_for_its_group():
    model, tokens = wrapped("llama"), prompts(2, 9)
    shape = model.shape
    assert shape.n_kv_heads < shape.n_heads
    run = model.run(tokens, read=[Site("k", layer=0), Site("q", layer=0), Site("z", layer=0)])
    sizes = [run.reads[Site(k, layer=0)].shape[2] for k in ("k", "q", "z")]
    assert sizes == [shape.n_kv_heads, shape.n_heads, shape.n_heads]
    edited = model.run(
        tokens, edits=[Edit(Site("v", layer=0, head=1), "zero")], read=[Site("z", layer=0)]
    ).reads[Site("z", layer=0)]
    changed = (edited - run.reads[Site("z", layer=0)]).abs().amax((0, 1, 3)) > 1e-9
    group = shape.n_heads // shape.n_kv_heads
    assert changed.nonzero().flatten().tolist() == list(range(group, 2 * group))
    with pytest.raises(UsageError, match=f"asks for head .* and there are {shape.n_kv_heads}"):
        model.run(tokens, read=[Site("k", layer=0, head=shape.n_kv_heads)])


def test_logits_are_unembedded_only_where_they_are_asked_for():
    model, tokens = wrapped("gemma2"), prompts(3, 10)
    whole = model.run(tokens).logits
    sizes: list[tuple[int, ...]] = []
    head = model.module().get_submodule("lm_head")
    handle = head.register_forward_hook(lambda m, a, o: sizes.append(tuple(o.shape)))
    part = model.run(tokens, positions=[-1, 2]).logits
    few = model.run(tokens, positions=[-1], vocab=[4, 9, -1]).logits
    handle.remove()
    assert close(part, whole[:, [-1, 2]]) < 1e-12
    assert close(few, whole[:, [-1]][..., [4, 9, -1]]) < 1e-12
    assert sizes == [(3, 2, model.shape.vocab)], "the columns asked for are all that is computed"


def hooks(module: torch.nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in module.modules()
    )


@pytest.mark.parametrize("backend", ("transformer_lens", "torch_module"))
def test_no_hook_stays_after_a_run_or_after_an_error_in_its_middle(backend: str):
    model, tokens = wrapped("qwen3", backend), prompts(2, 8)
    model.run(tokens)
    before = hooks(model.module())
    model.run(tokens, read=model.sites)
    wrong = Edit(Site("attn_out", layer=1), torch.zeros(3, 5))
    with pytest.raises(UsageError, match="does not broadcast"):
        model.run(tokens, read=model.sites, edits=[wrong])
    assert hooks(model.module()) == before


def test_a_read_keeps_its_own_numbers_alive_and_nothing_more():
    model, tokens = wrapped("gpt2"), prompts(2, 12)
    site = Site("z", layer=0, head=1, position=3)
    read = model.run(tokens, read=[site]).reads[site]
    assert read.untyped_storage().nbytes() == read.numel() * read.element_size()


def test_what_cannot_be_done_is_said_in_a_sentence():
    model, tokens = wrapped("gpt_neox"), prompts(1, 6)
    with pytest.raises(CapabilityError, match="no residual between them"):
        model.run(tokens, read=[Site("resid_mid", layer=0)])
    with pytest.raises(UsageError, match="asks for layer 9"):
        model.run(tokens, read=[Site("z", layer=9)])
    with pytest.raises(UsageError, match="needs a layer"):
        model.run(tokens, read=[Site("z")])
    with pytest.raises(UsageError, match="slot 'subject'"):
        model.run(tokens, read=[Site("z", layer=0, position="subject")])
    with pytest.raises(UsageError, match="needs another run"):
        model.run(tokens, edits=[Edit(Site("z", layer=0), "mean")])
    with pytest.raises(UsageError, match="cannot be replaced by zero"):
        model.run(tokens, edits=[Edit(Site("ln1_scale", layer=0), "zero")])
    with pytest.raises(CapabilityError, match="reader"):
        model.run(tokens, edits=[Edit(Site("z", layer=0), "zero", reader=Site("q", layer=1))])
    with pytest.raises(UsageError, match="not in the vocabulary"):
        model.run([[1, 100_000]])
    with pytest.raises(UsageError, match="context holds"):
        model.run([list(range(90)) * 20])
    with pytest.raises(UsageError, match="unequal length"):
        model.run([[1, 2], [3]])
    with pytest.raises(UsageError, match="whole numbers"):
        model.run([[0.5, 1.0]])
    with pytest.raises(CapabilityError, match="no tokenizer"):
        model.run("a text")
    with pytest.raises(UsageError, match="asked for at position"):
        model.run(tokens, positions=[6])


def test_generation_is_greedy_and_stays_under_the_edits_made_for_the_prompt():
    model = wrapped("llama")
    prompt = prompts(1, 7)[0].tolist()
    text = list(prompt)
    for _ in range(5):
        text.append(int(model.run([text]).logits[0, -1].argmax()))
    assert model.generate(prompt, max_tokens=5) == text[7:]
    value = torch.randn(7, model.shape.d_model, generator=torch.Generator().manual_seed(0)) * 3
    edit = Edit(Site("resid_pre", layer=1), value)
    text = list(prompt)
    for _ in range(5):
        at = Edit(Site("resid_pre", layer=1, position=tuple(range(7))), value)
        text.append(int(model.run([text], edits=[at]).logits[0, -1].argmax()))
    assert model.generate(prompt, edits=[edit], max_tokens=5) == text[7:]
    assert text[7:] != model.generate(prompt, max_tokens=5)
    last = model.generate(
        prompt, edits=[Edit(Site("resid_pre", layer=1, position=-1), value[-1])], max_tokens=5
    )
    fixed = model.generate(
        prompt, edits=[Edit(Site("resid_pre", layer=1, position=6), value[-1])], max_tokens=5
    )
    assert last == fixed, "a position counted from the end is the prompt's"
    warm = [model.generate(prompt, max_tokens=6, temperature=2.0, seed=s) for s in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    assert len(model.generate(prompt, max_tokens=1000)) == model.shape.n_ctx - 7 + 1


def test_the_bridge_and_the_module_are_within_reach_and_no_tokenizer_is_invented():
    from transformer_lens.model_bridge import TransformerBridge

    model = wrapped("gpt2")
    assert isinstance(model.wrapped(), TransformerBridge)
    assert type(model.module()).__name__ == "GPT2LMHeadModel"
    assert model.tokenizer is None and model.wrapped().tokenizer is None
    assert not model.wrapped().cfg.default_prepend_bos


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_every_family_runs_and_keeps_its_checks_in_every_dtype(dtype: str):
    for family in FAMILY_NAMES:
        model: Any = wrapped(family, dtype=dtype)
        failed = [c for c in model.checks if not c.passed]
        assert not failed, (family, failed)
        assert str(model.dtype) == f"torch.{dtype}"


def test_the_published_text_comes_out_of_the_real_llama_checkpoint(test_data: Any):
    model = load_model(str(test_data / "stories260K" / "hf"))
    published = json.loads((test_data / "stories260K" / "reference.json").read_text())
    prompt = "Once upon a time"
    new = model.generate(prompt, max_tokens=80)
    said = model.tokenizer.decode([*model.tokenizer.encode(prompt), *new])
    assert len(new) == 80
    assert said.replace("<s>", "").strip() in published["published_greedy_text"]
    assert all(c.passed for c in model.checks)


def test_the_adders_sums_are_right(test_data: Any):
    model = load_model(str(test_data / "adder" / "hf"))
    assert model.generate([4, 7, 5, 6], max_tokens=3) == [3, 0, 1]
    assert model.tokenizer is None
