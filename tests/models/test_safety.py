"""What a checkpoint may not do: each refusal, by a folder that asks for it."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interp.models import convert, safety
from interp.models.loading import load
from interp.models.registry import find_in_roots, list_models
from interp.models.tensors import read_headers, read_tensors, write_tensors
from interp.terms import InterpError, RefusedError, UnsafeError, UsageError
from tests.checkpoints import hard_model, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(hard_model("llama", num_hidden_layers=1), tmp_path / "model")


def change(folder: Path, name: str = "config.json", **fields) -> None:
    path = folder / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **fields}))


class Canary:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "opened"))


def test_a_sound_folder_passes(folder):
    seen = safety.inspect(folder)
    assert seen.family.name == "llama"
    assert seen.n_params == sum(
        p.numel() for p in hard_model("llama", num_hidden_layers=1).parameters()
    )
    assert seen.size_bytes == 4 * seen.n_params
    assert not seen.has_tokenizer


CODE = [
    ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}),
    ("config.json", {"trust_remote_code": True}),
    ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
    ("config.json", {"_attn_implementation_internal": "eager"}),
    ("config.json", {"attn_implementation": "someone/kernel:evil"}),
    ("config.json", {"_experts_implementation": "someone/kernel"}),
    ("config.json", {"inner": [{"deep": {"auto_map": {"AutoConfig": "evil.Config"}}}]}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}),
    ("generation_config.json", {"trust_remote_code": True}),
]


@pytest.mark.parametrize(("name", "fields"), CODE, ids=lambda v: str(v)[:50])
def test_a_configuration_that_asks_for_code_is_refused_before_transformers(
    folder, name, fields, monkeypatch
):
    change(folder, name, **fields)
    import transformers

    def never(*_, **__):
        raise AssertionError("transformers saw the checkpoint")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(transformers.LlamaConfig, "from_dict", never)
    with pytest.raises(UnsafeError, match=name.replace(".", r"\.")):
        load(folder)


def test_fields_that_ask_for_nothing_pass(folder):
    change(folder, auto_map=None, trust_remote_code=False, _attn_implementation="sdpa")
    assert safety.inspect(folder).family.name == "llama"


@pytest.mark.parametrize("name", ["modeling_evil.py", "custom_generate/generate.py", "x.so"])
def test_a_folder_with_code_is_refused(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit")
    with pytest.raises(UnsafeError, match=path.name):
        safety.inspect(folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(folder, tmp_path, suffix):
    (folder / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    (folder / f"pytorch_model{suffix}").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UnsafeError, match="python -m interp.models.convert"):
        load(folder)
    with pytest.raises(UnsafeError, match="python -m interp.models.convert"):
        load(folder / f"pytorch_model{suffix}")
    assert not canary.exists()


def test_a_trapped_pickle_is_not_converted_either(folder, tmp_path):
    canary = tmp_path / "canary"
    trapped = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(2), "trap": Canary(canary)}, trapped)
    with pytest.raises(UnsafeError, match="more than tensors"):
        convert.convert(trapped, tmp_path / "out")
    assert not canary.exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_converted_checkpoint_opens_and_gives_the_same_logits(folder, tmp_path):
    wanted = load(folder)
    tensors = read_tensors(folder / "model.safetensors")
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((folder / "config.json").read_bytes())
    names = sorted(tensors)
    torch.save({n: tensors[n] for n in names[:4]}, old / "pytorch_model-00001-of-00002.bin")
    torch.save({n: tensors[n] for n in names[4:]}, old / "pytorch_model-00002-of-00002.bin")
    (old / "training_args.bin").write_bytes(b"not a checkpoint")
    done = subprocess.run(
        [sys.executable, "-m", "interp.models.convert", str(old), str(tmp_path / "new")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "new") in done.stdout
    given = load(tmp_path / "new")
    assert torch.equal(given.reference, wanted.reference)
    assert given.weight_hash == wanted.weight_hash


def test_conversion_has_a_time_limit_and_refuses_a_taken_folder(folder, tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(RefusedError, match="longer than"):
        convert.convert(tmp_path / "a.pt", tmp_path / "slow", seconds=0.01)
    with pytest.raises(UsageError, match="already"):
        convert.convert(tmp_path / "a.pt", folder)
    with pytest.raises(UsageError, match="no file or folder"):
        convert.convert(tmp_path / "b.pt", tmp_path / "out")
    assert convert.main([str(tmp_path / "b.pt"), str(tmp_path / "out")]) == 2


def test_a_folder_without_weights_or_config_says_so(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="no config.json"):
        load(folder)
    save_checkpoint(hard_model("gpt2", num_hidden_layers=1), tmp_path / "outer" / "inner")
    with pytest.raises(UsageError, match="inner"):
        load(tmp_path / "outer")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(RefusedError, match="adapter"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("BertForMaskedLM", "encoder"),
        ("T5ForConditionalGeneration", "decoder"),
        ("MixtralForCausalLM", "experts"),
        ("MambaForCausalLM", "recurrent"),
        ("LlavaForConditionalGeneration", "decoder|text"),
        ("LlamaModel", "without the head"),
        ("LlamaForSequenceClassification", "classifier"),
        ("FancyForCausalLM", "Known"),
    ],
)
def test_an_unknown_architecture_is_refused_with_its_reason(folder, architecture, reason):
    change(folder, architectures=[architecture])
    with pytest.raises(RefusedError, match=reason):
        load(folder)


def test_an_architecture_and_model_type_that_do_not_belong_together_are_refused(folder):
    change(folder, model_type="gpt2")
    with pytest.raises(UnsafeError, match="do not belong together"):
        load(folder)
    change(folder, model_type="llama", architectures=None)
    assert load(folder).family.name == "llama"


def test_quantised_weights_are_refused_with_the_reason(folder):
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(RefusedError, match="gptq.*depend on the batch"):
        load(folder)
    change(folder, quantization_config=None)
    tensors = read_tensors(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    write_tensors(folder / "model.safetensors", {**tensors, name: tensors[name].to(torch.int8)})
    with pytest.raises(RefusedError, match="I8"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsafeError, match=r"config\.json"):
        load(folder)


def test_an_index_that_points_outside_is_refused(folder, tmp_path):
    (tmp_path / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for name in ("../other.safetensors", str(tmp_path / "other.safetensors"), "evil.bin"):
        (folder / safety.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(UnsafeError, match="no file of the folder"):
            load(folder)
    (folder / safety.INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(UsageError, match="lacks gone.safetensors"):
        load(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(UnsafeError, match="leads out"):
        load(folder)


def test_a_linked_folder_and_a_link_inside_the_folder_are_fine(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to(folder / "weights.safetensors")
    assert load(tmp_path / "alias").family.name == "llama"


def file_of(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        file_of(b"{}", length=10**12),
        file_of(b"not json"),
        file_of(b"[]"),
        file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1234"),
        file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"123456"),
        file_of(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}', b"1234"),
        file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"),
        file_of(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}', b""),
        file_of(b'{"a":{"dtype":"F32"}}'),
        file_of(b'{"a":1}'),
        file_of(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        ),
    ],
    ids=range(13),
)
def test_a_damaged_safetensors_file_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsafeError, match="no intact safetensors"):
        read_headers(folder / "model.safetensors")
    with pytest.raises(UnsafeError, match="no intact safetensors"):
        load(folder)


def test_old_libraries_are_refused(monkeypatch):
    versions = {"torch": "2.9.1", "transformers": "5.23.0"}
    monkeypatch.setattr(safety.metadata, "version", versions.__getitem__)
    with pytest.raises(UnsafeError, match=r"torch 2\.10"):
        load("zoo:random-gpt2")
    versions.update(torch="2.13.0+cu130", transformers="5.8.3")
    with pytest.raises(UnsafeError, match=r"transformers 5\.9"):
        safety.assert_floors()
    versions.update(transformers="6.0.dev0")
    safety.assert_floors()


def test_listing_names_good_and_bad_folders_without_torch(folder, tmp_path):
    bad = save_checkpoint(hard_model("gpt2", num_hidden_layers=1), tmp_path / "deep" / "bad")
    change(bad, auto_map={"AutoModel": "evil"})
    (tmp_path / "way-out").symlink_to("/")
    program = (
        "import sys, json\n"
        "from interp.models import list_models\n"
        "found = [m.to_json() for m in list_models([sys.argv[1]])]\n"
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    found = {m["ref"]: m for m in json.loads(done.stdout)}
    assert found[str(folder)]["ok"] and found[str(folder)]["architecture"] == "LlamaForCausalLM"
    assert not found[str(bad)]["ok"] and "auto_map" in found[str(bad)]["reason"]
    assert found["zoo:random-gpt2"]["ok"]
    assert len([m for m in found.values() if m["origin"] == "folder"]) == 2


def test_a_name_is_found_under_the_roots_and_never_above_them(folder, tmp_path):
    roots = (tmp_path,)
    assert find_in_roots("model", roots) == folder
    assert load("model", roots=roots).id == str(folder.resolve())
    for name in ("../model", "..", str(folder.parent / "x" / ".." / "gone")):
        assert find_in_roots(name, roots) is None
    assert [m.ref for m in list_models([folder / "nothing"]) if m.origin == "folder"] == []


def test_every_error_of_loading_is_one_a_person_may_see(folder):
    """Bytes flipped anywhere in the JSON never surface as another library's exception."""
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    for key in config:
        for value in ("x", -1, [], {}, 1e400):
            (folder / "config.json").write_text(json.dumps({**config, key: value}))
            try:
                load(folder)
            except InterpError:
                continue
