"""Statistics over prompts, shared by every method that averages per-prompt effects.

Shapes: ``raw [prompt, cell]`` per-prompt effects (NaN where undefined), ``gap [prompt]`` the
metric of the source run minus that of the base run. A ratio of means is used throughout: ratios
of single prompts explode where a gap is small.
"""

from __future__ import annotations

import numpy as np

CELLS = 4096
EXACT_FLIPS = 12


def ratio_of_means(raw: np.ndarray, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``effect = mean raw / mean gap`` and its standard error, both ``[cell]``.

    The error is that of a ratio, ``sd(raw - effect * gap) / (sqrt(n) |mean gap|)`` (the linearised
    variance of a ratio estimator; Cochran, Sampling Techniques, §2.11); NaN for one prompt.
    """
    known = np.isfinite(raw)
    n = known.sum(0)
    gaps = np.where(known, gap[:, None], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_gap = gaps.sum(0) / n
        effect = np.where(known, raw, 0.0).sum(0) / n / mean_gap
        spread = np.where(known, raw - effect * gap[:, None], 0.0)
        sd = np.sqrt((spread**2).sum(0) / (n - 1))
        error = sd / (np.sqrt(n) * np.abs(mean_gap))
    return effect, np.where(n > 1, error, np.nan)


def mean_and_error(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over prompts and ``sd / sqrt(n)``, both ``[cell]``; the error of one prompt is NaN."""
    known = np.isfinite(raw)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, raw, 0.0).sum(0) / n
        sd = np.sqrt(np.where(known, (raw - mean) ** 2, 0.0).sum(0) / (n - 1))
        error = sd / np.sqrt(n)
    return mean, np.where(n > 1, error, np.nan)


def resampling_weights(
    n: int, templates: tuple[str, ...] | None, n_boot: int, seed: int
) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap sample, ``[sample, prompt]``.

    Whole templates are drawn where the task has at least two (prompts of one template are not
    independent), single prompts otherwise.
    """
    generator = np.random.default_rng(seed)
    names = templates if templates is not None and len(set(templates)) > 1 else tuple(range(n))
    groups = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = np.zeros((len(groups), n))
    member[[groups[name] for name in names], np.arange(n)] = 1
    drawn = generator.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), n_boot)
    return drawn @ member


def bootstrap_interval(
    raw: np.ndarray, gap: np.ndarray | None, weights: np.ndarray, level: float = 0.95
) -> np.ndarray:
    """Percentile interval ``[2, cell]`` of the mean, or of the ratio of means where a gap is given.

    All cells share the samples, so that cells can be compared within one.
    """
    known = np.isfinite(raw)
    filled = np.where(known, raw, 0.0)
    tails = [50 * (1 - level), 50 * (1 + level)]
    out = np.full((2, raw.shape[1]), np.nan)
    for i in range(0, raw.shape[1], CELLS):
        part = slice(i, i + CELLS)
        below = weights @ (known[:, part] * (1.0 if gap is None else gap[:, None]))
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = (weights @ filled[:, part]) / below
        samples[~np.isfinite(samples)] = np.nan
        enough = np.isfinite(samples).mean(0) > 0.5
        if enough.any():
            found = np.nanpercentile(samples[:, enough], tails, axis=0)
            columns = np.arange(raw.shape[1])[part][enough]
            out[:, columns] = found
    return out


def sign_flip_tests(
    raw: np.ndarray, seed: int, n_flips: int = 10_000
) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided p of a zero mean, and the same corrected for the whole grid, both ``[cell]``.

    Signs of whole prompts are flipped: all ``2**n`` patterns up to 12 prompts, else ``n_flips``
    random ones and ``(hits + 1) / (n_flips + 1)``. The grid's p compares with the largest |t| of
    any cell (Westfall & Young's max-T).
    """
    n, cells = raw.shape
    filled = np.where(np.isfinite(raw), raw, 0.0)
    live = np.abs(filled).sum(0) > 0
    if n <= EXACT_FLIPS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        plus = 0
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_flips, n))
        plus = 1
    top = np.zeros(len(signs))
    seen = _t_values(filled.mean(0, keepdims=True), filled)[0]
    hits, fwer = np.zeros(cells), np.zeros(cells)
    for i in range(0, cells, CELLS):
        part = slice(i, i + CELLS)
        t = np.abs(_t_values(signs @ filled[:, part] / n, filled[:, part]))
        hits[part] = (t >= np.abs(seen[part]) * (1 - 1e-12)).sum(0)
        top = np.maximum(top, np.where(live[part], t, 0.0).max(1, initial=0.0))
    for i in range(cells):
        fwer[i] = (top >= np.abs(seen[i]) * (1 - 1e-12)).sum()
    total = len(signs) + plus
    p, p_grid = (hits + plus) / total, (fwer + plus) / total
    return np.where(live, p, 1.0), np.where(live, p_grid, 1.0)


def _t_values(mean: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """t of each mean ``[pattern, cell]``: flipping signs leaves the sum of squares as it is."""
    n = len(raw)
    square = (raw**2).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (square - n * mean**2) / max(n - 1, 1)
        t = mean / np.sqrt(np.maximum(variance, 0) / n)
    floor = 1e-14 * np.maximum(square, 1e-300)
    return np.where(variance <= floor, np.sign(mean) * 1e12, t)
