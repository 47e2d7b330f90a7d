"""Angles, couplings and tangents are what the formulas say, on numbers made for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.engine.traces import Maps, NormMap
from interp.methods.observables.angles import bound, cosine, gain_cosine
from interp.methods.observables.couplings import Coupling, fitted
from interp.methods.observables.reading import mlp_at, mlp_value
from interp.methods.observables.tangents import boundary
from tests.methods.observables import nets


def norm_of(d, *, centres=True, gain=None):
    gain = torch.ones(d, dtype=torch.float64) if gain is None else gain
    return NormMap(gain, torch.zeros(d, dtype=torch.float64), centres, 0.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------- theorem one


@pytest.mark.parametrize("centres", [True, False])
@pytest.mark.parametrize("d", [3, 8, 64])
def test_the_angle_is_that_of_the_norms_own_gradient(d, centres):
    gain, y = 1 + 0.5 * draw(d, seed=1), draw(20, d, seed=2)
    norm = norm_of(d, centres=centres, gain=gain)
    x = draw(20, d).requires_grad_()
    (slope,) = torch.autograd.grad((norm.affine(x, norm.scale(x)) * y).sum(), x)
    n = gain * y
    expected = (n * slope).sum(-1) / (n.norm(dim=-1) * slope.norm(dim=-1))
    found = cosine(norm, y, x.detach())
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found.std() > 0.01


@pytest.mark.parametrize("d", [8, 64])
def test_the_mean_square_cosine_is_one_less_two_over_d_and_the_mean_angle_under_its_bound(d):
    n = 200_000
    found = cosine(norm_of(d), draw(n, d, seed=1), draw(n, d, seed=2))
    # cos² is a beta variable of known mean; 6 standard errors: a false alarm in 5e8 runs
    error = float((found**2).std()) / math.sqrt(n)
    assert abs(float((found**2).mean()) - (1 - 2 / d)) < 6 * error < 0.01
    assert float(found.arccos().mean()) < bound(d)
    rms = cosine(norm_of(d, centres=False), draw(n, d, seed=1), draw(n, d, seed=2))
    assert abs(float((rms**2).mean()) - (1 - 1 / d)) < 0.01


def test_a_vector_along_the_input_is_turned_nearly_round():
    x = draw(64)
    c = x - x.mean()
    y = c / c.norm() + 0.1 * draw(64, seed=3) / 8
    assert (
        float(cosine(norm_of(64), y, x))
        < 0.2
        < 0.9
        < float(cosine(norm_of(64), draw(64, seed=5), x))
    )


def test_an_uneven_gain_turns_a_vector_and_an_even_one_does_not():
    y = draw(4000, 256)
    for variance, expected in ((0.0078, 0.996), (0.05, 0.974), (0.2, 0.904)):
        gain = 1 + math.sqrt(variance) * draw(256, seed=4)
        assert float(gain_cosine(norm_of(256, gain=gain), y).mean()) == pytest.approx(
            expected, abs=0.02
        )
    assert torch.allclose(gain_cosine(norm_of(256), y), torch.ones(4000, dtype=torch.float64))


# ---------------------------------------------------------------------------------------- coupling


def on_sphere(pair, k, s, n, seed=0):
    """Points of length s with x·y1 = k, spread evenly over the rest of the sphere."""
    rng = np.random.default_rng(seed)
    unit = pair.first / np.linalg.norm(pair.first)
    z = rng.normal(size=(n, len(unit)))
    if pair.d < len(unit):
        z -= z.mean(1, keepdims=True)
    z -= np.outer(z @ unit, unit)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    along = k / np.linalg.norm(pair.first)
    return along * unit + math.sqrt(s**2 - along**2) * z


@pytest.mark.parametrize("centred", [False, True])
def test_mean_and_variance_of_the_other_reading_are_those_of_points_on_the_sphere(centred):
    rng = np.random.default_rng(1)
    d, n, s, k = 64, 100_000, 8.0, 9.0
    y1, y2 = rng.normal(size=(2, d)) + (1.5 if centred else 0.0)
    pair = Coupling.of(y1, y2, centred=centred)
    seen = on_sphere(pair, k, s, n) @ pair.second
    variance = float(pair.variance(k, s))
    assert abs(seen.mean() - pair.mean(k)) < 5 * math.sqrt(variance / n)
    assert abs(seen.var() - variance) < 5 * variance * math.sqrt(2 / n)
    if centred:  # x is orthogonal to 1: without the projection the coefficient is another
        assert abs(Coupling.of(y1, y2).coefficient - pair.coefficient) > 0.1


def test_the_extremes_are_attained_and_nothing_lies_beyond():
    y1, y2 = np.random.default_rng(2).normal(size=(2, 64))
    pair, s, k = Coupling.of(y1, y2), 8.0, 20.0
    low, high = pair.extremes(k, s)
    seen = on_sphere(pair, k, s, 20_000) @ y2
    assert low < seen.min() and seen.max() < high
    unit = y1 / np.linalg.norm(y1)
    across = y2 - (y2 @ unit) * unit
    across /= np.linalg.norm(across)
    along = k / np.linalg.norm(y1)
    best = along * unit + math.sqrt(s**2 - along**2) * across
    assert best @ y2 == pytest.approx(float(high), rel=1e-12)


def test_products_of_couplings_are_the_squared_cosine_not_the_cosine():
    y1, y2 = np.random.default_rng(3).normal(size=(2, 32)) + 1.0
    one, two = Coupling.of(y1, y2), Coupling.of(y2, y1)
    assert one.coefficient * two.coefficient == pytest.approx(one.cosine**2, rel=1e-12)
    assert abs(one.cosine**2 - one.cosine) > 0.05


def test_where_no_point_gives_the_reading_bounds_are_undefined():
    pair = Coupling.of(np.array([1.0, 0]), np.array([0, 1.0]))
    assert np.isnan(pair.extremes(3.0, 2.0)[0]) and np.isnan(pair.variance(3.0, 2.0))
    assert math.isnan(Coupling.of(np.zeros(2), np.ones(2)).coefficient)


def test_a_fitted_slope_is_the_covariances_and_least_squares():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(500, 16)) @ rng.normal(size=(16, 16))
    y1, y2 = rng.normal(size=(2, 16))
    found = fitted(np.cov(x.T, bias=True), y1, y2)
    a, b = x @ y1, x @ y2
    slope = np.polyfit(a, b, 1)[0]
    assert found.slope == pytest.approx(slope, rel=1e-10)
    assert found.r2 == pytest.approx(np.corrcoef(a, b)[0, 1] ** 2, rel=1e-10)
    assert abs(found.slope - Coupling.of(y1, y2).coefficient) > 1e-3


# ---------------------------------------------------------------------------------------- tangents


def test_a_linear_mlp_reads_the_same_wherever_it_is_made_linear():
    model = nets.plain(nets.weights(post=False, pre=False), act="linear")
    part = Maps(model).layer(1)
    y, points = draw(5, nets.D, seed=1), draw(5, nets.D, seed=2) * 3
    whole = y @ (part.block.w["W_in"] @ part.block.w["W_out"]).T
    for x0 in (points, points * 0):
        assert torch.allclose(mlp_at(part, y, x0, "frozen")[0], whole, rtol=1e-12)


def test_a_relu_mlp_is_exact_within_its_region():
    model = nets.plain(nets.weights(pre=False), act="relu")
    part = Maps(model).layer(0)
    x, y = draw(1, nets.D), draw(1, nets.D, seed=1)
    vector = mlp_at(part, y, x, "frozen")[0]
    near = x + 1e-6 * draw(1, nets.D, seed=2)
    change = mlp_value(part, y, near[:, None]) - mlp_value(part, y, x[:, None])
    assert float(change[0, 0]) == pytest.approx(float((vector * (near - x)).sum()), rel=1e-6)


def test_the_boundary_is_where_the_reading_vanishes():
    def g(x):
        return torch.tanh(3 * (x[..., 0] - 0.3)) + 0.01 * x[..., 1]

    low, high = torch.zeros(1, 2).double(), torch.tensor([[1.0, 0]]).double()
    found = boundary(g, low, high)
    assert float(found.at) == pytest.approx(0.3, abs=1e-8)
    assert not bool(found.same_sign) and int(found.roots) == 1
    assert abs(float(g(found.point[:, None])[0, 0])) < 1e-7


def test_a_reading_that_keeps_its_sign_is_flagged_and_halved():
    found = boundary(
        lambda x: 1 + x[..., 0] ** 2, torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    )
    assert bool(found.same_sign)
    assert float(found.at) == pytest.approx(math.sqrt(0.5), abs=1e-8)


def test_of_several_roots_the_steepest_is_taken_and_all_are_counted():
    def g(x):  # roots at .2 (flat), .5, .8 (steep)
        t = x[..., 0]
        return (t - 0.2) * (t - 0.5) * (t - 0.8) * torch.exp(4 * t)

    found = boundary(g, torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    assert int(found.roots) == 3 and float(found.at) == pytest.approx(0.8, abs=1e-8)
