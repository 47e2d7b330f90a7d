"""Scores: which earlier writes make an attention score, on the query's side and on the key's.

With the norms' divisors held at the run's own, queries and keys are linear in the residual they
read, and that is the sum of what the embedding, heads and MLPs wrote. So a score before the soft
cap is, with its key held, a sum over writers at the query's position and a constant, and with its
query held a sum over writers at the key's (elhage2021framework, the QK circuit).

Legend: T positions, W writers, D model width, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.engine.gradients.active import rules
from interp.engine.gradients.ruleset import RuleSet
from interp.engine.traces import Maps, Trace, raised, trace
from interp.terms import HookedModel

HELD = RuleSet("linear", qk_norm="linear", name="held divisors")
REST = "biases"
"""What no writer wrote: biases of the layers before, of the norm and of the projections."""


@dataclass(frozen=True, eq=False)
class ScoreTerms:
    """Scores of one query of a head, and the writers' parts of them.

    Args:
        writers: names of the writers; the last is ``REST``.
        query: parts by what was written at the query's position, ``[writer, key]``.
        key: parts by what was written at each key's position, ``[writer, key]``.
        score: before the soft cap ``[key]``; NaN where the query may not look.
    """

    writers: tuple[str, ...]
    query: np.ndarray
    key: np.ndarray
    score: np.ndarray


def score_terms(
    model: HookedModel, tokens: np.ndarray, layer: int, head: int, query: int
) -> ScoreTerms:
    """Terms of a head's scores from one position.

    Args:
        model: driven layer by layer.
        tokens: ids of one prompt ``[position]``.
        layer: of the head.
        head: query head.
        query: position that looks; negative counts from the end.
    """
    maps = Maps(model)
    run = trace(maps, np.asarray(tokens)[None])
    names, writes_WTD = writes(maps, run, layer)
    at = query % run.length
    with rules(model, HELD, verify=False), torch.enable_grad():
        score_T, slope_q_TD, slope_k_TD = _slopes(maps, run, layer, head, at)
    parts_q = torch.einsum("wd,td->wt", writes_WTD[:, at], slope_q_TD)
    parts_k = torch.einsum("wtd,td->wt", writes_WTD, slope_k_TD)
    seen = torch.isfinite(score_T)

    def whole(parts: Tensor) -> np.ndarray:
        parts = torch.cat([parts, (score_T - parts.sum(0))[None]])
        return torch.where(seen, parts, torch.nan).cpu().numpy()

    return ScoreTerms((*names, REST), whole(parts_q), whole(parts_k), score_T.cpu().numpy())


def writes(maps: Maps, run: Trace, layer: int) -> tuple[list[str], Tensor]:
    """What each writer before a layer wrote in the first prompt, ``[W, T, D]``, and its name.

    A head behind a post-norm is seen through it, with the divisor the run had.
    """
    ids = torch.from_numpy(run.tokens[0]).to(maps.blocks.device)
    token = raised(maps.blocks.token_embed(ids))
    names, found = ["embed"], [token]
    place = run.embed[0] - token
    if float(place.abs().max()) > 0:
        names.append("positions")
        found.append(place)
    for n in range(layer):
        here, part = run.layers[n], maps.layer(n)
        wrote_THD = torch.einsum("the,hed->thd", here.z[0], part.w_o)
        norm = part.norms["post_attn"]
        if norm is not None:
            scale = here.scales["post_attn"][0][:, None, None]
            wrote_THD = norm.centred(wrote_THD) / scale * norm.gain
        names += [f"L{n}H{h}" for h in range(wrote_THD.shape[1])]
        found += list(wrote_THD.unbind(1))
        names.append(f"MLP{n}")
        found.append(raised(part.block.add_mlp(_cast(here.mlp_sum[0], maps))))
    return names, torch.stack(found)


def _cast(value: Tensor, maps: Maps) -> Tensor:
    return value.to(maps.blocks.dtype)


def _slopes(
    maps: Maps, run: Trace, layer: int, head: int, at: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``[T]``, their slopes at the query's residual and at each key's, ``[T, D]``."""
    block: Any = maps.blocks.layers[layer]
    place = torch.arange(run.length, device=maps.blocks.device)
    x_q, x_k = (_cast(run.layers[layer].resid[0], maps).clone().requires_grad_() for _ in "qk")

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, _ = block.project(x)
        return block.turned(q, k, place)

    q_THE, k_TKE = read(x_q)[0], read(x_k)[1]
    group = head // (block.n_heads // block.n_kv_heads)
    score_T = (q_THE[at, head] * k_TKE[:, group]).sum(-1) * block.facts.scale
    with torch.no_grad():
        seen = block.scores(q_THE.detach()[None], k_TKE.detach()[None], place)[0, head, at]
        seen = torch.isfinite(seen)
    slope_k = torch.autograd.grad(score_T.sum(), x_k, retain_graph=True)[0]
    slopes = [torch.autograd.grad(s, x_q, retain_graph=True)[0][at] for s in score_T.unbind()]
    score = raised(torch.where(seen, score_T, torch.nan))
    return score, raised(torch.stack(slopes)), raised(slope_k)
