"""Elementary: modules of known libraries that write a unit out of elementary operations.

No function call shows them as a unit, so the engine must be told: an activation (``act``) or a norm
without a mean (``norm``), both of which are entry by entry ``x · f(x)/x``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Unit:
    """A unit.

    Args:
        kind: the rule that governs it.
        how: ``secant``: out = x·sg(f(x)/x).
    """

    kind: Literal["act", "norm"]
    how: str = "secant"


_ACT, _NORM = Unit("act"), Unit("norm")

ELEMENTARY: dict[str, Unit] = {
    **dict.fromkeys(
        (
            "NewGELUActivation", "FastGELUActivation", "QuickGELUActivation", "GELUTanh",
            "AccurateGELUActivation", "ClippedGELUActivation", "LaplaceActivation",
        ),
        _ACT,
    ),
    **dict.fromkeys(
        (
            "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Gemma2RMSNorm",
            "GemmaRMSNorm", "Olmo2RMSNorm", "T5LayerNorm", "MixtralRMSNorm", "Phi3RMSNorm",
            "Gemma3RMSNorm", "Qwen2MoeRMSNorm", "Qwen3MoeRMSNorm", "OlmoeRMSNorm",
        ),
        _NORM,
    ),
}  # fmt: skip
"""Class name -> unit."""
