"""Pairs of unequal lengths: a grid's positions are the base run's, in number, name and value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.models.loading import load
from interp.terms import TaskError

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the big store, Mary gave a drink to"
SPAN = ((((8, 11), (8, 12)),),)


@pytest.fixture(scope="module")
def opened():
    model = interp.load_model("zoo:ioi")
    pair = interp.PromptPairs.from_text(
        [CLEAN], [CORRUPT], [" Mary"], [" John"], model=model, span_map=SPAN
    )
    return model, pair


def by_hooks(module, pair, base, source, layer, here, there):
    """Metric with the source's residual at ``there`` put into the base run at ``here``."""
    block = module.transformer.h[layer]
    seen = []
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        module(torch.tensor([source]))
    handle.remove()

    def put(_, args):
        x = args[0].clone()
        x[0, here] = seen[0][0, there]
        return (x, *args[1:])

    handle = block.register_forward_pre_hook(put)
    with torch.no_grad():
        logits = module(torch.tensor([base])).logits[0, -1]
    handle.remove()
    return float(logits[pair.right[0][0]] - logits[pair.wrong[0][0]])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_grid_of_a_span_map_is_the_base_runs_and_what_hooks_measure(opened, direction):
    model, pair = opened
    patching = interp.methods.ActivationPatching(site="resid_pre", direction=direction)
    result = interp.run(patching, model, pair, progress=False)
    clean, corrupt = pair.clean[0], pair.corrupt[0]
    module = load("zoo:ioi").module
    denoising = direction == "denoising"
    base, source = (corrupt, clean) if denoising else (clean, corrupt)
    data = result.data
    assert data.sizes["position"] == len(base)
    for in_clean, in_corrupt in ((10, 11), (11, 12), (14, 15)):
        here, there = (in_corrupt, in_clean) if denoising else (in_clean, in_corrupt)
        for layer in (0, 3):
            wanted = by_hooks(module, pair, base, source, layer, here, there)
            found = float(data["patched_metric"].isel(prompt=0).sel(layer=layer, position=here))
            assert found == pytest.approx(wanted, abs=1e-3)
    ticks = result.figures()["effect"].layout.xaxis.ticktext
    assert (
        list(ticks[8:12])
        == [["store", ",", "John", "gave"], ["big", "store", ",", "Mary"]][denoising]
    )
    assert result.passed and "patch_everything" not in {c.name for c in result.checks}


def test_a_word_the_vocabulary_lacks_is_refused_by_name(opened):
    model, _ = opened
    with pytest.raises(TaskError, match="lacks 'Zorblax'"):
        interp.PromptPairs.from_text("When Zorblax", "When Mary", " Mary", " John", model=model)
    with pytest.raises(TaskError, match="lacks 'Qwerty'"):
        interp.PromptPairs.from_text("When John", "When Mary", " Qwerty", " John", model=model)


def test_positions_are_one_axis_only_where_both_sides_have_one_length(opened):
    _, pair = opened
    assert pair.aligned() and pair.base_lengths("denoising") == (16,)
    assert pair.base_lengths("noising") == (15,)
    rows = (pair.clean * 2, (pair.corrupt[0], pair.corrupt[0][:-1]))
    spans = (pair.span_map[0], (((8, 11), (8, 11)),))
    both = interp.PromptPairs.from_tokens(*rows, pair.right * 2, pair.wrong * 2, span_map=spans)
    assert len(set(both.lengths)) == 1 and not both.aligned()
    assert np.array_equal(both.lengths, (15, 15))
