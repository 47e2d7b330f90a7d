"""Models on a CUDA device: the same numbers as on the CPU, in every dtype, on every back-end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.engine import Cell, sweep
from interp.models import load_model
from interp.terms import Edit, Site
from tests.checkpoints import FAMILY_NAMES, hard_model, prompts
from tests.engine.driven import Remembering, telling_pairs

pytestmark = pytest.mark.gpu

BACKENDS = ("transformer_lens", "nnsight", "torch_module")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_reads_edits_and_logits_are_the_cpus(family: str, backend: str):
    there: Any = load_model(hard_model(family).double(), backend=backend, device="cuda")
    here: Any = load_model(hard_model(family).double(), backend=backend)
    assert there.device.type == "cuda"
    assert all(c.passed for c in there.checks), [c for c in there.checks if not c.passed]
    tokens = prompts(2, 10)
    edits = [Edit(Site("resid_pre", layer=1, position=4), 0.7, mode="add")]
    a, b = (m.run(tokens, edits=edits, read=m.sites, positions=[-1]) for m in (there, here))
    assert float((a.logits.cpu() - b.logits).abs().max()) < 1e-5 * float(b.logits.std())
    for site, value in b.reads.items():
        assert float((a.reads[site].cpu() - value).abs().max()) < 1e-4 * float(value.std()), site


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_self_checks_hold_in_every_dtype(family: str, dtype: str):
    torch.backends.cuda.matmul.allow_tf32 = False
    model: Any = load_model(hard_model(family), device="cuda", dtype=dtype)
    assert all(c.passed for c in model.checks), [c for c in model.checks if not c.passed]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_packed_sweep_is_the_cpus(family: str):
    pairs = telling_pairs(hard_model(family), n=2, length=7)
    cells = [
        Cell((Edit(Site(kind, layer=layer, position=p), "source"),))
        for kind in ("resid_pre", "attn_out", "mlp_out")
        for layer in (0, 2)
        for p in (5, None)
    ]
    a, b = (
        sweep(load_model(hard_model(family).double(), device=d), pairs, cells, Remembering())
        for d in ("cuda", "cpu")
    )
    scale = np.abs(b.source - b.base).max()
    assert np.abs(b.patched - b.base).max() >= 0.1 * scale > 0
    assert np.abs(a.patched - b.patched).max() < 1e-4 * scale


def test_auto_takes_the_accelerator_and_a_device_stays_the_one_asked_for():
    assert load_model("zoo:random-gpt2", device="auto").device.type == "cuda"
    for backend in BACKENDS:
        assert load_model("zoo:random-gpt2", backend=backend).device.type == "cpu"
