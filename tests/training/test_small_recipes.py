"""The small recipes: the same bits again, ordinary checkpoints, data that says what it claims."""

from __future__ import annotations

import json

import pytest
import torch

from interp.models.dictionaries import load_dictionary
from interp.models.loading import load
from interp.models.registry import ZOO
from interp.tasks import hops as chain
from interp.training import hops_trained, induction, ioi_sae, modadd
from interp.training.decoder import Decoder
from interp.training.gpt2 import Shape
from interp.training.loop import Plan, fit

RECIPES = {"induction": induction, "modadd": modadd, "hops-trained": hops_trained}


def quiet(_):
    return None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_same_bits_and_another_seed_does_not(name, tmp_path):
    folders = [tmp_path / n for n in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        card = RECIPES[name].make(folder, quiet, 2, seed)
        assert card["training"]["steps"] == 2 and card["training"]["seed"] == seed
        assert json.loads((folder / "card.json").read_text()) == json.loads(json.dumps(card))
    bits = [(f / "model.safetensors").read_bytes() for f in folders]
    assert bits[0] == bits[1] != bits[2]


@pytest.mark.parametrize("neurons", [0, 24])
def test_a_checkpoint_under_transformers_gives_the_modules_logits(neurons, tmp_path):
    from interp.training.checkpoints import write_checkpoint

    torch.manual_seed(3)
    module = Decoder(Shape(31, context=12, layers=2, heads=2, width=16), neurons, embed=0.5)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.requires_grad and weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape))
            assert weight.requires_grad or not neurons, name
    write_checkpoint(tmp_path, module.checkpoint(), module.config(), {})
    loaded = load(str(tmp_path))
    tokens = torch.randint(0, 31, (4, 12))
    with torch.no_grad():
        ours, theirs = module(tokens), loaded.module(tokens).logits
    assert ours.std() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(ours.std()))


def test_a_question_beside_others_sees_what_it_would_see_alone():
    torch.manual_seed(0)
    module = Decoder(hops_trained.SHAPE, hops_trained.NEURONS, embed=0.5)
    tokens, answers = hops_trained.batch(torch.Generator().manual_seed(1), 3)
    sees, place = hops_trained.view()
    known = 1 + hops_trained.PAIRS
    with torch.no_grad():
        together = module.unembed(module.hidden(tokens, sees, place)[:, known:])
        for i in range(len(hops_trained.QUESTIONS)):
            alone = torch.cat([tokens[:, :known], tokens[:, known + i : known + i + 1]], 1)
            torch.testing.assert_close(module(alone)[:, -1], together[:, i], rtol=0, atol=1e-4)
    assert together.std() > 0.1
    for row, told in zip(tokens.tolist(), answers.tolist(), strict=True):
        pairs = dict(divmod(t - chain.FIRST_PAIR, 10) for t in row[1:known])
        for asked, answer in zip(row[known:], told, strict=True):
            at, count = divmod(asked - chain.FIRST_QUERY, chain.CHAIN + 1)
            for _ in range(count):
                at = pairs[at]
            assert answer == chain.FIRST_SYMBOL + at


def test_induction_counts_only_letters_whose_successor_was_seen():
    tokens, known = induction.batch(torch.Generator().manual_seed(0), 64)
    counted = 0
    for row, marks in zip(tokens.tolist(), known.tolist(), strict=True):
        for i, mark in enumerate(marks):
            if mark:
                first = row.index(row[i])
                assert first < i and row[first + 1] == row[i + 1]
                counted += 1
    gaps = {
        i - row.index(row[i])
        for row, marks in zip(tokens.tolist(), known.tolist(), strict=True)
        for i, mark in enumerate(marks)
        if mark
    }
    assert counted > 300 and len(gaps) > 20, "one distance would do"


def test_frequencies_are_an_orthogonal_split_of_the_table():
    table = torch.randn(modadd.P, 6, dtype=torch.float64)
    every = range(1, modadd.P // 2 + 1)
    whole = table.mean(0) + modadd.part(table, every)
    torch.testing.assert_close(whole, table)
    assert modadd.power(table).sum() == pytest.approx(1)
    some = modadd.part(table, [3, 9])
    torch.testing.assert_close(modadd.part(some, [3, 9]), some)
    assert float(modadd.part(some, [4]).abs().max()) < 1e-12


def test_the_rate_rises_holds_and_falls_to_its_floor():
    plan = Plan(steps=1000, rows=1, rate=2.0, warm=100, hold=0.5, floor=0.1)
    assert plan.at(0) == pytest.approx(0.02) and plan.at(99) == pytest.approx(2.0)
    assert plan.at(500) == 2.0 and plan.at(549) == 2.0
    assert plan.at(775) == pytest.approx(2.0 * 0.55, rel=1e-6)
    assert plan.at(1000) == pytest.approx(0.2)


def test_training_stays_on_one_thread_and_gives_the_threads_back():
    before = torch.get_num_threads()
    seen = []
    module = torch.nn.Linear(2, 1)

    def loss(_):
        seen.append(torch.get_num_threads())
        return module(torch.ones(1, 2)).square().sum()

    fit(module, loss, Plan(steps=3, rows=1), quiet)
    assert seen == [1, 1, 1] and torch.get_num_threads() == before


def dictionary_of(values, folder):
    from interp.models.tensors import write_tensors

    folder.mkdir()
    write_tensors(folder / ioi_sae.FILE, ioi_sae.train(values, quiet, 30, 0))
    (folder / "cfg.json").write_text(
        json.dumps(ioi_sae.config(0, load(ioi_sae.MODEL))), encoding="utf-8"
    )
    return load_dictionary(folder)


def test_a_dictionary_reads_the_stream_unscaled(tmp_path):
    """Training sees scaled values: of values 8 times as large, everything is 8 times as large."""
    dice = torch.Generator().manual_seed(0)
    values = 7 * torch.randn(2048, 128, generator=dice) @ torch.randn(128, 128, generator=dice)
    small, large = (dictionary_of(f * values, tmp_path / str(f)) for f in (1, 8))
    assert float(small.b_enc.abs().max()) > 0 and float(small.b_dec.abs().max()) > 0
    torch.testing.assert_close(large.b_enc, 8 * small.b_enc)
    torch.testing.assert_close(large.b_dec, 8 * small.b_dec)
    found = small.encode(values[:64])
    torch.testing.assert_close(large.encode(8 * values[:64]), 8 * found)
    torch.testing.assert_close(small.W_dec.norm(dim=1), torch.ones(ioi_sae.FEATURES))
    assert int((found > 0).sum(1).max()) == ioi_sae.K


def test_the_zoo_keeps_within_its_share():
    mine = ("induction", "modadd", "hops-trained", "deep", "shallow", "ioi-sae")
    size = sum(p.stat().st_size for n in mine for p in (ZOO / n).rglob("*.safetensors"))
    assert size < 9e6
