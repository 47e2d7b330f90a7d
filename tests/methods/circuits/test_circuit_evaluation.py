"""Circuits: found on the toy that is worked by hand, written and read, evaluated to known areas."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interp.engine import Cell, all_edges, sweep
from interp.methods import CircuitEvaluation, PathPatching
from interp.methods.circuits.circuit_evaluation import circuit_at, trapezoid
from interp.methods.circuits.scores import scores_of
from interp.methods.circuits.selecting import greedy_edges, random_edges, top_edges
from interp.models import load_model
from interp.terms import Circuit, Edit, ModelShape, PromptPairs, Site, UsageError, check_dataset
from tests.checkpoints import hard_model
from tests.engine.driven import Remembering, driven, pairs_for, telling_pairs
from tests.engine.test_known_answers import ONE_TOKEN, linear_toy
from tests.twins import edges as twin
from tests.twins.patching import logit_diff


class Holding(Remembering):
    """A context that holds one result."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def result(self, ref: str) -> Any:
        return self.found


def scored(model: Any, task: PromptPairs, **knobs: Any) -> Any:
    data = PathPatching(n_boot=0, verify=0, **knobs).measure(model, task, Remembering())
    spec = {"method": "path_patching", "model": {"weight_hash": getattr(model, "weight_hash", "")}}
    return SimpleNamespace(data=data, spec=spec)


def evaluated(model: Any, task: PromptPairs, found: Any, **knobs: Any) -> tuple[Any, Holding]:
    context = Holding(found)
    spec = CircuitEvaluation(scores="x", **knobs)  # type: ignore[arg-type]
    data = spec.measure(model, task, context)
    check_dataset(data)
    return data, context


@pytest.fixture(scope="module")
def toy() -> Any:
    model = linear_toy()
    model.weight_hash = ""
    return model


@pytest.fixture(scope="module")
def llama() -> tuple[Any, PromptPairs, Any]:
    model = load_model(hard_model("llama").double(), dtype="float64", verify=False)
    task = telling_pairs(hard_model("llama").double(), n=3, length=7)
    return model, task, scored(model, task, direction="noising")


def test_the_toys_largest_edges_are_those_worked_by_hand(toy: Any) -> None:
    """The largest edges lead from the input through heads 0.1 and 1.1 to the logits."""
    found = scored(toy, ONE_TOKEN)
    scores = scores_of(found.data)
    # the two prompts read one coordinate each: a share is the sum of both changes over 50 + 98
    by_hand = {
        (Site("embed"), Site("logits")): (1 + 1) / (25 + 49),
        (Site("z", layer=0, head=1), Site("logits")): (3 + 4) / (25 + 49),
        (Site("z", layer=1, head=1), Site("logits")): (3 * 5 + 4 * 7) / (25 + 49),
        (Site("z", layer=1, head=0), Site("logits")): (5 + 2 * 7) / (25 + 49),
        (Site("z", layer=0, head=1), Site("v", layer=1, head=1)): (3 * 3 + 4 * 4) / (25 + 49),
    }
    for edge, share in by_hand.items():
        assert scores[edge] == pytest.approx(share, abs=1e-12), edge
    order = sorted(by_hand, key=lambda e: -by_hand[e])
    top = top_edges(scores, 2, "size", toy.shape)
    assert top.edges == frozenset()  # logits ← 1.1 ← 0.1, but nothing feeds 0.1: all is pruned
    chain = top_edges(scores, 3, "size", toy.shape)
    fed = (Site("embed"), Site("v", layer=0, head=1))
    # head 0.1 reaches the logits itself, by head 1.0 and by head 1.1
    assert scores[fed] == pytest.approx((7 + (3 + 8) + 25) / (25 + 49), abs=1e-12)
    assert chain.edges == {order[0], order[1], fed}
    greedy = greedy_edges(scores, 3, "size", toy.shape)
    assert greedy.edges == chain.edges
    assert order[0] == (Site("z", layer=1, head=1), Site("logits"))


def test_a_greedy_circuit_grows_from_the_logits(toy: Any) -> None:
    shape = toy.shape
    far = (Site("embed"), Site("v", layer=0, head=0))
    near = (Site("embed"), Site("logits"))
    scores = {far: 9.0, near: 0.1, (Site("z", layer=0, head=0), Site("logits")): 0.05}
    assert greedy_edges(scores, 1, "size", shape).edges == {near}
    assert top_edges(scores, 1, "size", shape).edges == frozenset()
    assert greedy_edges(scores, 3, "size", shape).edges == set(scores)
    signed = {near: -5.0, far: 1.0, (Site("z", layer=0, head=0), Site("logits")): 1.0}
    assert near not in top_edges(signed, 2, "signed", shape).edges
    assert len(top_edges(signed, 2, "signed", shape)) == 2


def test_the_whole_model_is_one_and_nothing_is_zero(llama: Any) -> None:
    model, task, found = llama
    sizes = (0.001, 0.05, 0.2, 1.0)
    data, context = evaluated(
        model, task, found, subsets=2, top=2, draws=1, fractions=sizes, n_boot=50
    )
    assert all(c.passed for c in context.checks) and context.checks
    f = data["faithfulness"].sel(fraction=1.0)
    np.testing.assert_allclose(f.sel(ranking_by=["size", "random"]), 1, atol=1e-9)
    np.testing.assert_allclose(data["without"].sel(fraction=1.0, ranking_by="size"), 0, atol=1e-9)
    np.testing.assert_allclose(data["faithfulness"].sel(fraction=0.001), 0, atol=1e-9)
    counts = data["n_edges"].sel(ranking_by="size").values
    assert (np.diff(counts) >= 0).all() and counts[-1] == data.attrs["edges"]
    best, chance = (
        float(data["faithfulness"].sel(fraction=0.2, ranking_by=r)) for r in ("size", "random")
    )
    assert abs(1 - best) < abs(1 - chance)
    gap = data["metric_model"] - data["metric_nothing"]
    assert abs(float(gap.mean())) > 0.1


def test_a_perfect_ranking_has_the_area_under_one() -> None:
    """CPR of f = 1 at every size is .999, since the areas begin at .001; CMD is 0."""
    from interp.methods.circuits.circuit_evaluation import FRACTIONS

    ones = np.ones(len(FRACTIONS))
    assert trapezoid(ones, FRACTIONS) == pytest.approx(0.999)
    assert trapezoid(np.abs(1 - ones), FRACTIONS) == 0


def test_areas_are_those_of_the_curves(llama: Any) -> None:
    model, task, found = llama
    sizes = (0.02, 0.1, 0.5)
    data, _ = evaluated(model, task, found, subsets=0, top=0, draws=1, n_boot=0, fractions=sizes)
    k = data["fraction"].values
    signed, size = (data["faithfulness"].sel(ranking_by=r).values for r in ("signed", "size"))
    area = sum((signed[i] + signed[i + 1]) / 2 * (k[i + 1] - k[i]) for i in range(len(k) - 1))
    assert float(data["cpr"]) == pytest.approx(area)
    off = np.abs(1 - size)
    area = sum((off[i] + off[i + 1]) / 2 * (k[i + 1] - k[i]) for i in range(len(k) - 1))
    assert float(data["cmd"]) == pytest.approx(area) and area > 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_a_circuit_is_the_twins_run_with_all_other_edges_replaced(family: str) -> None:
    import torch

    module, model = driven(family)
    task = pairs_for(97, n=2, length=7)
    every = all_edges(model.shape)
    circuit = random_edges(every, len(every) // 2, model.shape, 3)
    gone = [e for e in every if e not in circuit.edges]
    assert 10 < len(circuit) < len(every)
    cell = Cell(tuple(Edit(u, "source", reader=v) for u, v in gone))
    found = sweep(model, task, [cell], Remembering(), direction="noising").patched[0]

    def node(site: Site, reads: bool) -> tuple[Any, ...]:
        if site.kind in ("embed", "logits"):
            return (site.kind,)
        if site.kind == "mlp_out":
            return ("mlp", site.layer)
        return (site.kind, site.layer, site.head)

    edges = [(node(u, False), node(v, True)) for u, v in gone]
    heads = {"n_heads": model.shape.n_heads, "n_kv_heads": model.shape.n_kv_heads}
    base, source = torch.tensor(task.clean), torch.tensor(task.corrupt)
    logits = twin.edge_logits(module, family, base, source, edges, **heads)
    wanted = logit_diff(logits, list(task.right), list(task.wrong)).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-8 if family == "gpt2" else 2e-4)


def test_what_an_edge_is_worth_and_sets_are_by_hand(llama: Any) -> None:
    model, task, found = llama
    sizes = (0.1,)
    data, _ = evaluated(
        model, task, found, subsets=3, top=2, draws=1, n_boot=0, examined=0.1, fractions=sizes
    )
    circuit = circuit_at(data, 0.1, model.shape)
    every = all_edges(model.shape)
    assert len(circuit) == data.attrs["examined_edges"]

    def f(kept: Any) -> float:
        gone = tuple(Edit(u, "source", reader=v) for u, v in every if (u, v) not in kept)
        m = sweep(model, task, [Cell(gone)], Remembering(), direction="noising")
        gap = m.base - data["metric_nothing"].values
        return float((m.patched[0] - data["metric_nothing"].values).mean() / gap.mean())

    scores = scores_of(found.data)
    best = max(circuit.edges, key=lambda e: abs(scores[e]))
    loss = f(circuit.edges) - f(circuit.edges - {best})
    known = data["minimality"].values
    assert np.isfinite(known).sum() == 2
    assert np.nanmin(np.abs(known - loss)) < 1e-9 and abs(loss) > 1e-3
    assert data["incompleteness"].shape == (3,) and (data["incompleteness"] >= 0).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_circuit_is_written_and_read(family: str) -> None:
    _, model = driven(family)
    every = all_edges(model.shape)
    circuit = random_edges(every, len(every) // 3, model.shape, 1)
    assert 10 < len(circuit) < len(every) // 3
    text = json.dumps(circuit.to_json(every, {e: 0.5 for e in every}))
    read = json.loads(text)
    assert Circuit.from_json(read, model.shape) == circuit
    assert read["cfg"]["parallel_attn_mlp"] is False
    assert "input->a0.h0<q>" in read["edges"] and read["nodes"]["logits"]["in_graph"]
    group = model.shape.n_heads // model.shape.n_kv_heads
    assert read["edges"]["input->a1.h5<k>"]["score"] == pytest.approx(0.5 / group)
    other = ModelShape(**{**vars(model.shape), "n_heads": 12, "n_kv_heads": 12})
    with pytest.raises(UsageError, match="n_heads is 6"):
        Circuit.from_json(read, other)
    with pytest.raises(UsageError, match="no edge"):
        Circuit.from_json({**read, "edges": {"a": {"in_graph": True}}}, model.shape)


def test_gpt2_small_has_the_nodes_and_edges_of_the_benchmark() -> None:
    shape = ModelShape(
        n_layers=12, n_heads=12, n_kv_heads=12, d_model=768, d_head=64, d_mlp=3072, vocab=50257,
        n_ctx=1024,
    )  # fmt: skip
    every = all_edges(shape)
    found = Circuit(shape, frozenset(every)).to_json(every)
    assert (len(found["nodes"]), len(found["edges"])) == (158, 32_491)
    assert len(Circuit(shape, frozenset(every)).pruned()) == 32_491


@pytest.mark.parametrize(
    ("knobs", "given"),
    [({"fractions": (0.5, 0.1)}, "Fractions"), ({"fractions": (0.0, 1.0)}, "Fractions")],
)
def test_sizes_that_are_no_shares_are_refused(llama: Any, knobs: Any, given: str) -> None:
    with pytest.raises(UsageError, match=given):
        evaluated(llama[0], llama[1], llama[2], **knobs)


def test_runs_without_edges_and_other_weights_are_refused(llama: Any) -> None:
    model, task, found = llama
    nodes = SimpleNamespace(data=found.data.drop_vars("effect"), spec=found.spec)
    with pytest.raises(UsageError, match="no scores of edges"):
        evaluated(model, task, nodes)
    stranger = SimpleNamespace(data=found.data, spec={"method": "x", "model": {"weight_hash": "y"}})
    with pytest.raises(UsageError, match="other weights"):
        evaluated(model, task, stranger)


def test_equal_metrics_have_no_share(llama: Any) -> None:
    model, task, found = llama
    one, two = task.select([0]), task.select([0])
    both = PromptPairs.from_tokens(
        [one.clean[0], two.corrupt[0]],
        [one.corrupt[0], two.clean[0]],
        [one.right[0]] * 2,
        [one.wrong[0]] * 2,
    )
    data, _ = evaluated(
        model, both, found, subsets=0, top=0, draws=1, n_boot=0, fractions=(0.1, 1.0)
    )
    assert data.attrs["undefined_reason"] and np.isnan(data["faithfulness"]).all()
