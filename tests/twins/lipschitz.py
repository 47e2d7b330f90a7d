"""Lipschitz bounds of a stack of linear layers and ReLUs, in loops: intervals and enumeration.

``layers`` is a list of (W, b) as lists of lists of floats; a ReLU stands between any two.
"""

# ruff: noqa: B905

import itertools


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
