"""Statistics over prompts against scipy and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from interp.engine.statistics import (
    bootstrap_interval,
    mean_and_error,
    ratio_of_means,
    resampling_weights,
    sign_flip_tests,
)


@pytest.fixture
def raw() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(10, 5)) + np.array([0, 0.3, 1, 3, -2])


def test_the_mean_and_its_error_are_scipys(raw: np.ndarray) -> None:
    mean, error = mean_and_error(raw)
    np.testing.assert_allclose(mean, raw.mean(0))
    np.testing.assert_allclose(error, stats.sem(raw, axis=0))


def test_one_prompt_has_no_error() -> None:
    assert np.isnan(mean_and_error(np.ones((1, 2)))[1]).all()
    assert np.isnan(ratio_of_means(np.ones((1, 2)), np.ones(1))[1]).all()


def test_the_ratio_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    raw, gap = np.array([[1.0], [3.0]]), np.array([0.1, 3.9])
    effect, error = ratio_of_means(raw, gap)
    assert effect[0] == pytest.approx(1.0)
    # by hand: deviations 1 - 0.1 = 0.9 and 3 - 3.9 = -0.9; sd = sqrt(2 * 0.81 / 1)
    assert error[0] == pytest.approx(np.sqrt(1.62) / (np.sqrt(2) * 2.0))


def test_an_undefined_prompt_leaves_both_means() -> None:
    raw = np.array([[1.0, 1.0], [np.nan, 3.0], [2.0, 2.0]])
    gap = np.array([1.0, 100.0, 2.0])
    effect, _ = ratio_of_means(raw, gap)
    assert effect[0] == pytest.approx(1.0)
    assert effect[1] == pytest.approx(6 / 103)


def test_the_bootstrap_interval_agrees_with_scipys(raw: np.ndarray) -> None:
    ours = bootstrap_interval(raw, None, resampling_weights(10, None, 20_000, 0))
    for k in range(raw.shape[1]):
        theirs = stats.bootstrap(
            (raw[:, k],),
            np.mean,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        # Monte-Carlo error of a 2.5 % quantile at 20,000 draws is under 0.02 sd; 6 of them allowed
        assert ours[0, k] == pytest.approx(theirs.low, abs=0.12 * raw[:, k].std())
        assert ours[1, k] == pytest.approx(theirs.high, abs=0.12 * raw[:, k].std())


def test_templates_are_drawn_whole() -> None:
    weights = resampling_weights(6, ("a", "a", "a", "b", "b", "c"), 500, 0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 4]).all()
    assert set(weights[:, 5]) == {0, 1, 2, 3}
    alone = resampling_weights(6, ("a",) * 6, 500, 0)
    assert (alone.sum(1) == 6).all() and (alone[:, 0] != alone[:, 1]).any()


def test_sign_flips_agree_with_scipys_permutation_test(raw: np.ndarray) -> None:
    ours, _ = sign_flip_tests(raw, 0)
    for k in range(raw.shape[1]):
        theirs = stats.permutation_test(
            (raw[:, k],),
            lambda x, axis: np.abs(np.mean(x, axis=axis)),
            permutation_type="samples",
            n_resamples=np.inf,
            alternative="greater",
        ).pvalue
        assert ours[k] == pytest.approx(theirs, abs=1e-12)


def test_three_equal_prompts_by_hand() -> None:
    # of the 8 sign patterns only +++ and --- reach |mean| = 1
    p, grid = sign_flip_tests(np.ones((3, 1)), 0)
    assert p[0] == pytest.approx(2 / 8) and grid[0] == pytest.approx(2 / 8)


def test_the_grids_p_is_never_below_the_cells_own(raw: np.ndarray) -> None:
    p, grid = sign_flip_tests(raw, 0)
    assert (grid >= p - 1e-12).all() and (grid > p).any()


def test_many_prompts_use_random_flips_and_stay_above_zero() -> None:
    rng = np.random.default_rng(0)
    p, _ = sign_flip_tests(rng.normal(size=(30, 3)) + 5, 0, n_flips=999)
    np.testing.assert_allclose(p, 1 / 1000)


def test_cells_that_never_move_are_not_significant() -> None:
    p, grid = sign_flip_tests(np.zeros((5, 2)), 0)
    assert (p == 1).all() and (grid == 1).all()


def test_family_wise_error_is_held_under_the_null() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        hits += sign_flip_tests(rng.normal(size=(8, 20)), 0)[1].min() <= 0.05
    # binomial(200, .05): P(more than 31) < 1e-6
    assert hits <= 31
