"""A network as the matrix F(x₀) and the remainder r(x₀): freezing, products, singular vectors."""

from interp.engine.linear.frozen import Frozen
from interp.engine.linear.modules import Ends, freeze, freeze_rows
from interp.engine.linear.singular import Singular, singular
from interp.engine.linear.transformers import (
    block_map,
    freeze_prompt,
    prompt_logits,
    straightened,
)

__all__ = [
    "Ends",
    "Frozen",
    "Singular",
    "block_map",
    "freeze",
    "freeze_prompt",
    "freeze_rows",
    "prompt_logits",
    "singular",
    "straightened",
]
