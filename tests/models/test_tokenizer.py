"""Tokenizers: raw text of each token, BOS as the family does, nothing invented."""

from __future__ import annotations

import json
import re

import pytest
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from interp.models.loading import load
from interp.models.tokenizer import TextTokenizer, byte_table
from interp.terms import RefusedError, UnsafeError, UsageError
from tests.checkpoints import hard_model, save_checkpoint

WORDS = ["<s>", "<unk>", "Mary", "gave", "a", "drink", "to", "John", "."]


def words(bos="<s>"):
    """A word-level tokenizer, as the shipped models have."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, unk_token="<unk>"
    )


def byte_level(text):
    """A byte-level BPE (GPT-2's kind) trained on a text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([text], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def metaspace():
    """A sentencepiece-like unigram tokenizer with byte fallback."""
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("cat", -3.0), ("t", -4.0)]
    vocab += [(f"<0x{b:02X}>", -9.0) for b in range(256)]
    raw = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


HARD = "the cat <s>  sat\n\ton é 漢字 🙂 &lt;script&gt; $x$ \u202e x"


@pytest.mark.parametrize("make", [lambda: byte_level(HARD * 3), metaspace], ids=["bytes", "meta"])
def test_texts_joined_give_the_text_back(make):
    tok = TextTokenizer(make())
    ids = tok.encode(HARD, bos=False)
    pieces = tok.texts(ids)
    assert len(pieces) == len(ids) > 10
    escapes = re.compile(rb"\\x([0-9a-f]{2})")
    raw = escapes.sub(lambda m: bytes([int(m[1], 16)]), "".join(pieces).encode())
    assert raw.decode() == HARD
    assert any(p.startswith(" ") for p in pieces), "a space is a space"
    assert not any("Ġ" in p or "▁" in p for p in pieces)
    assert tok.decode(ids) == HARD


def test_a_token_of_half_a_character_shows_its_bytes():
    tok = TextTokenizer(byte_level("plain words"))
    ids = tok.encode("🙂", bos=False)
    assert len(ids) == 4
    assert tok.texts(ids) == ["\\xf0", "\\x9f", "\\x99", "\\x82"]
    assert len(set(tok.texts(ids))) == 4, "distinct tokens stay distinct"


def test_byte_table_is_one_to_one_on_all_bytes():
    assert sorted(byte_table().values()) == list(range(256))
    assert byte_table()["Ġ"] == 0x20 and byte_table()["Ċ"] == 0x0A


def test_words_are_their_own_text_and_decode_joins_them():
    tok = TextTokenizer(words(), default_bos=True, vocab=len(WORDS))
    ids = tok.encode("Mary gave a drink to John .")
    assert tok.texts(ids) == ["<s>", "Mary", "gave", "a", "drink", "to", "John", "."]
    assert tok.decode(ids[1:]) == "Mary gave a drink to John ."
    assert tok.texts(tok.encode("Zorp", bos=False)) == ["<unk>"]


def test_bos_is_there_by_default_where_the_family_has_it_and_the_tokenizer_too():
    assert TextTokenizer(words(), default_bos=True).encode("Mary") == [0, 2]
    assert TextTokenizer(words(), default_bos=False).encode("Mary") == [2]
    tok = TextTokenizer(words(bos=None), default_bos=True)
    assert tok.bos_id is None and not tok.default_bos
    assert tok.encode("Mary") == [2]
    with pytest.raises(UsageError, match="no BOS"):
        tok.encode("Mary", bos=True)
    assert TextTokenizer(words(), default_bos=True).encode("Mary", bos=False) == [2]


@pytest.mark.parametrize(
    ("family", "bos"),
    [
        ("gpt2", True),
        ("llama", True),
        ("gemma2", True),
        ("mistral", True),
        ("gpt_neo", True),
        ("gpt_neox", False),
        ("qwen2", False),
        ("qwen3", False),
        ("olmo2", False),
    ],
)
def test_each_familys_checkpoint_has_its_default_bos(family, bos, tmp_path):
    folder = save_checkpoint(hard_model(family, num_hidden_layers=1), tmp_path / "m", words())
    loaded = load(folder)
    assert loaded.tokenizer.default_bos is bos
    assert loaded.tokenizer.encode("Mary") == ([0, 2] if bos else [2])
    assert loaded.hf_tokenizer is loaded.tokenizer.hf


def test_a_checkpoint_without_tokenizer_files_has_none_and_one_may_be_given(tmp_path):
    folder = save_checkpoint(hard_model("gpt2", num_hidden_layers=1), tmp_path / "m")
    assert load(folder).tokenizer is None
    assert load(folder, tokenizer=words()).tokenizer.encode("Mary", bos=False) == [2]
    words().save_pretrained(tmp_path / "tok")
    assert load(folder, tokenizer=tmp_path / "tok").tokenizer.encode("a", bos=False) == [4]


def test_a_silent_tokenizer_config_leaves_bos_to_the_models(tmp_path):
    """gpt2's own repository: tokenizer_config.json does not name the BOS that it uses."""
    tok = byte_level("words")
    config = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "num_hidden_layers": 1}
    folder = save_checkpoint(hard_model("gpt2", **config), tmp_path / "m", tok)
    said = folder / "tokenizer_config.json"
    said.write_text('{"model_max_length": 64}')
    assert load(folder).tokenizer.bos_id == 0
    said.write_text('{"bos_token": null}')
    assert load(folder).tokenizer.bos_id is None
    config["bos_token_id"] = 7  # not a special token: a leftover default
    folder = save_checkpoint(hard_model("gpt2", **config), tmp_path / "n", tok)
    (folder / "tokenizer_config.json").write_text("{}")
    assert load(folder).tokenizer.bos_id is None


def test_a_token_that_the_model_lacks_is_told():
    tok = TextTokenizer(words(), vocab=5)
    with pytest.raises(UsageError, match="token 7.*only 5 tokens"):
        tok.encode("John")
    assert tok.texts([400, -1]) == ["<400>", "<-1>"]


def test_a_tokenizer_with_code_or_garbage_is_refused(tmp_path):
    folder = save_checkpoint(hard_model("gpt2", num_hidden_layers=1), tmp_path / "m", words())
    config = folder / "tokenizer_config.json"
    good = config.read_text()
    config.write_text(json.dumps({**json.loads(good), "auto_map": {"AutoTokenizer": ["e.T", ""]}}))
    with pytest.raises(UnsafeError, match="auto_map"):
        load(folder)
    with pytest.raises(UnsafeError, match="auto_map"):
        load("zoo:random-gpt2", tokenizer=folder)
    config.write_text(good)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RefusedError, match="cannot be read"):
        load(folder)


def test_gpt2s_published_vocabulary_is_read_without_a_tokenizer_json(tmp_path, test_data):
    source = test_data / "gpt2_tokenizer"
    folder = save_checkpoint(
        hard_model("gpt2", num_hidden_layers=1, vocab_size=50257, hidden_size=12), tmp_path / "m"
    )
    (folder / "vocab.json").write_bytes((source / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((source / "vocab.bpe").read_bytes())
    tok = load(folder).tokenizer
    ids = tok.encode(" Mary went to the store", bos=False)
    assert tok.texts(ids) == [" Mary", " went", " to", " the", " store"]
    assert ids == [5335, 1816, 284, 262, 3650]
    assert tok.bos_id == 50256 and tok.encode("a")[0] == 50256
