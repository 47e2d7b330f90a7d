"""The benchmark compares equal answers, and the arithmetic it saves is counted by torch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the benchmark runs models")

from benchmarks import depth  # noqa: E402


def test_answers_agree_and_fewer_operations_are_counted():
    args = depth.parse(["--quick", "--traces", "0", "--dtype", "float64", "--rounds", "1"])
    found = depth.measure(args, lambda _: None)
    for row in found["rows"]:
        assert row["apart"] < 1e-9 and row["ratio"] is not None
    skips, erasures = (row["flops"] for row in found["rows"])
    assert skips > 1.2 and erasures > 1.6


def test_a_wrong_answer_has_no_ratio(monkeypatch):
    right = depth.looped_skips
    monkeypatch.setattr(depth, "looped_skips", lambda p: {k: v * 1.01 for k, v in right(p).items()})
    args = depth.parse(["--quick", "--traces", "0", "--dtype", "float64", "--rounds", "1"])
    found = depth.measure(args, lambda _: None)
    assert found["rows"][0]["ratio"] is None and "answers differ" in depth.page(
        {**found, "options": vars(args)}
    )
