"""The packed engine against one plain forward a cell, on hard checkpoints of every family."""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from interp.engine import Cell, estimate, sweep, undriven
from interp.engine import sweeps as sweeps_module
from interp.terms import CancelledError, Edit, PromptPairs, Site, TooLargeError
from tests.checkpoints import FAMILY_NAMES
from tests.engine.driven import Remembering, driven, pairs_for
from tests.twins import patching as twin

VOCAB = 97
HEADS = 6
KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any]]:
    return {name: driven(name) for name in FAMILY_NAMES}


def tensors(pairs: PromptPairs, direction: str) -> tuple[torch.Tensor, torch.Tensor]:
    clean, corrupt = torch.tensor(pairs.clean), torch.tensor(pairs.corrupt)
    return (corrupt, clean) if direction == "denoising" else (clean, corrupt)


def scores(logits: torch.Tensor, pairs: PromptPairs) -> np.ndarray:
    return twin.logit_diff(logits, list(pairs.right), list(pairs.wrong)).detach().numpy()


def cell(
    kind: str, layer: int, position: Any = None, head: int | None = None, with_: Any = "source"
) -> Cell:
    return Cell((Edit(Site(kind, layer=layer, head=head, position=position), with_),))


def same(ours: np.ndarray, theirs: np.ndarray, base: np.ndarray, tolerance: float = 1e-10) -> None:
    """Equal relative to the spread, and the grid has content."""
    assert np.abs(theirs - base).max() >= 0.1 * np.abs(theirs).std()
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, theirs.std())


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_sweep_equals_one_forward_a_cell(
    models: Any, family: str, kind: str, direction: str
) -> None:
    module, model = models[family]
    if kind == "resid_mid" and model.shape.parallel:
        pytest.skip(reason="a parallel block has no resid_mid")
    pairs = pairs_for(VOCAB, n=3, length=8)
    base, source = tensors(pairs, direction)
    heads = [None, 0, HEADS - 1] if kind == "z" else [None]
    places = [0, 2, 3, 5, 6, 7, None]
    wanted, cells = [], []
    for layer, position, head in itertools.product((0, 1, 3), places, heads):
        cells.append(cell(kind, layer, position, head))
        logits = twin.patched_logits(
            module, family, base, source, kind, layer, position=position, head=head, n_heads=HEADS
        )
        wanted.append(scores(logits, pairs))
    found = sweep(model, pairs, cells, Remembering(), direction=direction)
    same(found.patched, np.stack(wanted), scores(module(base).logits, pairs))
    assert found.noise <= 1e-10
    assert not found.undefined.any()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", ["q", "k", "v"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_queries_keys_and_values_equal_the_twin(
    models: Any, family: str, kind: str, direction: str
) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3, length=8)
    base, source = tensors(pairs, direction)
    heads = model.shape.n_heads if kind == "q" else model.shape.n_kv_heads
    wanted, cells = [], []
    for layer, position, head in itertools.product((0, 1, 3), (2, 5, 7, None), (0, heads - 1)):
        cells.append(cell(kind, layer, position, head))
        logits = twin.patched_qkv_logits(
            module, family, base, source, kind, layer, head, n_heads=heads, position=position
        )
        wanted.append(scores(logits, pairs))
    found = sweep(model, pairs, cells, Remembering(), direction=direction)
    same(found.patched, np.stack(wanted), scores(module(base).logits, pairs), 1e-9)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_patterns_equal_the_twin_by_row_and_by_entry(models: Any, family: str) -> None:
    module, model = models[family]
    usual = module.config._attn_implementation
    module.set_attn_implementation("eager")  # gives its patterns out, some in float32
    try:
        pairs = pairs_for(VOCAB, n=3, length=8)
        base, source = tensors(pairs, "denoising")
        wanted, cells = [], []
        for layer, query, head, key in itertools.product((0, 2, 3), (5, 7), (0, 4), (None, 4)):
            site = Site("pattern", layer=layer, head=head, position=query, key=key)
            cells.append(Cell((Edit(site),)))
            logits = twin.patched_pattern_logits(
                module, family, base, source, layer, head, query, n_heads=HEADS, key=key
            )
            wanted.append(scores(logits, pairs))
        found = sweep(model, pairs, cells, Remembering())
        base_scores = scores(module(base).logits, pairs)
        assert np.abs(np.stack(wanted) - base_scores).max() > 0.05
        np.testing.assert_allclose(found.patched, np.stack(wanted), rtol=0, atol=2e-5)
    finally:
        module.set_attn_implementation(usual)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_groups_patterns_and_values_are_its_heads(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB)
    shape = model.shape
    size = shape.n_heads // shape.n_kv_heads
    for layer in (1, 3):
        heads = range(size)  # the query heads of key/value head 0
        both = [Edit(Site("v", layer=layer, head=0))] + [
            Edit(Site("pattern", layer=layer, head=h)) for h in heads
        ]
        whole = [Edit(Site("z", layer=layer, head=h)) for h in heads]
        found = sweep(model, pairs, [Cell(tuple(both)), Cell(tuple(whole))], Remembering())
        assert np.abs(found.patched[1] - found.base).max() > 1e-3
        np.testing.assert_allclose(found.patched[0], found.patched[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_patching_every_position_gives_the_source_run(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB)
    cells = [cell("resid_pre", layer) for layer in range(4)] + [cell("resid_post", 3)]
    found = sweep(model, pairs, cells, Remembering())
    assert np.abs(found.patched - found.source).max() <= 1e-10
    assert np.abs(found.source - found.base).max() > 0.1


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_denoising_equals_noising_with_the_runs_exchanged(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB)
    cells = [cell("attn_out", n, p) for n in range(4) for p in range(9)]
    one = sweep(model, pairs, cells, Remembering(), direction="denoising")
    other = sweep(model, pairs.swapped(), cells, Remembering(), direction="noising")
    np.testing.assert_allclose(one.patched, other.patched, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_all_heads_together_are_the_attention_output(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB)
    every = [
        Cell(tuple(Edit(Site("z", layer=n, head=h, position=p)) for h in range(HEADS)))
        for n in range(4)
        for p in (4, 7, 8)
    ]
    whole = [cell("attn_out", n, p) for n in range(4) for p in (4, 7, 8)]
    a = sweep(model, pairs, every, Remembering())
    b = sweep(model, pairs, whole, Remembering())
    assert np.abs(b.patched - b.base).max() > 0.05
    np.testing.assert_allclose(a.patched, b.patched, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_cells_before_the_first_difference_are_inert(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB, n=1, shared=4)
    found = sweep(
        model, pairs, [cell("resid_pre", n, p) for n in range(4) for p in range(9)], Remembering()
    )
    grid = found.inert.reshape(4, 9)
    assert grid[:, :4].all() and not grid[:, 4].any()
    assert (found.patched[found.inert] == found.base[0]).all()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_embedding_equals_the_twin(models: Any, family: str) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3)
    base, source = tensors(pairs, "denoising")
    cells = [Cell((Edit(Site("embed", position=p)),)) for p in (3, 5, None)]
    cells.append(Cell((Edit(Site("embed", position=5), "zero"),)))
    found = sweep(model, pairs, cells, Remembering())
    lent = twin.read(module, family, "embed", 0, source)
    for row, position, value in zip(
        found.patched, (3, 5, None, 5), (lent, lent, lent, 0 * lent), strict=True
    ):
        wanted = twin.patched_logits(
            module, family, base, None, "embed", 0, position=position, value=value
        )
        same(row, scores(wanted, pairs), found.base)
    np.testing.assert_allclose(found.patched[2], found.source, atol=1e-9)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("kind", ["resid_pre", "z", "mlp_out"])
def test_zero_and_given_values_equal_the_twin(models: Any, family: str, kind: str) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3)
    base, source = tensors(pairs, "denoising")
    lent = twin.read(module, family, kind, 2, source).roll(1, 0)
    shape = (3, 9, HEADS, -1) if kind == "z" else lent.shape
    cells = [cell(kind, 2, 8, with_="zero"), cell(kind, 2, 8, with_=lent.reshape(shape).numpy())]
    found = sweep(model, pairs, cells, Remembering())
    for row, value in zip(found.patched, (torch.zeros_like(lent), lent), strict=True):
        wanted = scores(
            twin.patched_logits(module, family, base, None, kind, 2, position=8, value=value), pairs
        )
        same(row, wanted, found.base)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_edits_in_several_layers_stay_in_force(models: Any, family: str) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3)
    base, source = tensors(pairs, "denoising")
    window = Cell(tuple(Edit(Site("attn_out", layer=n, position=8)) for n in (1, 2)))
    found = sweep(model, pairs, [window], Remembering())
    lent = {n: twin.read(module, family, "attn_out", n, source) for n in (1, 2)}

    def put(n: int) -> Any:
        def change(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, 8] = lent[n][:, 8]
            return x

        return change

    with (
        torch.no_grad(),
        twin.tapped(module, family, "attn_out", 1, put(1)),
        twin.tapped(module, family, "attn_out", 2, put(2)),
    ):
        wanted = scores(module(base).logits, pairs)
    same(found.patched[0], wanted, found.base)
    alone = sweep(model, pairs, [cell("attn_out", 1, 8)], Remembering())
    assert np.abs(alone.patched[0] - wanted).max() > 1e-4


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_neurons_equal_the_twin_alone_and_together(models: Any, family: str) -> None:
    module, model = models[family]
    pairs = pairs_for(VOCAB, n=3)
    base, source = tensors(pairs, "denoising")
    cells = [Cell((Edit(Site("mlp_post", layer=2, neuron=u, position=8)),)) for u in (0, 7, 31)] + [
        Cell(tuple(Edit(Site("mlp_post", layer=2, neuron=u, position=8)) for u in range(80)))
    ]
    found = sweep(model, pairs, cells, Remembering())
    for row, u in zip(found.patched, (0, 7, 31), strict=False):
        logits = twin.patched_logits(
            module, family, base, source, "mlp_post", 2, position=8, unit=u
        )
        np.testing.assert_allclose(row, scores(logits, pairs), rtol=0, atol=1e-10)
    some = twin.patched_logits(
        module,
        family,
        base,
        None,
        "mlp_post",
        2,
        position=8,
        value=torch.cat(
            [
                twin.read(module, family, "mlp_post", 2, source)[..., :80],
                twin.read(module, family, "mlp_post", 2, base)[..., 80:],
            ],
            -1,
        ),
    )
    same(found.patched[3], scores(some, pairs), found.base)


def test_rows_in_any_order_and_chunk_give_the_same_numbers(models: Any) -> None:
    _, model = models["llama"]
    pairs = pairs_for(VOCAB)
    cells = [cell("z", n, p, h) for n in range(4) for p in (3, 8) for h in range(HEADS)]
    whole = sweep(model, pairs, cells, Remembering())
    assert len(whole.chunks) == 1
    small = sweep(model, pairs, cells, Remembering(memory=120_000))
    assert len(small.chunks) > 3
    order = np.random.default_rng(0).permutation(len(cells))
    turned = sweep(model, pairs, [cells[i] for i in order], Remembering())
    np.testing.assert_allclose(small.patched, whole.patched, rtol=0, atol=1e-11)
    np.testing.assert_allclose(turned.patched, whole.patched[order], rtol=0, atol=1e-11)


class WeightUses(TorchDispatchMode):
    """Counts the matrix products that use a given weight."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.count = {w.data_ptr(): 0 for w in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            for a in args:
                if isinstance(a, torch.Tensor) and a.data_ptr() in self.count:
                    self.count[a.data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_chunk_calls_each_layer_once(models: Any, family: str) -> None:
    module, model = models[family]
    parts = twin.PARTS[family]
    layers = module.get_submodule(parts["layers"])
    weights = [block.get_submodule(parts["o"]).weight for block in layers]
    pairs = pairs_for(VOCAB)
    cells = [cell("resid_pre", n, p) for n in range(4) for p in range(9)]
    with WeightUses(weights) as uses:
        found = sweep(model, pairs, cells, Remembering())
    assert len(found.chunks) == 1
    assert list(uses.count.values()) == [1] * 4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "z"])
def test_counted_flops_are_the_planned_ones(models: Any, family: str, kind: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB, n=2, length=16)
    cells = [cell(kind, n, p) for n in range(4) for p in range(16)]
    with FlopCounterMode(display=False) as counter:
        found = sweep(model, pairs, cells, Remembering())
    ratio = counter.get_total_flops() / found.flops
    assert 0.75 <= ratio <= 1.1
    assert found.flops < 0.5 * found.naive


def test_memory_running_out_halves_the_chunk_and_changes_nothing(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = models["gpt2"]
    pairs = pairs_for(VOCAB)
    cells = [cell("resid_pre", n, p) for n in range(4) for p in range(9)]
    whole = sweep(model, pairs, cells, Remembering())
    measure = sweeps_module._Work.measure

    def scarce(self: Any, plan: Any, rows: Any, on_layer: Any) -> Any:
        if len(rows) > 20:
            raise torch.OutOfMemoryError("injected")
        return measure(self, plan, rows, on_layer)

    monkeypatch.setattr(sweeps_module._Work, "measure", scarce)
    context = Remembering()
    found = sweep(model, pairs, cells, context)
    np.testing.assert_allclose(found.patched, whole.patched, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(found.inert, whole.inert)
    assert "halved" in context.notes["out_of_memory"]


def test_a_row_that_never_fits_is_refused(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = models["gpt2"]

    def nothing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(sweeps_module._Work, "measure", nothing)
    with pytest.raises(TooLargeError, match="does not fit"):
        sweep(model, pairs_for(VOCAB), [cell("resid_pre", 0, 5)], Remembering())


def test_a_resumed_sweep_computes_only_what_is_missing(models: Any) -> None:
    _, model = models["llama"]
    pairs = pairs_for(VOCAB)
    cells = [cell("resid_pre", n, p) for n in range(4) for p in range(9)]
    whole = sweep(model, pairs, cells, Remembering(memory=200_000))
    broken = Remembering(memory=200_000, cancel_after=17)
    with pytest.raises(CancelledError):
        sweep(model, pairs, cells, broken)
    done = {k for k in broken.saved if k.startswith("sweep")}
    assert 0 < len(done) < len(whole.chunks)
    again = Remembering(memory=10**9)  # more memory now: the recorded partition still holds
    again.chunks = broken.chunks
    found = sweep(model, pairs, cells, again)
    assert not done & set(again.saved)
    assert found.chunks == whole.chunks
    np.testing.assert_array_equal(found.patched, whole.patched)


def test_prompts_of_several_lengths_run_in_their_own_buckets(models: Any) -> None:
    _, model = models["llama"]
    short, long = pairs_for(VOCAB, n=2, length=7), pairs_for(VOCAB, n=2, length=10, seed=1)
    mixed = PromptPairs.from_tokens(
        [*long.clean, *short.clean],
        [*long.corrupt, *short.corrupt],
        [*long.right, *short.right],
        [*long.wrong, *short.wrong],
    )
    cells = [cell("attn_out", n) for n in range(4)]
    found = sweep(model, mixed, cells, Remembering())
    for pairs, rows in ((long, slice(0, 2)), (short, slice(2, 4))):
        alone = sweep(model, pairs, cells, Remembering())
        np.testing.assert_allclose(found.patched[:, rows], alone.patched, rtol=0, atol=1e-11)


def test_slots_name_a_position_of_their_own_in_each_prompt(models: Any) -> None:
    _, model = models["gpt2"]
    plain = pairs_for(VOCAB, n=3)
    slots = {"name": (5, 6, (6, 7))}
    pairs = PromptPairs.from_tokens(
        plain.clean, plain.corrupt, plain.right, plain.wrong, slots=slots
    )
    found = sweep(model, pairs, [cell("resid_pre", 1, "name")], Remembering())
    for i, where in enumerate(slots["name"]):
        alone = sweep(model, plain, [cell("resid_pre", 1, where)], Remembering())
        assert found.patched[0, i] == pytest.approx(alone.patched[0, i], abs=1e-12)


def test_a_span_map_patches_the_matching_positions(models: Any) -> None:
    module, model = models["gpt2"]
    rng = np.random.default_rng(3)
    clean = rng.integers(0, VOCAB, (1, 9))
    corrupt = np.delete(clean, 3, 1)
    corrupt[0, 3] = (clean[0, 4] + 1) % VOCAB  # two tokens (3, 4) became one (3)
    pairs = PromptPairs.from_tokens(
        clean.tolist(), corrupt.tolist(), [[5]], [[6]], span_map=((((3, 5), (3, 4)),),)
    )
    cells = [cell("resid_pre", 2, p) for p in range(8)]
    found = sweep(model, pairs, cells, Remembering())
    base, source = torch.tensor(corrupt), torch.tensor(clean)
    lent = twin.read(module, "gpt2", "resid_pre", 2, source)
    for p in range(8):
        value = torch.zeros(1, 8, lent.shape[-1], dtype=lent.dtype)
        value[:, p] = lent[:, p if p < 3 else p + 1]
        logits = twin.patched_logits(
            module, "gpt2", base, None, "resid_pre", 2, position=p, value=value
        )
        assert found.patched[p, 0] == pytest.approx(float(scores(logits, pairs)[0]), abs=1e-10)
    assert found.source[0] == pytest.approx(float(scores(module(source).logits.detach(), pairs)[0]))


@pytest.mark.parametrize("metric", ["prob", "logprob", "prob_diff", "kl", "js", "accuracy", "rank"])
def test_metrics_equal_their_definition_on_full_logits(models: Any, metric: str) -> None:
    module, model = models["llama"]
    pairs = pairs_for(VOCAB, n=3)
    base, source = tensors(pairs, "denoising")
    found = sweep(
        model,
        pairs,
        [cell("resid_pre", 1, 7), cell("resid_pre", 2, 8)],
        Remembering(),
        metric=metric,
    )
    clean = module(source).logits[:, -1].log_softmax(-1).detach()
    for row, (layer, position) in zip(found.patched, ((1, 7), (2, 8)), strict=True):
        logits = twin.patched_logits(
            module, "llama", base, source, "resid_pre", layer, position=position
        )[:, -1]
        for i in range(3):
            p, q = logits[i].softmax(-1), clean[i].exp()
            right = sum(p[t] for t in pairs.right[i])
            wrong = sum(p[t] for t in pairs.wrong[i])
            mean = (p + q) / 2
            wanted = {
                "prob": right,
                "logprob": right.log(),
                "prob_diff": right - wrong,
                "kl": (q * (clean[i] - p.log())).sum(),
                "js": ((q * (q / mean).log()).sum() + (p * (p / mean).log()).sum()) / 2,
                "accuracy": float(int(p.argmax()) in pairs.right[i]),
                "rank": float((p > max(p[t] for t in pairs.right[i])).sum()),
            }[metric]
            assert row[i] == pytest.approx(float(wanted), abs=1e-9)


def test_a_span_is_scored_by_its_summed_log_probability(models: Any) -> None:
    module, model = models["gpt2"]
    plain = pairs_for(VOCAB, n=3)
    spans = [(4, 9, 11), (1, 2, 3), (8, 8, 8)]
    pairs = PromptPairs.from_tokens(plain.clean, plain.corrupt, spans, answer_form="span")
    found = sweep(model, pairs, [cell("resid_pre", 0)], Remembering(), metric="span_logprob")
    for i, span in enumerate(spans):
        tokens = torch.tensor([[*plain.clean[i], *span]])
        logp = module(tokens).logits.detach().log_softmax(-1)[0]
        length = len(plain.clean[i])
        wanted = sum(logp[length - 1 + k, t] for k, t in enumerate(span))
        assert found.source[i] == pytest.approx(float(wanted), abs=1e-10)
        assert found.patched[0, i] == pytest.approx(float(wanted), abs=1e-10)


def test_no_tensor_of_rows_by_positions_by_vocabulary_stands(models: Any) -> None:
    _, model = models["gpt2"]
    pairs = pairs_for(VOCAB)
    cells = [cell("resid_pre", n, p) for n in range(4) for p in range(2, 9)]
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and VOCAB in out.shape:
                largest = max(largest, out.numel())
            return out

    with Sizes():
        sweep(model, pairs, cells, Remembering(), metric="logprob")
    assert largest <= (len(cells) + 2) * len(pairs) * VOCAB


def test_the_estimate_is_what_the_sweep_then_plans(models: Any) -> None:
    _, model = models["llama"]
    pairs = pairs_for(VOCAB)
    cells = [cell("z", n, p, h) for n in range(4) for p in range(9) for h in range(2)]
    guess = estimate(model, pairs, cells, limit=10**9)
    found = sweep(model, pairs, cells, Remembering())
    assert guess.flops == pytest.approx(found.flops, rel=0.2)
    assert guess.rows == sum(found.chunks)
    assert guess.bytes > 0 and guess.seconds > 0


def test_planning_counts_each_row_a_fixed_number_of_times(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.engine import sweeps

    _, model = models["llama"]
    cells = [cell("resid_pre", n, p) for n in range(4) for p in range(9)]
    counted, cost = [0], sweeps.rows_cost

    def spy(numbers: Any, *rest: Any) -> Any:
        counted[0] += len(numbers)
        return cost(numbers, *rest)

    monkeypatch.setattr(sweeps, "rows_cost", spy)
    looks = set()
    for n in (6, 24):
        counted[0] = 0
        pairs = pairs_for(VOCAB, n=n)
        guess = estimate(model, pairs, cells, limit=10**9)
        looks.add(round(counted[0] / guess.rows))
    assert len(looks) == 1 and max(looks) <= 3, looks


def test_a_model_that_cannot_be_driven_takes_the_plain_path() -> None:
    from interp.terms import CapabilityError

    class Undriven(SimpleNamespace):
        @property
        def blocks(self) -> Any:
            raise CapabilityError("Its layers cannot be driven.")

    assert undriven(Undriven(), [cell("z", 0)]) == "Its layers cannot be driven."


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tokens_behind_the_metric_change_nothing(models: Any, family: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB, n=3)
    tail = (5, 80, 41)
    padded = PromptPairs.from_tokens(
        [(*p, *tail) for p in pairs.clean],
        [(*p, *tail) for p in pairs.corrupt],
        pairs.right,
        pairs.wrong,
    )
    cells = [cell("resid_pre", n, p) for n in range(4) for p in range(9)]
    cells += [cell("z", n, None, 1) for n in range(4)]
    one = sweep(model, pairs, cells, Remembering())
    other = sweep(model, padded, cells, Remembering(), at=8)
    np.testing.assert_allclose(one.patched, other.patched, rtol=0, atol=1e-11)
    behind = sweep(model, padded, [cell("resid_pre", 1, 10)], Remembering(), at=8)
    assert behind.inert.all()


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that stand at once, made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key in self.seen or not storage.nbytes():
            return
        size = storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["resid_pre", "z"])
def test_a_callers_memory_limit_is_kept(models: Any, family: str, kind: str) -> None:
    _, model = models[family]
    pairs = pairs_for(VOCAB, n=2, length=24)
    cells = [cell(kind, n, p) for n in range(4) for p in range(24)]
    peaks, chunks = {}, {}
    for limit in (10**9, 3_000_000, 1_000_000):
        with LiveBytes() as live:
            found = sweep(model, pairs, cells, Remembering(memory=limit))
        peaks[limit], chunks[limit] = live.peak, len(found.chunks)
    assert chunks[10**9] < chunks[3_000_000] < chunks[1_000_000]
    assert peaks[10**9] > 3_000_000
    for limit in (3_000_000, 1_000_000):
        assert peaks[limit] <= limit


def test_a_sweep_can_be_cancelled_while_it_is_planned(models: Any) -> None:
    _, model = models["gpt2"]
    context = Remembering(cancel_after=1)
    with pytest.raises(CancelledError):
        sweep(model, pairs_for(VOCAB), [cell("resid_pre", 0, 5)], context)
    assert not context.saved
