"""Each self-check passes on every family (test_transformer_lens) and here turns amber."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from interp.models import load_model
from interp.models.checks import self_checks, spread, tolerance
from interp.models.layouts import Layout
from interp.models.taps import Tap
from interp.terms import Edit, Site
from tests.models.wrapped import hard_model, prompts, wrapped


def checked(model: Any, reference: Any = None) -> dict[str, Any]:
    loaded = model.loaded
    found = self_checks(model, loaded.probe, loaded.reference if reference is None else reference)
    return {c.name: c for c in found}


def failing(model: Any, **more: Any) -> set[str]:
    return {n for n, c in checked(model, **more).items() if not c.passed}


@contextmanager
def retapped(model: Any, kind: str, change: Any) -> Iterator[None]:
    """The site ``kind`` stands somewhere else."""
    right = type(model)._tap

    def wrong(site: Site) -> Tap:
        return change(right(model, site)) if site.kind == kind else right(model, site)

    model._tap = wrong
    try:
        yield
    finally:
        del model._tap


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(hard_model("llama", seed=1))


def test_an_untouched_model_passes_everything_in_under_a_second(model: Any):
    import time

    found = checked(model)
    assert list(found) == [
        "unwrapped_logits",
        "blocks_logits",
        "telescopes",
        "identity_patch",
        "edits_fire",
        "scales_fire",
    ]
    assert all(c.passed for c in found.values()), found
    started = time.process_time()
    checked(model)
    assert time.process_time() - started < 1.0


def test_another_function_than_the_models_turns_unwrapped_logits_amber(model: Any):
    bridge = model.wrapped()
    handle = bridge.blocks[1].mlp.hook_out.register_forward_hook(lambda m, a, o: o * 1.001)
    try:
        assert "unwrapped_logits" in failing(model)
    finally:
        handle.remove()
    assert not failing(model)


def test_a_changed_weight_turns_both_comparisons_with_the_unwrapped_model_amber():
    model = load_model(hard_model("gpt2", seed=1))
    with torch.no_grad():
        model.module().get_parameter("transformer.ln_f.weight")
        next(p for n, p in model.module().named_parameters() if "ln_f" in n).mul_(1.01)
    assert failing(model) == {"unwrapped_logits", "blocks_logits"}


def test_blocks_that_leave_out_the_rotation_turn_blocks_logits_amber(model: Any):
    block = model.blocks.layers[0]
    rotary, block.rotary = block.rotary, None
    try:
        assert failing(model) == {"blocks_logits"}
    finally:
        block.rotary = rotary


def test_a_sublayer_read_before_its_post_norm_turns_telescopes_amber():
    model = load_model(hard_model("gemma2", seed=1))
    before = model._part(1, "self_attn")
    with retapped(model, "attn_out", lambda tap: replace(tap, module=before)):
        assert failing(model) == {"telescopes"}


def test_a_resid_mid_that_misses_the_skip_connection_turns_telescopes_amber(model: Any):
    with retapped(model, "resid_mid", lambda tap: replace(tap, in_place=False)):
        found = checked(model)
    assert {n for n, c in found.items() if not c.passed} == {"telescopes"}
    assert "resid_mid" in found["telescopes"].note


def test_an_edit_that_is_put_back_wrongly_turns_identity_patch_amber(model: Any):
    class Turned:
        def decode(self, raw: Any) -> Any:
            return raw

        def encode(self, value: Any, raw: Any) -> Any:
            return value.flip(-1)

    with retapped(model, "mlp_post", lambda tap: replace(tap, layout=Turned())):
        assert "identity_patch" in failing(model)


def test_an_edit_that_nothing_reads_turns_edits_fire_amber(model: Any):
    idle = torch.nn.Identity()
    right = model._call

    def call(*args: Any) -> Any:
        idle(torch.zeros(args[0].shape[0], 1, 1, args[0].shape[1]))  # is reached, feeds nothing
        return right(*args)

    model._call = call
    try:
        with retapped(model, "pattern", lambda tap: Tap(idle, layout=Layout("heads_first"))):
            found = checked(model)
    finally:
        del model._call
    assert not found["edits_fire"].passed
    assert "pattern L" in found["edits_fire"].note and "do not trust" in found["edits_fire"].note


def test_a_divisor_that_cannot_be_changed_turns_scales_fire_amber(model: Any):
    class Stuck:
        def __init__(self, right: Any) -> None:
            self.right = right

        def measure(self, x: Any) -> Any:
            return self.right.measure(x)

        def apply(self, out: Any, *rest: Any) -> Any:
            return out

    with retapped(model, "ln2_scale", lambda tap: replace(tap, divisor=Stuck(tap.divisor))):
        found = checked(model)
    assert {n for n, c in found.items() if not c.passed} == {"scales_fire"}
    assert found["scales_fire"].value == 0


def test_logits_that_are_not_finite_never_pass(model: Any):
    reference = model.loaded.reference.clone()
    reference[0, 0, 0] = math.nan
    found = checked(model, reference)
    assert math.isnan(found["unwrapped_logits"].value)
    assert not found["unwrapped_logits"].passed


def test_a_site_that_is_never_reached_is_an_amber_line_not_a_crash(model: Any):
    with retapped(model, "z", lambda tap: replace(tap, module=torch.nn.Identity())):
        found = checked(model)
    assert not any(c.passed for n, c in found.items() if n == "self_checks")
    assert "reached 0 times" in found["self_checks"].note


def test_the_telescope_and_the_identity_hold_for_every_layer_and_position_by_themselves():
    model, tokens = wrapped("olmo2"), prompts(2, 9)
    base = model.run(tokens, read=model.sites)
    for site in model.sites:
        same = model.run(tokens, edits=[Edit(site, base.reads[site])])
        assert spread(same.logits, base.logits) < 1e-12 and same.fired == (0.0,), site


def test_tolerances_grow_with_depth_where_rounding_does():
    assert tolerance(torch.float64, 40) == 1e-10
    assert tolerance(torch.float32, 12) == pytest.approx(12e-5)
    assert tolerance(torch.bfloat16, 4) > tolerance(torch.float16, 4) > tolerance(torch.float32, 4)
