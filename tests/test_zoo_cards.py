"""A card says nothing that its weights do not show: every number is measured again."""

from __future__ import annotations

import json
import re
from functools import lru_cache

import pytest
import torch

from interp.models.loading import load
from interp.models.registry import MODELS, ZOO, card_of
from interp.tasks import load_task
from interp.terms import ModelShape, UsageError
from interp.training.circuit import Ablation
from interp.training.recipes import RECIPES
from interp.training.scoring import Reader, score

CARDS = {
    p.parent.name: json.loads(p.read_text())
    for p in sorted(ZOO.glob("*/card.json"))
    if (p.parent / "model.safetensors").is_file()
}
SCORED = [(name, title) for name, card in CARDS.items() for title in card.get("accuracy", {})]
TOKENIZERS = {p.parent.name: p.read_text() for p in sorted(ZOO.glob("*/tokenizer.json"))}
SPEAKERS = [name for name, text in TOKENIZERS.items() if '"Mary"' in text]
WITH_HEADS = [name for name, card in CARDS.items() if "heads" in card.get("mechanism", {})]


@lru_cache(maxsize=2)
def opened(name):
    """The shipped weights through the real loader, and what a task needs of them."""
    loaded = load(f"zoo:{name}")
    config = loaded.config
    shape = ModelShape(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_attention_heads,
        config.hidden_size,
        config.hidden_size // config.num_attention_heads,
        4 * config.hidden_size,
        config.vocab_size,
        config.max_position_embeddings,
    )
    return loaded, Reader(loaded.tokenizer, shape)


def last(module):
    def run(tokens):
        with torch.no_grad():
            return module(tokens).logits[:, -1]

    return run


def projections(module):
    """Each layer's output projection."""
    if hasattr(module, "transformer"):
        return [block.attn.c_proj for block in module.transformer.h]
    return [layer.self_attn.o_proj for layer in module.model.layers]


@lru_cache(maxsize=2)
def ablation(name, seed):
    """On prompts the search never saw: another seed of the card's task."""
    loaded, read = opened(name)
    ref = re.sub(r"n=\d+,seed=\d+", f"n=120,seed={seed}", CARDS[name]["mechanism"]["task"])
    return Ablation(
        loaded.module, projections(loaded.module), read.shape.n_heads, load_task(ref, read)
    )


def named(name):
    return [tuple(h) for h in CARDS[name]["mechanism"]["heads"]]


@pytest.mark.parametrize("name", CARDS)
def test_a_shipped_model_is_registered_with_a_recipe_and_its_size(name):
    assert card_of(name).path == ZOO / name and name in RECIPES
    size = (ZOO / name / "model.safetensors").stat().st_size
    assert CARDS[name]["size_bytes"] == size
    assert abs(MODELS[name].size_bytes - size) < 0.02 * size


def test_the_whole_zoo_weighs_less_than_25_megabytes():
    assert sum(p.stat().st_size for p in ZOO.rglob("*") if p.is_file()) < 25e6


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_shipped_tokenizer_begins_with_bos_by_default(name):
    tokenizer = opened(name)[0].tokenizer
    assert tokenizer.default_bos
    said = "When Mary and John went to the store, John gave a drink to"
    assert tokenizer.encode(said)[0] == tokenizer.bos_id
    assert tokenizer.decode(tokenizer.encode(said, bos=False)) == said
    assert tokenizer.encode(" Mary", bos=False) == tokenizer.encode("Mary", bos=False)


@pytest.mark.parametrize(("name", "title"), SCORED)
def test_a_cards_accuracy_is_what_the_weights_give(name, title):
    loaded, read = opened(name)
    row = CARDS[name]["accuracy"][title]
    found = score(last(loaded.module), load_task(row["task"], read))
    assert found.n == row["n"]
    # the same prompts: a near tie may fall the other way on another machine, no more
    assert found.right == pytest.approx(row["right"], abs=3 / found.n)
    assert found.preferred == pytest.approx(row["preferred"], abs=3 / found.n)
    assert found.logit_diff == pytest.approx(row["logit_diff"], abs=2e-3)


@pytest.mark.parametrize(
    ("held_out", "least"),
    [
        ("names=held_out,templates=train", 0.99),
        ("names=train,templates=held_out", 0.99),
        ("names=held_out,templates=held_out", 0.975),
    ],
)
def test_ioi_is_right_on_names_and_on_templates_never_seen(held_out, least):
    loaded, read = opened("ioi")
    task = load_task(f"ioi:n=1500,seed=77,{held_out}", read)
    assert score(last(loaded.module), task).right >= least


@pytest.mark.parametrize("name", WITH_HEADS)
def test_named_heads_alone_keep_the_logit_difference(name):
    assert ablation(name, 5).kept(named(name)) >= 0.8


@pytest.mark.parametrize("name", WITH_HEADS)
def test_without_the_named_heads_the_logit_difference_is_gone(name):
    assert ablation(name, 5).left(named(name)) <= 0.2


@pytest.mark.parametrize("name", WITH_HEADS)
def test_20_random_sets_of_the_same_size_neither_keep_nor_remove_it(name):
    """Drawn from all heads, or, where the card says so, from those that are not named."""
    measured, heads = ablation(name, 5), named(name)
    if "from all heads" in CARDS[name]["mechanism"].get("controls", ""):
        sets = [s for s in measured.random_sets(len(heads), 21, seed=0) if s != heads][:20]
    else:
        sets = measured.random_sets(len(heads), 20, seed=1, without=heads)
    assert len(sets) == 20 and all(len(s) == len(heads) for s in sets)
    assert max(map(measured.kept, sets)) < 0.8
    assert min(map(measured.left, sets)) > 0.2


@pytest.mark.parametrize("name", WITH_HEADS)
def test_a_cards_mechanism_is_what_the_weights_give(name):
    card = CARDS[name]["mechanism"]
    loaded, read = opened(name)
    task = load_task(card["task"], read)
    again = Ablation(loaded.module, projections(loaded.module), read.shape.n_heads, task)
    assert again.full == pytest.approx(card["logit_diff"], rel=1e-3)
    assert again.kept(named(name)) == pytest.approx(card["kept"], abs=1e-3)
    assert again.left(named(name)) == pytest.approx(card["left"], abs=1e-3)


def test_addition_is_refused_as_the_card_says():
    with pytest.raises((UsageError, ValueError), match="one digit a token"):
        load_task("addition", opened("ioi")[1])
    assert any("addition" in line for line in CARDS["ioi"]["cannot"])
