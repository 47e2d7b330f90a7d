from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from interp.models import load_model
from interp.terms import CapabilityError, Edit, LabelledInputs, Site, UsageError
from tests.models.plain import MLP_SITES, SITES, Tiny, clock_pizza, induction, picture_net
from tests.models.wrapped import close

P = 59


def tiny(**more: Any) -> Tiny:
    torch.manual_seed(1)
    sizes = {
        "vocab": 11,
        "length": 9,
        "layers": 2,
        "d_model": 12,
        "heads": 3,
        "d_head": 4,
        "d_mlp": 20,
    }
    net = Tiny(**{**sizes, **more})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net


def mapped(net: Tiny, **more: Any) -> Any:
    tokens = torch.arange(12).reshape(2, 6) % 11
    return load_model(
        net, example=tokens, site_map={**SITES, **MLP_SITES, "n_heads": 3, "n_ctx": 9}, **more
    )


TOKENS = torch.tensor([[1, 5, 2, 8, 3], [4, 4, 0, 9, 7]])


def by_hand(net: Tiny) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Layer 1's values and the logits of ``TOKENS``, written out."""
    x = net.embed.weight[TOKENS] + net.pos_embed.weight[:5]
    x = net.blocks[0](x)
    attn, seen = net.blocks[1].attn, {"resid_pre": x}
    for name in "qkv":
        seen[name] = torch.stack(
            [
                x @ getattr(attn, name).weight[4 * h : 4 * h + 4].T
                + getattr(attn, name).bias[4 * h : 4 * h + 4]
                for h in range(3)
            ],
            dim=2,
        )
    scores = torch.einsum("bthe,bshe->bths", seen["q"], seen["k"]) / 2
    later = torch.ones(5, 5).triu(1).bool()[None, :, None]
    seen["pattern"] = scores.masked_fill(later, -torch.inf).softmax(-1)
    seen["z"] = torch.einsum("bths,bshe->bthe", seen["pattern"], seen["v"])
    seen["attn_out"] = seen["z"].flatten(2) @ attn.o.weight.T + attn.o.bias
    seen["resid_mid"] = x + seen["attn_out"]
    mlp = net.blocks[1].mlp
    seen["mlp_post"] = (seen["resid_mid"] @ mlp.inn.weight.T + mlp.inn.bias).relu()
    seen["mlp_out"] = seen["mlp_post"] @ mlp.out.weight.T + mlp.out.bias
    seen["resid_post"] = seen["resid_mid"] + seen["mlp_out"]
    return seen, seen["resid_post"] @ net.unembed.weight.T + net.unembed.bias


def test_a_site_map_gives_a_hand_written_transformer_every_value_written_out():
    net = tiny().double()
    model = mapped(net)
    seen, logits = by_hand(net)
    run = model.run(TOKENS, read=[Site(k, layer=1) for k in seen])
    assert close(run.logits, logits) < 1e-12
    for kind, value in seen.items():
        assert close(run.reads[Site(kind, layer=1)], value) < 1e-12, kind
    assert all(c.passed for c in model.checks), model.checks
    shape = model.shape
    assert (shape.n_layers, shape.n_heads, shape.d_model, shape.d_head, shape.d_mlp) == (
        2,
        3,
        12,
        4,
        20,
    )


def test_edits_at_mapped_sites_flow_on_from_where_they_stand():
    model = mapped(tiny().double())
    reads = [Site(k, layer=1) for k in ("resid_mid", "mlp_out", "resid_post", "z", "pattern", "v")]
    mid, mlp, post, z, pattern, v = reads
    run = model.run(TOKENS, edits=[Edit(mid, 2.0, mode="add")], read=reads)
    assert close(run.reads[post], run.reads[mid] + run.reads[mlp]) < 1e-12
    run = model.run(
        TOKENS,
        read=reads,
        edits=[Edit(Site("pattern", layer=1, head=2, position=4), torch.eye(5)[1])],
    )
    assert close(run.reads[z][:, 4, 2], run.reads[v][:, 1, 2]) < 1e-12


def test_the_persons_own_module_is_left_alone():
    net = tiny().train()
    before = {n: p.clone() for n, p in net.named_parameters()}
    model = mapped(net, dtype="float64")
    model.run(TOKENS, edits=[Edit(Site("z", layer=0), "zero")])
    assert net.training and model.module() is not net and not model.module().training
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert model.dtype == torch.float64 and net.embed.weight.dtype == torch.float32


def test_no_causal_mask_is_assumed_where_there_is_none():
    model = mapped(tiny(causal=False).double())
    with pytest.raises(CapabilityError, match="whole pass"):
        _ = model.blocks
    edited = model.run(TOKENS, edits=[Edit(Site("embed", position=4), 1.0, mode="add")]).logits
    moved = (edited - model.run(TOKENS).logits).abs().amax((0, 2))
    assert bool((moved > 1e-6).all()), "an edit of the last token reaches the first"


def test_the_patched_heads_of_the_induction_model_are_the_known_pair(test_data: Any):
    model = load_model(
        induction(test_data / "induction"),
        example=[[0, 1, 2, 3, 4, 5, 6, 0]],
        site_map={**SITES, "n_heads": 1, "n_ctx": 8},
    )
    generator = torch.Generator().manual_seed(0)
    letters = torch.stack([torch.randperm(26, generator=generator) for _ in range(200)])
    clean, corrupt = letters[:, :8].clone(), letters[:, :8].clone()
    clean[:, 7] = corrupt[:, 7] = clean[:, 3]
    corrupt[:, 3] = letters[:, 9]  # the repeated letter's first place holds another letter
    right, wrong = clean[:, 4, None], clean[:, 2, None]

    def score(tokens: torch.Tensor, *edits: Edit) -> float:
        logits = model.run(tokens, edits=edits, positions=[-1]).logits[:, 0]
        return float((logits.gather(1, right) - logits.gather(1, wrong)).mean())

    answers = model.run(clean, positions=[-1]).logits[:, 0].argmax(-1)
    assert float((answers == right[:, 0]).double().mean()) > 0.95
    heads = [Site("z", layer=0), Site("z", layer=1)]
    source = model.run(clean, read=heads).reads
    base, whole = score(corrupt), score(clean)
    # The first notes at the next letter what stood before it; the second finds that note.
    for head in heads:
        assert score(corrupt, Edit(head, source[head])) - base > 0.5 * (whole - base), head
        assert score(clean, Edit(head, source[head].mean((0, 1)))) < 0.35 * whole, head
    # What the first passes on enters the second's key, and neither its query nor its value.
    after = model.run(
        corrupt, edits=[Edit(heads[0], source[heads[0]])], read=[Site(k, layer=1) for k in "qkv"]
    ).reads
    gains = {s.kind: score(corrupt, Edit(s, v)) - base for s, v in after.items()}
    assert gains["k"] > 0.5 * (whole - base) > 5 * max(abs(gains["q"]), abs(gains["v"])), gains


def test_activation_patching_finds_the_induction_pair_and_says_what_it_cost(test_data: Any):
    import interp

    model = load_model(
        induction(test_data / "induction"),
        example=[[0, 1, 2, 3, 4, 5, 6, 0]],
        site_map={**SITES, "n_heads": 1, "n_ctx": 8},
    )
    generator = torch.Generator().manual_seed(0)
    letters = torch.stack([torch.randperm(26, generator=generator) for _ in range(40)])
    clean, corrupt = letters[:, :8].clone(), letters[:, :8].clone()
    clean[:, 7] = corrupt[:, 7] = clean[:, 3]
    corrupt[:, 3] = letters[:, 9]
    pairs = interp.PromptPairs.from_tokens(
        clean.tolist(), corrupt.tolist(), clean[:, 4].tolist(), clean[:, 2].tolist()
    )
    result = interp.run(
        interp.methods.ActivationPatching(site="z", axes="layer,head,position"),
        model,
        pairs,
        progress=False,
    )
    effect = result.data["effect"].isel(head=0).values  # [layer, position]
    # L0H0 writes at the letter after the repeated one; L1H0 reads it at the last position.
    assert effect[0].argmax() == 4 and effect[0, 4] > 0.5, effect
    assert effect[1].argmax() == 7 and effect[1, 7] > 0.5, effect
    rest = [abs(effect[n, p]) for n, own in ((0, 4), (1, 7)) for p in range(8) if p != own]
    assert max(rest) < 0.25
    assert "whole forward pass" in result.provenance["slow path"]


def symmetricity(model: Any) -> float:
    """Mean cosine of the two embeddings' gradients of a logit (zhong2023clock): 100 triples,
    the first of all p³ in lexicographic order after a shuffle with seed 42, as published."""
    triples = list(itertools.product(range(P), repeat=3))
    random.Random(42).shuffle(triples)
    a, b, c = torch.tensor(triples[:100]).T
    embed = Site("embed")
    run = model.run(torch.stack([a, b], 1), read=[embed], grad=True, positions=[-1])
    chosen = run.logits[torch.arange(100), 0, c].sum()
    (grad,) = torch.autograd.grad(chosen, run.reads[embed])
    return float(torch.cosine_similarity(grad[:, 0], grad[:, 1], dim=-1).mean())


@pytest.mark.parametrize(("run", "published"), [("p99zdpze5l", 0.9937), ("l8k1hzciux", 0.3336)])
def test_pizza_and_clock_behave_alike_and_differ_in_gradient_symmetricity(
    run: str, published: float, test_data: Any
):
    model = load_model(
        clock_pizza(test_data / "clock_pizza", run),
        example=[[1, 2]],
        site_map={**SITES, **MLP_SITES, "n_heads": 4},
    )
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    answers = model.run(pairs, positions=[-1]).logits[:, 0].argmax(-1)
    assert torch.equal(answers, pairs.sum(1) % P)
    assert symmetricity(model) == pytest.approx(published, abs=1e-3)
    failed = {c.name for c in model.checks if not c.passed}
    # Constant attention does not use its queries, and the check says so.
    assert failed == ({"edits_fire"} if run == "p99zdpze5l" else set())


def test_a_network_of_pictures_has_its_input_any_module_and_its_outputs():
    net = picture_net()
    pictures = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    model = load_model(net, example=pictures)
    assert [s.kind for s in model.sites] == ["input", "logits"]
    conv, relu = Site("module", path="0"), Site("module", path="5")
    run = model.run(
        LabelledInputs(pictures, [0, 1, 2, 3]), read=[Site("input"), conv, relu], grad=True
    )
    expected = net(torch.as_tensor(pictures, dtype=torch.float32))
    assert close(run.logits, expected) < 1e-6
    x = torch.as_tensor(pictures, dtype=torch.float32).requires_grad_()
    (wanted,) = torch.autograd.grad(net(x)[:, 2].sum(), x)
    (found,) = torch.autograd.grad(run.logits[:, 2].sum(), run.reads[Site("input")])
    assert close(found, wanted) < 1e-6
    off = model.run(pictures, edits=[Edit(relu, "zero")]).logits
    assert close(off, net[6].bias.expand(4, 5) + 0 * expected) < 1e-6
    assert model.run(pictures[0], vocab=[1, 4]).logits.shape == (1, 2)
    assert all(c.passed for c in model.checks), model.checks


def test_the_mnist_net_keeps_its_published_accuracy(test_data: Any):
    import gzip

    weights = torch.load(test_data / "mnist" / "mnist_fc_3layer.pth", weights_only=True)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    net.load_state_dict(
        {
            f"{at}.{n}": weights[f"fc{i + 1}.{n}"]
            for i, at in enumerate((1, 3, 5))
            for n in ("weight", "bias")
        }
    )
    folder = test_data / "mnist"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28) / 255
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    model = load_model(net, example=images[:2])
    guesses = model.run(LabelledInputs(images, labels)).logits.argmax(-1).numpy()
    assert (guesses == labels).mean() == pytest.approx(0.9752, abs=1e-9)
    kinds = [n.kind for n in model.graph()]
    assert kinds == ["input", "linear", "linear", "gate", "linear", "gate", "linear"]


class Skipped(nn.Module):
    """A sum of two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return h + self.b(h)


def test_a_graph_of_linear_add_and_gate_nodes_computes_the_network():
    x = torch.randn(5, 3)
    model = load_model(Skipped(), example=x)
    values: dict[str, torch.Tensor] = {}
    for node in model.graph():
        args = [values[name] for name in node.inputs]
        if node.kind == "input":
            values[node.name] = x
        elif node.kind == "linear":
            values[node.name] = node.module(*args)
        elif node.kind == "add":
            values[node.name] = args[0] + args[1]
        else:
            values[node.name] = getattr(torch, node.op)(*args)
    assert torch.allclose(values[model.graph().output], model.run(x).logits)
    assert [n.kind for n in model.graph()] == ["input", "linear", "gate", "linear", "add"]


def test_a_network_with_another_part_has_no_graph_and_the_part_is_named():
    model = load_model(
        nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), example=torch.randn(2, 3)
    )
    with pytest.raises(CapabilityError, match="1 is a GELU"):
        model.graph()
    with pytest.raises(CapabilityError, match="embed is a Embedding"):
        mapped(tiny()).graph()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resid": "blocks.{layer}"}, "no site for a site map 'resid'"),
        ({"z": "blocks.{layer}.attn.oo:input"}, "no such part"),
        ({"z": "blocks.0.attn.o:input"}, "names no layer"),
        ({"q": {"path": "blocks.{layer}.attn.q", "axes": "batch head d_head"}}, "each once"),
        ({"q": {"path": "blocks.{layer}.attn.q", "shape": "x"}}, "field of a site map"),
        ({"z": "blocks.{layer}.attn.o:inside"}, "wanted input or output"),
        ({"n_heads": None}, "does not say how many"),
        ({"n_heads": 5}, "does not split"),
        (
            {"pattern": {"path": "blocks.{layer}.attn.q", "axes": "batch head query key"}},
            "has shape",
        ),
    ],
)
def test_a_site_map_that_does_not_fit_is_refused_with_what_is_wrong(change: Any, message: str):
    given = {**SITES, **MLP_SITES, "n_heads": 3, **change}
    with pytest.raises(UsageError, match=message):
        model = load_model(tiny(), example=TOKENS, site_map=given, verify=False)
        model.run(TOKENS, read=[Site("pattern", layer=0)])


def test_inputs_that_do_not_fit_are_refused_in_a_sentence():
    with pytest.raises(UsageError, match="without an example"):
        load_model(picture_net())
    pictures = load_model(picture_net(), example=torch.randn(2, 3, 8, 8))
    with pytest.raises(UsageError, match=r"\[batch, 3, 8, 8\]"):
        pictures.run(torch.randn(2, 3, 12, 12))
    with pytest.raises(UsageError, match="no positions to choose"):
        pictures.run(torch.randn(2, 3, 8, 8), positions=[-1])
    with pytest.raises(UsageError, match="no part of the module 'conv'"):
        pictures.run(torch.randn(2, 3, 8, 8), read=[Site("module", path="conv")])
    with pytest.raises(CapabilityError, match="a site map can name it"):
        pictures.run(torch.randn(2, 3, 8, 8), read=[Site("z", layer=0)])
    with pytest.raises(CapabilityError, match="does not give logits at every position"):
        pictures.generate([1])
    model = mapped(tiny())
    with pytest.raises(UsageError, match="could not look up"):
        model.run([[1, 99]])
    with pytest.raises(UsageError, match="context holds 9"):
        model.run([[1] * 10])


def test_a_mapped_transformer_writes_on():
    net = tiny()
    model = mapped(net)
    text = [1, 2]
    for _ in range(4):
        text.append(int(net(torch.tensor([text]))[0, -1].argmax()))
    assert model.generate([1, 2], max_tokens=4) == text[2:]


def test_a_text_goes_through_the_tokenizer_that_came_with_the_module():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({w: i for i, w in enumerate("abcdefghijk")}, unk_token="k"))
    words.pre_tokenizer = Whitespace()
    model = mapped(tiny(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=words))
    assert torch.equal(model.run("b f c").logits, model.run([[1, 5, 2]]).logits)
    with pytest.raises(CapabilityError, match="no tokenizer"):
        mapped(tiny()).run("b f c")


def test_mapped_norms_give_their_divisors():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.ln = nn.Embedding(7, 6), nn.LayerNorm(6)
            self.blocks = nn.ModuleList([nn.ModuleDict({"ln": nn.RMSNorm(6, eps=1e-5)})])
            self.out = nn.Linear(6, 7)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            x = x + self.blocks[0]["ln"](x)
            return self.out(self.ln(x))

    torch.manual_seed(0)
    net = Normed().double()
    nn.init.normal_(net.ln.bias)
    model = load_model(
        net,
        example=[[1, 2, 3]],
        site_map={
            "embed": "embed",
            "ln_final_scale": "ln",
            "ln1_scale": {"path": "blocks.{layer}.ln", "centred": False},
        },
    )
    x = net.embed.weight[torch.tensor([[1, 2, 3]])]
    first, last = Site("ln1_scale", layer=0), Site("ln_final_scale")
    run = model.run([[1, 2, 3]], read=[first, last], edits=[Edit(last, 2.0)])
    assert close(run.reads[first], (x.square().mean(-1) + 1e-5).sqrt()) < 1e-12
    y = x + net.blocks[0]["ln"](x)
    y = (y - y.mean(-1, keepdim=True)) / 2 * net.ln.weight + net.ln.bias
    assert close(run.logits, net.out(y)) < 1e-12
    assert all(c.passed for c in model.checks), model.checks
