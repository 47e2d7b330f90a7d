"""Frozen networks: complete, bit-equal, adjoint, and not complete where one rule is left out."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from interp.engine.gradients import rule_set
from interp.engine.linear import (
    Ends,
    block_map,
    culprits,
    freeze,
    freeze_prompt,
    freeze_rows,
    prompt_logits,
    singular,
    straightened,
)
from interp.terms import InterpError, UsageError
from tests.checkpoints import FAMILY_NAMES
from tests.engine.driven import driven
from tests.engine.straight import NORMS, UNITS, Odds, Residual, hard, pictures
from tests.twins import interpreter as twin

TIGHT = 1e-12


def gap(frozen):
    size = frozen.value.abs().max().detach()
    return float((frozen.completeness().max() / size).detach())


@pytest.mark.parametrize("mean", ["linear", "frozen"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("unit", UNITS)
def test_a_residual_network_of_functional_calls_is_complete_bit_equal_and_adjoint(unit, norm, mean):
    net, x = hard(Residual(unit, norm)), pictures()
    frozen = freeze(net, x, mean=mean)
    assert gap(frozen) <= TIGHT
    assert torch.equal(frozen.value, net(x).detach())
    assert frozen.adjoint(torch.Generator().manual_seed(0)) <= 1e-13


@pytest.mark.parametrize(
    "unit", [u for u in UNITS if u not in ("relu", "leaky_relu", "silu_inplace", "gelu_tanh")]
)
def test_leaving_out_a_units_rule_is_noticed(unit):
    frozen = freeze(hard(Residual(unit, "none")), pictures(), without={unit})
    assert gap(frozen) > 1e-3


@pytest.mark.parametrize(
    ("norm", "left_out", "mean"),
    [
        ("batch", "batch_norm", "linear"),
        ("batch", "running_mean", "linear"),
        ("instance", "instance_norm", "linear"),
        ("group", "group_norm", "linear"),
        ("layer", "layer_norm", "linear"),
        ("instance", "mean", "frozen"),
        ("none", "bias", "linear"),
    ],
)
def test_leaving_out_a_norm_a_mean_or_a_bias_is_noticed(norm, left_out, mean):
    net, x = hard(Residual("relu", norm)), pictures()
    assert gap(freeze(net, x, mean=mean)) <= TIGHT
    assert gap(freeze(net, x, mean=mean, without={left_out})) > 1e-3


@pytest.mark.parametrize("left_out", ["offset"])
def test_an_offset_that_is_no_source_is_noticed(left_out):
    assert gap(freeze(hard(Residual("sigmoid", "batch")), pictures(), without={left_out})) > 1e-3


@pytest.mark.parametrize("gate", ["value", "half"])
def test_sums_joins_gates_and_masks_are_complete(gate):
    net, x = hard(Odds()), torch.randn(4, 6, dtype=torch.float64)
    frozen = freeze(net, x, gate=gate)
    assert gap(frozen) <= TIGHT
    assert torch.equal(frozen.value, net(x).detach())


@pytest.mark.parametrize(
    "left_out",
    [
        "constant",
        "glu",
        "mul",
        "add",
        "__rsub__",
        "masked_fill",
        "log_softmax",
        "silu",
        "linear",
    ],
)
def test_leaving_out_a_kind_of_sum_or_product_is_noticed(left_out):
    net, x = hard(Odds()), torch.randn(4, 6, dtype=torch.float64)
    # a gate that is given to the value needs no slope of its own, so it is halved here
    assert gap(freeze(net, x, gate="half", without={left_out})) > 1e-6


def test_the_gates_rule_changes_f_and_never_the_value():
    net, x = hard(Odds()), torch.randn(2, 6, dtype=torch.float64)
    value, half = freeze(net, x, gate="value"), freeze(net, x, gate="half")
    assert torch.equal(value.value, half.value)
    assert float((value.matrix() - half.matrix()).norm() / value.matrix().norm()) > 0.01
    assert gap(freeze(net, x, gate="grad")) > 1e-6


class Heads(nn.Module):
    def __init__(self, **knobs):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, **knobs)
        self.first = knobs.get("batch_first", False)

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        out = self.attend(x, x, x)[0]
        return (out if self.first else out.transpose(0, 1)).flatten(1)


@pytest.mark.parametrize(
    "net",
    [
        lambda: Heads(batch_first=True),
        lambda: Heads(batch_first=True, bias=False),
        lambda: Heads(add_bias_kv=True),
        lambda: Heads(add_zero_attn=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
    ],
)
def test_attention_that_hides_its_softmax_is_expanded(net):
    net, x = hard(net()), torch.randn(1, 5, 8, dtype=torch.float64)
    frozen = freeze(net, x)
    assert gap(frozen) <= TIGHT
    # a transposed batch is multiplied by other kernels where a gradient is wanted
    assert torch.allclose(frozen.value, net(x), rtol=1e-13, atol=1e-14)
    assert gap(freeze(net, x, without={"multi_head_attention_forward"})) > 1e-4
    assert gap(freeze(net, x, attn="grad")) > 1e-4


class Pattern(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.qkv = kind, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.kind == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1)
        return (torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v).flatten(1)


@pytest.mark.parametrize("kind", ["sdpa", "softmax"])
def test_patterns_are_held_and_leaving_them_is_noticed(kind):
    net, x = hard(Pattern(kind)), torch.randn(1, 5, 8, dtype=torch.float64)
    assert gap(freeze(net, x)) <= TIGHT
    assert gap(freeze(net, x, attn="grad")) > 1e-4


def test_without_norms_a_relu_network_is_its_jacobian_to_the_bit():
    net, x = hard(Residual("relu", "none")), pictures(1)
    jacobian = torch.autograd.functional.jacobian(net, x)[0, :, 0].flatten(1)
    frozen = freeze(net, x)
    rows = torch.stack([frozen.pull(v).flatten() for v in frozen.one_hots(range(5))])
    assert torch.equal(rows, jacobian)
    assert torch.allclose(frozen.matrix()[0], jacobian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("unit", "least"), [("relu", 0.03), ("gelu", 0.05), ("tanh", 0.1)])
def test_with_norms_or_smooth_units_f_is_not_the_gradient(unit, least):
    net, x = hard(Residual(unit, "instance")), pictures(1)
    jacobian = torch.autograd.functional.jacobian(net, x)[0, :, 0].flatten(1)
    apart = (freeze(net, x).matrix()[0] - jacobian).norm() / jacobian.norm()
    assert float(apart) > least


def test_a_linear_network_by_hand():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        net[0].bias.copy_(torch.tensor([1.0, -1.0]))
        net[1].weight.copy_(torch.tensor([[2.0, 0.0], [1.0, -1.0]]))
        net[1].bias.copy_(torch.tensor([0.5, 0.25]))
    frozen = freeze(net, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    assert frozen.matrix()[0].tolist() == [[2.0, 4.0], [-2.0, -2.0]]
    assert frozen.value.tolist() == [[0.5, 2.25]]
    _, shares = frozen.pulls(frozen.one_hots([0, 1]))
    assert [s.name for s in frozen.sources] == ["Linear 0 bias", "Linear 1 bias"]
    assert shares[:, 0].tolist() == [[2.0, 0.5], [2.0, 0.25]]
    assert frozen.remainders().tolist() == [[2.5, 2.25]]


def test_a_relu_network_without_biases_has_no_remainder():
    net, x = hard(Residual("relu", "none", bias=False)), pictures()
    frozen = freeze(net, x)
    assert not frozen.sources
    assert float((frozen.linear_part() - frozen.value).abs().max()) <= 1e-14


def test_a_batch_is_its_single_inputs():
    net, x = hard(Residual("gelu", "instance")), pictures(4)
    whole = freeze(net, x)
    hots = whole.one_hots([0, 3])
    rows, shares = whole.pulls(hots)
    for i in range(4):
        one = freeze(net, x[i : i + 1])
        row, share = one.pulls(one.one_hots([0, 3]))
        assert torch.allclose(rows[:, i], row[:, 0], rtol=1e-11, atol=1e-13)
        assert torch.allclose(shares[:, i], share[:, 0], rtol=1e-11, atol=1e-13)


def test_where_the_batch_stands_elsewhere_inputs_come_one_by_one():
    net, x = hard(Heads()), torch.randn(5, 5, 8, dtype=torch.float64)
    parts = freeze_rows(net, x, 1e-10)
    assert len(parts) == 5 and max(map(gap, parts)) <= TIGHT
    assert len(freeze_rows(hard(Residual()), pictures(5), 1e-10)) == 1


def test_a_folded_batch_norm_gives_the_same_map_and_one_source_for_both():
    net, x = hard(Residual("relu", "batch")), pictures(2)
    folded = copy.deepcopy(net)
    for conv, norm in ((folded.conv1, folded.norm1), (folded.conv2, folded.norm2)):
        k = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        with torch.no_grad():
            conv.weight.mul_(k[:, None, None, None])
            conv.bias.copy_((conv.bias - norm.running_mean) * k + norm.bias)
    folded.norm1, folded.norm2 = nn.Identity(), nn.Identity()
    a, b = freeze(net, x), freeze(folded.eval(), x)
    assert [s.name for s in a.sources] == ["conv1 bias + norm1", "conv2 bias + norm2", "head bias"]
    v = a.one_hots(range(5))
    for left, right in zip(a.pulls(v), b.pulls(v), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("unit", ["silu", "gelu", "tanh", "softplus"])
@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_each_rule_alone_changes_a_row(unit, norm):
    net, x = hard(Residual(unit, norm)), pictures(1)
    plain = freeze(net, x, rules="none")
    row = plain.pull(plain.one_hots([0])[0])
    for rule in ({"act": "identity"}, {"norm": "linear"}):
        other = freeze(net, x, rules="none", **rule)
        assert float((other.pull(other.one_hots([0])[0]) - row).norm() / row.norm()) > 1e-3
    mean = freeze(net, x, mean="frozen")
    held = freeze(net, x)
    change = mean.pull(mean.one_hots([0])[0]) - held.pull(held.one_hots([0])[0])
    assert float(change.norm()) > 1e-3


def test_the_module_is_as_it_was():
    net, x = hard(Residual("silu", "batch")), pictures()
    net.conv1.weight.requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]
    before = net(x)
    freeze(net, x)
    with pytest.raises(UsageError):
        freeze(net, x, ends=Ends(stop="nowhere"))
    assert flags == [p.requires_grad for p in net.parameters()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all("forward" not in vars(m) for m in net.modules())
    assert torch.equal(net(x), before)


# -- the twin ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["linear", "frozen"])
@pytest.mark.parametrize("unit", ["relu", "gelu", "silu", "sigmoid"])
def test_another_input_through_the_frozen_network_is_f_times_it_plus_r(unit, mean):
    """LinearScope's second batch, by loops, for random inputs; also that the map is affine."""
    net = hard(nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.InstanceNorm2d(3, affine=True), nn.Identity(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4),
    ))  # fmt: skip
    net[2] = {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "sigmoid": nn.Sigmoid()}[
        unit
    ]
    net.eval()
    layers = [
        ("conv", net[0].weight.tolist(), net[0].bias.tolist()),
        ("norm", net[1].weight.tolist(), net[1].bias.tolist(), net[1].eps),
        ("unit", getattr(twin, unit)), ("pool",),
        ("linear", net[5].weight.tolist(), net[5].bias.tolist()),
    ]  # fmt: skip
    x, others = pictures(1), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    frozen = freeze(net, x, mean=mean)
    rest = frozen.remainders()[0]
    for other in others:
        wanted = torch.tensor(
            twin.second(layers, x[0].tolist(), other.tolist(), mean), dtype=torch.float64
        )
        assert torch.allclose(frozen.push(other[None])[0] + rest, wanted, rtol=1e-9, atol=1e-10)
    both = frozen.push(0.3 * others[:1] - 2 * others[1:])
    apart = 0.3 * frozen.push(others[:1]) - 2 * frozen.push(others[1:])
    assert torch.allclose(both, apart, rtol=1e-11, atol=1e-12)


# -- singular vectors ----------------------------------------------------------------------------


def test_lanczos_finds_what_the_dense_matrix_has_within_its_certificate():
    torch.manual_seed(3)
    net = hard(nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2)
    ))  # fmt: skip
    frozen = freeze(net, torch.rand(1, 1, 8, 8, dtype=torch.float64))
    dense, lanczos = singular(frozen, 6, "dense"), singular(frozen, 6, "lanczos", seed=4)
    assert np.allclose(dense.values, lanczos.values, rtol=1e-11)
    for found in (dense, lanczos):
        assert found.certificate.max() <= 1e-8 * found.values[0]
    assert lanczos.products > 0 and np.isnan(lanczos.rank)
    exact = torch.linalg.svdvals(frozen.matrix()[0]).numpy()
    assert np.allclose(dense.values, exact[:6], rtol=1e-12)
    total = (exact**2).sum()
    assert dense.spread == pytest.approx(exact.sum() ** 2 / total)
    wrong = dense.values * 1.01
    from interp.engine.linear.singular import certificate

    seen = certificate(frozen, wrong, torch.tensor(dense.inputs), torch.tensor(dense.outputs))
    assert seen.min() > 1e-3 * dense.values.min()
    # a vector that Fᵀ does not see: the error shows in F v - σ u alone
    blind = torch.linalg.svd(frozen.matrix()[0])[0][:, -1].reshape(1, 1, 16, 16)
    outputs = torch.tensor(dense.outputs) + 0.1 * blind
    seen = certificate(frozen, dense.values, torch.tensor(dense.inputs), outputs)
    assert np.allclose(seen, 0.1 * dense.values, rtol=1e-6)


def test_the_rank_is_the_number_of_open_gates_of_a_bottleneck():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 9), nn.ReLU(), nn.Linear(9, 30)).double().eval()
    for x in torch.randn(6, 1, 30, dtype=torch.float64):
        gates = int((net[0](x) > 0).sum())
        assert singular(freeze(net, x), 4).rank == gates


# -- modules out of elementary operations, and what is refused -----------------------------------


class RMS(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_a_module_of_elementary_operations_is_named_and_can_be_declared():
    net = hard(nn.Sequential(nn.Linear(6, 6), RMS(6), nn.Tanh(), nn.Linear(6, 3)))
    x = torch.randn(1, 6, dtype=torch.float64)
    assert gap(freeze(net, x)) > 1e-3
    found = culprits(net, x, TIGHT)
    assert [c.path for c in found] == ["1"] and found[0].what == "RMS"
    assert "product" in str(found[0])
    assert gap(freeze(net, x, declared={"1": "secant"})) <= TIGHT
    with pytest.raises(UsageError, match="secant"):
        freeze(net, x, declared={"1": "magic"})
    with pytest.raises(UsageError, match="nowhere"):
        freeze(net, x, declared={"nowhere": "secant"})


def test_training_mode_and_batch_statistics_are_refused_by_name():
    net = hard(Residual())
    net.norm1.train()
    with pytest.raises(UsageError, match="norm1"):
        freeze(net, pictures())
    net = hard(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)))
    with pytest.raises(UsageError, match="1 normalises"):
        freeze(net, pictures())


class Ignored(nn.Module):
    def forward(self, x):
        y = x * 1.0
        F.silu(y, inplace=True)
        return y


class Dropped(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, True)


def test_calls_that_cannot_be_replaced_are_refused():
    with pytest.raises(InterpError, match="in place"):
        freeze(nn.Sequential(nn.Linear(4, 4), Ignored()).eval(), torch.randn(1, 4))
    with pytest.raises(UsageError, match="random"):
        freeze(nn.Sequential(nn.Linear(4, 4), Dropped()).eval(), torch.randn(1, 4))
    with pytest.raises(UsageError, match="softmax"):
        freeze(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)).eval(), torch.randn(1, 4))


def test_the_ends_of_the_map_can_be_parts():
    net = hard(
        nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2))
    )
    x = torch.randn(3, 5, dtype=torch.float64)
    frozen = freeze(net, x, ends=Ends("1", "3"))
    assert torch.equal(frozen.x.detach(), net[:2](x)) and torch.equal(frozen.value, net[:4](x))
    assert gap(frozen) <= TIGHT and [s.name for s in frozen.sources] == ["Linear 2 bias"]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Embedding(7, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 11)

    def forward(self, ids):
        return self.out(self.body(self.words(ids) + self.places(torch.arange(ids.shape[1]))))


def test_a_network_that_reads_ids_is_linear_in_their_embedding():
    net, ids = hard(Reader()), torch.tensor([[3, 1, 4, 1, 5]])
    frozen = freeze(net, ids, ends=Ends(pick=lambda y: y[:, -1]))
    assert torch.equal(frozen.x.detach(), net.words(ids))
    assert gap(frozen) <= TIGHT
    assert frozen.sources[0].name == "constant"


# -- transformers --------------------------------------------------------------------------------

TOKENS = np.random.default_rng(0).integers(0, 97, 9)


@pytest.mark.parametrize(("mean", "gate"), [("linear", "value"), ("frozen", "half")])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_votes_and_sources_make_up_the_logit_on_every_family(family, mean, gate):
    module, model = driven(family)
    with torch.no_grad():
        honest = module(torch.tensor(TOKENS)[None]).logits[0, -1]
    chosen = honest.topk(3).indices.tolist()
    rules = rule_set("linear", cap="identity", mean=mean, gate=gate)
    if model.blocks.cap is None:
        rules = rule_set("linear", mean=mean, gate=gate)
    with straightened(model, rules, verify=True):
        assert torch.allclose(prompt_logits(model, TOKENS), honest, rtol=1e-7, atol=1e-6)
        for layer in (None, 1):
            frozen = freeze_prompt(model, TOKENS, chosen, layer=layer)
            assert gap(frozen) <= TIGHT
            assert frozen.adjoint(torch.Generator().manual_seed(0)) <= 1e-13
            rows, shares = frozen.pulls(frozen.one_hots([0, 1, 2]))
            total = (rows * frozen.x.detach()).sum((1, 2, 3)) + shares.sum((1, 2))
            assert torch.allclose(total, frozen.value[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gpt2", {"act": "grad"}), ("gpt2", {"norm": "grad"}), ("gpt2", {"attn": "grad"}),
        ("llama", {"gate": "grad", "act": "grad"}), ("llama", {"norm": "grad"}),
        ("gemma2", {"cap": "grad"}), ("gemma2", {"norm": "grad"}),
    ],
)  # fmt: skip
def test_leaving_out_a_transformers_rule_is_noticed(family, change):
    _, model = driven(family)
    cap = {"cap": "identity"} if model.blocks.cap is not None else {}
    rules = rule_set("linear", **{**cap, **change})
    with straightened(model, rules):
        assert gap(freeze_prompt(model, TOKENS, [3, 5])) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_two_ways_of_freezing_a_transformer_agree(family):
    """By its layers as the engine drives them, and by the functional calls of its own module."""
    module, model = driven(family)
    chosen = [3, 50, 77]
    with straightened(model, rule_set("linear")):
        frozen = freeze_prompt(model, TOKENS, chosen)
        votes = frozen.pulls(frozen.one_hots([0, 1, 2]))[0][:, 0]
    ids = torch.tensor(TOKENS)[None]
    other = freeze(module, ids, ends=Ends(pick=lambda y: y[:, -1, chosen]))
    assert gap(other) <= TIGHT
    rows = other.pulls(other.one_hots([0, 1, 2]))[0][:, 0]
    assert torch.allclose(rows, votes, rtol=1e-5, atol=1e-6 * float(votes.abs().max()))


def test_a_layers_map_at_a_position_is_its_jacobian_where_nothing_bends():
    _, model = driven("gpt2")
    with straightened(model, rule_set("linear")):
        frozen = block_map(model, TOKENS, 1)
        dense, lanczos = singular(frozen, 4, "dense"), singular(frozen, 4, "lanczos")
    assert np.allclose(dense.values, lanczos.values, rtol=1e-10)
    assert dense.certificate.max() <= 1e-8 * dense.values[0]
