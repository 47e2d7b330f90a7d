"""Networks whose every edge is known by hand, and identities that hold of any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.engine import Cell, sweep
from interp.methods import ActivationPatching, PathPatching
from interp.terms import Edit, PromptPairs, Site
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, driven, pairs_for
from tests.engine.tiny import empty, tiny_model
from tests.models.plain import induction
from tests.twins import patching as twin


def linear_toy() -> Any:
    """Two blocks; each adds w₁⊙x (head 0) and w₂⊙x (head 1), w₁ = (1,2), w₂ = (3,4).

    Token 0 is x = (1,1), token 1 is -x; the logits are the two coordinates and a zero.
    """
    net = empty(vocab=3, length=1, layers=2, d_model=2, heads=2, d_head=2)
    net.embed.weight[0], net.embed.weight[1] = 1.0, -1.0
    for block in net.blocks:
        block.attn.v.weight[:] = torch.eye(2).repeat(2, 1)
        block.attn.o.weight[:] = torch.tensor([[1.0, 0, 3, 0], [0, 2, 0, 4]])
    net.unembed.weight[:2] = torch.eye(2)
    return tiny_model(net, parallel=True)


ONE_TOKEN = PromptPairs.from_tokens([[0], [0]], [[1], [1]], [0, 1], [2, 2])
OUT = Edit(Site("z", layer=0, head=1), reader=Site("logits"))
THROUGH = Edit(Site("z", layer=0, head=0), reader=Site("v", layer=1, head=1))
INPUT = Edit(Site("embed"), reader=Site("v", layer=0, head=0))


def test_edges_of_the_linear_toy_are_those_worked_by_hand() -> None:
    cells = [Cell((OUT,)), Cell((OUT, THROUGH)), Cell((OUT, THROUGH, INPUT))]
    found = sweep(linear_toy(), ONE_TOKEN, cells, Remembering())
    np.testing.assert_allclose(found.source, [25, 49], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.base, [-25, -49], rtol=0, atol=1e-12)
    wanted = [[-19, -41], [-13, -25], [-9, -13]]
    np.testing.assert_allclose(found.patched, wanted, rtol=0, atol=1e-12)


def test_edges_of_the_linear_toy_come_in_any_order() -> None:
    found = sweep(linear_toy(), ONE_TOKEN, [Cell((INPUT, THROUGH, OUT))], Remembering())
    np.testing.assert_allclose(found.patched, [[-9, -13]], rtol=0, atol=1e-12)


def gate(kind: str) -> Any:
    """Head 0 copies the bit at position 0 to the end, head 1 that at position 1; an MLP gates.

    Coordinates: bit, position 0, position 1, end, first bit, second bit, out.
    """
    net = empty(vocab=3, length=3, layers=1, d_model=7, heads=2, d_head=2, d_mlp=3)
    net.embed.weight[1, 0] = 1
    net.pos_embed.weight[:, 1:4] = torch.eye(3)
    (block,) = net.blocks
    for head in range(2):
        block.attn.q.weight[2 * head, 3] = 60
        block.attn.k.weight[2 * head, 1 + head] = 1
        block.attn.v.weight[2 * head, 0] = 1
        block.attn.o.weight[4 + head, 2 * head] = 1
    block.mlp.inn.weight[:, 4:6] = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    block.mlp.inn.bias[2] = -1
    shares = {"and": (0.0, 0, 1), "or": (1.0, 1, -1), "xor": (1.0, 1, -2)}
    block.mlp.out.weight[6] = torch.tensor(shares[kind])
    net.unembed.weight[1, 6] = 1
    return tiny_model(net)


def both(clean: tuple[int, int], corrupt: tuple[int, int]) -> PromptPairs:
    return PromptPairs.from_tokens([[*clean, 2]], [[*corrupt, 2]], [1], [0])


@pytest.mark.parametrize(
    ("kind", "direction", "wanted"),
    [
        ("or", "denoising", 1.0),
        ("or", "noising", 0.0),
        ("and", "denoising", 0.0),
        ("and", "noising", 1.0),
    ],
)
def test_a_gate_shows_what_suffices_and_what_is_needed(
    kind: str, direction: str, wanted: float
) -> None:
    method = ActivationPatching(site="z", direction=direction, n_boot=0, verify=0)  # type: ignore[arg-type]
    data = method.measure(gate(kind), both((1, 1), (0, 0)), Remembering())
    np.testing.assert_allclose(data["effect"], [[wanted, wanted]], rtol=0, atol=1e-9)
    paths = PathPatching(senders="heads", receivers="MLP0", direction=direction, n_boot=0, verify=0)  # type: ignore[arg-type]
    edges = paths.measure(gate(kind), both((1, 1), (0, 0)), Remembering())
    np.testing.assert_allclose(edges["effect"], [[wanted], [wanted]], rtol=0, atol=1e-9)


def test_an_exclusive_or_tells_its_inputs_apart_and_equal_metrics_give_no_share() -> None:
    method = ActivationPatching(site="z", n_boot=0, verify=0)
    data = method.measure(gate("xor"), both((1, 0), (0, 0)), Remembering())
    np.testing.assert_allclose(data["effect"], [[1.0, 0.0]], rtol=0, atol=1e-9)
    same = method.measure(gate("xor"), both((1, 1), (0, 0)), Remembering())
    assert np.isnan(same["effect"]).all() and "gap" in same.attrs["undefined_reason"]
    np.testing.assert_allclose(same["effect_raw"], [[1.0, 1.0]], rtol=0, atol=1e-9)


def test_the_previous_token_head_feeds_the_key_of_the_induction_head(test_data: Path) -> None:
    net = induction(test_data / "induction").double()
    rng = np.random.default_rng(0)
    clean, corrupt, right, wrong = [], [], [], []
    for _ in range(48):
        letters = rng.permutation(26)[:9].tolist()
        where = int(rng.integers(1, 5))
        prompt = [*letters[:7], letters[where]]
        other = list(prompt)
        other[where] = letters[8]  # what the last letter repeats is gone
        clean.append(prompt)
        corrupt.append(other)
        right.append(letters[where + 1])
        wrong.append(letters[7])
    pairs = PromptPairs.from_tokens(clean, corrupt, right, wrong)
    model = tiny_model(net)
    method = PathPatching(senders="L0H0", receivers="L1H0,logits", n_boot=200, verify=0)
    data = method.measure(model, pairs, Remembering())
    effect = data["effect"].sel(src="L0H0")
    order = [str(effect["dst"].values[i]) for i in np.argsort(-np.abs(effect.values))]
    assert order[0] == "L1H0.k", dict(zip(order, effect.values, strict=True))
    assert float(effect.sel(dst="L1H0.k")) > 0.3
    assert float(np.abs(effect.drop_sel(dst="L1H0.k")).max()) < 0.5 * float(effect.max())
    assert float(data["effect_ci"].sel(src="L0H0", dst="L1H0.k", bound="low")) > 0.2


def ungrouped(module: Any, family: str) -> tuple[Any, Any]:
    """The same network with a key/value head for every query head, and what drives it."""
    copy, model = driven(family, num_key_value_heads=6)
    state = module.state_dict()
    for name in list(state):
        if ".k_proj." in name or ".v_proj." in name:
            heads = state[name].unflatten(0, (2, -1))
            state[name] = heads.repeat_interleave(3, 0).flatten(0, 1)
    copy.load_state_dict(state)
    return copy, model


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_grouped_model_is_its_ungrouped_copy_with_groups_edited_together(family: str) -> None:
    module, grouped = driven(family)
    copy, single = ungrouped(module, family)
    pairs = pairs_for(97)
    tokens = torch.tensor(pairs.clean)
    np.testing.assert_allclose(
        copy(tokens).logits.detach(), module(tokens).logits.detach(), atol=1e-9
    )

    def cells(group: bool) -> list[Cell]:
        heads = {0: [0], 1: [1]} if group else {0: [0, 1, 2], 1: [3, 4, 5]}
        out = []
        for kind in ("k", "v"):
            for layer in (1, 3):
                for which in heads.values():
                    sites = [Site(kind, layer=layer, head=h) for h in which]
                    out.append(Cell(tuple(Edit(s) for s in sites)))
                    out += [
                        Cell(tuple(Edit(u, reader=s) for s in sites))
                        for u in (Site("embed"), Site("z", layer=0, head=4))
                    ]
        return out

    ours = sweep(grouped, pairs, cells(True), Remembering())
    theirs = sweep(single, pairs, cells(False), Remembering())
    assert (np.abs(ours.patched - ours.base).max(1) > 1e-6).all()
    np.testing.assert_allclose(ours.patched, theirs.patched, rtol=0, atol=1e-9)
    alone = sweep(single, pairs, [Cell(c.edits[:1]) for c in cells(False)], Remembering())
    assert (np.abs(alone.patched - ours.patched).max(1) > 1e-6).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_prompts_of_unequal_length_score_as_right_padded_ones(family: str) -> None:
    module, model = driven(family)
    short, long = pairs_for(97, n=2, length=7), pairs_for(97, n=2, length=10, seed=1)
    mixed = PromptPairs.from_tokens(
        *[
            [getattr(long, f)[0], getattr(short, f)[0], getattr(long, f)[1], getattr(short, f)[1]]
            for f in ("clean", "corrupt", "right", "wrong")
        ]
    )
    base, source = (
        torch.tensor([[*p, *[0] * (10 - len(p))] for p in side])
        for side in (mixed.corrupt, mixed.clean)
    )
    places = [("resid_pre", 1, None), ("attn_out", 2, 5), ("mlp_out", 0, 3), ("resid_post", 0, 6)]
    cells = [Cell((Edit(Site(k, layer=n, position=p)),)) for k, n, p in places]
    found = sweep(model, mixed, cells, Remembering())
    for row, (kind, layer, position) in zip(found.patched, places, strict=True):
        logits = twin.patched_logits(module, family, base, source, kind, layer, position=position)
        last = torch.stack([x[len(p) - 1] for x, p in zip(logits, mixed.corrupt, strict=True)])
        wanted = twin.logit_diff(last[:, None], list(mixed.right), list(mixed.wrong)).numpy()
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-9)
        assert np.abs(wanted - found.base).max() > 1e-3


def test_transformer_lens_finds_the_same_direct_paths() -> None:
    from transformer_lens import patching

    from interp.models import load_model

    for family, inputs in (("gpt2", ("q", "k", "v")), ("llama", ("q",))):
        model = load_model(hard_model(family).double(), dtype="float64")
        pairs = pairs_for(97, n=3, length=8)
        bridge = model.wrapped()
        clean, corrupt = torch.tensor(pairs.clean), torch.tensor(pairs.corrupt)
        with torch.no_grad():
            caches = [bridge.run_with_cache(t)[1] for t in (clean, corrupt)]

        def mean(logits: torch.Tensor, pairs: PromptPairs = pairs) -> torch.Tensor:
            return twin.logit_diff(logits, list(pairs.right), list(pairs.wrong)).mean()

        for kind in inputs:
            with torch.no_grad():
                theirs = patching.get_act_patch_direct_path(
                    bridge, corrupt, *caches, mean, 1, 3, component=kind, verbose=False
                )
            cells = [
                Cell((Edit(Site("z", layer=1, head=3), reader=Site(kind, layer=n, head=h)),))
                for n in (2, 3)
                for h in range(6)
            ]
            ours = sweep(model, pairs, cells, Remembering()).patched.mean(1)
            assert np.ptp(ours) > 1e-3
            np.testing.assert_allclose(ours, theirs[2:].flatten(), rtol=0, atol=1e-6)
