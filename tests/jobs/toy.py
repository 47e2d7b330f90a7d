"""A toy method on a toy model, and a worker that knows both. Run as a program it serves a store."""

from __future__ import annotations

import sys
import time
from typing import ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from interp.terms import (
    KINDS,
    Capability,
    Check,
    Context,
    HookedModel,
    Method,
    ModelShape,
    PromptPairs,
    Texts,
)

WORDS = (
    "<s>",
    " Mary",
    "</script><img src=x onerror=alert(1)>",
    "%{z}",
    "=1+1",
    "\u202e",
    "\n",
    "&lt;",
    "\x00",
    " John",
    " the",
)


class ToyTokenizer:
    """Word i is token i."""

    default_bos, bos_id = True, 0

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of words between blanks."""
        ids = [WORDS.index(f" {w}") for w in text.split()]
        return ([0] if bos is None or bos else []) + ids

    def decode(self, ids) -> str:
        """The texts, joined."""
        return "".join(self.texts(ids))

    def texts(self, ids) -> list[str]:
        """The text of each id."""
        return [WORDS[i] for i in ids]


class ToyModel:
    """Claims to be a model of two layers; only what ``run`` asks of one is there."""

    backend, device, dtype = "torch_module", "cpu", "float32"
    shape = ModelShape(2, 2, 2, 4, 2, 8, len(WORDS), 16, architecture="Toy", n_params=1000)
    checks = (Check("logits", "logits against the unwrapped model", 0.0, 1e-5),)
    sites = ()

    def __init__(self, ref: str = "zoo:toy") -> None:
        self.id, self.weight_hash = ref, f"{len(ref):064x}"
        self.tokenizer = ToyTokenizer()

    def capabilities(self) -> tuple[Capability, ...]:
        """resid_pre and resid_post, nothing else."""
        return tuple(
            Capability(
                k,
                k in ("resid_pre", "resid_post"),
                "" if k.startswith("resid_p") else "the toy has no such site",
            )
            for k in KINDS
        )

    def run(self, *_, **__):
        """Never asked for."""
        raise AssertionError

    def module(self):
        """Never asked for."""
        raise AssertionError


class Toy(Method):
    """Random numbers, row by row, each row a chunk."""

    title: ClassVar[str] = "Toy sweep"
    question: ClassVar[str] = "How does a run behave?"
    needs: ClassVar[tuple[str, ...]] = ("resid_pre",)

    rows: int = Field(4, ge=1, le=1000, description="how many chunks")
    pause: float = Field(0.0, ge=0.0, description="seconds a chunk takes")
    scale: float = Field(1.0, description="factor on every number")
    words: str = Field("", description="any text")
    fault: str = Field("", description="what goes wrong at half time")
    seed: int = Field(0, ge=0, description="of the numbers")

    def measure(
        self, model: HookedModel, task: PromptPairs | Texts | None, context: Context
    ) -> xr.Dataset:
        """Numbers that depend on the seed and the row alone."""
        import torch

        out = np.full((self.rows, 3), np.nan)

        def so_far() -> xr.Dataset:
            return xr.Dataset(
                {
                    "effect": (
                        ("layer", "position"),
                        out.copy(),
                        {"units": "logit", "long_name": "toy effect", "signed": 1},
                    )
                }
            )

        for row in range(self.rows):
            kept = context.load_chunk(f"row-{row}")
            if kept is None:
                time.sleep(self.pause)
                if self.fault and row == self.rows // 2:
                    self._fail()
                generator = torch.Generator().manual_seed(1000 * self.seed + row)
                values = torch.randn(3, generator=generator).numpy() * self.scale
                kept = {"values": values}
                context.save_chunk(f"row-{row}", kept)
                context.note("computed", row)
            out[row] = kept["values"]
            context.partial(so_far)
            context.advance(row + 1, self.rows)
        context.check(
            Check(
                "finite",
                "numbers that are defined",
                float(np.isfinite(out).mean()),
                1.0,
                at_least=True,
            )
        )
        context.note("partition", [1] * self.rows)
        return so_far()

    def _fail(self) -> None:
        import os
        import signal

        import torch

        if self.fault == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory at /secret/path")
        if self.fault == "lost":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.fault == "bug":
            raise ZeroDivisionError("/secret/path/file.py: division by zero")
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(self.fault)


def install() -> None:
    """Put the toy among the methods of this process."""
    import interp.methods

    interp.methods.METHODS["toy"] = Toy
    interp.methods.Toy = Toy


def main() -> int:
    """Serve a store with the toy in it."""
    import argparse

    from interp.jobs.worker import serve
    from interp.run import Shelf

    parser = argparse.ArgumentParser()
    parser.add_argument("--store")
    parser.add_argument("--models", action="append", default=[])
    parser.add_argument("--linger", type=float, default=20.0)
    said = parser.parse_args()
    install()
    shelf = Shelf(load=lambda ref, **_: ToyModel(ref))
    return serve(said.store, said.models, linger=said.linger, shelf=shelf)


if __name__ == "__main__":
    sys.exit(main())
