"""Programs, rankings and orders: identities that hold to the bit, and cases worked by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch

from interp.engine.depth import run_programs, walk
from interp.engine.depth.orders import _through, order_spectrum
from interp.engine.depth.programs import plain as program
from interp.methods import METHODS
from interp.terms import TaskError, Texts, UsageError
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering
from tests.methods.depth.models import close, gpt2, loaded, pair, pairs, rows, silent_from, texts
from tests.twins import depth as twin


def ends(model, tokens, programs):
    out = {}
    calls = run_programs(model.blocks, tokens, programs, lambda n, x: out.update({n: x.clone()}))
    return out, calls


def test_the_plain_program_is_the_forward_pass_to_the_bit():
    model = gpt2()
    tokens = rows().numpy()
    with torch.no_grad():
        last = list(walk(model.blocks, tokens))[-1].following
        found, _ = ends(model, tokens, [program(range(4))])
    assert torch.equal(found[0], last)


@pytest.mark.parametrize(
    "order", [[0, 1, 3], [0, 1, 1, 2, 3], [1, 0, 2, 3], [3], [0, 1, 2, 0, 1, 2]]
)
def test_programs_equal_a_module_with_its_layers_rearranged(order):
    model, plain = pair("gpt2")
    tokens = rows()
    with torch.no_grad():
        want = twin.program(plain, tokens, order)
        found, _ = ends(model, tokens.numpy(), [program(range(4)), program(order)])
        got = model.blocks.unembed(found[1].flatten(0, 1)).view_as(want)
    assert close(got, want)


def test_programs_that_begin_alike_share_their_beginning():
    model, _ = pair("gpt2")
    many = [program(range(4)), program([0, 1, 3]), program([0, 1, 2]), program([0, 1, 2, 3, 3])]
    _, calls = ends(model, rows().numpy(), many)
    assert calls == 6  # 0, 1, 2, 3, 3 and the other 3, instead of 15


def test_blocks_that_cancel_each_other_may_be_swapped_or_run_side_by_side():
    module = hard_model("gpt2").double()
    with torch.no_grad():
        one, two = module.transformer.h[1], module.transformer.h[2]
        for block in (one, two):
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.copy_(torch.linspace(-1, 1, 48).sin() * 2)
        two.mlp.c_proj.bias.neg_()
    spec = METHODS["layer_programs"](moves=("swap", "parallel"), n_boot=0)
    data = spec.measure(loaded(module), texts(), Remembering())
    assert abs(float(data["swap_loss"].sel(layer=1))) < 1e-13
    assert abs(float(data["parallel_loss"].sel(window=2, layer=1))) < 1e-13
    assert abs(float(data["swap_loss"].sel(layer=0))) > 1e-3


def test_every_contiguous_program_is_there_once_and_controls_are_equal_in_number():
    data = METHODS["layer_programs"](n_boot=20).measure(gpt2(), pairs(6), Remembering())
    skips = 4 + 3 + 2
    repeats = 2 * (4 + 3 + 2 + 1)
    assert data.attrs["n_programs"] == data.attrs["n_random"] == skips + repeats + 3 + (3 + 2 + 1)
    assert len(set(data["program_name"].values)) == data.attrs["n_programs"]
    solved = data["solved"].values
    assert solved[1] >= solved[0] and ((0 <= solved) & (solved <= 1)).all()
    assert np.isfinite(data["skip_loss"].sel(window=1)).all()


@pytest.mark.parametrize("own", [((),), ((0, 4),), ((-1,),)])
def test_programs_out_of_range_are_refused(own):
    with pytest.raises(UsageError, match="0 to 3|no layer"):
        METHODS["layer_programs"](custom=own).measure(gpt2(), texts(), Remembering())


def test_a_single_token_has_no_loss():
    with pytest.raises(TaskError, match="no loss|behind position 0"):
        METHODS["layer_importance"]().measure(gpt2(), Texts(((3,), (4,))), Remembering())


@pytest.mark.parametrize("part", ["layer", "attention", "MLP", "joint"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_leaving_parts_out_costs_what_a_hooked_run_says(family, part):
    model, plain = pair(family)
    model.weight_hash, task = "0", texts()
    data = METHODS["layer_importance"](part=part, n_drop=1, n_boot=0).measure(
        model, task, Remembering()
    )
    tokens = rows()

    def loss(gone):
        with torch.no_grad():
            p = plain.run(tokens, gone=gone)["p"][:, :-1]
        return float(-p.gather(-1, tokens[:, 1:, None]).log().mean())

    base, everything = loss({}), slice(0, None)
    for name, value in zip(data["component_name"].values, data["delta_loss"].values, strict=True):
        layer, _, what = str(name).partition(" ")
        parts = {"attention": ["attn"], "MLP": ["mlp"]}.get(what, ["attn", "mlp"])
        gone = {(int(layer[1:]), k): (everything, None) for k in parts}
        assert value == pytest.approx(loss(gone) - base, abs=1e-9)
    assert np.abs(data["delta_loss"]).max() > 0.1


def test_ranking_again_after_each_drop_never_drops_a_part_twice():
    spec = METHODS["layer_importance"](part="joint", order="iterative", n_drop=8, n_boot=0)
    data = spec.measure(gpt2(), texts(), Remembering())
    assert len(set(data.attrs["dropped_by_influence"].split(", "))) == 8


def test_influence_ranks_silent_layers_first():
    model = loaded(silent_from(hard_model("gpt2").double(), 2))
    data = METHODS["layer_importance"](n_boot=0, n_drop=2).measure(model, texts(), Remembering())
    assert data.attrs["dropped_by_influence"] == "L2, L3"
    assert data["dropped_loss"].sel(score="influence").values == pytest.approx([0, 0, 0], abs=1e-12)


def test_scalar_linear_blocks_give_binomial_orders():
    a, n = 0.3, 7
    parts = torch.zeros(n + 1, 1, 1, 1, dtype=torch.float64)
    parts[0] = 1
    for _ in range(n):
        _through(parts, (lambda x: a * x,), torch.zeros(1, 1, 1, dtype=torch.float64))
    want = [comb(n, k) * a**k for k in range(n + 1)]
    assert parts.flatten().tolist() == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize(
    "name", ["random-gpt2", "random-llama", "random-gpt-neox", "random-gemma2"]
)
def test_orders_sum_to_the_forward_pass(name):
    from interp.models import load_model

    model = load_model(f"zoo:{name}", dtype="float64", verify=False)
    tokens = rows(2, 7).numpy()
    whole, _, last, apart = order_spectrum(model, tokens, 8)
    # norms of the root-mean-square kind work in float32 inside, as their modules do
    assert apart < (1e-11 if name.startswith("gpt") else 1e-5)
    short, _, _, _ = order_spectrum(model, tokens, 3)
    assert close(short[:3], whole[:3], 1e-6) and close(short[3], whole[3:].sum(0), 1e-5)
    assert float(whole[2].norm()) > 0.01 * float(last.norm())


def test_a_window_of_one_layer_is_the_model_and_wider_ones_are_not():
    spec = METHODS["residual_expansion"](longest=3, draws=3)
    data = spec.measure(gpt2(), texts(), Remembering())
    assert float(np.abs(data["window_kl"].sel(window=1)).max()) < 1e-12
    assert float(data["window_kl"].sel(window=2).max()) > 0.01
    assert float(data["share"].sum()) == pytest.approx(1, abs=1e-9)
    assert (np.abs(data["lesion_loss"].values) > 0.01).all()
