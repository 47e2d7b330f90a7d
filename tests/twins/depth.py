"""Slow references of the depth methods: whole forwards of an untouched module, hooks and loops.

Follows csordas2025language: every skip, erasure and gradient is one more run of everything.
Imports nothing of interp.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PLACES = {
    "gpt2": ("transformer.h", "attn", "mlp", "transformer.ln_f"),
    "llama": ("model.layers", "self_attn", "mlp", "model.norm"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", "gpt_neox.final_layer_norm"),
}


@contextmanager
def hooked(handles: list[Any]):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Plain:
    """A module with names for its layers, attentions, MLPs, final norm and unembedding."""

    def __init__(self, module: Any, family: str) -> None:
        layers, attn, mlp, norm = PLACES[family]
        self.module = module
        self.layers = list(module.get_submodule(layers))
        self.attn = [layer.get_submodule(attn) for layer in self.layers]
        self.mlp = [layer.get_submodule(mlp) for layer in self.layers]
        self.norm, self.head = module.get_submodule(norm), module.get_output_embeddings()

    def run(
        self,
        tokens: Tensor,
        *,
        gone: dict[tuple[int, str], tuple[slice, Tensor | None]] | None = None,
        entering: dict[int, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Any]:
        """Probabilities, residuals and contributions of one whole forward.

        gone: (layer, "attn" or "mlp") -> positions and what is added there instead (None: nothing).
        entering: layer -> what is done to the residual that enters it.
        """
        gone, entering = gone or {}, entering or {}
        found: dict[str, Any] = {"attn": {}, "mlp": {}, "resid": {}}
        handles = []
        for number, layer in enumerate(self.layers):

            def before(module, args, kwargs, number=number):
                hidden = args[0] if args else kwargs["hidden_states"]
                if number in entering:
                    hidden = entering[number](hidden)
                found["resid"][number] = hidden
                if args:
                    return (hidden, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": hidden}

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            for name, part in (("attn", self.attn[number]), ("mlp", self.mlp[number])):

                def after(module, args, out, name=name, number=number):
                    value = out[0] if isinstance(out, tuple) else out
                    if (number, name) in gone:
                        where, instead = gone[number, name]
                        value = value.clone()
                        value[:, where] = 0.0 if instead is None else instead[:, where]
                    found[name][number] = value
                    return (value, *out[1:]) if isinstance(out, tuple) else value

                handles.append(part.register_forward_hook(after))

        def last(module, args):
            found["resid"][len(self.layers)] = args[0]

        handles.append(self.norm.register_forward_pre_hook(last))
        with hooked(handles):
            found["p"] = self.module(input_ids=tokens, use_cache=False).logits.softmax(-1)
        found["c"] = {n: found["attn"][n] + found["mlp"][n] for n in range(len(self.layers))}
        return found


def skip(
    plain: Plain,
    tokens: Tensor,
    part: str,
    layer: int,
    start: int,
    stop: int,
    attn: Tensor | None = None,
    mlp: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """effect ``[layer, B, T]`` and ‖P - P̄‖ ``[B, T]`` of one skip, by a run of its own."""
    where = slice(start, stop)
    gone = {}
    if part in ("layer", "attention"):
        gone[layer, "attn"] = (where, attn)
    if part in ("layer", "MLP"):
        gone[layer, "mlp"] = (where, mlp)
    clean, other = plain.run(tokens), plain.run(tokens, gone=gone)
    rows = []
    for n in range(len(plain.layers)):
        away = (clean["c"][n] - other["c"][n]).norm(dim=-1)
        rows.append(away / clean["c"][n].norm(dim=-1))
    return torch.stack(rows), (clean["p"] - other["p"]).norm(dim=-1)


def local(plain: Plain, tokens: Tensor, part: str, skipped: int, layer: int, start: int) -> Tensor:
    """Effect on one later layer that alone sees the residual without what a part added."""
    clean = plain.run(tokens)
    gone = {"layer": clean["c"], "attention": clean["attn"], "MLP": clean["mlp"]}[part][skipped]

    def less(hidden):
        out = hidden.clone()
        out[:, start:] -= gone[:, start:]
        return out

    other = plain.run(tokens, entering={layer: less})
    away = (clean["c"][layer] - other["c"][layer]).norm(dim=-1)
    return away / clean["c"][layer].norm(dim=-1)


def erased(plain: Plain, tokens: Tensor, mean: Tensor, layer: int, places: list[int]) -> Tensor:
    """‖P - P̄‖ ``[B, T]`` with a residual replaced, by a whole rerun."""

    def replace(hidden):
        out = hidden.clone()
        out[:, places] = mean
        return out

    clean = plain.run(tokens)
    return (clean["p"] - plain.run(tokens, entering={layer: replace})["p"]).norm(dim=-1)


def statistics(plain: Plain, tokens: Tensor) -> dict[str, list[float]]:
    """Relative contribution, cosine and ρ of the whole layer, and curvature; token by token."""
    found = plain.run(tokens)
    L = len(plain.layers)
    out: dict[str, list[float]] = {k: [] for k in ("relative", "cosine", "rho", "curvature")}
    for n in range(L):
        sums = dict.fromkeys(out, 0.0)
        count = 0
        for row in range(tokens.shape[0]):
            for t in range(1, tokens.shape[1]):
                h, c = found["resid"][n][row, t], found["c"][n][row, t]
                after = found["resid"][n + 1][row, t]
                sums["relative"] += float(c.norm() / h.norm())
                sums["cosine"] += float(torch.dot(c, h) / (c.norm() * h.norm()))
                sums["rho"] += float(torch.dot(h, after) / (h.norm() * after.norm()))
                if n + 1 < L:
                    d = found["c"][n + 1][row, t]
                    sums["curvature"] += float(torch.dot(c, d) / (c.norm() * d.norm()))
                count += 1
        for k in out:
            out[k].append(sums[k] / count)
    return out


def lens(plain: Plain, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p_l‖p_L) and KL(p_L‖p_l), ``[boundary, B, T]``."""
    found = plain.run(tokens)
    final = plain.head(plain.norm(found["resid"][len(plain.layers)])).log_softmax(-1)
    first, second = [], []
    for n in range(len(plain.layers) + 1):
        logp = plain.head(plain.norm(found["resid"][n])).log_softmax(-1)
        first.append((logp.exp() * (logp - final)).sum(-1))
        second.append((final.exp() * (final - logp)).sum(-1))
    return torch.stack(first), torch.stack(second)


def gradients(
    plain: Plain, tokens: Tensor, layer: int, answer: list[int], steps: int
) -> tuple[Tensor, Tensor]:
    """Integrated gradients over H_{layer} from its mean over positions, and f(X) - f(b)."""
    x = plain.run(tokens)["resid"][layer].detach()
    b = x.mean(1, keepdim=True).expand_as(x)

    def f(value):
        p = plain.run(tokens, entering={layer: lambda _: value})["p"][:, -1]
        return torch.stack([p[i, a] for i, a in enumerate(answer)])

    total = torch.zeros_like(x)
    for k in range(steps):
        point = (b + (k + 0.5) / steps * (x - b)).requires_grad_()
        total += torch.autograd.grad(f(point).sum(), point)[0]
    with torch.no_grad():
        moved = f(x) - f(b)
    return ((x - b) * total / steps).sum(-1), moved


def jacobian(plain: Plain, tokens: Tensor, layer: int, row: int, at: int) -> Tensor:
    """∂H_{layer+1}[at]/∂H_layer[at] with other positions fixed, ``[out, in]``."""
    x = plain.run(tokens)["resid"][layer].detach()

    def behind(vector):
        value = x.clone()
        value[row, at] = vector
        found = plain.run(tokens, entering={layer: lambda _: value})
        return found["resid"][layer + 1][row, at]

    return torch.autograd.functional.jacobian(behind, x[row, at].clone())


def program(plain: Plain, tokens: Tensor, order: list[int]) -> Tensor:
    """Logits of layers run in another order (the list of layers rewritten for a while)."""
    owner = plain.module.transformer
    before = owner.h
    try:
        owner.h = torch.nn.ModuleList([before[i] for i in order])
        return plain.module(input_ids=tokens, use_cache=False).logits
    finally:
        owner.h = before
