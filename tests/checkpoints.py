"""Hard random checkpoints, for every room's tests: a module, or a folder on disk.

``hard_model("llama", seed=3)`` gives a raw transformers module (float32, eval) in which every part
matters (tests/models/test_families.py asserts it); ``save_checkpoint`` writes it as a person would
have it: config and safetensors, no tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.models.families import FAMILIES
from interp.models.loading import quiet
from interp.models.zoo import hard

FAMILY_NAMES = tuple(f.name for f in FAMILIES.values())


def hard_model(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A hard random transformers module; ``overrides`` are fields of its config."""
    return hard.hard_model(family, seed=seed, **overrides)


def save_checkpoint(module: Any, folder: Path, tokenizer: Any = None) -> Path:
    """Write config and safetensors (and a tokenizer, if given) into ``folder``; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        module.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return folder


def prompts(rows: int = 4, length: int = 12, *, vocab: int = 97, seed: int = 0) -> Any:
    """Random token ids ``[rows, length]``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (rows, length), generator=generator)
