"""LinearScope as published: two inputs through a network written in loops, decisions of the first.

The first input passes unchanged; the second passes through the same layers with the first's masks,
slopes, means and deviations, so that its output is linear (affine) in it (arXiv 1908.05168).
Departures: slopes are secants through f(0), whose value is added as a constant (the published
f(x)/x is infinite at 0 for a sigmoid); ``mean`` says whether a norm's mean follows the second.


``layers`` is a list of tuples: ("conv", weight[o][c][k][k], bias[o] or None), ("unit", f),
("norm", gain[c], bias[c], eps), ("pool",), ("linear", weight[o][i], bias[o] or None). Pictures are
nested lists [channel][row][column].
"""

# ruff: noqa: B905

import math


def relu(x):
    return x if x > 0 else 0.0


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def silu(x):
    return x / (1 + math.exp(-x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def second(layers, first, other, mean="linear"):
    """The frozen network's output for ``other`` where the decisions are those of ``first``."""
    a, b = first, other
    for layer in layers:
        kind = layer[0]
        if kind == "conv":
            a, b = _conv(layer, a), _conv(layer, b)
        elif kind == "unit":
            a, b = _unit(layer[1], a, b)
        elif kind == "norm":
            a, b = _norm(layer, a, b, mean)
        elif kind == "pool":
            a, b = _pool(a, b)
        else:
            a, b = _linear(layer, _flat(a)), _linear(layer, _flat(b))
    return b


def _flat(x):
    return [v for channel in x for row in channel for v in row] if isinstance(x[0], list) else x


def _conv(layer, x):
    _, weight, bias = layer
    size, high, wide = len(weight[0][0]), len(x[0]), len(x[0][0])
    reach = size // 2
    out = []
    for o in range(len(weight)):
        plane = []
        for i in range(high):
            row = []
            for j in range(wide):
                total = 0.0 if bias is None else bias[o]
                for c in range(len(x)):
                    for p in range(size):
                        for q in range(size):
                            y, z = i + p - reach, j + q - reach
                            if 0 <= y < high and 0 <= z < wide:
                                total += weight[o][c][p][q] * x[c][y][z]
                row.append(total)
            plane.append(row)
        out.append(plane)
    return out


def _unit(f, a, b):
    at_zero = f(0.0)

    def one(u, v):
        if u == 0:
            step = 1e-6
            slope = 0.0 if f is relu else (f(step) - f(-step)) / (2 * step)
        else:
            slope = (f(u) - at_zero) / u
        return f(u), slope * v + at_zero

    if not isinstance(a[0], list):
        pairs = [one(u, v) for u, v in zip(a, b)]
        return [p[0] for p in pairs], [p[1] for p in pairs]
    made = [[[one(u, v) for u, v in zip(ru, rv)] for ru, rv in zip(cu, cv)] for cu, cv in zip(a, b)]
    return [[[[p[k] for p in row] for row in plane] for plane in made] for k in (0, 1)]


def _norm(layer, a, b, mean):
    _, gain, bias, eps = layer
    first, other = [], []
    for c in range(len(a)):
        values = [v for row in a[c] for v in row]
        mu = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + eps)
        second_values = [v for row in b[c] for v in row]
        nu = mu if mean == "frozen" else sum(second_values) / len(second_values)
        first.append([[(v - mu) / deviation * gain[c] + bias[c] for v in row] for row in a[c]])
        other.append([[(v - nu) / deviation * gain[c] + bias[c] for v in row] for row in b[c]])
    return first, other


def _pool(a, b):
    first, other = [], []
    for c in range(len(a)):
        planes = ([], [])
        for i in range(0, len(a[c]) - 1, 2):
            rows = ([], [])
            for j in range(0, len(a[c][0]) - 1, 2):
                places = [(i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)]
                best = max(places, key=lambda p: a[c][p[0]][p[1]])
                rows[0].append(a[c][best[0]][best[1]])
                rows[1].append(b[c][best[0]][best[1]])
            planes[0].append(rows[0])
            planes[1].append(rows[1])
        first.append(planes[0])
        other.append(planes[1])
    return first, other


def _linear(layer, x):
    _, weight, bias = layer
    return [
        sum(w * v for w, v in zip(row, x)) + (0.0 if bias is None else bias[i])
        for i, row in enumerate(weight)
    ]
