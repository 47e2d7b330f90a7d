"""A network as the matrix F(x₀) and the remainder r(x₀): freezing, products, singular vectors."""

from interp.engine.linear.blame import Culprit, culprits
from interp.engine.linear.frozen import Frozen
from interp.engine.linear.masking import run_masked
from interp.engine.linear.modules import Ends, freeze, freeze_rows
from interp.engine.linear.opening import (
    driven,
    frozen_batches,
    module_of,
    tensors_of,
    transformer_of,
)
from interp.engine.linear.singular import DENSE, Singular, singular
from interp.engine.linear.transformers import (
    block_map,
    freeze_prompt,
    prompt_logits,
    straightened,
)

__all__ = [
    "DENSE",
    "Culprit",
    "Ends",
    "Frozen",
    "Singular",
    "block_map",
    "culprits",
    "driven",
    "freeze",
    "freeze_prompt",
    "freeze_rows",
    "frozen_batches",
    "module_of",
    "prompt_logits",
    "run_masked",
    "singular",
    "straightened",
    "tensors_of",
    "transformer_of",
]
