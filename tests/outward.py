"""A second method in one file, and results made by hand, for the tests of the outward faces."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from interp.results import Result
from interp.terms import Check, Context, HookedModel, Method, PromptPairs
from tests.figures.arrays import HOSTILE, patch_grid, tokens


class PromptLengths(Method):
    """Counts tokens: enough of a method for every face to show it."""

    title: ClassVar[str] = "Prompt lengths"
    question: ClassVar[str] = "How long is each prompt?"
    needs: ClassVar[tuple[str, ...]] = ("resid_pre",)

    side: Literal["clean", "corrupt"] = "clean"
    """Which prompt of a pair."""
    factor: float = Field(1.0, gt=0, le=100)
    """Every length is multiplied by this."""
    note: str = ""
    """Any text; it changes nothing."""
    fault: str = ""
    """Goes wrong with this message."""
    worry: bool = False
    """Add a check that fails."""

    def measure(self, model: HookedModel, task: PromptPairs, context: Context) -> xr.Dataset:
        """``length[prompt]``."""
        if self.fault:
            raise RuntimeError(self.fault)
        context.advance(1, 1)
        values = np.array([len(p) for p in getattr(task, self.side)], float) * self.factor
        if self.worry:
            context.check(Check("worry", "a check that fails", 1.0, 0.0, note="on purpose"))
        attrs = {"units": "tokens", "long_name": "length", "signed": 0}
        return xr.Dataset({"length": xr.DataArray(values, dims=("prompt",), attrs=attrs)})


GOOD = Check("identity_patch", "patching a run with itself changes nothing", 1e-7, 1e-5)
BAD = Check("unwrapped", "logits equal <b>the unwrapped</b> model's", 0.2, 1e-4, note="they differ")


def result(
    data: xr.Dataset | None = None,
    *,
    checks: tuple[Check, ...] = (GOOD,),
    model: str = "zoo:toy",
    fields: dict[str, Any] | None = None,
) -> Result:
    """A result whose every text is hostile."""
    spec = {
        "format": 1,
        "method": "activation_patching",
        "version": 1,
        "fields": {"site": "resid_pre", "direction": "denoising", **(fields or {})},
        "model": {
            "ref": model,
            "weight_hash": "ab" * 32,
            "backend": "transformer_lens",
            "dtype": "float32",
        },
        "task": {"ref": "ioi:n=2,seed=0", "hash": "cd" * 32},
    }
    provenance = {
        "method_title": "Activation patching",
        "question": f"Why {HOSTILE[1]}?",
        "seed": 0,
        "device": "cpu",
        "versions": {"interp": "0.1.0"},
        "wall_time_s": 1.5,
    }
    return Result(
        patch_grid() if data is None else data, spec, provenance, checks, tokens(), "0f" * 16
    )
