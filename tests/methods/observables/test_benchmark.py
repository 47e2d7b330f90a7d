"""The benchmark states a rate only where both ways give the same numbers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the benchmark runs a model")

from benchmarks import observables  # noqa: E402


def test_batched_and_one_by_one_agree_on_a_tiny_model(tmp_path):
    threads = torch.get_num_threads()
    data = observables.main(
        ["--quick", "--dtype", "float64", "--threads", str(threads), "--out", str(tmp_path)]
    )
    assert data["ranking"]["apart"] < 1e-9 and data["paths"]["apart"] < 1e-9
    assert data["paths"]["evaluations"] > data["paths"]["sample"] == 200
    assert (tmp_path / "observables-tiny-cpu.md").read_text().count("extensions a second") == 1
    data["paths"]["apart"] = 1.0
    assert "answers differ" in observables.page(data)
