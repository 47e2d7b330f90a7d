"""Devices: nothing strays to the CPU where a model lives elsewhere; what 'auto' means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from interp.models import load_model, placing
from interp.models.taps import Session
from interp.terms import Edit, RefusedError, Site, UsageError
from tests.checkpoints import FAMILY_NAMES, hard_model, prompts

BACKENDS = ("transformer_lens", "nnsight", "torch_module")


class Unmeasured(TorchFunctionMode):
    """On torch's meta device there are shapes and devices and no numbers: any number is 1."""

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = getattr(f, "__name__", "")
        if asked in ("item", "__float__", "__int__", "__bool__") and args[0].is_meta:
            return {"__int__": 1, "__bool__": True}.get(asked, 1.0)
        return f(*args, **(kwargs or {}))


def away(family: str, backend: str) -> Any:
    """A model on torch's meta device, which refuses to mix with the CPU as a real one does."""
    model: Any = load_model(hard_model(family), backend=backend, verify=False)
    model.module().to("meta")
    if backend == "transformer_lens":  # its split of a fused projection is no part of the module
        model.wrapped().to("meta")
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_run_mixes_no_devices(family: str, backend: str):
    with Unmeasured():
        model = away(family, backend)
        assert model.device.type == "meta"
        tokens = prompts(2, 8)
        run = model.run(tokens, read=model.sites, positions=[-1, 2], vocab=[5, 1])
        assert run.logits.device.type == "meta" and run.logits.shape == (2, 2, 2)
        edits = []
        for site, value in run.reads.items():
            assert value.device.type == "meta", site
            if site.kind != "logits":  # values come from the CPU, as a person's arrays do
                edits.append(Edit(site, torch.ones(value.shape), mode="add"))
        edits.append(Edit(Site("z", layer=1, head=1, position=(0, 3)), 0.5))
        model.run(tokens, edits=edits, read=[Site("resid_post", layer=3)], positions=[-1])
        grad = model.run(tokens, read=[Site("embed")], grad=True)
        (slope,) = torch.autograd.grad(grad.logits.sum(), [grad.reads[Site("embed")]])
        assert slope.device.type == "meta"


def test_a_device_that_is_mixed_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    """The control of the test above: one tensor left on the CPU raises."""
    before = Session.visit

    def stray(self: Session, watch: Any, value: torch.Tensor) -> Any:
        before(self, watch, value)
        return value + torch.ones(value.shape)

    monkeypatch.setattr(Session, "visit", stray)
    with Unmeasured(), pytest.raises(RuntimeError, match="device"):
        model = away("llama", "torch_module")
        model.run(prompts(1, 6), edits=[Edit(Site("resid_pre", layer=1), "zero")])


def test_nnsight_leaves_the_model_on_the_device_asked_for(monkeypatch: pytest.MonkeyPatch):
    """transformers' pipeline, which nnsight builds, moves a model to the first accelerator."""
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    model = load_model(hard_model("gpt2"), backend="nnsight")
    assert model.device.type == "cpu" and all(c.passed for c in model.checks)


def test_auto_takes_the_accelerator_with_room_for_the_whole_model(
    monkeypatch: pytest.MonkeyPatch,
):
    assert load_model("zoo:random-gpt2", device="auto", verify=False).device.type in ("cpu", "cuda")
    free = {0: 2_000, 1: 9_000}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: (free[n], 10_000))
    assert placing.read_device("auto", 1_000) == torch.device("cuda:1")
    assert placing.read_device("auto", 8_000) == torch.device("cpu"), "no room to work in"
    free.clear()
    assert placing.read_device("auto", 1_000) == torch.device("cpu")
    with pytest.raises(UsageError, match="no CUDA device"):
        placing.read_device("cuda")
    with pytest.raises(UsageError, match="'auto'"):
        placing.read_device("gpu")


def test_a_module_spread_over_devices_is_refused_and_one_on_a_single_device_is_not():
    module = hard_model("gpt2")
    module.hf_device_map = {"": "cpu"}
    load_model(module, verify=False)
    module.hf_device_map = {"transformer.wte": 0, "transformer.h": 1, "lm_head": "cpu"}
    with pytest.raises(RefusedError, match=r"several devices \(0, 1, cpu\).*device='auto'"):
        load_model(module)


@pytest.mark.parametrize("dtype", ("float64", "float32", "bfloat16", "float16"))
def test_a_model_placed_by_device_map_auto_is_read_like_any_other(dtype: str, tmp_path: Any):
    pytest.importorskip("accelerate", reason="device_map needs accelerate (the extra 'gpu')")
    import transformers

    from interp.models.loading import quiet
    from tests.checkpoints import save_checkpoint

    folder = save_checkpoint(hard_model("llama"), tmp_path / "one")
    with quiet():
        placed = transformers.AutoModelForCausalLM.from_pretrained(
            folder, device_map="auto", dtype=getattr(torch, dtype)
        )
    if len(set(map(str, getattr(placed, "hf_device_map", {}).values()))) > 1:
        pytest.skip("this machine spreads even a tiny model over several devices")
    model: Any = load_model(placed)
    assert model.dtype == getattr(torch, dtype)
    assert all(c.passed for c in model.checks), [c for c in model.checks if not c.passed]
