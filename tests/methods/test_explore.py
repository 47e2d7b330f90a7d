"""The short methods against the untouched module, and their checks and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.methods import AttentionPatterns, HeadPage, NextTokens, PairCheck, VerifyCell
from interp.models import load_model
from interp.terms import PromptPairs, TaskError, Texts, UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, pairs_for, telling_pairs

FAMILIES = ("gpt2", "llama", "gemma2")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: load_model(hard_model(name)) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_the_modules_own(models: Any, family: str) -> None:
    module = hard_model(family)
    module.set_attn_implementation("eager")
    pairs = pairs_for(97, n=3)
    data = AttentionPatterns(layers=(1, 3), prompts=(0, 2)).measure(
        models[family], pairs, Remembering()
    )
    check_dataset(data)
    for side, column in (("clean", pairs.clean), ("corrupt", pairs.corrupt)):
        tokens = torch.tensor([column[0], column[2]])
        found = module(tokens, output_attentions=True).attentions
        for layer in (1, 3):
            ours = data["pattern"].sel(side=side, layer=layer).values
            np.testing.assert_allclose(ours, found[layer].detach(), atol=1e-5)
    np.testing.assert_allclose(data["pattern"].sum("key"), 1, atol=1e-5)
    assert float(data["pattern"].std("head").max()) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_next_tokens_are_the_softmax_of_the_logits(models: Any, family: str) -> None:
    texts = Texts(tuple(map(tuple, pairs_for(97, n=2).clean)))
    data = NextTokens(top_k=4, prompts=(1,)).measure(models[family], texts, Remembering())
    check_dataset(data)
    tokens = torch.tensor([texts.tokens[1]])
    p = hard_model(family)(tokens).logits.detach().softmax(-1)
    best = p.topk(4)
    np.testing.assert_allclose(data["probability"][0], best.values, atol=1e-5)
    np.testing.assert_array_equal(data["token_id"][0], best.indices)
    came = p[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
    np.testing.assert_allclose(data["surprise"][0, 0, 1:], -came.log(), atol=1e-4)
    assert np.isnan(data["surprise"][0, 0, 0])


def test_the_pair_check_scores_both_prompts(models: Any) -> None:
    module = hard_model("llama")
    pairs = telling_pairs(module)
    context = Remembering()
    data = PairCheck(top_k=3).measure(models["llama"], pairs, context)
    check_dataset(data)
    for side, column in (("clean", pairs.clean), ("corrupt", pairs.corrupt)):
        logits = module(torch.tensor(column)).logits[:, -1].detach()
        for i in range(4):
            right, wrong = pairs.right[i][0], pairs.wrong[i][0]
            wanted = float(logits[i, right] - logits[i, wrong])
            assert float(data["logit_diff"].sel(side=side)[i]) == pytest.approx(wanted, abs=1e-4)
            p = float(logits[i].softmax(-1)[right])
            assert float(data["prob"].sel(side=side)[i]) == pytest.approx(p, abs=1e-5)
    assert (data["accuracy"].sel(side="clean") == 1).all()
    assert (data["token_id"].sel(side="clean", top=0) == [r[0] for r in pairs.right]).all()
    assert {c.name: c.passed for c in context.checks} == {
        "baseline_accuracy": True,
        "metric_gap": True,
    }


def test_a_model_that_cannot_do_the_task_turns_the_pair_check_amber(models: Any) -> None:
    context = Remembering()
    PairCheck().measure(models["llama"], telling_pairs(hard_model("llama")).swapped(), context)
    assert {c.name: c.passed for c in context.checks} == {
        "baseline_accuracy": False,
        "metric_gap": False,
    }


def test_a_span_task_is_checked_by_its_log_probability(models: Any) -> None:
    plain = pairs_for(97, n=2)
    pairs = PromptPairs.from_tokens(
        plain.clean, plain.corrupt, [(1, 2), (3, 4)], answer_form="span"
    )
    data = PairCheck().measure(models["gpt2"], pairs, Remembering())
    assert set(data.data_vars) == {"span_logprob", "probability", "token_id"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_heads_direct_logits_are_its_write_through_the_frozen_norm(
    models: Any, family: str
) -> None:
    module = hard_model(family)
    pairs = pairs_for(97, n=2)
    data = HeadPage(layer=3, head=4, prompt=1, top_k=97 // 2).measure(
        models[family], pairs, Remembering()
    )
    check_dataset(data)
    tokens = torch.tensor([pairs.clean[1]])
    path = {"gpt2": ("transformer.h", "attn.c_proj", "transformer.ln_f")}.get(
        family, ("model.layers", "self_attn.o_proj", "model.norm")
    )
    output = module.get_submodule(path[0])[3].get_submodule(path[1])
    norm = module.get_submodule(path[2])
    kept: dict[str, torch.Tensor] = {}
    output.register_forward_pre_hook(lambda _, args: kept.update(z=args[0]))
    norm.register_forward_pre_hook(lambda _, args: kept.update(x=args[0]))
    with torch.no_grad():
        module(tokens)
        width = kept["z"].shape[-1] // 6
        z = torch.zeros_like(kept["z"][0, -1])
        z[4 * width : 5 * width] = kept["z"][0, -1, 4 * width : 5 * width]
        write = output(z[None])[0] - output(torch.zeros_like(z)[None])[0]
        x = kept["x"][0, -1]
        if family == "gpt2":
            write = write - write.mean()
            scale = (x.var(unbiased=False) + norm.eps).sqrt()
            gain = norm.weight
        else:
            scale = (x.pow(2).mean() + module.config.rms_norm_eps).sqrt()
            gain = 1 + norm.weight if family == "gemma2" else norm.weight
        logits = module.lm_head(write * gain / scale)
        logits = logits - logits.mean()
    best = logits.topk(5)
    side = data.sel(side="clean") if "side" in data.coords else data
    np.testing.assert_array_equal(side["direct_id"].values[:5], best.indices)
    np.testing.assert_allclose(side["direct_logit"].values[:5], best.values, atol=1e-3)
    assert float(best.values[0]) > 0.05


def test_what_a_head_writes_is_the_patterns_average_of_its_sources() -> None:
    model = load_model(hard_model("gpt2", vocab_size=40))
    data = (
        HeadPage(layer=2, head=1, top_k=40)
        .measure(model, pairs_for(40, n=1), Remembering())
        .sel(side="clean")
    )
    pattern = data["pattern"].values[-1]
    ids, logits = data["promoted_id"].values, data["promoted_logit"].values
    whole = np.zeros((9, 40))
    np.put_along_axis(whole, ids, logits, 1)
    wanted = pattern @ whole
    np.testing.assert_allclose(data["direct_logit"], wanted[data["direct_id"].values], atol=1e-4)
    assert np.abs(wanted).max() > 0.05


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (AttentionPatterns(layers=(9,)), "Layer 9"),
        (HeadPage(head=6), "Head 6"),
        (NextTokens(prompts=(7,)), "counted from 0"),
        (VerifyCell(site="z", layer=1, head=0, position=40), "outside"),
    ],
)
def test_what_is_not_there_is_refused(models: Any, method: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        method.measure(models["gpt2"], pairs_for(97, n=2), Remembering())


def test_prompts_of_different_length_are_shown_one_by_one(models: Any) -> None:
    a, b = pairs_for(97, n=1, length=7), pairs_for(97, n=1, length=9)
    mixed = PromptPairs.from_tokens(
        [*a.clean, *b.clean], [*a.corrupt, *b.corrupt], [*a.right, *b.right], [*a.wrong, *b.wrong]
    )
    with pytest.raises(TaskError, match="differ in length"):
        AttentionPatterns(prompts=None).measure(models["gpt2"], mixed, Remembering())
    one = AttentionPatterns(prompts=(1,)).measure(models["gpt2"], mixed, Remembering())
    assert one["pattern"].sizes["query"] == 9
