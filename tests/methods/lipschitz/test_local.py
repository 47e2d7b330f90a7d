"""Local bounds hold, are as tight as the published formulas say, and never pass for estimates."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.methods import LocalLipschitz
from interp.methods.lipschitz.norms import product
from interp.methods.lipschitz.preactivations import box_around, gate_ranges, slope_ranges, unstable
from interp.methods.lipschitz.sampling import largest_gradients
from interp.methods.lipschitz.search import Search
from interp.terms import (
    CancelledError,
    CapabilityError,
    LabelledInputs,
    TaskError,
    UsageError,
)
from tests.methods.lipschitz import nets
from tests.twins import lipschitz as twin

X16 = np.full((1, 16), 0.5)


def task(x, labels=None):
    x = np.asarray(x, dtype=float)
    return LabelledInputs(x, np.zeros(len(x), dtype=int) if labels is None else labels)


# what is known exactly -----------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["best", "lbp", "recurjac", "interval", "naive"])
def test_a_linear_network_has_its_constant_exactly(variant):
    module = nn.Sequential(nn.Linear(5, 3)).double()
    result = interp.run(
        LocalLipschitz(variant=variant, epsilons=(0, 0.1, 10)),
        nets.wrap(module, (5,)),
        task(np.zeros((2, 5))),
    )
    wanted = module[0].weight.abs().sum(1).detach().numpy()
    lower, upper = result.data["lower"].values, result.data["upper"].values
    assert np.allclose(lower, wanted, rtol=1e-12)
    if variant == "naive":
        assert np.allclose(upper, wanted.max(), rtol=2e-9)
    else:
        assert np.allclose(upper, wanted, rtol=2e-9)


@pytest.mark.parametrize("variant", ["lbp"])
@pytest.mark.parametrize("pre", ["crown", "ibp"])
def test_without_an_open_gate_the_bound_is_the_gradient(variant, pre):
    module = nets.random_stack((6, 12, 12, 4), seed=3)
    net = nets.network(module, (6,))
    x = np.random.default_rng(0).normal(size=(1, 6))
    for radius in (0.0, 1e-7):
        bound = nets.bounds(net, x, radius, variant=variant, pre=pre)
        assert int(unstable(bound.slopes).sum()) == 0
        wanted = [twin.gradient_norm(nets.layers_of(module), list(x[0]), j) for j in range(4)]
        assert np.allclose(bound.norm()[0].numpy(), wanted, rtol=1e-11)


def test_a_relu_exactly_at_zero_has_both_derivatives():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)).double()
    module[0].weight.data.fill_(2.0)
    module[2].weight.data.fill_(3.0)
    net = nets.network(module, (1,))
    low, high = nets.bounds(net, np.zeros((1, 1)), 0.0).entries()
    assert (float(low), float(high)) == (0.0, 6.0)


def test_the_interval_variant_on_ibp_is_the_twins():
    module = nets.random_stack((5, 9, 7, 3), seed=1)
    net = nets.network(module, (5,))
    x = np.random.default_rng(1).normal(size=5)
    for radius in (0.02, 0.3, 2.0):
        wanted = twin.interval_norms(nets.layers_of(module), list(x - radius), list(x + radius))
        got = nets.bounds(net, x[None], radius, variant="interval", pre="ibp").norm()[0]
        assert np.allclose(got.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_enumeration_of_patterns_equals_branch_and_bound(seed):
    module = nets.random_stack((4, 6, 5, 3), seed=seed)
    net = nets.network(module, (4,))
    x = np.random.default_rng(seed).normal(size=(1, 4))
    box = box_around(net.tensor(x), 0.25, None)
    ranges = gate_ranges(net, box)
    slopes = slope_ranges(net, ranges)
    assert 2 <= int(unstable(slopes)) <= 11
    options = [
        [sorted({float(a), float(b)}) for a, b in zip(lo[0], hi[0], strict=True)]
        for lo, hi in slopes.values()
    ]
    wanted = twin.enumerate_norms(nets.layers_of(module), options)
    root = nets.bounds(net, x, 0.25).norm()[0]
    lower = largest_gradients(net, box, nets.eye(net), 300, 0, 2**28)[0]
    for j, value in enumerate(wanted):
        found = Search(net, box, nets.eye(net)[:, j : j + 1], ranges).run(
            float(root[j]), float(lower[j]), nodes=10_000, seconds=60
        )
        assert found.status == "complete"
        assert found.bound == pytest.approx(value, rel=1e-10)
        tight = Search(net, box, nets.eye(net)[:, j : j + 1], ranges, tighten=True).run(
            float(root[j]), float(lower[j]), nodes=10_000, seconds=60
        )
        assert float(lower[j]) <= tight.bound * (1 + 1e-9) <= value * (1 + 2e-9)
    assert max(float(r) / w for r, w in zip(root, wanted, strict=True)) > 1.001


@pytest.mark.parametrize("seed", range(3))
def test_bound_propagation_lies_between_linear_programs_and_intervals(seed):
    """The programs hold every relaxation by lines, solved by HiGHS: ours may not be below."""
    module = nets.random_stack((5, 8, 7, 3), seed=seed)
    net, layers = nets.network(module, (5,)), nets.layers_of(module)
    x = np.random.default_rng(seed).normal(size=5)
    box = box_around(net.tensor(x[None]), 0.2, None)
    ranges = gate_ranges(net, box)
    gap = []
    for best, (low, high) in zip(
        twin.lp_gate_ranges(layers, x - 0.2, x + 0.2), ranges.values(), strict=True
    ):
        a, b = np.array(best).T
        assert (low[0].numpy() <= a + 1e-9).all() and (high[0].numpy() >= b - 1e-9).all()
        gap += [float((high[0].numpy() - b).max())]
    assert gap[0] == pytest.approx(0, abs=1e-9)  # before the first gate nothing is relaxed
    slopes = slope_ranges(net, ranges)
    assert 2 <= int(unstable(slopes)) <= 12
    ends = [list(zip(*(t[0].tolist() for t in slopes[g]), strict=True)) for g in slopes]
    least = np.array(twin.lp_norms(layers, ends))
    bound = nets.bounds(net, x[None], 0.2)
    ours = bound.norm()[0].numpy()
    interval = nets.bounds(net, x[None], 0.2, variant="interval").norm()[0].numpy()
    seen = largest_gradients(net, box, nets.eye(net), 300, 0, 2**28)[0].numpy()
    assert (seen <= least * (1 + 1e-9)).all()
    assert (least <= ours * (1 + 1e-9)).all() and (ours <= interval * (1 + 1e-9)).all()
    assert (ours <= 1.25 * least).all() and (ours < 0.999 * interval).any()


def test_with_one_layer_of_gates_bound_propagation_solves_the_linear_program():
    module = nets.random_stack((6, 10, 4), seed=4)
    net = nets.network(module, (6,))
    x = np.random.default_rng(4).normal(size=(1, 6))
    bound = nets.bounds(net, x, 0.3)
    assert int(unstable(bound.slopes)) >= 3
    ends = [list(zip(*(t[0].tolist() for t in bound.slopes[g]), strict=True)) for g in bound.slopes]
    wanted = twin.lp_norms(nets.layers_of(module), ends)
    assert bound.norm()[0].tolist() == pytest.approx(wanted, rel=1e-9)


# the published numbers -----------------------------------------------------------------------

TABLE = {
    (16, 16, 16, 10): (
        44.912,
        {
            0.05: (6.052, 6.277, 6.277, 1),
            0.1: (6.061, 6.416, 6.642, 3),
            0.5: (9.841, 14.122, 14.122, 32),
        },
    ),
    (16, 32, 32, 10): (
        95.922,
        {
            0.05: (11.614, 11.947, 11.947, 2),
            0.1: (11.975, 12.914, 14.523, 5),
            0.5: (22.742, 34.015, 34.015, 64),
        },
    ),
}


@pytest.mark.parametrize("dims", TABLE, ids=str)
def test_trained_networks_give_the_verified_table(dims):
    naive, rows = TABLE[dims]
    net = nets.network(nets.leaders(*dims), (16,))
    assert product(net, "inf").value == pytest.approx(naive, abs=1e-3)
    for radius, (*wanted, n) in rows.items():
        for variant, value in zip(nets.VARIANTS, wanted, strict=True):
            found = nets.bounds(net, X16, radius, variant=variant)
            assert float(found.norm().max()) == pytest.approx(value, abs=6e-4), (radius, variant)
        assert int(unstable(found.slopes)) == n


def test_the_three_regimes_of_the_digits_network():
    """Flat at the gradient, then growing, then saturated."""
    wanted = {
        1e-4: 88.65,
        1e-3: 88.65,
        1 / 255: 112.26,
        8 / 255: 121.99,
        0.1: 145.62,
        0.2: 190.35,
        0.3: 227.26,
        0.5: 227.42,
        2.0: 227.42,
    }
    from interp.tasks.digits import images

    x = images()[0][1300].reshape(1, 64)
    result = interp.run(
        LocalLipschitz(epsilons=tuple(wanted), variant="lbp", n_samples=60),
        nets.wrap(nets.digits(), (64,)),
        task(x),
    )
    line = result.data["bound"].sel(variant="lbp").isel(prompt=0).values
    assert np.allclose(line, list(wanted.values()), atol=6e-3)
    flat = result.data["lower"].isel(prompt=0, epsilon=0).max()
    assert float(flat) == pytest.approx(88.65, abs=6e-3)


def test_branch_and_bound_gives_the_verified_constant_of_a_small_network():
    net = nets.wrap(nets.leaders(16, 8, 8, 10), (16,))
    result = interp.run(
        LocalLipschitz(epsilons=(0.05, 0.2), bab_nodes=5000, variant="lbp", n_samples=500),
        net,
        task(X16),
    )
    best = result.data["bound"].isel(prompt=0)
    assert best.sel(variant="bab").values == pytest.approx([2.649502, 2.756493], abs=1e-5)
    assert best.sel(variant="lbp", epsilon=0.2) == pytest.approx(3.9494, abs=1e-4)


@pytest.mark.parametrize(("dims", "known"), [
    ((16, 32, 32, 10), (11.614, 11.906, 11.939)), ((16, 64, 64, 10), (17.327, 17.398, 17.485)),
])  # fmt: skip
def test_the_ascent_finds_what_twenty_thousand_samples_found(dims, known):
    """Drawing as many and climbing from the best; and the bounds still hold above it."""
    net = nets.network(nets.leaders(*dims), (16,))
    for radius, wanted in zip((0.05, 0.1, 0.5), known, strict=True):
        box = box_around(net.tensor(X16), radius, None)
        seen = largest_gradients(net, box, nets.eye(net), 20_000, 0, 2**28)
        assert float(seen.max()) >= wanted - 1e-3
        upper = nets.bounds(net, X16, radius).norm()
        assert bool((seen <= upper * (1 + 1e-9)).all())


def test_the_ascent_climbs_and_stays_in_its_box():
    module = nets.random_stack((6, 24, 24, 3), seed=2)
    net = nets.network(module, (6,))
    x = net.tensor(np.random.default_rng(0).normal(size=(3, 6)))
    box = box_around(x, 0.5, None)
    start = torch.stack([net.gradients(x, nets.eye(net)).abs().sum(-1)[i] for i in range(3)])
    climbed = largest_gradients(net, box, nets.eye(net), 0, 0, 2**28)
    assert bool((climbed >= start).all()) and float((climbed / start).max()) > 1.05
    seen = []
    real = net.gradients

    class Spy:
        def __getattr__(self, name):
            return getattr(net, name)

        def __iter__(self):
            return iter(net)

        def gradients(self, points, seeds, blur=0.0):
            seen.append(points.detach())
            return real(points, seeds, blur)

    again = largest_gradients(Spy(), box, nets.eye(net), 0, 0, 2**28)
    assert torch.equal(again, climbed)
    points = torch.cat([p.reshape(3, -1, 6) for p in seen if len(p) % 3 == 0], 1)
    assert bool((points >= box.lower[:, None]).all() and (points <= box.upper[:, None]).all())


# sound and in order --------------------------------------------------------------------------

ZOO = {
    "resnet": lambda: (nets.ResNet(), (2, 6, 6)),
    "resnet, leaky": lambda: (nets.ResNet(gate="leaky"), (2, 6, 6)),
    "resnet, tanh": lambda: (nets.ResNet(gate="tanh"), (2, 6, 6)),
    "resnet, sigmoid": lambda: (nets.ResNet(gate="sigmoid"), (2, 6, 6)),
    "residual": lambda: (nets.Residual(), (6,)),
    "two residuals": lambda: (nets.Residual(blocks=2), (6,)),
    "tanh": lambda: (nets.random_stack((6, 10, 10, 4), nn.Tanh), (6,)),
    "sigmoid": lambda: (nets.random_stack((6, 10, 10, 4), nn.Sigmoid, bias=1.0), (6,)),
    "relu": lambda: (nets.random_stack((6, 16, 16, 4)), (6,)),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_jacobian_in_the_box_lies_inside_the_bounds(name):
    module, shape = ZOO[name]()
    net = nets.paired(module, shape)
    x = np.random.default_rng(2).normal(size=shape) * 0.5
    naive = product(net, "inf").value
    for radius in (1e-6, 0.1, 1.0):
        seen = nets.found(net, x, radius)
        before = None
        for variant in nets.VARIANTS:
            bound = nets.bounds(net, x[None], radius, variant=variant)
            low, high = (t[0] for t in bound.entries())
            room = 1e-9 * float(seen.abs().max())
            assert bool((seen >= low - room).all()) and bool((seen <= high + room).all())
            norm = bound.norm()[0]
            assert bool((seen.flatten(2).abs().sum(-1).amax(0) <= norm * (1 + 1e-9)).all())
            before = norm if before is None else before
        assert bool((before <= norm * (1 + 1e-9)).all())  # LBP no larger than intervals
        if not name.startswith("resnet"):
            assert float(before.max()) <= naive * (1 + 1e-9)


@pytest.mark.parametrize("shift", [0.05, -0.05])
def test_a_bound_that_is_too_small_would_be_noticed(shift):
    """The test above can fail: one entry moved by a twentieth of its size lies outside."""
    net = nets.paired(nets.random_stack((6, 16, 16, 4)), (6,))
    x = np.random.default_rng(2).normal(size=6) * 0.5
    low, high = (t[0] for t in nets.bounds(net, x[None], 1e-6).entries())
    seen = nets.found(net, x, 1e-6)
    moved = low + abs(shift) * seen.abs().max() if shift > 0 else high + shift * seen.abs().max()
    assert not bool((seen >= moved).all() if shift > 0 else (seen <= moved).all())


def test_a_residual_at_the_input_keeps_its_identity():
    """The bounds of x + g(x) are those of g plus the identity, not without it."""
    module = nets.Residual()
    whole, inner = nets.network(module, (6,)), nets.network(module.blocks[0], (6,))
    x = np.random.default_rng(5).normal(size=(1, 6))
    (a, b), (c, d) = (nets.bounds(n, x, 0.2).entries() for n in (whole, inner))
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.allclose(a, c + eye, atol=1e-12) and torch.allclose(b, d + eye, atol=1e-12)


def test_pools_and_leaky_relus_are_rewritten_exactly():
    for gate in ("relu", "leaky", "tanh", "sigmoid"):
        module = nets.ResNet(gate=gate)
        net = nets.network(module, (2, 6, 6))
        x = torch.randn(7, 2, 6, 6, dtype=torch.float64)
        assert torch.allclose(net.values(x)[net.output], module(x), atol=1e-12)
    for pool in (
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.MaxPool2d((1, 3)),
        nn.MaxPool1d(3, 2, 1),
    ):
        shape = (2, 7) if isinstance(pool, nn.MaxPool1d) else (2, 7, 7)
        net = nets.network(nn.Sequential(pool), shape)
        x = torch.randn(3, *shape, dtype=torch.float64)
        assert torch.allclose(net.values(x)[net.output], pool(x), atol=1e-12)


def test_bounds_rise_with_the_radius_and_saturate():
    model = nets.wrap(nets.leaders(16, 16, 16, 10), (16,))
    result = interp.run(
        LocalLipschitz(epsilons=(0, 0.01, 0.05, 0.1, 0.3, 1, 10, 1000)), model, task(X16)
    )
    upper, lower = result.data["upper"].values, result.data["lower"].values
    assert (np.diff(upper, axis=1) >= 0).all() and (np.diff(lower, axis=1) >= 0).all()
    assert np.allclose(upper[:, -1], upper[:, -2]) and upper[0, -1].max() > upper[0, 0].max() * 1.2
    assert (lower <= upper).all() and result.passed


def test_the_bound_sees_the_function_and_the_product_sees_the_weights():
    """Rescaling W1, b1 by Δ and W2 by Δ⁻¹ leaves the function and LBP, and changes the product."""
    module = copy.deepcopy(nets.leaders(16, 32, 32, 10))
    net = nets.network(module, (16,))
    before, naive = nets.bounds(net, X16, 0.1).norm(), product(net, "inf").value
    scale = torch.logspace(-1.5, 1.5, 32, dtype=torch.float64)
    with torch.no_grad():
        module[0].weight.mul_(scale[:, None])
        module[0].bias.mul_(scale)
        module[2].weight.div_(scale)
    net = nets.network(module, (16,))
    assert torch.allclose(nets.bounds(net, X16, 0.1).norm(), before, rtol=1e-10)
    assert product(net, "inf").value > 5 * naive


# margins and the radius ------------------------------------------------------------------------


def test_no_input_within_the_certified_radius_changes_the_label():
    module = nets.digits()
    from interp.tasks.digits import images

    pixels, labels = images()
    with torch.no_grad():
        said = module(torch.tensor(pixels.reshape(-1, 64))).argmax(1).numpy()
    rows = [i for i in range(1300, 1330) if said[i] == labels[i]][:6]
    x = pixels[rows].reshape(-1, 64)
    result = interp.run(
        LocalLipschitz(epsilons=(0.005, 0.01, 0.02), outputs="margins", domain=(0, 1)),
        nets.wrap(module, (64,)),
        task(x, labels[rows]),
    )
    radius = result.data["radius"].max("epsilon").values
    assert (radius > 1e-3).all()

    def flips(reach):
        start, flipped = torch.tensor(x), np.zeros(len(x), dtype=bool)
        draw = torch.Generator().manual_seed(0)
        reach = torch.tensor(reach)[:, None]
        for _ in range(8):
            noise = 2 * torch.rand(start.shape, generator=draw, dtype=torch.float64) - 1
            adversarial = start + reach * noise
            for _ in range(25):
                adversarial = adversarial.detach().requires_grad_(True)
                loss = nn.functional.cross_entropy(module(adversarial), torch.tensor(labels[rows]))
                step = torch.autograd.grad(loss, adversarial)[0].sign()
                moved = adversarial + reach / 4 * step
                adversarial = torch.minimum(torch.maximum(moved, start - reach), start + reach)
                adversarial = adversarial.clamp(0, 1).detach()
                flipped |= module(adversarial).argmax(1).numpy() != labels[rows]
        return flipped

    assert not flips(radius * 0.999).any()
    assert flips(np.full(len(x), 0.3)).all()  # the attack is able to find a flip


def test_a_wrong_label_has_no_radius():
    model = nets.wrap(nets.digits(), (64,))
    x = np.full((1, 64), 0.5)
    said = int(model.run(x).logits.argmax())
    result = interp.run(
        LocalLipschitz(epsilons=(0.01,), outputs="margins"), model, task(x, [(said + 1) % 10])
    )
    assert float(result.data["radius"].max()) == 0.0


# budgets, cancelling, chunks -----------------------------------------------------------------


def test_a_search_gives_a_bound_at_every_moment():
    net = nets.network(nets.leaders(16, 16, 16, 10), (16,))
    box = box_around(net.tensor(X16), 0.2, None)
    ranges = gate_ranges(net, box)
    root = float(nets.bounds(net, X16, 0.2).norm()[0, 0])
    seed = nets.eye(net)[:, :1]
    seen, bounds = [], []
    for nodes in (1, 3, 21, 101):
        done = Search(net, box, seed, ranges).run(root, 0.0, nodes=nodes, seconds=60)
        assert done.nodes <= nodes and done.status == "nodes"
        bounds.append(done.bound)
    assert bounds[0] == root and bounds == sorted(bounds, reverse=True) and bounds[-1] < root
    done = Search(net, box, seed, ranges).run(root, 0.0, nodes=10**6, seconds=0.05)
    assert done.status == "time" and done.bound <= root
    steps = Search(net, box, seed, ranges).run(
        root, 0.0, nodes=101, seconds=60, tell=lambda f: seen.append((f.nodes, f.bound))
    )
    assert seen[-1] == (steps.nodes, steps.bound) and len(seen) > 4


class Cancels:
    """A context whose person loses patience."""

    memory = 2**28

    def __init__(self, after):
        self.left, self.make = after, None

    def advance(self, done, total):
        self.left -= 1
        if self.left <= 0:
            raise CancelledError("Cancelled.")

    def cancelled(self):
        return self.left <= 0

    def save_chunk(self, key, arrays):
        self.saved = key

    def load_chunk(self, key):
        return None

    def check(self, check):
        pass

    def note(self, key, value):
        pass

    def partial(self, make):
        self.make = make


def test_a_cancelled_search_leaves_the_bounds_it_had_come_to():
    """Finished radii are whole; the one being searched has its best bound so far; later none."""
    model = nets.wrap(nets.leaders(16, 16, 16, 10), (16,))
    spec = LocalLipschitz(epsilons=(0.01, 0.2, 0.4), bab_nodes=10_000, bab_seconds=30)
    context = Cancels(after=24)
    with pytest.raises(CancelledError):
        spec.measure(model, task(X16), context)
    data = context.make()
    upper, lines = data["upper"].values[0], data["bound"].isel(prompt=0)
    assert np.isfinite(upper[:2]).all() and np.isnan(upper[2]).all()
    found = data["upper"].sel(epsilon=0.2).values[0]
    root = nets.bounds(nets.network(nets.leaders(16, 16, 16, 10), (16,)), X16, 0.2).norm()[0]
    assert found[0] < 0.999 * float(root[0]) and found[-1] == pytest.approx(float(root[-1]))
    assert float(lines.sel(variant="bab", epsilon=0.2)) <= float(
        lines.sel(variant="lbp", epsilon=0.2)
    )


def test_what_a_search_leaves_open_falls_with_the_branches_allowed():
    model = nets.wrap(nets.leaders(16, 8, 8, 10), (16,))
    result = interp.run(
        LocalLipschitz(epsilons=(0.2,), bab_nodes=300, variant="lbp"), model, task(X16)
    )
    gap = result.data["gap"].isel(prompt=0).values
    assert (np.diff(gap) <= 1e-12).all() and gap[0] > 0.2 > gap[-1] >= 0
    assert list(result.data["budget"].values) == [1, 4, 16, 64, 256, 300]


def test_the_answer_does_not_depend_on_memory_or_on_company():
    model = nets.wrap(nets.leaders(16, 32, 32, 10), (16,))
    x = np.random.default_rng(3).uniform(size=(5, 16))
    spec = LocalLipschitz(epsilons=(0.05, 0.3), n_samples=20)
    whole = interp.run(spec, model, task(x)).data["upper"].values
    small = interp.run(spec, model, task(x), memory="300KB").data["upper"].values
    alone = interp.run(spec, model, task(x[3:4])).data["upper"].values
    assert np.allclose(whole, small, rtol=1e-12) and np.allclose(whole[3:4], alone, rtol=1e-12)


# what it says of itself ------------------------------------------------------------------------


def test_certified_and_found_are_never_confused():
    result = interp.run(
        LocalLipschitz(epsilons=(0.05, 0.2), bab_nodes=20),
        nets.wrap(nets.leaders(16, 8, 8, 10), (16,)),
        task(X16),
    )
    data = result.data
    assert data["upper"].attrs["certificate"] == "upper" and data["upper"].attrs["certified"] == 1
    assert data["lower"].attrs["certificate"] == "lower" and data["lower"].attrs["certified"] == 0
    for name in data.data_vars:
        assert {"certificate", "norm", "scope", "arithmetic"} <= set(data[name].attrs), name
    said = dict(zip(data["variant"].values, data["certificate"].values, strict=True))
    assert said.pop("sampled") == "lower" and set(said.values()) == {"upper"}
    figure = result.figures()["bound"]
    styles = {t.name: t.line.dash for t in figure.data}
    assert "sampled (lower bound)" in " ".join(styles)
    for name, dash in styles.items():
        assert ("certified" in name) == (dash == "solid"), (name, dash)


def test_a_bound_below_what_was_found_turns_the_check_red():
    from interp.methods.lipschitz.certificates import ordered

    assert ordered(np.array([1.0, 2.0]), np.array([1.0, 2.5])).passed
    assert not ordered(np.array([1.0, 2.0]), np.array([1.0, 1.9])).passed


def test_half_precision_weights_are_read_as_float64():
    module = nets.random_stack((4, 8, 3)).to(torch.bfloat16)
    model = interp.load_model(module, example=torch.full((1, 4), 0.5, dtype=torch.bfloat16))
    result = interp.run(LocalLipschitz(epsilons=(0.1,)), model, task(np.full((1, 4), 0.5)))
    again = interp.run(
        LocalLipschitz(epsilons=(0.1,)),
        nets.wrap(module.double(), (4,)),
        task(np.full((1, 4), 0.5)),
    )
    assert np.allclose(result.data["upper"], again.data["upper"], rtol=1e-12)


# what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "word"), [
    (nn.GELU(), "GELU"), (nn.SiLU(), "SiLU"), (nn.LayerNorm(4), "LayerNorm"),
    (nn.Softmax(-1), "Softmax"),
    (nn.BatchNorm1d(4, track_running_stats=False), "running statistics"),
])  # fmt: skip
def test_an_operator_that_is_not_linear_is_refused_by_name_and_path(layer, word):
    model = interp.load_model(
        nn.Sequential(nn.Linear(4, 4), layer).double().eval(),
        example=np.random.default_rng(0).normal(size=(3, 4)),
        verify=False,
    )
    with pytest.raises(CapabilityError, match=f"1 is a .*{word}|{word}"):
        interp.run(LocalLipschitz(), model, task(np.zeros((1, 4))))


def test_inputs_that_cannot_be_the_middle_of_a_box_are_named():
    model = nets.wrap(nets.random_stack((4, 8, 3)), (4,))
    x = np.zeros((3, 4))
    x[1, 2], x[2, 0] = np.nan, 2.0
    with pytest.raises(TaskError, match="row 2: it holds NaN") as error:
        interp.run(LocalLipschitz(domain=(0, 1)), model, task(x))
    assert [n for n, _ in error.value.rows] == [2, 3]
    with pytest.raises(ValueError, match="epsilons"):
        LocalLipschitz(epsilons=(-0.1,))
    with pytest.raises(UsageError, match="wanted low, high"):
        interp.run(LocalLipschitz(domain=(1, 0)), model, task(x[:1]))
    with pytest.raises(UsageError, match="labels from 0 to 2"):
        interp.run(LocalLipschitz(outputs="margins"), model, task(x[:1], [7]))
