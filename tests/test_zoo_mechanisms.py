"""Mechanisms that cards name, measured again from the shipped weights by other means."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import pytest
import torch

from interp.models.dictionaries import load_dictionary
from interp.models.loading import load
from interp.models.registry import ZOO
from interp.models.tensors import read_tensors
from interp.tasks import load_task
from interp.tasks.modular_addition import training_sums
from interp.terms import ModelShape, UsageError
from interp.training import depths, ioi_sae
from interp.training.scoring import Reader
from interp.training.vocabulary import Words


@lru_cache(maxsize=8)
def card(name):
    return json.loads((ZOO / name / "card.json").read_text())


@lru_cache(maxsize=8)
def opened(ref):
    return load(ref)


def task_of(name, ref):
    loaded = opened(f"zoo:{name}")
    c = loaded.config
    shape = ModelShape(
        c.num_hidden_layers, c.num_attention_heads, c.num_attention_heads, c.hidden_size,
        c.hidden_size // c.num_attention_heads, 4, c.vocab_size, c.max_position_embeddings,
    )  # fmt: skip
    return load_task(ref, Reader(loaded.tokenizer, shape))


# modadd


P = 53


def every_sum():
    pairs = np.array([(a, b) for a in range(P) for b in range(P)])
    tokens = torch.tensor(np.c_[pairs, np.full(len(pairs), P)])
    known = np.array([(a, b) in training_sums(P) for a, b in pairs.tolist()])
    return tokens, pairs.sum(1) % P, known


def right(module, table=None):
    """Which of all sums come out right; ``table`` in the place of the numbers' embeddings."""
    tokens, answers, _ = every_sum()
    embeds = module.transformer.wte.weight.detach().clone()
    if table is not None:
        embeds[:P] = torch.tensor(table, dtype=embeds.dtype)
    with torch.no_grad():
        logits = module(inputs_embeds=embeds[tokens]).logits[:, -1]
    return logits.argmax(-1).numpy() == answers


def filtered(table, frequencies, keep):
    """The table with only these frequencies and the mean, or without them, by an FFT."""
    spectrum = np.fft.rfft(table, axis=0)
    chosen = np.isin(np.arange(len(spectrum)), list(frequencies))
    spectrum[~(chosen | (np.arange(len(spectrum)) == 0)) if keep else chosen] = 0
    return np.fft.irfft(spectrum, n=len(table), axis=0)


@pytest.fixture(scope="module")
def adder():
    module = opened("zoo:modadd").module
    table = module.transformer.wte.weight.detach().double().numpy()[:P]
    return module, table, card("modadd")["mechanism"]


def test_modadd_needs_its_key_frequencies_and_no_others(adder):
    module, table, said = adder
    assert len(said["frequencies"]) <= 8
    kept = right(module, filtered(table, said["frequencies"], keep=True)).mean()
    left = right(module, filtered(table, said["frequencies"], keep=False)).mean()
    assert kept == pytest.approx(said["kept"], abs=2e-3) and kept >= 0.99
    assert left == pytest.approx(said["left"], abs=2e-3) and left <= 0.1


def test_modadd_20_random_sets_of_frequencies_neither_keep_nor_remove_the_sums(adder):
    module, table, said = adder
    others = [k for k in range(1, P // 2 + 1) if k not in said["frequencies"]]
    rng = random.Random(7)
    sets = [rng.sample(others, len(said["frequencies"])) for _ in range(20)]
    assert max(right(module, filtered(table, s, keep=True)).mean() for s in sets) <= 0.2
    assert min(right(module, filtered(table, s, keep=False)).mean() for s in sets) >= 0.9


def test_modadd_logits_are_sums_of_cosines_of_the_key_frequencies(adder):
    """Logit of c against cos(w (a + b - c)): the clock, seen at the output."""
    module, _, said = adder
    tokens, answers, _ = every_sum()
    with torch.no_grad():
        logits = module(tokens).logits[:, -1, :P].double().numpy()
    gap = (answers[:, None] - np.arange(P)[None]) % P
    wave = np.stack([np.cos(2 * np.pi * k * gap / P).ravel() for k in said["frequencies"]], 1)
    centred = (logits - logits.mean(1, keepdims=True)).ravel()
    fitted = wave @ np.linalg.lstsq(wave, centred, rcond=None)[0]
    explained = 1 - ((centred - fitted) ** 2).sum() / (centred**2).sum()
    assert explained == pytest.approx(said["cosines_explain"], abs=2e-3) and explained >= 0.8


def test_modadd_checkpoints_know_then_grok_then_compute():
    said = card("modadd")["metrics"]
    _, _, known = every_sum()
    for i, step in enumerate(said["step"]):
        found = right(opened(f"zoo:modadd@{step}").module)
        assert found[known].mean() == pytest.approx(said["train_accuracy"][i], abs=2e-3)
        assert found[~known].mean() == pytest.approx(said["test_accuracy"][i], abs=2e-3)
    train, test = np.array(said["train_accuracy"]), np.array(said["test_accuracy"])
    by_heart = (train >= 0.999) & (test <= 0.6)
    assert train[0] < 0.1 and by_heart.any() and test[-1] >= 0.99
    assert ((test > 0.6) & (test < 0.98)).any(), "no checkpoint on the way"


def test_modadd_names_its_checkpoints():
    assert opened("zoo:modadd@0").id == "zoo:modadd@0"
    with pytest.raises(UsageError, match="checkpoint of zoo:modadd"):
        load("zoo:modadd@1")
    with pytest.raises(UsageError, match="ships no checkpoints"):
        load("zoo:induction@5")


# induction


@contextmanager
def silent(ref, heads):
    """While inside, these heads give their mean over the batch, position by position."""
    module = opened(ref).module
    width = module.config.hidden_size // module.config.num_attention_heads
    hooks = []
    for layer in {i for i, _ in heads}:

        def quiet(_, args, chosen=tuple(h for i, h in heads if i == layer)):
            z = args[0].clone()
            for h in chosen:
                part = slice(h * width, (h + 1) * width)
                z[..., part] = z[..., part].mean(0, keepdim=True)
            return (z,)

        hooks.append(module.transformer.h[layer].attn.c_proj.register_forward_pre_hook(quiet))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def patterns(ref, tokens, silenced=()):
    """Attention of every layer by the raw module."""
    module = opened(ref).module
    module.set_attn_implementation("eager")
    with silent(ref, silenced), torch.no_grad():
        return module(tokens, output_attentions=True).attentions


def logit_diff(ref, task, silenced):
    """Mean right less wrong logit at the last position with these heads giving their mean."""
    tokens, rows = torch.tensor(task.clean), torch.arange(len(task))
    with silent(ref, silenced), torch.no_grad():
        logits = opened(ref).module(tokens).logits[:, -1]
    right, wrong = (torch.tensor(side)[:, 0] for side in (task.right, task.wrong))
    return float((logits[rows, right] - logits[rows, wrong]).mean())


@pytest.fixture(scope="module")
def runs():
    return card("induction")["mechanism"], task_of("induction", "induction:n=300,seed=21")


ROLES = ("previous_token", "same_token", "induction")


def heads_of(said, role):
    return [tuple(h) for h in said[role]]


def test_induction_can_spare_no_kind_of_head(runs):
    said, task = runs
    full = logit_diff("zoo:induction", task, [])
    for role in ROLES:
        left = logit_diff("zoo:induction", task, heads_of(said, role)) / full
        assert left == pytest.approx(said["left_without"][role], abs=0.05)
        assert heads_of(said, role) and left <= 0.3, role


def test_induction_no_smaller_set_of_heads_is_enough(runs):
    said, task = runs
    every = [(i, h) for i in (0, 1) for h in (0, 1)]
    full = logit_diff("zoo:induction", task, [])
    assert len(said["kept"]) == 2 ** len(every) - 2
    for text, kept in said["kept"].items():
        named = [tuple(map(int, h.split("."))) for h in text.split()]
        silenced = [h for h in every if h not in named]
        found = logit_diff("zoo:induction", task, silenced) / full
        assert found == pytest.approx(kept, abs=0.05), text
        assert kept < 0.85
        if not all(set(named) & set(heads_of(said, role)) for role in ROLES):
            assert kept <= 0.3, f"{text} lacks a kind and should not do"


def test_induction_heads_look_at_what_followed_and_need_the_head_that_looks_one_back(runs):
    said, task = runs
    tokens, rows = torch.tensor(task.clean), torch.arange(len(task))
    end, after = (torch.tensor(task.slots[k]) for k in ("END", "NEXT"))
    back = heads_of(said, "previous_token")
    seen, without = patterns("zoo:induction", tokens), patterns("zoo:induction", tokens, back)
    for i, h in back:
        assert seen[i][:, h].diagonal(-1, 1, 2)[:, 1:].mean() >= 0.5
    for i, h in heads_of(said, "same_token"):
        assert seen[i][:, h].diagonal(0, 1, 2)[:, 1:].mean() >= 0.5
    for i, h in heads_of(said, "induction"):
        there, gone = (p[i][rows, h, end, after].mean() for p in (seen, without))
        name = f"{i}.{h}"
        assert there == pytest.approx(said["attention"][name]["END to NEXT"], abs=0.05)
        assert gone == pytest.approx(said["attention_without_previous_token"][name], abs=0.05)
        assert there >= 0.5 and gone <= 0.2


def test_induction_has_no_mlp_to_speak_of():
    for block in opened("zoo:induction").module.transformer.h:
        assert not block.mlp.c_fc.weight.any() and not block.mlp.c_fc.bias.any()
        assert not block.mlp.c_proj.bias.any()


# deep and shallow


@pytest.mark.parametrize("name", depths.LAYERS)
def test_a_depth_model_has_the_loss_its_card_says(name):
    found = depths.held_out_loss(opened(f"zoo:{name}").module, Words())
    assert found == pytest.approx(card(name)["loss"], rel=1e-3)


def test_deep_and_shallow_were_trained_on_the_same_sentences():
    deep, shallow = card("deep"), card("shallow")
    assert deep["data"] == shallow["data"]
    same = ("steps", "rows", "rate", "warm", "seed", "other", "decay")
    assert all(deep["training"][k] == shallow["training"][k] for k in same)
    assert deep["facts"]["layers"] == 12 and shallow["facts"]["layers"] == 4


# ioi-sae


SAE = card("ioi-sae")["dictionaries"] if (ZOO / "ioi-sae" / "card.json").is_file() else {}


@pytest.mark.parametrize("name", SAE)
def test_a_dictionary_is_worth_what_its_card_says(name):
    module = opened("zoo:ioi").module
    found = ioi_sae.measures(module, load_dictionary(f"zoo:ioi-sae/{name}"), seed=1)
    for key, value in SAE[name].items():
        assert found[key] == pytest.approx(value, rel=2e-3, abs=2e-3), key
    assert found["loss_recovered"] >= 0.95 and found["l0"] <= 16


def test_the_dictionaries_were_trained_on_the_ioi_that_ships():
    assert card("ioi-sae")["facts"]["model_weight_hash"] == opened("zoo:ioi").weight_hash


@pytest.mark.parametrize("layer", [0, 2])
def test_a_dictionary_in_the_streams_place_keeps_the_logit_difference(layer):
    """By the formula and a plain hook: the share of the logit difference that is left."""
    module = opened("zoo:ioi").module
    folder = ZOO / "ioi-sae" / ioi_sae.hook(layer)
    W = read_tensors(folder / ioi_sae.FILE)
    task = task_of("ioi", "ioi:n=150,seed=31")
    tokens, rows = torch.tensor(task.clean), torch.arange(len(task))
    fired = []

    def through(_, args, output):
        x = (output[0] if isinstance(output, tuple) else output).clone()
        f = ((x[:, 1:] - W["b_dec"]) @ W["W_enc"] + W["b_enc"]).relu()
        least = f.topk(ioi_sae.K, -1).values[..., -1:]
        f = torch.where(f >= least, f, torch.zeros_like(f))
        fired.append((f > 0).sum(-1).double().mean())
        x[:, 1:] = f @ W["W_dec"] + W["b_dec"]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def gap():
        with torch.no_grad():
            logits = module(tokens).logits[:, -1]
        right, wrong = (torch.tensor(side)[:, 0] for side in (task.right, task.wrong))
        return float((logits[rows, right] - logits[rows, wrong]).mean())

    full = gap()
    hook = module.transformer.h[layer].register_forward_hook(through)
    try:
        kept = gap() / full
    finally:
        hook.remove()
    assert kept >= 0.8 and float(fired[0]) <= ioi_sae.K
