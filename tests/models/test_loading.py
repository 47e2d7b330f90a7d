"""Loading: zoo, folders, hub ids and live modules give the untouched module and its proof."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import constants, errors

from interp.models import hub, placing, registry
from interp.models.blocks import ModelBlocks
from interp.models.loading import load
from interp.models.opening import load_model
from interp.models.tensors import hash_files, hash_module, read_tensors, write_tensors
from interp.terms import RefusedError, UnsafeError, UsageError
from tests.checkpoints import FAMILY_NAMES, hard_model, prompts, save_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENS = prompts(rows=2, length=12)


def raw(module, tokens=TOKENS):
    with torch.no_grad():
        return module(input_ids=tokens, use_cache=False).logits


@pytest.fixture
def llama(tmp_path):
    return save_checkpoint(hard_model("llama", num_hidden_layers=2), tmp_path / "llama")


# the zoo -----------------------------------------------------------------------------------


TRANSFORMERS = [n for n, card in registry.MODELS.items() if card.architecture != registry.NETWORK]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_shipped_model_opens_and_is_the_same_each_time(name):
    one, two = load(f"zoo:{name}"), load(f"zoo:{name}")
    assert one.id == f"zoo:{name}"
    assert one.family.architecture == registry.MODELS[name].architecture
    assert one.weight_hash == two.weight_hash
    assert torch.equal(one.reference, two.reference)
    assert one.reference.std() >= 1.0
    assert one.module is not two.module and not one.module.training


def test_a_wrong_zoo_name_gets_its_near_misses():
    with pytest.raises(UsageError, match="'zoo:random-gpt2'"):
        load("zoo:random-gtp2")
    with pytest.raises(UsageError, match=r"zoo:random-gpt2', a shipped model"):
        load("random-gpt2")


def test_a_shipped_model_whose_weights_are_gone_says_how_to_make_it(monkeypatch):
    card = registry.Card("gone", "gone", "?", "GPT2LMHeadModel", folder="gone")
    monkeypatch.setitem(registry.MODELS, "gone", card)
    with pytest.raises(RefusedError, match="python -m interp.training gone"):
        load("zoo:gone")


# folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_checkpoint_is_read_back_bit_for_bit(family, tmp_path):
    module = hard_model(family, seed=5)
    loaded = load(save_checkpoint(module, tmp_path / "m"))
    assert torch.equal(raw(loaded.module), raw(module))
    assert loaded.tokenizer is None and loaded.hf_tokenizer is None
    if family != "gpt_neox":  # transformers renames its unembedding in the file
        assert loaded.weight_hash == hash_module(module)
    assert torch.equal(loaded.reference, raw(module, loaded.probe))
    assert loaded.probe.shape[1] > max(
        (f.window or 0) for f in (b.facts for b in ModelBlocks(module).layers)
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "bf16"])
def test_the_dtype_is_the_one_asked_for_and_the_hash_is_the_files(llama, dtype):
    loaded = load(llama, dtype=dtype)
    wanted = placing.read_dtype(dtype)
    assert {p.dtype for p in loaded.module.parameters()} == {wanted}
    assert loaded.reference.dtype == wanted
    assert loaded.weight_hash == load(llama).weight_hash
    # rotary frequencies keep their precision whatever the weights are stored in
    assert loaded.module.model.rotary_emb.inv_freq.dtype == torch.float32


def test_an_unknown_dtype_or_device_is_named(llama):
    with pytest.raises(UsageError, match="float32"):
        load(llama, dtype="flaot32")
    with pytest.raises(RefusedError, match="quantised"):
        load(llama, dtype="int8")
    with pytest.raises(UsageError, match="no device"):
        load(llama, device="gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            load(llama, device="cuda")


def test_shards_in_any_split_have_the_same_hash_and_logits(llama, tmp_path):
    whole = load(llama)
    tensors = read_tensors(llama / "model.safetensors")
    names = sorted(tensors)
    write_tensors(llama / "b.safetensors", {n: tensors[n] for n in names[:5]})
    write_tensors(llama / "a.safetensors", {n: tensors[n] for n in names[5:]})
    (llama / "model.safetensors").unlink()
    (llama / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "metadata": {},
                "weight_map": {n: f"{'b' if n in names[:5] else 'a'}.safetensors" for n in names},
            }
        )
    )
    split = load(llama)
    assert split.weight_hash == whole.weight_hash
    assert torch.equal(split.reference, whole.reference)
    assert split.source["files"] == ["a.safetensors", "b.safetensors"]


def test_one_changed_weight_changes_the_hash(llama):
    path = llama / "model.safetensors"
    before = hash_files([path])
    tensors = read_tensors(path)
    name = "model.norm.weight"
    tensors[name][3] += 1e-3
    write_tensors(path, tensors)
    changed = hash_files([path])
    assert changed != before
    tensors[name][3] -= 1e-3
    write_tensors(path, {**tensors, "extra": torch.zeros(0)})
    assert hash_files([path]) not in (before, changed)


def test_a_checkpoint_that_lacks_a_weight_is_refused_not_filled_at_random(llama):
    tensors = read_tensors(llama / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    write_tensors(llama / "model.safetensors", {n: t for n, t in tensors.items() if n != lost})
    with pytest.raises(RefusedError, match=f"lacks the weight {lost}"):
        load(llama)


def test_a_config_for_other_sizes_is_refused(llama):
    config = json.loads((llama / "config.json").read_text())
    for change, reason in (
        ({"intermediate_size": 96}, "wrong shape|cannot be read"),
        ({"num_hidden_layers": 3}, "hold 2 layers"),
        ({"num_hidden_layers": 1}, "hold 2 layers"),
        ({"hidden_act": "magic"}, "cannot be read"),
        ({"num_attention_heads": 7}, "cannot be read"),
    ):
        (llama / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(RefusedError, match=reason):
            load(llama)


def test_tied_weights_stay_one_tensor_and_untied_ones_two(tmp_path):
    for tied in (True, False):
        module = hard_model("gpt2", num_hidden_layers=1, tie_word_embeddings=tied)
        loaded = load(save_checkpoint(module, tmp_path / str(tied)), dtype="float64")
        same = loaded.module.lm_head.weight is loaded.module.transformer.wte.weight
        assert same == tied
        assert torch.equal(raw(loaded.module.float()), raw(module))


def test_the_names_of_the_first_gpt2_checkpoints_are_understood(tmp_path):
    """No ``transformer.`` in front, the causal mask among the weights, no unembedding."""
    module = hard_model("gpt2", num_hidden_layers=2)
    folder = save_checkpoint(module, tmp_path / "m")
    old = {
        n.removeprefix("transformer."): t
        for n, t in read_tensors(folder / "model.safetensors").items()
    }
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64)
    write_tensors(folder / "model.safetensors", old)
    loaded = load(folder)
    assert torch.equal(raw(loaded.module), raw(module))
    assert "unused" not in loaded.source


def test_tensors_that_no_part_uses_are_told(llama):
    tensors = read_tensors(llama / "model.safetensors")
    write_tensors(llama / "model.safetensors", {**tensors, "model.extra.weight": torch.ones(2)})
    assert load(llama).source["unused"] == ["model.extra.weight"]


def test_a_wrong_path_gets_its_near_misses(llama):
    with pytest.raises(UsageError, match="Did you mean .*llama"):
        load(llama.parent / "lama")
    with pytest.raises(UsageError, match="not there either"):
        load(llama / "x" / "y")
    with pytest.raises(UsageError, match=f"Give its folder: {llama}"):
        load(llama / "model.safetensors")
    with pytest.raises(UsageError, match="empty"):
        load("  ")


def test_loading_says_nothing_and_leaves_transformers_as_it_was(llama, capfd):
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load(llama)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


# live modules ------------------------------------------------------------------------------


def test_a_live_module_is_copied(tmp_path):
    module = hard_model("llama", num_hidden_layers=1).train()
    before = {n: p.clone() for n, p in module.named_parameters()}
    loaded = load(module, dtype="float64")
    assert loaded.module is not module and module.training and not loaded.module.training
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.zero_()
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    folder = save_checkpoint(module, tmp_path / "m")
    assert loaded.weight_hash == load(folder).weight_hash
    assert {p.dtype for p in load(module.double(), dtype=None).module.parameters()} == {
        torch.float64
    }


def test_load_model_names_unknown_backends_and_sources():
    with pytest.raises(UsageError, match="transformer_lens"):
        load_model("zoo:random-gpt2", backend="transformerlens")
    with pytest.raises(UsageError, match="A dict is no model"):
        load_model({"a": 1})
    with pytest.raises(UsageError, match="site_map"):
        load_model("zoo:random-gpt2", site_map={"z": "x"})


# the hub, offline --------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch, llama):
    """A hand-built cache with someone/tiny at one commit (branch main, tag v1)."""
    root = tmp_path / "hub"
    repo = root / "models--someone--tiny"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in llama.iterdir():
        blob = repo / "blobs" / f"blob-{path.name}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(blob)
    for ref in ("main", "v1"):
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return root


def test_a_hub_id_in_the_cache_opens_offline_pinned_to_its_commit(cache, llama):
    loaded = load("someone/tiny")
    assert loaded.id == f"someone/tiny@{COMMIT}"
    assert torch.equal(loaded.reference, load(llama).reference)
    assert loaded.source["commit"] == COMMIT
    for source, revision in (
        ("someone/tiny", "v1"),
        ("someone/tiny@v1", None),
        (f"someone/tiny@{COMMIT}", None),
    ):
        assert load(source, revision=revision).id == loaded.id


def test_an_id_without_an_owner_opens_from_the_cache_as_any_other(cache, tmp_path):
    """``gpt2``: one word, a GPT-2 checkpoint, a revision of its own, and the whole way through."""
    folder = save_checkpoint(hard_model("gpt2"), tmp_path / "g")
    repo = cache / "models--gpt2"
    (repo / "refs").mkdir(parents=True)
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    (repo / "refs" / "main").write_text(COMMIT)
    model = load_model("gpt2")
    assert model.id == f"gpt2@{COMMIT}" and all(c.passed for c in model.checks)
    with pytest.raises(RefusedError, match="at step1000"):
        load_model("gpt2", revision="step1000")
    with pytest.raises(RefusedError, match="Did you mean gpt2"):
        load_model("gtp2")


def test_a_gated_id_whose_terms_were_accepted_opens_from_the_cache_as_any_other(cache, llama):
    """What a person fetched while logged in is theirs; no token is asked for, none is sent."""
    shutil.copytree(cache / "models--someone--tiny", cache / "models--owner--gated")
    loaded = load("owner/gated")
    assert loaded.id == f"owner/gated@{COMMIT}"
    assert torch.equal(loaded.reference, load(llama).reference)


@pytest.mark.parametrize("left", ["a note", "its page", "a branch", "a half snapshot"])
def test_a_gated_id_without_accepted_terms_gets_a_sentence(cache, left):
    """What the hub hands out before terms are accepted: the page, names of files, no weights."""
    repo = cache / "models--owner--gated"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    if left == "a note":
        (repo / ".no_exist" / COMMIT).mkdir(parents=True)
        (repo / ".no_exist" / COMMIT / "config.json").write_text("")
    elif left == "its page":
        (snapshot / "README.md").write_text("Accept the terms to see the files.")
    elif left == "a half snapshot":
        (snapshot / "config.json").symlink_to(repo / "blobs" / "lost")
    with pytest.raises((RefusedError, UsageError)) as said:
        load("owner/gated")
    assert "owner/gated" in str(said.value)
    assert "someone/tiny" in str(said.value) or left == "a note"
    assert "owner/gated" not in hub.cached_ids()


def test_an_id_that_is_not_in_the_cache_gets_a_sentence_with_what_works(cache):
    for name in ("someone/tinny", "gpt2"):
        with pytest.raises(RefusedError, match="not reached.*What works now.*someone/tiny"):
            load(name)
    with pytest.raises(RefusedError, match="at v2"):
        load("someone/tiny", revision="v2")


def test_a_hub_model_is_checked_as_a_folder_is(cache):
    repo = cache / "models--someone--tiny"
    config = repo / "blobs" / "blob-config.json"
    good = config.read_text()
    config.write_text(json.dumps({**json.loads(good), "auto_map": {"AutoModel": "evil.M"}}))
    with pytest.raises(UnsafeError, match="auto_map"):
        load("someone/tiny")
    config.write_text(good)
    (repo / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(UnsafeError, match="interp.models.convert"):
        load("someone/tiny")


def answer(kind):
    """What the hub would raise, without a hub."""
    import httpx2

    request = httpx2.Request("GET", "https://hub.invalid/model")
    return kind("no", response=httpx2.Response(403, request=request))


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        (errors.GatedRepoError, RefusedError, "gated.*hf auth login.*What works now"),
        (errors.RepositoryNotFoundError, UsageError, "has no model 'a/b'.*spelling"),
        (errors.RevisionNotFoundError, UsageError, "no revision 'dev'"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(monkeypatch, kind, expected, words):
    def refuse(*_, **__):
        raise answer(kind)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(expected, match=words):
        load("a/b", revision="dev")


def test_no_connection_and_a_full_disk_are_told_in_a_sentence(monkeypatch):
    for error, words in (
        (ConnectionError("offline"), "hub was not reached"),
        (OSError(28, "No space left on device"), "disk is full"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        with pytest.raises(RefusedError, match=words):
            load("a/b")


def test_weights_are_not_fetched_before_the_configuration_is_found_safe(monkeypatch, tmp_path):
    asked = []

    def serve(repo, name, revision=None):
        asked.append(name)
        path = tmp_path / COMMIT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "auto_map": {"a": "b"}}))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", serve)
    with pytest.raises(UnsafeError):
        load("a/b")
    assert asked == ["config.json"]


@pytest.mark.parametrize("name", ["a/b/c", "a b", "a/../b", "-x", "a//b", "http://x/y", "a/b@../c"])
def test_a_malformed_id_never_reaches_the_hub(name, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", never)
    with pytest.raises(UsageError):
        load(name)


def test_cached_ids_are_listed(cache):
    (cache / "models--half--done").mkdir()
    assert hub.cached_ids() == ["someone/tiny"]


# real models -------------------------------------------------------------------------------


def test_stories260k_continues_as_published(test_data):
    """Greedy through the blocks alone equals llama2.c's own text, token for token."""
    loaded = load(test_data / "stories260K" / "hf")
    reference = json.loads((test_data / "stories260K" / "reference.json").read_text())
    wanted = reference["measured_greedy_ids_float64"]
    assert loaded.tokenizer.encode("Once upon a time") == wanted[:5]
    blocks = ModelBlocks(loaded.module)
    with torch.no_grad():
        logits = blocks.forward(torch.tensor([wanted]))[0]
    assert logits[4:-1].argmax(-1).tolist() == wanted[5:]
    text = loaded.tokenizer.decode(wanted[1:]).strip()
    assert reference["published_greedy_text"].startswith(text[:400])
    pieces = "".join(loaded.tokenizer.texts(wanted[1:])).strip()
    assert pieces == text


def test_adder_adds_without_a_tokenizer(test_data):
    """a1 a0 b1 b0 in, the sum's digits out in reverse: right on every tenth of the 10,000 sums."""
    loaded = load(test_data / "adder" / "hf")
    assert loaded.tokenizer is None
    blocks = ModelBlocks(loaded.module)
    a, b = (
        x.flatten()
        for x in torch.meshgrid(torch.arange(0, 100, 3), torch.arange(0, 100, 3), indexing="ij")
    )
    tokens = torch.stack([a // 10, a % 10, b // 10, b % 10], 1)
    with torch.no_grad():
        for _ in range(3):
            tokens = torch.cat([tokens, blocks.forward(tokens)[:, -1].argmax(-1, True)], 1)
    total = tokens[:, 4] + 10 * tokens[:, 5] + 100 * tokens[:, 6]
    assert torch.equal(total, a + b)
