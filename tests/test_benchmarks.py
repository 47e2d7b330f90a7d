"""The benchmark compares like with like: cost model, judge, and rivals that measure the same."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the benchmarks run models")

from benchmarks import attribution, page, patching, rivals, scaling, sweeps, timing  # noqa: E402


def problem(shape: str, tokens: int, shared: int, pairs: int = 2, **fields) -> rivals.Problem:
    args = {"shape": shape, "seed": 0, "dtype": "float64", "device": "cpu", "pairs": pairs}
    return patching.make_problem(argparse.Namespace(**{**args, **fields}), tokens, shared)


@pytest.fixture(scope="module")
def tiny() -> rivals.Problem:
    return problem("tiny", 7, 2)


class Shape:
    """GPT-2 small's sizes without its weights: the cost model asks for no more."""

    n_layer, n_embd, n_head, vocab_size = 12, 768, 12, 50257

    def __init__(self, tokens, shared):
        self.config = self
        clean = torch.arange(tokens)[None]
        corrupt = clean.clone()
        corrupt[:, shared:] += 100
        self.problem = rivals.Problem(self, clean, corrupt, clean[:, 0], clean[:, 1])


@pytest.mark.parametrize(
    ("sweep", "shared", "published"),
    [
        ("resid_pre", 0, 5.7),
        ("resid_pre", 10, 36),
        ("z", 0, 3.2),
        ("z", 10, 8.5),
        ("z_position", 0, 6.7),
        ("z_position", 10, 41),
    ],
)
def test_the_cost_model_gives_the_counted_ratios_of_gpt2_small(sweep, shared, published):
    given = Shape(16, shared).problem
    site, axes = patching.SWEEPS[sweep]
    cells = patching.cells_of(site, axes, given)
    ratio = patching.naive_flops(len(cells), given) / patching.ideal_flops(site, cells, given)
    assert ratio == pytest.approx(published, rel=0.02)


def test_the_naive_cost_is_what_torch_counts(tiny):
    counted = timing.flops_of(lambda: tiny.model(tiny.corrupt))
    assert counted == pytest.approx(patching.naive_flops(1, tiny), rel=0.02)


@pytest.mark.parametrize("name", sorted(rivals.RIVALS))
@pytest.mark.parametrize("sweep", sorted(patching.SWEEPS))
def test_every_rival_measures_what_the_plain_loop_measures(tiny, name, sweep):
    pytest.importorskip({"hooks": "torch", "hooks_last": "torch"}.get(name, name))
    site, axes = patching.SWEEPS[sweep]
    cells = patching.sample(patching.cells_of(site, axes, tiny), 9)
    with rivals.quiet():
        twin, ends = patching.reference(site, cells, tiny)
        rival = rivals.RIVALS[name](tiny)
        for k in [k for k in rival.options if abs(k) <= 4]:
            values = rival.sweep(site, cells, k)
            assert values.shape == twin.shape
            error = np.abs(values - twin).max() / twin.std()
            # its metric is read in float32, whatever the model computes in
            assert error < 1e-5, f"{k} cells a forward"
    assert np.abs(twin - ends[0]).max() > 0.1 * np.abs(ends[1] - ends[0]).mean()


@pytest.mark.parametrize(
    ("change", "agrees"),
    [
        (lambda twin: twin, True),
        (lambda twin: twin + 1e-3 * twin.std(), False),
        (lambda twin: twin[::-1], False),
    ],
    ids=["same", "off by a thousandth", "cells swapped"],
)
def test_no_ratio_is_stated_when_the_answers_differ(change, agrees):
    twin = np.random.default_rng(0).normal(size=(6, 3))
    ends = np.stack([np.zeros(3), np.ones(3)])
    answer = patching.judge(change(twin), twin, ends, "float32", 12)
    assert answer.agrees is agrees
    rows = {
        "interp": patching.Row("interp", timing.Timing([1.0], [1.0]), answer, 1.0, 0.0),
        "transformer_lens.patching": patching.Row(
            "transformer_lens.patching", timing.Timing([7.0], [7.0]),
            patching.judge(twin, twin, ends, "float32", 12), 1.0, 0.0,
        ),
    }  # fmt: skip
    ratio = patching.line(rows["interp"], rows, 1e9)["times_faster_than_transformer_lens"]
    assert ratio == (7.0 if agrees else None)


def test_a_grid_of_zeros_proves_nothing():
    twin = np.full((6, 3), 1e-9) * np.arange(6)[:, None]
    ends = np.stack([np.zeros(3), np.ones(3)])
    assert not patching.judge(twin, twin, ends, "float32", 12).agrees


def test_a_sample_holds_the_strong_cell_and_few_others(tiny):
    cells = patching.cells_of(*patching.SWEEPS["z_position"], tiny)
    for strong in (cells[0], cells[33], cells[-1]):
        some = patching.sample(cells, 9, strong)
        assert strong in some and len(some) <= 10 and len(set(some)) == len(some)


def test_a_scaled_timing_states_the_whole_piece_of_work():
    assert timing.Timing(wall=[1.0, 3.0, 2.0], cpu=[1.0], scale=4.0).median == 8.0
    assert timing.Timing(wall=[1.0, 3.0, 2.0], cpu=[1.0], scale=4.0).best == 4.0


def test_contenders_take_turns():
    seen: list[str] = []
    work = {name: (lambda name=name: seen.append(name), 1.0) for name in "ab"}
    timing.interleave(work, 2, torch.device("cpu"))
    assert seen == ["a", "b", "a", "b"]


def test_results_name_the_machine_and_no_person(tmp_path):
    facts = timing.machine(torch.device("cpu"))
    path = timing.write("x", {"machine": facts, "t": timing.Timing([1.0])}, "# X\n\n", tmp_path)
    assert json.loads(path.read_text())["machine"]["threads"] == torch.get_num_threads()
    assert "hostname" not in path.read_text() and facts["packages"]["torch"]
    assert path.with_suffix(".md").read_text() == "# X\n"


@pytest.mark.slow
def test_the_quick_benchmark_runs_and_every_contender_agrees(tmp_path, capsys):
    data = patching.main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    assert {r["name"] for s in data["sweeps"] for r in s["rows"]} >= {"interp", "nnsight loop"}
    assert all(r["agrees"] for s in data["sweeps"] for r in s["rows"])
    assert "of matmul peak" in capsys.readouterr().out


def test_the_performance_page_states_what_the_results_hold():
    text = page.PAGE.read_text(encoding="utf-8")
    assert set(page.BLOCKS) <= {m[2] for m in page.BLOCK.finditer(text)}
    assert page.filled(text) == text


def test_a_later_run_replaces_its_own_sweep_and_keeps_the_others(tmp_path):
    def sweep(case, key, cells):
        facts = {"machine": timing.machine(torch.device("cpu")), "pairs": 1, "tokens": 3}
        rates = {"matmul_rate": 1e9, "ideal_flops": 1.0, "naive_flops": 2.0, "rows": []}
        return {"case": case, "sweep": key, "cells": cells, "dtype": "float32", **facts, **rates}

    args = argparse.Namespace(out=tmp_path, shape="gpt2")
    patching.keep("x", args, [sweep("plain", "z", 1), sweep("shared", "z", 2)])
    path = patching.keep("x", args, [sweep("plain", "z", 5), sweep("plain", "resid_pre", 3)])
    assert [s["cells"] for s in json.loads(path.read_text())["sweeps"]] == [3, 5, 2]
    assert path.with_suffix(".md").read_text().count("### ") == 3


@pytest.mark.parametrize("made", ["Interp", "Run", "TransformerLens"])
def test_every_attribution_is_that_of_the_plain_loop_in_float64(tiny, made):
    pytest.importorskip("transformer_lens")
    arguments = {"Interp": ("transformer_lens", "none"), "Run": ("transformer_lens",)}
    with rivals.quiet():
        wanted = attribution.reference(tiny)
        found = getattr(attribution, made)(tiny, *arguments.get(made, ()))()
    error, agrees = attribution.judge(found, wanted, "float64", 3)
    assert agrees and error < 1e-10
    assert min(np.abs(v).max() for v in wanted.values()) > 1e-4
    for kind in attribution.KINDS:
        wrong = {**wanted, kind: 1.001 * wanted[kind] + 1e-3 * wanted[kind].std()}
        assert not attribution.judge(wrong, wanted, "float64", 3)[1]


def test_a_sweep_costs_little_more_than_the_formula(tmp_path, capsys):
    assert scaling.main(["--quick", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "scaling-cpu-float32.json").read_text())
    rows = {r["grown"]: [] for r in data["rows"]}
    for r in data["rows"]:
        rows[r["grown"]].append(r["counted"])
        assert 0.95 <= r["counted"] / r["ideal"] <= 1.7  # tiny sizes: the two runs weigh more
        assert r["naive"] > 5 * r["counted"]
    assert all(grown == sorted(grown) and grown[0] > 0 for grown in rows.values())


@pytest.mark.slow
def test_every_sweep_agrees_with_one_forward_a_cell(tmp_path):
    found = sweeps.main(["--quick", "--families", "gemma2", "--out", str(tmp_path)])
    assert {row["sweep"] for row in found["rows"]} == set(sweeps.SWEEPS)
    assert all(row["agrees"] and row["seconds"] > 0 for row in found["rows"]), found["rows"]
    assert (tmp_path / "sweeps-cpu.md").read_text().count("×)") == len(sweeps.SWEEPS)
