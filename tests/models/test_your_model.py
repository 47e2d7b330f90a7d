"""docs/your-model.md, followed to the letter."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.models import others
from interp.models.registry import ZOO
from tests.checkpoints import FAMILY_NAMES, hard_model, save_checkpoint
from tests.models.plain import picture_net

PAGE = Path(__file__).parents[2] / "docs" / "your-model.md"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEADINGS = (
    "A checkpoint folder", "A hub id", "Device and dtype",
    "Encoders, experts, state-space models", "A plain `nn.Module`", "All of it once",
    "What can go wrong",
)  # fmt: skip
COMMANDS = (
    "interp doctor --model path/to/folder",
    "interp run activation_patching --model path/to/folder --task pairs.jsonl --site resid_pre "
    "--out runs/first",
    "interp doctor",
    "interp list models --models DIR",
)


def section(heading: str) -> str:
    """The text under a heading."""
    parts = re.split(r"^#+ ", PAGE.read_text(encoding="utf8"), flags=re.M)
    return next(p for p in parts if p.startswith(heading))


def call(words: str) -> str:
    """What a command prints; it must end well."""
    done = CliRunner().invoke(app, shlex.split(words)[1:])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output


def blocks(heading: str) -> list[str]:
    """The Python blocks under a heading."""
    return re.findall(r"```python\n(.*?)```", section(heading), flags=re.S)


def test_a_checkpoint_folder_comes_to_its_first_patch(tmp_path: Path):
    folder = save_checkpoint(hard_model("llama"), tmp_path / "mine")
    load, pairs, patch = blocks("A checkpoint folder")
    tokens = pairs[pairs.index("pairs = PromptPairs.from_tokens") :]  # it has no tokenizer
    names: dict[str, Any] = {}
    exec(load.replace("path/to/folder", str(folder)), names)
    exec("from interp import PromptPairs\n" + tokens, names)
    exec(patch.replace(".show()", ""), names)
    assert names["result"].data["effect"].dims == ("layer", "position")
    assert float(abs(names["result"].data["effect_raw"]).max()) > 0


def test_a_plain_network_is_read_by_module_path():
    (code,) = blocks("A plain `nn.Module`")
    names = {"interp": interp, "network": picture_net(), "inputs": torch.randn(2, 3, 8, 8)}
    exec(code.replace("layers.3.conv", "0"), names)
    (value,) = names["run"].reads.values()
    assert value.shape == (2, 6, 8, 8)


def test_a_hand_written_transformer_comes_to_its_first_patch():
    (code,) = blocks("All of it once")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    data = names["result"].data
    assert data["effect_raw"].dims == ("layer", "head")
    assert float(abs(data["effect_raw"]).max()) > 1e-3


def test_every_section_and_every_command_of_the_page_is_followed_here():
    text = PAGE.read_text(encoding="utf8")
    assert tuple(re.findall(r"^##+ (.*)$", text, flags=re.M)) == HEADINGS
    found = re.findall(r"`(interp [^`\n]+)`", text) + re.findall(r"^(interp .+)$", text, flags=re.M)
    assert set(found) == set(COMMANDS)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer, and a shell that stands beside it."""
    folder = tmp_path / "path" / "to" / "folder"
    shutil.copytree(ZOO / "ioi", folder, ignore=shutil.ignore_patterns("card.json"))
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_folders_text_pair_and_its_commands_work_as_they_stand(mine: Path):
    load, pairs, patch = blocks("A checkpoint folder")
    names: dict[str, Any] = {}
    exec(load, names)
    text = pairs[: pairs.index("pairs = PromptPairs.from_tokens")]
    exec(text, names)
    exec(patch.replace(".show()", ""), names)
    effect = names["result"].data["effect"]
    assert effect.dims == ("layer", "position") and float(abs(effect).max()) > 0.5
    row = {
        "clean": "When Mary and John went home, John gave a ring to",
        "corrupt": "When Mary and John went home, Mary gave a ring to",
        "right": " Mary", "wrong": " John",
    }  # fmt: skip
    assert all(v in text for v in row.values()), "the file holds the page's own pair"
    Path("pairs.jsonl").write_text(json.dumps(row) + "\n")
    call(COMMANDS[1] + " --no-store --quiet")
    kept = interp.load_result("runs/first").data["effect"]
    assert kept.values == pytest.approx(effect.values, abs=1e-6)
    said = call(COMMANDS[0])
    assert "resid_pre" in said and "float32" in said and "bfloat16" in said


def test_a_hub_id_its_revision_and_a_folder_of_folders(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    repo = tmp_path / "hub" / "models--gpt2"
    (repo / "refs").mkdir(parents=True)
    shutil.copytree(mine, repo / "snapshots" / COMMIT)
    for branch in ("main", "REVISION"):
        (repo / "refs" / branch).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for words in re.findall(
        r'`(?:interp.load_model\("([^"]+)"\)|(gpt2@REVISION))`', section("A hub")
    ):
        model = interp.load_model(words[0] or words[1], verify=False)
        assert model.id == f"gpt2@{COMMIT}"
    assert interp.load_model("folder", roots=(mine.parent,), verify=False).weight_hash
    (mine.parent / "broken").mkdir()
    (mine.parent / "broken" / "config.json").write_text("{}")
    said = call(COMMANDS[3].replace("DIR", str(mine.parent)))
    assert "folder" in said and "broken" in said


def test_devices_and_dtypes_are_those_the_page_names(mine: Path):
    text = section("Device and dtype")
    for name in ("float64", "float32", "bfloat16", "float16"):
        assert f"`{name}`" in text
        assert interp.load_model(mine, dtype=name, verify=False).dtype == getattr(torch, name)
    for device in ("cpu", "auto"):
        assert f'"{device}"' in text
        interp.load_model(mine, device=device, verify=False)


def test_the_table_of_others_is_the_table_that_is_read():
    text = section("Encoders")
    held = {n.strip() for row in re.findall(r"^\|[^|]+\|([^|]+)\|", text, flags=re.M)[2:]
            for n in row.split(",")}  # fmt: skip
    known = {re.sub(r"For.*|Model$", "", n) for n in others.OTHERS}
    assert {n.lower().replace("-", "").replace(" ", "") for n in held} == {
        n.lower().replace("qwen3moe", "qwen3moe") for n in known
    }


def test_what_can_go_wrong_goes_wrong_as_the_page_says(mine: Path, tmp_path: Path):
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section("What can"), flags=re.M)[1:]
    assert len(rows) == 4
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(mine / "config.json", bare / "config.json")
    with pytest.raises(interp.InterpError, match="interp.models.convert|no weights|safetensors"):
        interp.load_model(bare)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(interp.InterpError, match="auto_map"):
        interp.load_model(mine)
    parallel = next(f for f in FAMILY_NAMES if "neox" in f.lower())
    model = interp.load_model(hard_model(parallel), verify=False)
    pairs = interp.PromptPairs.from_tokens([[4, 7, 1]], [[4, 7, 3]], [9], [8])
    with pytest.raises(interp.InterpError, match="resid_mid"):
        interp.run(interp.methods.ActivationPatching(site="resid_mid"), model, pairs)
    with pytest.raises(interp.InterpError, match="span map"):
        interp.PromptPairs.from_tokens([[4, 7, 1]], [[4, 7, 3, 2]], [9], [8])
