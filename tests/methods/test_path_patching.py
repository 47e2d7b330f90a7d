"""PathPatching: its edges by name, its numbers, its refusals and its trust panel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.methods import PathPatching
from interp.models import load_model
from interp.terms import UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, telling_pairs
from tests.twins import edges as twin
from tests.twins.patching import logit_diff


@pytest.fixture(scope="module")
def llama() -> Any:
    return load_model(hard_model("llama").double(), dtype="float64")


def measure(method: PathPatching, model: Any, task: Any) -> tuple[Any, Remembering]:
    context = Remembering()
    data = method.measure(model, task, context)
    check_dataset(data)
    return data, context


def test_a_grid_holds_every_edge_and_nothing_where_none_is(llama: Any) -> None:
    pairs = telling_pairs(llama.module(), n=2, length=6)
    data, context = measure(PathPatching(n_boot=20), llama, pairs)
    assert data["effect"].dims == ("src", "dst")
    assert data["effect"].shape == (1 + 4 * 7, 4 * (6 + 2 + 2 + 1) + 1)
    exists = np.isfinite(data["effect_raw"].values)
    assert (
        exists.sum()
        == data.attrs["edges"]
        == 29 + sum(10 * (1 + 7 * n) + 1 + 7 * n + 6 for n in range(4))
    )
    assert not exists[
        data.get_index("src").get_loc("L2H0"), data.get_index("dst").get_loc("L2H0.q")
    ]
    assert np.isfinite(float(data["effect_raw"].sel(src="L2H0", dst="MLP2")))
    assert data["dst_layer"].sel(dst="L3KV1.k") == 3 and data["dst_head"].sel(dst="L3KV1.k") == 1
    assert all(c.passed for c in context.checks), context.checks
    assert {c.name for c in context.checks} >= {"plain_forward", "noise_floor", "patch_everything"}


@pytest.mark.parametrize("freeze", ["heads+mlps", "heads"])
def test_an_effect_is_the_twins_share_of_the_gap(llama: Any, freeze: str) -> None:
    module = hard_model("llama").double()
    pairs = telling_pairs(module)
    base, source = torch.tensor(pairs.corrupt), torch.tensor(pairs.clean)
    knobs: dict[str, Any] = {"freeze": freeze, "n_boot": 0}
    method = PathPatching(senders="MLP0,L1H2,embed", receivers="L3H5.q, L3H0.k, logits", **knobs)
    data, context = measure(method, llama, pairs)
    assert all(c.passed for c in context.checks), context.checks

    def score(logits: torch.Tensor) -> np.ndarray:
        return logit_diff(logits.detach(), list(pairs.right), list(pairs.wrong)).numpy()

    before = score(module(base).logits)
    gap = (score(module(source).logits) - before).mean()
    seen = []
    for name, u in (("MLP0", ("mlp", 0)), ("L1H2", ("z", 1, 2)), ("embed", ("embed",))):
        for dst, v in (("L3H5.q", ("q", 3, 5)), ("L3KV0.k", ("k", 3, 0)), ("logits", ("logits",))):
            if freeze == "heads":
                logits = twin.path_logits(
                    module, "llama", base, source, u, v, n_heads=6, n_kv_heads=2
                )
            else:
                logits = twin.edge_logits(
                    module, "llama", base, source, [(u, v)], n_heads=6, n_kv_heads=2
                )
            wanted = (score(logits) - before).mean() / gap
            assert float(data["effect"].sel(src=name, dst=dst)) == pytest.approx(wanted, abs=1e-9)
            seen.append(abs(wanted))
    assert max(seen) > 0.01


@pytest.mark.parametrize("freeze", ["heads+mlps", "heads"])
@pytest.mark.parametrize("family", ["gemma2", "olmo2", "gpt_neox", "qwen3"])
def test_the_strongest_edges_hold_by_plain_forward_passes(family: str, freeze: str) -> None:
    model = load_model(hard_model(family))
    pairs = telling_pairs(model.module(), n=2, length=6)
    knobs: dict[str, Any] = {"freeze": freeze, "n_boot": 0, "verify": 8}
    data, context = measure(PathPatching(senders="L0H1,L1H0,MLP1,embed", **knobs), model, pairs)
    named = {c.name: c for c in context.checks}
    assert named["plain_forward"].passed, named["plain_forward"]
    assert float(np.abs(np.nan_to_num(data["effect_raw"])).max()) > 1e-3


def test_a_head_names_its_inputs_and_its_groups(llama: Any) -> None:
    pairs = telling_pairs(llama.module(), n=2, length=6)
    data, _ = measure(PathPatching(senders="L0H0", receivers="L2H4", n_boot=0), llama, pairs)
    assert data["dst"].values.tolist() == ["L2H4.q", "L2KV1.k", "L2KV1.v"]
    one, _ = measure(PathPatching(senders="heads", receivers="L1H0.v,mlps", n_boot=0), llama, pairs)
    assert one["dst"].values.tolist() == ["MLP0", "L1KV0.v", "MLP1", "MLP2", "MLP3"]


@pytest.mark.parametrize(
    ("knobs", "given", "wanted"),
    [
        ({"senders": "L0H9"}, "'L0H9' is no writer", "L0H1"),
        ({"receivers": "resid"}, "'resid' is no reader", "L3H1.q"),
        ({"senders": " , "}, "No writer was named", "all"),
        ({"senders": "L3H0", "receivers": "L1H0"}, "No edge leads", "behind"),
        ({"position": "subject"}, "no slot", "none"),
    ],
)
def test_nodes_that_do_not_fit_are_refused_with_a_remedy(
    llama: Any, knobs: dict[str, str], given: str, wanted: str
) -> None:
    with pytest.raises(UsageError, match=given) as caught:
        PathPatching(**knobs).measure(  # type: ignore[arg-type]
            llama, telling_pairs(llama.module(), n=2, length=6), Remembering()
        )
    assert wanted in str(caught.value)


def test_the_estimate_counts_the_edges(llama: Any) -> None:
    pairs = telling_pairs(llama.module(), n=2, length=6)
    guess = PathPatching(senders="embed", receivers="q").estimate(llama, pairs)
    assert guess["cells"] == 24 and guess["flops"] > 0
