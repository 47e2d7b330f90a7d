"""Terms of attention scores: taken away one writer at a time, and by hand on GPT-2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.engine.scores import REST, score_terms, writes
from interp.engine.traces import Maps, NormMap, trace
from tests.checkpoints import FAMILY_NAMES
from tests.engine.driven import pairs_for
from tests.models.wrapped import wrapped

LAYER, HEAD, QUERY = 2, 1, 6


def held_scores(model: Any, run: Any, x_q: torch.Tensor, x_k: torch.Tensor) -> torch.Tensor:
    """Scores of the query from given residuals, every divisor the run's own."""
    maps, block = Maps(model), model.blocks.layers[LAYER]
    like, place = maps.like, torch.arange(run.length)
    resid = run.layers[LAYER].resid[0]
    replaced: dict[str, Any] = {}

    def hold(name: str, given: torch.Tensor) -> None:
        norm = getattr(block, name)
        if norm is None:
            return
        plain = norm.scale(given)
        affine = NormMap.of(norm, like if name == "pre_attn" else given[0].flatten())
        gain, bias = norm.gain(), norm.bias

        def fixed(x: torch.Tensor) -> torch.Tensor:
            x = x - x.mean(-1, keepdim=True) if affine.centres else x
            y = x / plain[..., None] * (1 if gain is None else gain)
            return y if bias is None else y + bias

        replaced[name] = norm
        setattr(block, name, fixed)

    try:
        hold("pre_attn", resid)
        q, k, _ = block.project(resid)
        flat = block.qk_norm_width == "all"
        hold("q_norm", q.flatten(1) if flat else q)
        hold("k_norm", k.flatten(1) if flat else k)
        (q, k0, _), (q0, k, _) = block.project(x_q), block.project(x_k)
        q, k = block.turned(q, k0, place)[0], block.turned(q0, k, place)[1]
    finally:
        for name, norm in replaced.items():
            setattr(block, name, norm)
    group = HEAD // (block.n_heads // block.n_kv_heads)
    return (q[QUERY, HEAD] * k[:, group]).sum(-1) * block.facts.scale


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_term_is_what_the_score_loses_without_the_write(family: str) -> None:
    model = wrapped(family)
    tokens = np.array(pairs_for(97, n=1).clean)
    with torch.no_grad():
        run = trace(Maps(model), tokens)
        names, wrote = writes(Maps(model), run, LAYER)
        found = score_terms(model, tokens[0], LAYER, HEAD, QUERY)
        x = run.layers[LAYER].resid[0]
        whole = held_scores(model, run, x, x).numpy()
        bound = 1e-9 if family in ("gpt2", "gpt_neo") else 3e-5
        seen = np.isfinite(found.score)
        scale = np.abs(whole[seen]).max()
        np.testing.assert_allclose(found.score[seen], whole[seen], atol=bound * scale)
        for parts, side in ((found.query, 0), (found.key, 1)):
            np.testing.assert_allclose(parts.sum(0)[seen], found.score[seen], atol=1e-9 * scale)
            for w in (0, len(names) // 2, len(names) - 1):
                less = [x, x]
                less[side] = x - wrote[w]
                without = held_scores(model, run, *less).numpy()
                np.testing.assert_allclose(
                    parts[w][seen], (whole - without)[seen], atol=bound * scale, err_msg=names[w]
                )
                assert np.abs(parts[w][seen]).max() > 1e-4 * scale
    assert found.writers == (*names, REST) and not seen[QUERY + 1 :].any()


def test_terms_of_gpt2_by_hand() -> None:
    """Key-side term of head 0.3 at position 2: its write, normed with the run's σ, through W_K."""
    from tests.checkpoints import hard_model

    model, module = wrapped("gpt2"), hard_model("gpt2").double()
    tokens = torch.tensor(pairs_for(97, n=1).clean)
    kept: dict[str, torch.Tensor] = {}
    blocks = module.transformer.h
    handles = [
        blocks[0].attn.c_proj.register_forward_pre_hook(
            lambda _, args: kept.__setitem__("z", args[0])
        ),
        blocks[LAYER].register_forward_pre_hook(lambda _, args: kept.__setitem__("x", args[0])),
    ]
    with torch.no_grad():
        module(tokens)
        for handle in handles:
            handle.remove()
        E, D = 8, 48
        head = slice(3 * E, 4 * E)
        write = kept["z"][0, 2, head] @ blocks[0].attn.c_proj.weight[head]
        x, ln = kept["x"][0], blocks[LAYER].ln_1
        sigma = (x.var(-1, unbiased=False) + ln.eps).sqrt()
        w_attn, b_attn = blocks[LAYER].attn.c_attn.weight, blocks[LAYER].attn.c_attn.bias
        mine = slice(HEAD * E, (HEAD + 1) * E)
        q = (ln(x)[QUERY] @ w_attn + b_attn)[mine]
        key = ((write - write.mean()) / sigma[2] * ln.weight) @ w_attn[:, D : 2 * D][:, mine]
        wanted = float(q @ key) / E**0.5
    found = score_terms(model, tokens[0].numpy(), LAYER, HEAD, QUERY)
    assert found.key[found.writers.index("L0H3"), 2] == pytest.approx(wanted, rel=1e-9)
    assert abs(wanted) > 1e-4
