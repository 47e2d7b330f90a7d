"""The index of the shipped models says what the cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

import interp
from interp.models.registry import DICTIONARIES, MODELS
from interp.terms import UsageError
from interp.training.__main__ import main
from interp.training.recipes import RECIPES

DOCS = Path(__file__).parents[2] / "docs"
SHIPPED = {n: c for n, c in {**MODELS, **DICTIONARIES}.items() if c.path is not None}


def test_the_index_is_what_the_cards_say(capsys):
    assert main(["index"]) == 0
    found = capsys.readouterr().out
    assert (DOCS / "zoo.md").read_text(encoding="utf-8") == found, (
        "write it anew: python -m interp.training index > docs/zoo.md"
    )
    for card in SHIPPED.values():
        assert f"`zoo:{card.name}`" in found and card.question in found


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_and_the_list_say_the_same_and_a_recipe_makes_it(name):
    card = SHIPPED[name]
    assert name in RECIPES and card.question.endswith("?")
    facts = card.facts
    for key in ("name", "title", "question", "architecture"):
        assert facts[key] == getattr(card, key), key
    assert facts["size_bytes"] == card.size_bytes
    training = facts["training"]
    assert training["command"] == f"python -m interp.training {name}"
    assert {"cpu_seconds", "seconds"} & set(training)
    listed = {m.ref: m for m in interp.list_models(dictionaries=True)}
    assert listed[f"zoo:{name}"].question == card.question


def test_dictionaries_are_listed_where_asked_and_are_no_models():
    plain = {m.ref for m in interp.list_models()}
    every = {m.ref: m.origin for m in interp.list_models(dictionaries=True)}
    assert {r for r, origin in every.items() if origin == "dictionary"} == set(every) - plain
    assert {f"zoo:{n}" for n in DICTIONARIES} == set(every) - plain
    for name in DICTIONARIES:
        with pytest.raises(UsageError, match=f"zoo:{name}/blocks.0.hook_resid_post"):
            interp.load_model(f"zoo:{name}")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("inducton", "induction"), ("mod-add", "modadd"), ("hops-traned", "hops-trained"),
     ("deap", "deep"), ("shalow", "shallow")],
)  # fmt: skip
def test_a_wrong_name_suggests_the_right_one(given, meant):
    with pytest.raises(UsageError, match=f"zoo:{meant}"):
        interp.load_model(f"zoo:{given}")


def test_a_wrong_checkpoint_or_dictionary_suggests_what_is_there():
    with pytest.raises(UsageError, match="modadd"):
        interp.load_model("zoo:modadd@15")
    from interp.models import load_dictionary

    with pytest.raises(UsageError, match="zoo:ioi-sae/blocks.0.hook_resid_post"):
        load_dictionary("zoo:ioi-sae/blocks.9.hook_resid_post")
