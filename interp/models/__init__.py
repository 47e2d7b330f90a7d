"""Floor 1: the only door to transformers, transformer_lens, nnsight and safetensors.

Names come when they are asked for: listing models costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.models.dictionaries import Dictionary as Dictionary
    from interp.models.dictionaries import list_dictionaries as list_dictionaries
    from interp.models.dictionaries import load_dictionary as load_dictionary
    from interp.models.doctor import doctor as doctor
    from interp.models.opening import load_model as load_model
    from interp.models.registry import MODELS as MODELS
    from interp.models.registry import Card as Card
    from interp.models.registry import list_models as list_models
    from interp.models.tensors import read_tensors as read_tensors
    from interp.models.tensors import write_tensors as write_tensors

PAGE = {
    "load_model": "opening",
    "load_dictionary": "dictionaries",
    "list_dictionaries": "dictionaries",
    "Dictionary": "dictionaries",
    "doctor": "doctor",
    "MODELS": "registry",
    "Card": "registry",
    "list_models": "registry",
    "read_tensors": "tensors",
    "write_tensors": "tensors",
}
"""Name -> the file it lives in."""


def __getattr__(name: str) -> Any:
    if name not in PAGE:
        raise AttributeError(f"interp.models has no {name!r}; it has {', '.join(PAGE)}")
    value = getattr(importlib.import_module(f"interp.models.{PAGE[name]}"), name)
    globals()[name] = value  # `doctor` is a file too: the function is what the name means
    return value
