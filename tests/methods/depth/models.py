"""What the depth tests measure: hard float64 models of three families, with their plain twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interp.engine.depth import corpus_of
from interp.models import load_model
from interp.terms import PromptPairs, Texts
from tests.checkpoints import hard_model, prompts
from tests.engine.driven import driven
from tests.twins.depth import Plain

FAMILIES = ("gpt2", "llama", "gpt_neox")
torch.manual_seed(0)


def pair(family: str, **overrides: Any) -> tuple[Any, Plain]:
    """The model that the engine drives, and the twin's view of the same module."""
    module, model = driven(family, **overrides)
    model.capabilities = lambda: ()
    model.weight_hash = "0"
    return model, Plain(module, family)


def rows(n: int = 3, length: int = 9, seed: int = 0) -> torch.Tensor:
    return prompts(n, length, seed=seed)


def texts(n: int = 3, length: int = 9, seed: int = 0, answer: bool = False) -> Texts:
    tokens = tuple(tuple(r) for r in rows(n, length, seed).tolist())
    mask = tuple((0,) * (length - 1) + (1,) for _ in tokens) if answer else None
    return Texts(tokens, answer_mask=mask)


def pairs(n: int = 3, length: int = 9, seed: int = 0) -> PromptPairs:
    clean = rows(n, length, seed).tolist()
    corrupt = [[*r[:-1], (r[-1] + 1) % 97] for r in clean]
    return PromptPairs.from_tokens(clean, corrupt, [5 + i for i in range(n)], [40] * n)


def silent_from(module: Any, layer: int) -> Any:
    """Layers from here on add nothing: output weights and biases are 0 (gpt2)."""
    with torch.no_grad():
        for block in module.transformer.h[layer:]:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
    return module


def loaded(module: Any, dtype: str = "float64") -> Any:
    return load_model(module, dtype=dtype, verify=False)


def gpt2(dtype: str = "float64", **overrides: Any) -> Any:
    return loaded(hard_model("gpt2", **overrides), dtype)


def batch_of(model: Any, task: Any) -> Any:
    return corpus_of(model, task).batches[0]


def close(a: Any, b: Any, tolerance: float = 1e-10) -> bool:
    a, b = np.asarray(a, float), np.asarray(b, float)
    scale = np.nanstd(b) or 1.0
    return bool(np.nanmax(np.abs(a - b)) <= tolerance * scale)
