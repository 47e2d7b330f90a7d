from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from interp.models import doctor, load_model
from interp.models.doctor import readable
from interp.terms import InterpError
from tests.models.plain import MLP_SITES, SITES
from tests.models.test_torch_module import tiny
from tests.models.wrapped import hard_model


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor("zoo:random-llama")


def test_the_report_is_plain_json_with_every_part(report: dict[str, Any]):
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {
        "model",
        "shape",
        "checks",
        "capabilities",
        "versions",
        "drift",
        "seconds",
        "ok",
    }
    assert report["ok"] and all(c["passed"] for c in report["checks"])
    assert report["model"]["id"] == "zoo:random-llama"
    assert report["versions"]["torch"] == torch.__version__.split("+")[0] or (
        report["versions"]["torch"] == torch.__version__
    )
    model = load_model("zoo:random-llama")
    assert report["model"]["weight_hash"] == model.weight_hash
    assert [c["name"] for c in report["capabilities"]] == [c.name for c in model.capabilities()]


def test_rounding_grows_as_the_dtype_shrinks(report: dict[str, Any]):
    drift = {row["dtype"]: row for row in report["drift"]}
    assert drift["float64"]["max"] == 0 and drift["float64"]["same_top"] == 1
    sizes = [drift[d]["rms"] for d in ("float64", "float32", "float16", "bfloat16")]
    assert sizes == sorted(sizes) and sizes[1] > 0
    assert sizes[1] < 1e-5 and 1e-4 < sizes[3] < 0.2


def test_the_text_says_what_holds_what_it_can_and_what_it_cannot(report: dict[str, Any]):
    text = readable(report)
    for words in (
        "zoo:random-llama",
        "LlamaForCausalLM",
        "Self-checks",
        "resid_mid",
        "Cannot",
        "no norm after attention",
        "bfloat16",
        "transformers",
        "(2 key/value)",
    ):
        assert words in text, words
    assert max(map(len, text.splitlines())) < 130


def test_a_failing_check_is_shown_and_the_report_is_not_ok(monkeypatch: pytest.MonkeyPatch):
    from interp.models import checks

    monkeypatch.setattr(checks, "tolerance", lambda dtype, depth: -1.0)
    report = doctor("zoo:random-gpt2", drift=False)
    assert not report["ok"] and report["drift"] == []
    text = readable(report)
    assert "FAIL logits of the wrapped model" in text and "another function than" in text


def test_a_module_of_ones_own_is_examined_too():
    report = doctor(
        tiny(), example=[[1, 2, 3]], site_map={**SITES, **MLP_SITES, "n_heads": 3}, dtype="float64"
    )
    assert report["ok"] and report["model"]["backend"] == "torch_module"
    assert report["drift"][1]["rms"] > 0
    assert "whole pass" in readable(report)


def test_a_dtype_that_overflows_is_said_not_hidden():
    module = hard_model("gpt2")
    with torch.no_grad():
        module.get_submodule("transformer.h.0.mlp.c_proj").weight.mul_(1e6)
    rows = {r["dtype"]: r for r in doctor(module)["drift"]}
    assert rows["float16"]["max"] is None and "not finite" in rows["float16"]["note"]
    assert rows["bfloat16"]["max"] is not None


def test_a_model_that_is_not_there_is_a_sentence():
    with pytest.raises(InterpError, match="zoo:nothing"):
        doctor("zoo:nothing")


def test_every_backend_can_be_examined():
    for backend in ("nnsight", "torch_module"):
        report = doctor("zoo:random-gpt2", backend=backend, drift=False)
        assert report["ok"] and report["model"]["backend"] == backend
