"""Linear maps: a model split in two finds itself again, an unrelated one does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.engine.depth import corpus_of
from interp.methods import METHODS
from interp.methods.compare.linear_map import Diagonal
from interp.methods.compare.ridge import Moments, fitted
from interp.methods.compare.rows import ordinary, planned
from interp.models import load_model
from interp.terms import RefusedError, TaskError, UsageError
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering
from tests.methods.depth.models import loaded, texts

LinearMap = METHODS["linear_map"]


def context_with(other):
    context = Remembering()
    context.model = lambda ref: other
    return context


def split_twin(module):
    """Each layer as two: attention alone, then the MLP alone."""
    twin = hard_model("gpt2", num_hidden_layers=2 * len(module.transformer.h)).double()
    state = module.state_dict()
    new = {k: v for k, v in state.items() if ".h." not in k}
    with torch.no_grad():
        for key, value in state.items():
            if ".h." not in key:
                continue
            head, _, tail = key.partition(".h.")
            number, _, name = tail.partition(".")
            for half, silent in ((0, "mlp.c_proj"), (1, "attn.c_proj")):
                quiet = name.startswith(silent)
                new[f"{head}.h.{2 * int(number) + half}.{name}"] = (
                    torch.zeros_like(value) if quiet else value
                )
    twin.load_state_dict(new)
    return twin


@pytest.fixture(scope="module")
def small():
    return hard_model("gpt2", hidden_size=24, num_attention_heads=3).double()


@pytest.fixture(scope="module")
def task():
    return texts(60, 12)


def test_a_split_twin_lies_on_the_diagonal(small, task):
    module = hard_model("gpt2").double()
    other = loaded(split_twin(module))
    model = loaded(module)
    tokens = torch.tensor(task.tokens[:2])
    with torch.no_grad():
        a, b = (m.run(tokens).logits for m in (model, other))
    assert float((a - b).abs().max()) < 1e-9
    spec = LinearMap(other="other", control_seeds=2, n_boot=100)
    data = spec.measure(model, texts(120, 12), context_with(other))
    left = 1 - data["r2"].values
    for m in range(5):
        assert left[m, 2 * m] <= 1e-6
    assert np.argmax(data["r2"].values, 1).tolist() == [0, 2, 4, 6, 8]
    assert float(data["diagonal"].max()) > 0.8
    assert data.attrs["verdict"] == "diagonal" and data.attrs["p_permuted"] < 0.05


def test_unrelated_models_show_no_diagonal(task):
    model = load_model("zoo:random-gpt2", dtype="float64", verify=False)
    other = loaded(hard_model("gpt2", seed=9, num_hidden_layers=8).double())
    spec = LinearMap(other="other", control_seeds=2, n_boot=100)
    data = spec.measure(model, texts(120, 12), context_with(other))
    assert data.attrs["verdict"] == "no diagonal"
    assert data.attrs["doubly_normalised_amplitude"] < 0.1


def test_sums_do_not_depend_on_chunks_or_their_order():
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=dice, dtype=torch.float64) + 40
    y = torch.randn(300, 6, generator=dice, dtype=torch.float64) - 20
    y[:, :3] += x[:, :3]
    found = []
    for chunks in ([x], list(x.split(7)), list(x.split(50))[::-1]):
        sums = Moments(8, 6)
        at = 0
        order = [y] if len(chunks) == 1 else (
            list(y.split(7)) if len(chunks) > 10 else list(y.split(50))[::-1])  # fmt: skip
        for a, b in zip(chunks, order, strict=True):
            sums.add(a, b)
            at += len(a)
        found.append(fitted(sums, sums, sums, 2).r2)
    assert np.allclose(found[0], found[1], atol=1e-10) and np.allclose(found[0], found[2], 1e-10)
    assert found[0][0] > 0.5 > 0.1 > found[0][1]


def test_the_closed_form_equals_least_squares_row_by_row():
    dice = torch.Generator().manual_seed(1)
    x = torch.randn(400, 5, generator=dice, dtype=torch.float64) + 3
    y = x @ torch.randn(5, 4, generator=dice, dtype=torch.float64) + 7
    y += 0.3 * torch.randn(400, 4, generator=dice, dtype=torch.float64)
    sums = []
    for part in (slice(0, 200), slice(200, 300), slice(300, 400)):
        moments = Moments(5, 4)
        moments.add(x[part], y[part])
        sums.append(moments)
    got = fitted(*sums, 1, (1e-12,))
    one = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1)
    w = torch.linalg.lstsq(one[:200], y[:200]).solution
    left = (y[300:] - one[300:] @ w).square().sum()
    spread = (y[300:] - y[:200].mean(0)).square().sum()
    assert got.r2[0] == pytest.approx(float(1 - left / spread), abs=1e-9)


def test_a_diagonal_is_never_read_off_a_doubly_normalised_map():
    dice = np.random.default_rng(0)
    depth = np.arange(9) / 8
    noise = 0.3 + 0.02 * dice.random((9, 9))
    flat = Diagonal(noise, depth, depth, "residual")
    assert flat.doubly < 0.1 and abs(flat.spearman) < 0.5
    band = 1 - 0.05 - np.abs(depth[:, None] - depth[None]) * 0.8
    assert Diagonal(band, depth, depth, "residual").spearman > 0.9


def test_massive_tokens_go_and_prompts_are_split_whole():
    rows = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    rows[1, 7] *= 1000
    assert ordinary(rows, 20).logical_not().nonzero().flatten().tolist() == [7]
    corpus = corpus_of(load_model("zoo:random-gpt2", verify=False), texts(20, 9))
    plan = planned(corpus, 3, 0.3, 0)
    assert set(plan.split.values()) == {0, 1, 2} and all(len(p) == 3 for p in plan.places.values())
    assert all((p > 0).all() for p in plan.places.values())


def test_too_few_rows_prompts_or_another_vocabulary_are_refused(task):
    model = load_model("zoo:random-gpt2", dtype="float64", verify=False)
    with pytest.raises(RefusedError, match="480 or more"):
        LinearMap().measure(model, texts(20, 9), Remembering())
    with pytest.raises(TaskError, match="four prompts"):
        LinearMap().measure(model, texts(3, 9), Remembering())
    other = load_model("zoo:hops", verify=False)
    with pytest.raises(UsageError, match="one tokenizer"):
        LinearMap(other="x").measure(model, task, context_with(other))
