"""The functional blocks against the raw module: exact in every family, and red without a part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.models import kernels
from interp.models.blocks import ModelBlocks
from interp.models.families import family_of, shape_of
from interp.terms import Block, Blocks
from tests.checkpoints import FAMILY_NAMES, hard_model, prompts

TOKENS = prompts(rows=3, length=12)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 4e-5, torch.bfloat16: 0.1}
"""Relative to the logits' standard deviation; four layers deep."""

VARIANTS = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}),
    ("gpt2", {"activation_function": "quick_gelu", "tie_word_embeddings": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"attention_bias": False}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 10, "num_key_value_heads": 6}),
    ("llama", {"num_key_value_heads": 1}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 3, "layer_types": ["full_attention"] * 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "attention_bias": True,
        },
    ),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
]
"""Switches of the families that change what a layer does."""


def raw(module, tokens=TOKENS):
    with torch.no_grad():
        return module(input_ids=tokens, use_cache=False).logits


def error(blocks, module, tokens=TOKENS):
    """Largest difference of the logits over their standard deviation."""
    wanted = raw(module, tokens)
    with torch.no_grad():
        given = blocks.forward(tokens)
    return ((given - wanted).abs().max() / wanted.float().std()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_blocks_give_the_modules_logits(family, dtype):
    module = hard_model(family, seed=3).to(dtype)
    assert error(ModelBlocks(module), module) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("family", "fields"), VARIANTS, ids=lambda v: str(v)[:60])
def test_blocks_give_the_modules_logits_under_every_switch(family, fields):
    module = hard_model(family, seed=4, **fields).double()
    assert error(ModelBlocks(module), module) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_blocks_keep_the_protocol(family):
    blocks = ModelBlocks(hard_model(family))
    for name in [n for n in dir(Blocks) if n[0] != "_"]:
        assert hasattr(blocks, name), name
    for name in [*(n for n in dir(Block) if n[0] != "_"), *Block.__annotations__]:
        assert hasattr(blocks.layers[0], name), name


def removals(family):
    """Name -> what takes that part away from one set of blocks."""

    def each(change):
        return lambda blocks: [change(layer) for layer in blocks.layers]

    def flat_gain(name):
        def change(layer):
            norm = getattr(layer, name)
            flat = torch.zeros_like if norm.order == "gemma" else torch.ones_like
            norm.weight = flat(norm.weight)

        return each(change)

    def no_bias(name):
        return each(lambda layer: setattr(getattr(layer, name), "bias", None))

    def without(name):
        return each(lambda layer: setattr(layer, name, None))

    def fact(**change):
        return each(lambda layer: setattr(layer, "facts", replace(layer.facts, **change)))

    layer = ModelBlocks(hard_model(family)).layers[0]
    found = {
        "final norm": lambda blocks: setattr(blocks, "final_norm", None),
        "scale": fact(scale=0.5),
        "causal mask": fact(causal=False),
    }
    for name in ("pre_attn", "post_attn", "pre_mlp", "post_mlp", "q_norm", "k_norm"):
        if getattr(layer, name) is not None:
            found[f"gain of {name}"] = flat_gain(name)
            found[name] = without(name)
            if getattr(layer, name).bias is not None:
                found[f"shift of {name}"] = no_bias(name)
    for name in ("w_q", "w_k", "w_v", "w_o", "w_in", "w_out"):
        if getattr(layer, name).bias is not None:
            found[f"bias of {name}"] = no_bias(name)
    if layer.rotary is not None:
        found["rotary"] = without("rotary")
    if layer.n_kv_heads < layer.n_heads:
        found["group map"] = each(regroup)
    if family in ("gpt_neo", "mistral", "gemma2"):
        found["window"] = fact(window=None)
    if family == "gemma2":
        found["attention cap"] = fact(cap=None)
        found["final cap"] = lambda blocks: setattr(blocks, "cap", None)
        found["embedding scale"] = lambda blocks: setattr(blocks, "embed_scale", None)
    if family in ("gpt2", "gpt_neo"):
        found["positions"] = lambda blocks: setattr(blocks, "w_position", None)
    if family == "gpt_neox":
        found["parallel residual"] = each(lambda layer: setattr(layer, "parallel", False))
    return found


def regroup(layer):
    """Deal the query heads to the wrong key/value heads (0,1,0,1… for 0,0,…,1,1)."""
    attend, K = layer.attend, layer.n_kv_heads
    order = torch.arange(layer.n_heads).view(-1, K).T.flatten()
    back = order.argsort()
    layer.attend = lambda q, k, v, p: attend(q[:, :, order], k, v, p)[:, :, back]


CASES = [(f, part) for f in FAMILY_NAMES for part in removals(f)]


@pytest.mark.parametrize(("family", "part"), CASES, ids=lambda v: v.replace(" ", "-"))
def test_blocks_without_one_part_are_wrong(family, part):
    module = hard_model(family, seed=3)
    blocks = ModelBlocks(module)
    assert error(blocks, module) < 1e-4
    removals(family)[part](blocks)
    assert error(blocks, module) > 1e-2


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_pieces_of_a_layer_equal_what_hooks_see(family):
    """z, the sublayers' sums and what they add, mlp_post and pattern against plain hooks."""
    module = hard_model(family, seed=6).double()
    row, blocks = family_of(module), ModelBlocks(module)
    eager = hard_model(family, seed=6).double()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        wanted_pattern = eager(
            input_ids=TOKENS, use_cache=False, output_attentions=True
        ).attentions[1]
    seen = {}
    layer = module.get_submodule(row.layers)[1]
    layer.register_forward_pre_hook(
        lambda m, a, k: seen.update(resid=(a or (k["hidden_states"],))[0]), with_kwargs=True
    )
    for name, path in (("z", row.o), ("neurons", row.w_out)):
        layer.get_submodule(path).register_forward_pre_hook(
            lambda m, a, n=name: seen.update({n: a[0]})
        )
        layer.get_submodule(path).register_forward_hook(
            lambda m, a, out, n=name: seen.update({f"{n} sum": out})
        )
    for kind in ("attn_out", "mlp_out"):
        layer.get_submodule(row.place(kind).path).register_forward_hook(
            lambda m, a, out, n=kind: seen.update({n: out[0] if isinstance(out, tuple) else out})
        )
    raw(module)
    R, T = TOKENS.shape
    block, position = blocks.layers[1], torch.arange(T)
    x = seen["resid"].flatten(0, 1)
    with torch.no_grad():
        q, k, v = (y.unflatten(0, (R, T)) for y in block.qkv(x, position.repeat(R)))
        z = block.attend(q, k, v, position)
        pattern = block.pattern(q, k, position)
        total = block.attn_sum(z.flatten(0, 1))
        attn = block.add_attn(total)
        neurons = block.neurons(x if block.parallel else x + attn)
        out = block.mlp_sum(neurons)
        given = {
            "z": z.flatten(2),
            "z sum": total,
            "attn_out": attn,
            "neurons": neurons,
            "neurons sum": out,
            "mlp_out": block.add_mlp(out),
        }
    for name, value in given.items():
        wanted = seen[name].reshape(value.shape)
        assert (value - wanted).abs().max() <= 1e-9 * wanted.std(), name
    assert (pattern - wanted_pattern).abs().max() <= 1e-6  # eager softmax runs in float32
    assert torch.allclose(pattern.sum(-1), torch.ones(()).double(), atol=1e-6)
    assert (block.mix(pattern, v) - z).abs().max() <= 1e-6 * z.std()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_some_queries_against_all_keys_equal_the_whole_forward(family):
    """Queries at any absolute positions, in any order, shared by the rows or one list a row."""
    module = hard_model(family, seed=7).double()
    R, T = TOKENS.shape
    x = torch.randn(R * T, shape_of(module).d_model, dtype=torch.float64)
    for block in ModelBlocks(module).layers[:2]:
        with torch.no_grad():
            q, k, v = (y.unflatten(0, (R, T)) for y in block.qkv(x, torch.arange(T).repeat(R)))
            whole = block.attend(q, k, v, torch.arange(T))
            pattern = block.pattern(q, k, torch.arange(T))
            for some in ([11], [3, 7, 8], [9, 2, 0], list(range(5, 12))):
                at = torch.tensor(some)
                part = block.attend(q[:, at], k, v, at)
                assert (part - whole[:, at]).abs().max() <= 1e-12 * whole.std() + 1e-14
                cut = block.pattern(q[:, at], k, at)
                assert (cut - pattern[:, :, at]).abs().max() <= 1e-12
            each = torch.stack([torch.randperm(T)[:4] for _ in range(R)])
            rows = torch.arange(R)[:, None]
            part = block.attend(q[rows, each], k, v, each)
            assert (part - whole[rows, each]).abs().max() <= 1e-12 * whole.std() + 1e-14


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_parts_of_the_projection_equal_the_whole(family):
    module = hard_model(family, seed=8).double()
    block = ModelBlocks(module).layers[2]
    position = torch.tensor([5, 0, 11, 3])
    x = torch.randn(4, shape_of(module).d_model, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = block.qkv(x, position)
        k2, v2 = block.kv(x, position)
        q2 = block.queries(x, position)
        for one, two in ((q, q2), (k, k2), (v, v2)):
            assert one.shape == two.shape
            assert (one - two).abs().max() <= 1e-10 * one.std()
        z = torch.randn(4, block.n_heads, block.d_head, dtype=torch.float64)
        writes = sum(block.head_write(z[:, h], h) for h in range(block.n_heads))
        bias = 0 if block.w_o.bias is None else block.w_o.bias
        total = block.attn_sum(z)
        assert (writes + bias - total).abs().max() <= 1e-12 * total.std()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_chosen_vocabulary_columns_equal_those_of_the_whole(family):
    blocks = ModelBlocks(hard_model(family).double())
    x = torch.randn(5, 48, dtype=torch.float64)
    columns = torch.tensor([3, 96, 3, 0])
    with torch.no_grad():
        assert torch.allclose(blocks.unembed(x, columns), blocks.unembed(x)[:, columns], atol=1e-12)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_blocks_have_the_modules_gradients(family):
    module = hard_model(family, seed=9).double()
    blocks = ModelBlocks(module)
    weights = dict(module.named_parameters())
    grads = []
    for forward in (
        lambda: module(input_ids=TOKENS, use_cache=False).logits,
        lambda: blocks.forward(TOKENS),
    ):
        score = forward()[:, -1, :5].sum()
        grads.append(torch.autograd.grad(score, list(weights.values()), allow_unused=True))
    for name, wanted, given in zip(weights, *grads, strict=True):
        assert wanted is not None and given is not None, name
        assert (given - wanted).abs().max() <= 1e-6 * wanted.std() + 1e-12, name


def test_attention_folded_by_groups_equals_the_plain_one():
    """The form that serves a GPU, run here: rows with one mask, and each with its own."""
    q = torch.randn(3, 4, 6, 8, dtype=torch.float64)
    k, v = torch.randn(2, 3, 9, 2, 8, dtype=torch.float64)
    shared = torch.tensor([2, 5, 6, 8])
    for position in (shared, torch.stack([shared, shared - 1, shared - 2])):
        mask = kernels.allowed(position, 9, 4, True)
        wanted = kernels.sdpa(q, k, v, mask, 0.3)
        mask = mask[:, None] if mask.ndim == 3 else mask
        assert (kernels.folded_sdpa(q, k, v, mask, 0.3) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_blocks_mix_no_devices(family):
    """On another device than the CPU: torch's meta device raises where a CPU tensor meets it."""
    module = hard_model(family).to("meta")
    blocks = ModelBlocks(module)
    with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
        blocks.embed(
            torch.zeros(2, dtype=torch.long, device="meta"), torch.arange(2)
        ) + torch.zeros(48)
    with torch.no_grad():
        logits = blocks.forward(torch.zeros(2, 12, dtype=torch.long, device="meta"))
        assert blocks.device.type == logits.device.type == "meta"
        assert logits.shape == (2, 12, 97)
        block, position = blocks.layers[1], torch.empty(2, dtype=torch.long, device="meta")
        packed = torch.empty(9, dtype=torch.long, device="meta")
        q, k, v = (y[None] for y in block.qkv(logits.new_empty(9, 48), packed))
        assert block.attend(q[:, :2], k, v, position).shape == q[:, :2].shape
        assert block.pattern(q[:, :2], k, position).shape == (1, 6, 2, 9)
        assert block.queries(logits.new_empty(9, 48), packed).device.type == "meta"
        assert block.kv(logits.new_empty(9, 48), packed)[0].device.type == "meta"


def test_values_do_not_depend_on_whether_a_graph_is_kept():
    """In-place work on fresh tensors must not change a number."""
    for family in FAMILY_NAMES:
        module = hard_model(family)
        blocks = ModelBlocks(module)
        with torch.no_grad():
            free = blocks.forward(TOKENS)
        kept = blocks.forward(TOKENS)
        assert (free - kept).abs().max() <= 4e-5 * kept.std(), family
        assert kept.requires_grad


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_inputs_are_never_changed(family):
    blocks = ModelBlocks(hard_model(family))
    block = blocks.layers[0]
    position = torch.arange(12)
    x = torch.randn(12, 48)
    with torch.no_grad():
        for call in (
            lambda x: block.qkv(x, position),
            lambda x: block.kv(x, position),
            lambda x: block.queries(x, position),
            block.neurons,
            block.add_attn,
            block.add_mlp,
            blocks.unembed,
        ):
            before = x.clone()
            call(x)
            assert torch.equal(x, before)
        q, k, v = (y[None] for y in block.qkv(x, position))
        before = [y.clone() for y in (q, k, v)]
        block.attend(q, k, v, position)
        block.pattern(q, k, position)
        assert all(torch.equal(a, b) for a, b in zip((q, k, v), before, strict=True))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_blocks_follow_a_parameter_that_changes_in_place(family):
    module = hard_model(family)
    blocks = ModelBlocks(module)
    first = raw(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    assert (raw(module) - first).abs().max() > 0.01 * first.std()
    assert error(blocks, module) < 1e-4


def test_blocks_outlive_a_wrapper_that_rearranges_the_module():
    """What TransformerBridge does: modules are taken out and replaced; parameters stay ours."""
    for family in FAMILY_NAMES:
        module = hard_model(family)
        wanted, blocks = raw(module), ModelBlocks(module)
        row = family_of(module)
        for layer in module.get_submodule(row.layers):
            for name in [n for n, _ in layer.named_children()]:
                setattr(layer, name, torch.nn.Identity())
        with torch.no_grad():
            assert (blocks.forward(TOKENS) - wanted).abs().max() < 1e-4 * wanted.std(), family


def test_angles_are_not_kept_for_other_positions():
    module = hard_model("llama").double()
    block = ModelBlocks(module).layers[0]
    x = torch.randn(4, 48, dtype=torch.float64)
    position = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        first = block.qkv(x, position)[0]
        position += 5
        moved = block.qkv(x, position)[0]
        fresh = block.qkv(x, torch.tensor([5, 6, 7, 8]))[0]
    assert torch.equal(moved, fresh)
    assert not torch.equal(moved, first)


def test_angles_beyond_a_dynamic_contexts_limit_are_refused():
    rotary = kernels.Rotary(torch.ones(4), limit=8)
    rotary.angles(torch.arange(8), torch.float32)
    with pytest.raises(ValueError, match="below position 8"):
        rotary.angles(torch.arange(9), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_written_out_gelu_equals_torchs(dtype):
    x = torch.linspace(-12, 12, 300_001, dtype=dtype)
    wanted = torch.nn.functional.gelu(x, approximate="tanh")
    eps = torch.finfo(dtype).eps
    assert (kernels.gelu_tanh(x.clone()) - wanted).abs().max() <= 20 * eps


def test_norm_scale_is_the_divisor():
    for family in FAMILY_NAMES:
        block = ModelBlocks(hard_model(family).double()).layers[0]
        norm = block.pre_mlp or block.post_mlp
        x = torch.randn(7, 48, dtype=torch.float64)
        centred = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
        shift = 0 if norm.bias is None else norm.bias
        by_hand = centred / norm.scale(x)[:, None] * norm.gain() + shift
        assert (by_hand - norm(x)).abs().max() < 1e-5, family
