from __future__ import annotations

import pytest
import torch

from interp.models import load_model
from interp.terms import Edit, Site, UsageError
from tests.models.wrapped import FAMILY_NAMES, close, prompts, wrapped

EXACT = 1e-10


def other(value: torch.Tensor) -> torch.Tensor:
    return value.flip(0) * 1.3


@pytest.mark.parametrize("backend", ("nnsight", "torch_module"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_reads_and_gradients_are_transformer_lenss_at_every_site(family: str, backend: str):
    one, two, tokens = wrapped(family), wrapped(family, backend), prompts(3, 10)
    assert one.sites == two.sites
    runs = [m.run(tokens, read=m.sites, grad=True) for m in (one, two)]
    assert close(runs[1].logits, runs[0].logits) < EXACT
    grads = [
        torch.autograd.grad(
            r.logits[:, -1, 3].sum() - r.logits[:, -1, 7].sum(), [r.reads[s] for s in one.sites]
        )
        for r in runs
    ]
    for site, a, b in zip(one.sites, *grads, strict=True):
        assert close(runs[1].reads[site], runs[0].reads[site]) < EXACT, site
        assert close(b, a) < 1e-9, site
        assert float(a.abs().max()) > 0, f"{site} has no gradient, so nothing was compared"


@pytest.mark.parametrize("backend", ("nnsight", "torch_module"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_edited_logits_are_transformer_lenss_at_every_site(family: str, backend: str):
    one, two, tokens = wrapped(family), wrapped(family, backend), prompts(3, 10)
    base = one.run(tokens, read=one.sites)
    for site in one.sites:
        if site.layer not in (None, 0, one.shape.n_layers - 1):
            continue
        edits = [Edit(site, other(base.reads[site]))]
        a, b = (m.run(tokens, edits=edits, positions=[-1, 4]) for m in (one, two))
        assert close(b.logits, a.logits) < EXACT, site
        assert a.fired == pytest.approx(b.fired)
        assert close(a.logits, base.logits[:, [-1, 4]]) > 0.01, f"{site}: nothing was changed"


@pytest.mark.parametrize("backend", ("nnsight", "torch_module"))
def test_parts_of_several_sites_edited_at_once_agree(backend: str):
    one, two, tokens = wrapped("gpt2"), wrapped("gpt2", backend), prompts(3, 10)
    d = one.shape.d_head
    edits = [
        Edit(Site("q", layer=0, head=1), torch.ones(d)),
        Edit(Site("k", layer=0, position=(2, 5)), 0.7, mode="add"),
        Edit(Site("v", layer=0, head=0, position=-1), "zero"),
        Edit(Site("pattern", layer=1, head=2, position=4, key=1), 0.9),
        Edit(Site("resid_mid", layer=1, position=3), 0.3, mode="add"),
        Edit(Site("ln2_scale", layer=1), 1.7),
        Edit(Site("ln_final_scale"), 0.2, mode="add"),
        Edit(Site("resid_mid", layer=1), 0.1, mode="add"),
    ]
    read = [Site("v", layer=0), Site("resid_mid", layer=1), Site("ln2_scale", layer=1)]
    a, b = (m.run(tokens, edits=edits, read=read, vocab=[1, 5]) for m in (one, two))
    assert close(b.logits, a.logits) < EXACT
    assert a.fired == pytest.approx(b.fired) and min(a.fired) > 0
    assert all(close(b.reads[s], a.reads[s]) < EXACT for s in read)


def test_wrapping_proves_the_same_things_and_reaches_the_library():
    from nnsight import TransformersModel

    model = load_model("zoo:random-llama", backend="nnsight")
    assert isinstance(model.wrapped(), TransformersModel)
    assert type(model.module()).__name__ == "LlamaForCausalLM"
    names = [c.name for c in model.checks]
    assert names == [c.name for c in load_model("zoo:random-llama").checks]
    assert all(c.passed for c in model.checks), model.checks
    assert model.tokenizer is None


def test_nothing_runs_elsewhere_unless_the_run_asks_for_it():
    model, tokens = wrapped("llama", "nnsight"), prompts(1, 6)
    site = Site("resid_pre", layer=1)
    here = model.run(tokens, read=[site])
    assert model.remote_runs == 0
    there = model.run(tokens, read=[site], remote="local", edits=[Edit(site, 1.5, mode="add")])
    again = model.run(tokens, read=[site], edits=[Edit(site, 1.5, mode="add")])
    assert close(there.logits, again.logits) < EXACT
    assert close(there.logits, here.logits) > 0.01
    assert there.fired == pytest.approx(again.fired) and model.remote_runs == 1
    with pytest.raises(UsageError, match="gradients"):
        model.run(tokens, read=[site], remote="local", grad=True)


def test_a_run_that_fails_leaves_the_model_as_it_was():
    model, tokens = wrapped("olmo2", "nnsight"), prompts(2, 8)
    before = model.run(tokens).logits
    with pytest.raises(UsageError, match="does not broadcast"):
        model.run(tokens, edits=[Edit(Site("q", layer=1), torch.zeros(2, 3))])
    assert torch.equal(model.run(tokens).logits, before)


def test_generation_is_transformer_lenss():
    prompt = prompts(1, 6)[0].tolist()
    edits = [Edit(Site("mlp_out", layer=0), "zero")]
    one, two = (
        wrapped("qwen2", b).generate(prompt, edits=edits, max_tokens=6)
        for b in ("transformer_lens", "nnsight")
    )
    assert one == two


def test_provenance_counts_the_passes_that_ran_elsewhere():
    import interp

    model = load_model("zoo:random-llama", backend="nnsight", verify=False)
    pairs = interp.PromptPairs.from_tokens([[4, 7, 1, 5]], [[4, 7, 3, 5]], [9], [8])
    here = interp.run(interp.methods.NextTokens(), model, pairs, progress=False)
    assert "remote_runs" not in here.provenance
    with model.elsewhere("local"):
        there = interp.run(interp.methods.NextTokens(), model, pairs, progress=False)
    assert there.provenance["remote_runs"] >= 1
    assert torch.allclose(
        torch.as_tensor(here.data["probability"].values),
        torch.as_tensor(there.data["probability"].values),
        atol=1e-6,
    )
    again = interp.run(interp.methods.NextTokens(), model, pairs, progress=False)
    assert "remote_runs" not in again.provenance, "it ends where the with-block ends"


def test_no_ref_knob_or_argument_that_a_link_could_carry_asks_for_a_remote_run():
    import inspect

    import interp
    from interp.methods import METHODS

    for call in (interp.run, interp.load_model):
        assert "remote" not in inspect.signature(call).parameters
    assert not [k for k, m in METHODS.items() if any("remote" in f for f in m.model_fields)]
    for ref in ("zoo:random-llama?remote=1", "zoo:random-llama#remote", "remote:gpt2"):
        with pytest.raises(UsageError):
            load_model(ref, backend="nnsight")
