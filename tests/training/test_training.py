"""Recipes are deterministic, write ordinary checkpoints, and say what went wrong in a sentence."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from interp.tasks import grammar, load_task
from interp.training import llama
from interp.training.__main__ import main
from interp.training.batches import batches
from interp.training.checkpoints import write_checkpoint
from interp.training.circuit import Ablation
from interp.training.gpt2 import GPT2, Shape, dropped
from interp.training.language import Schedule, loss_of, train
from interp.training.scoring import score
from interp.training.vocabulary import Words, tokenizer_files
from tests.tasks.readers import word_reader

SMALL = Schedule(steps=6, rows=8, warm=2)


@pytest.fixture
def words():
    return Words()


def small(words, seed=0, architecture="gpt2", **sizes):
    torch.manual_seed(seed)
    sizes = {"layers": 2, "heads": 2, "width": 16, **sizes}
    if architecture == "llama":
        return llama.Llama(llama.Shape(len(words.words), **{"kv_heads": 1, **sizes}))
    return GPT2(Shape(len(words.words), **sizes))


def loud(module):
    """Random weights large enough that attention is peaked and norms bite."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape) * 0.4 + (1.0 if p.dim() == 1 else 0.0))
    return module.eval()


def test_the_same_schedule_gives_the_same_bits_and_another_seed_does_not(words):
    runs = []
    for schedule in (SMALL, SMALL, Schedule(steps=6, rows=8, warm=2, seed=1)):
        module = small(words)
        train(module, schedule, words, lambda _: None)
        runs.append(module.checkpoint())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not torch.equal(runs[0]["transformer.wte.weight"], runs[2]["transformer.wte.weight"])


def test_training_lowers_the_loss(words):
    module, batch = small(words), next(batches(9, 64, 0.1, words))
    before = loss_of(module, batch).item()
    train(module, Schedule(steps=40, rows=32, warm=5, rate=0.02), words, lambda _: None)
    assert loss_of(module, batch).item() < before - 1.0


def test_a_batch_weighs_the_prediction_of_answers_one_and_of_padding_nothing(words):
    batch = next(batches(0, 16, 0.1, words))
    assert (batch.tokens[:, 0] == words.bos_id).all()
    assert {round(w, 3) for w in batch.weight.unique().tolist()} <= {0.0, 0.1, 1.0}
    for tokens, weight in zip(batch.tokens, batch.weight, strict=True):
        used = int((weight > 0).sum())
        assert (weight[:used] > 0).all() and (tokens[1 : used + 1] != 0).all()
        assert not weight[used:].any()


def test_an_answers_weight_stands_on_the_word_before_it(words):
    wanted = {}
    for _, text in islice(grammar.sentences(0), 16 * 32):
        spelled, marks = grammar.spell(text)
        wanted[tuple(words.ids[w] for w in spelled)] = [m for m in marks]
    batch = next(batches(0, 16, 0.1, words))
    for tokens, weight in zip(batch.tokens.tolist(), batch.weight.tolist(), strict=True):
        used = sum(w > 0 for w in weight)
        assert [w == 1.0 for w in weight[:used]] == wanted[tuple(tokens[1 : used + 1])]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_checkpoint_gives_the_same_logits_under_transformers(tmp_path, words, architecture):
    transformers = pytest.importorskip("transformers")
    module = loud(small(words, architecture=architecture, heads=4, width=32))
    write_checkpoint(
        tmp_path,
        module.checkpoint(),
        module.shape.config(),
        tokenizer_files(words.words, module.shape.context),
    )
    ordinary = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, module.shape.vocab, (4, 20))
    with torch.no_grad():
        ours, theirs = module(tokens), ordinary(tokens).logits
    assert theirs.std() > 1
    assert (ours - theirs).abs().max() < 2e-5 * theirs.std()


def test_the_tokenizer_files_split_as_the_grammar_does(words):
    from tokenizers import Tokenizer

    files = tokenizer_files(words.words, 64)
    tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    for _, text in islice(grammar.sentences(3), 1500):
        assert tokenizer.encode(text.replace("^", "")).ids == words.encode(text.replace("^", ""))
    odd = 'Zork, "1732" x1 19005 café_a (red)!'
    assert tokenizer.encode(odd).ids == words.encode(odd)
    said = "When Mary and John went to the store, John gave a drink to"
    assert tokenizer.decode(tokenizer.encode(said).ids) == said


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_patterns_are_those_of_the_forward_pass(tmp_path, words, architecture):
    transformers = pytest.importorskip("transformers")
    module = loud(small(words, architecture=architecture, heads=4, width=32))
    write_checkpoint(tmp_path, module.checkpoint(), module.shape.config(), {})
    ordinary = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    tokens = torch.randint(0, module.shape.vocab, (3, 12))
    with torch.no_grad():
        theirs = ordinary(tokens, output_attentions=True).attentions
    for ours, other in zip(module.patterns(tokens), theirs, strict=True):
        assert (ours - other).abs().max() < 1e-5


def test_dropped_heads_are_whole_heads_and_the_mean_is_kept():
    torch.manual_seed(0)
    z = torch.ones(4000, 3, 2, 5)
    out = dropped(z, 0.2)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert (out == out[:, :, :1, :1]).all()
    # 12,000 draws: five standard errors of the mean
    assert abs(out.mean().item() - 1) < 5 * 1.25 * (0.2 * 0.8 / 12_000) ** 0.5


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_heads_are_dropped_in_training_and_never_afterwards(words, architecture):
    module = small(words, architecture=architecture, drop=0.5)
    tokens = torch.randint(0, 50, (4, 9))
    module.train()
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))


def test_ablating_every_head_equals_a_model_whose_heads_write_their_means(words):
    model = word_reader()
    task = load_task("ioi", model, n=16)
    module = loud(small(words))
    ablation = Ablation(module, module.projections, 2, task)
    assert ablation.kept(ablation.all) == 1.0 == ablation.left(())
    # by hand: the input of each projection is replaced whole, last layer first
    hooks = [
        b.out.register_forward_pre_hook(lambda _, args, m=m: (m.expand_as(args[0]),))
        for b, m in zip(module.blocks, ablation.means, strict=True)
    ]
    with torch.no_grad():
        logits = module(torch.tensor(task.clean))[:, -1]
    for hook in hooks:
        hook.remove()
    rows = range(len(task))
    gap = sum(float(logits[i, task.right[i][0]] - logits[i, task.wrong[i][0]]) for i in rows) / 16
    assert ablation.logit_diff(ablation.all) == pytest.approx(gap, rel=1e-4, abs=1e-5)
    assert ablation.logit_diff(ablation.all[:1]) != pytest.approx(ablation.full, rel=1e-3)


def test_random_sets_are_different_and_avoid_what_they_are_told(words):
    task = load_task("ioi", word_reader(), n=8)
    module = small(words)
    ablation = Ablation(module, module.projections, 2, task)
    sets = ablation.random_sets(2, 3, seed=0, without=[(0, 0)])
    assert len({tuple(s) for s in sets}) == 3 and all((0, 0) not in s for s in sets)


def test_a_score_counts_right_and_preferred_prompts():
    model = word_reader()
    task = load_task("ioi", model, n=20)
    table = torch.zeros(20, model.shape.vocab)
    for i in range(20):
        table[i, task.right[i][0] if i < 15 else task.wrong[i][0]] = 3.0
    table[:5, 0] = 9.0  # another word wins, the right name is still preferred
    order = {row: i for i, row in enumerate(task.clean)}
    found = score(lambda t: table[[order[tuple(r)] for r in t.tolist()]], task)
    assert (found.right, found.preferred, found.n) == (0.5, 0.75, 20)
    assert found.logit_diff == pytest.approx((15 * 3 - 5 * 3) / 20)


def test_the_command_names_a_near_miss_and_refuses_no_steps(capsys):
    assert main(["iio"]) == 2
    assert "Did you mean 'ioi'" in capsys.readouterr().err
    assert main(["ioi", "--steps", "0"]) == 2


def test_the_command_writes_a_whole_folder(tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    from interp.training import ioi

    few = replace(ioi.PLAN, splits={"few": "ioi:n=8"}, mechanism="ioi:n=8,seed=11")
    monkeypatch.setattr(ioi, "PLAN", few)
    assert main(["ioi", "--out", str(tmp_path / "m"), "--steps", "2"]) == 0
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "card.json",
    }
    assert "training ioi" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["ioi", "--out", str(tmp_path / "file"), "--steps", "1"]) == 1
    assert "cannot be written" in capsys.readouterr().err
