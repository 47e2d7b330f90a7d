"""Memory: a run leaves behind what was read and nothing else; the benchmark judges fairly."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch

from interp.models import load_model
from interp.terms import Site
from tests.checkpoints import hard_model, prompts


def alive() -> int:
    """Bytes of every tensor that Python still holds."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            store = thing.untyped_storage()
            found[store.data_ptr()] = store.nbytes()
    return sum(found.values())


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        ("gpt2", "transformer_lens"),
        ("gpt_neox", "transformer_lens"),
        ("llama", "nnsight"),
        ("llama", "torch_module"),
    ],
)
def test_a_run_keeps_what_was_read_and_nothing_more(family: str, backend: str):
    model: Any = load_model(hard_model(family), backend=backend, verify=False)
    tokens = prompts(8, 48)
    sites = [Site("resid_pre", layer=n) for n in range(model.shape.n_layers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gc meets objects of libraries that warn when asked
        model.run(tokens[:1, :4], read=sites, positions=[-1])  # what a first call keeps for good
        before = alive()
        run = model.run(tokens, read=sites, positions=[-1])
        after = alive()
    read = sum(v.numel() * v.itemsize for v in (*run.reads.values(), run.logits))
    assert after - before <= 1.05 * read + 4096, "one layer's pattern here is 442,368 bytes"


def test_a_ratio_is_stated_only_where_the_same_was_read_and_counted():
    memory = pytest.importorskip("benchmarks.memory", reason="benchmarks need the source folder")
    whole = {"name": "transformer_lens, everything", "read": 900, "exact": True}
    rows = [
        {"name": "plain hooks", "read": 100, "exact": True, "marks": [[1.0, 2.0]]},
        {"name": "other", "read": 100, "exact": True, "marks": [[1.0, 2.1]]},
        {"name": "old kernel", "read": 100, "exact": False, "marks": [[1.0, 2.0]]},
        {**whole, "marks": [[1.0, 2.0]]},
    ]
    ratios = [r["times_less_than_everything"] for r in memory.judged(rows)]
    assert ratios == [9.0, None, None, 1.0]
    assert [r["agrees"] for r in memory.judged(rows)] == [True, False, True, True]


@pytest.mark.slow
def test_the_quick_benchmark_runs_each_contender_in_a_process_of_its_own(tmp_path: Any):
    memory = pytest.importorskip("benchmarks.memory", reason="benchmarks need the source folder")
    data = memory.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    assert [r["name"] for r in data["rows"]] == list(memory.CONTENDERS)
    assert all(r["agrees"] and r["read"] > 0 for r in data["rows"])
