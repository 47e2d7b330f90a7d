"""Lipschitz bounds of a stack of linear layers and ReLUs: intervals, enumeration, linear programs.

``layers`` is a list of (W, b) as lists of lists of floats; a ReLU stands between any two.
"""

# ruff: noqa: B905

import itertools

import numpy as np
from scipy.optimize import linprog


def interval_norms(layers, low, high):
    """Σ_i max(|l_i|, |u_i|) of every row of the Jacobian, by intervals alone (FastLip on IBP)."""
    gates = _gate_intervals(layers, low, high)
    norms = []
    for row in range(len(layers[-1][0])):
        a = [layers[-1][0][row][k] for k in range(len(layers[-1][0][0]))]
        b = list(a)
        for (weights, _), (z_low, z_high) in zip(
            reversed(layers[:-1]), reversed(gates), strict=False
        ):
            g_low, g_high = [], []
            for k in range(len(z_low)):
                least = 1.0 if z_low[k] > 0 else 0.0
                most = 0.0 if z_high[k] < 0 else 1.0
                ends = [d * g for d in (least, most) for g in (a[k], b[k])]
                g_low.append(min(ends))
                g_high.append(max(ends))
            a, b = _through_transpose(weights, g_low, g_high)
        norms.append(sum(max(abs(x), abs(y)) for x, y in zip(a, b)))
    return norms


def _gate_intervals(layers, low, high):
    found = []
    for weights, bias in layers[:-1]:
        z_low, z_high = [], []
        for row, shift in zip(weights, bias):
            z_low.append(
                shift + sum(w * (lo if w > 0 else hi) for w, lo, hi in zip(row, low, high))
            )
            z_high.append(
                shift + sum(w * (hi if w > 0 else lo) for w, lo, hi in zip(row, low, high))
            )
        found.append((z_low, z_high))
        low, high = [max(z, 0.0) for z in z_low], [max(z, 0.0) for z in z_high]
    return found


def _through_transpose(weights, g_low, g_high):
    a, b = [], []
    for i in range(len(weights[0])):
        a.append(sum(r[i] * (lo if r[i] > 0 else hi) for r, lo, hi in zip(weights, g_low, g_high)))
        b.append(sum(r[i] * (hi if r[i] > 0 else lo) for r, lo, hi in zip(weights, g_low, g_high)))
    return a, b


def enumerate_norms(layers, slopes):
    """The largest L1 norm of every row over all patterns.

    ``slopes``: per gate layer, per unit, the derivatives it may have (``[0, 1]`` or one of them).
    """
    best = [0.0] * len(layers[-1][0])
    flat = [options for layer in slopes for options in layer]
    for pattern in itertools.product(*flat):
        start, chosen = 0, []
        for layer in slopes:
            chosen.append(pattern[start : start + len(layer)])
            start += len(layer)
        for row in range(len(best)):
            g = list(layers[-1][0][row])
            for (weights, _), d in zip(reversed(layers[:-1]), reversed(chosen)):
                g = [x * y for x, y in zip(g, d)]
                g = [
                    sum(weights[k][i] * g[k] for k in range(len(g))) for i in range(len(weights[0]))
                ]
            best[row] = max(best[row], sum(abs(x) for x in g))
    return best


def gradient_norm(layers, x, row):
    """‖∇f_row(x)‖₁ by the chain rule."""
    patterns = []
    for weights, bias in layers[:-1]:
        z = [b + sum(w * v for w, v in zip(r, x)) for r, b in zip(weights, bias)]
        patterns.append([1.0 if v > 0 else 0.0 for v in z])
        x = [max(v, 0.0) for v in z]
    g = list(layers[-1][0][row])
    for (weights, _), d in zip(reversed(layers[:-1]), reversed(patterns)):
        g = [p * q for p, q in zip(g, d)]
        g = [sum(weights[k][i] * g[k] for k in range(len(g))) for i in range(len(weights[0]))]
    return sum(abs(v) for v in g)


def lp_gate_ranges(layers, low, high):
    """The range of every gate's input by linear programs over the triangles of the gates before.

    No bound that relaxes each ReLU alone, by lines, can be tighter.
    """
    found = []
    for depth in range(1, len(layers)):
        weights, bias = (np.array(v, float) for v in layers[depth - 1])
        sizes = [len(low), *(len(layers[k][1]) for k in range(depth - 1))]
        start = np.concatenate([[0], np.cumsum(sizes)])
        bounds = list(zip(low, high)) + [(0, None)] * int(start[-1] - start[1])
        rows, ends = [], []
        for k in range(depth - 1):
            w, b = (np.array(v, float) for v in layers[k])
            for i, (a, c) in enumerate(found[k]):
                z, y = np.zeros(start[-1]), np.zeros(start[-1])
                z[start[k] : start[k + 1]], y[start[k + 1] + i] = w[i], 1.0
                if c <= 0:
                    rows += [y]
                    ends += [0.0]
                elif a >= 0:
                    rows += [y - z, z - y]
                    ends += [b[i], -b[i]]
                else:
                    slope = c / (c - a)
                    rows += [z - y, y - slope * z]
                    ends += [-b[i], slope * (b[i] - a)]
        here = []
        for w, b in zip(weights, bias):
            aim = np.zeros(start[-1])
            aim[start[depth - 1] :] = w
            here.append(tuple(
                float(b) + sign * _most(sign * aim, rows, ends, bounds) for sign in (-1, 1)
            ))  # fmt: skip
        found.append(here)
    return found


def lp_norms(layers, slopes):
    """The L1 norm of every row of the Jacobian by linear programs over the gates' derivatives.

    ``slopes``: per gate layer, per unit, the least and largest derivative. A gate's y = d·g lies
    between d₋g and the chords of the rest; |J| under its own chord. Every line that bound
    propagation may take lies in this relaxation, so no such bound is below it.
    """
    norms = []
    for row in range(len(layers[-1][0])):
        sizes = [len(layer) for layer in reversed(slopes)]
        start = np.concatenate([[0], np.cumsum(sizes)])
        rows, ends, bounds = [], [], [(None, None)] * int(start[-1])
        g_rows, g_shift = np.zeros((sizes[0], start[-1])), np.array(layers[-1][0][row], float)
        for n, layer in enumerate(reversed(slopes)):
            for i, (least, most) in enumerate(layer):
                aim, shift = g_rows[i], g_shift[i]
                b = shift + _most(aim, rows, ends, bounds)
                a = shift - _most(-aim, rows, ends, bounds)
                y = np.zeros(start[-1])
                y[start[n] + i] = 1.0
                above = _chord(max(a, 0), max(b, 0), a, b)  # of relu(g)
                below = _chord(min(a, 0), min(b, 0), a, b)  # of min(g, 0)
                up, down = (least + (most - least) * line[0] for line in (above, below))
                p, q = ((most - least) * line[1] for line in (above, below))
                rows += [y - up * aim, down * aim - y]
                ends += [up * shift + p, -down * shift - q]
            w = np.array(layers[-2 - n][0], float)
            g_rows = np.zeros((w.shape[1], start[-1]))
            g_rows[:, start[n] : start[n + 1]] = w.T
            g_shift = np.zeros(w.shape[1])
        total, aim = 0.0, np.zeros(start[-1])
        for entry in g_rows:
            b, a = _most(entry, rows, ends, bounds), -_most(-entry, rows, ends, bounds)
            slope, shift = _chord(abs(a), abs(b), a, b)
            aim, total = aim + slope * entry, total + shift
        norms.append(total + _most(aim, rows, ends, bounds))
    return norms


def _chord(at_a, at_b, a, b):
    slope = (at_b - at_a) / (b - a) if b - a > 1e-12 else 0.0
    return slope, at_b - slope * b if slope else max(at_a, at_b)


def _most(aim, rows, ends, bounds):
    if not np.any(aim):
        return 0.0
    done = linprog(-aim, np.array(rows) if rows else None, ends or None, bounds=bounds)
    assert done.status == 0, done.message
    return -float(done.fun)


def conv_matrix(weight, height, width, stride, padding):
    """The matrix of a 2-d convolution with zero padding, entry by entry: rows of floats."""
    out_c, in_c, kh, kw = len(weight), len(weight[0]), len(weight[0][0]), len(weight[0][0][0])
    rows = (height + 2 * padding - kh) // stride + 1
    columns = (width + 2 * padding - kw) // stride + 1
    matrix = []
    for o in range(out_c):
        for y in range(rows):
            for x in range(columns):
                row = [0.0] * (in_c * height * width)
                for c in range(in_c):
                    for i in range(kh):
                        for j in range(kw):
                            at_y, at_x = y * stride + i - padding, x * stride + j - padding
                            if 0 <= at_y < height and 0 <= at_x < width:
                                row[(c * height + at_y) * width + at_x] += weight[o][c][i][j]
                matrix.append(row)
    return matrix
