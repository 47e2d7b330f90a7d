"""docs/your-model.md, followed to the letter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import interp
from tests.checkpoints import hard_model, save_checkpoint
from tests.models.plain import picture_net

PAGE = Path(__file__).parents[2] / "docs" / "your-model.md"


def blocks(heading: str) -> list[str]:
    """The Python blocks under a heading."""
    part = re.split(r"^#+ ", PAGE.read_text(encoding="utf8"), flags=re.M)
    text = next(p for p in part if p.startswith(heading))
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


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
