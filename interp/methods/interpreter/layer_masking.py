"""LayerMasking: what each patch of a picture is worth, when it is taken away without a colour."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from interp.engine.linear import module_of, run_masked, tensors_of
from interp.terms import Check, Context, HookedModel, LabelledInputs, Method, UsageError

ROWS = 256
"""Masked pictures at a time."""


class LayerMasking(Method):
    """Effect of removing each square patch, ``f(x) - f(x without the patch)``, by output.

    A patch that is painted grey or black is a picture of its own to the network. Layer masking
    (balasubramanian2023towards) shows it nothing there: before each convolution the missing part is
    padded from its known neighbours, and the mask goes through the convolution's own window.
    ``fill`` paints instead, for comparison. Votes say what a pixel adds to a frozen sum; this says
    what happens without it.
    """

    title: ClassVar[str] = "Layer masking"
    question: ClassVar[str] = "What does the network say without this part of the picture?"
    citations: ClassVar[tuple[str, ...]] = ("balasubramanian2023towards",)

    patch: Annotated[int, Field(ge=1, le=256)] = 2
    """Height and width of a patch, in pixels."""
    stride: Annotated[int, Field(ge=1, le=256)] = 1
    """How far apart patches stand."""
    fill: Literal["mask", "zero", "mean"] = "mask"
    """Masked in every layer, or painted black, or with the picture's mean."""

    def measure(self, model: HookedModel, task: LabelledInputs, context: Context) -> xr.Dataset:
        """``effect [prompt, label, row, column]``, ``logit [prompt, label]``."""
        module = module_of(model)
        x = tensors_of(module, np.asarray(task.inputs))
        if x.dim() != 4:
            raise UsageError(
                f"Inputs of shape {tuple(x.shape[1:])} were given; wanted pictures "
                "[channel, row, column].", remedy="Take a convolutional network.",
            )  # fmt: skip
        high, wide = x.shape[-2:]
        if self.patch > min(high, wide) or self.patch == high == wide:
            raise UsageError(
                f"A patch of {self.patch} pixels leaves nothing of a picture of {high} × {wide}.",
                remedy="Take a smaller patch.",
            )
        tops = range(0, high - self.patch + 1, self.stride)
        lefts = range(0, wide - self.patch + 1, self.stride)
        masks = self._masks(x, tops, lefts)
        ones = torch.ones_like(masks[:1])
        base = run_masked(module, x, ones.expand(len(x), -1, -1, -1))
        with torch.no_grad():
            honest = module(x)
        if base.dim() != 2:
            raise UsageError(
                f"The network's output has shape {tuple(base.shape[1:])}; wanted one row of "
                "outputs a picture.",
            )
        found = []
        for n in range(len(x)):
            found.append(base[n][:, None] - self._without(module, x[n], masks).T)
            context.advance(n + 1, len(x))
        context.check(Check(
            "full_mask", "masked by ones less the network itself, largest",
            float((base - honest).abs().max()), 0.0,
            note="Nothing is taken away: nothing may change.",
        ))  # fmt: skip
        return self._dataset(torch.stack(found), base, task, list(tops), list(lefts))

    def _masks(self, x: Tensor, tops: range, lefts: range) -> Tensor:
        """``[patch, 1, row, column]``, False where the patch was."""
        masks = torch.ones(len(tops) * len(lefts), 1, *x.shape[-2:], dtype=torch.bool,
                           device=x.device)  # fmt: skip
        for n, (i, j) in enumerate((i, j) for i in tops for j in lefts):
            masks[n, :, i : i + self.patch, j : j + self.patch] = False
        return masks

    def _without(self, module: torch.nn.Module, x: Tensor, masks: Tensor) -> Tensor:
        """Outputs ``[patch, output]`` of one picture without each patch."""
        found = []
        for part in masks.split(ROWS):
            pictures = x.expand(len(part), *x.shape)
            if self.fill == "mask":
                found.append(run_masked(module, pictures, part))
                continue
            colour = x.new_zeros(()) if self.fill == "zero" else x.mean()
            with torch.no_grad():
                found.append(module(torch.where(part, pictures, colour)))
        return torch.cat(found)

    def _dataset(
        self, effect: Tensor, base: Tensor, task: LabelledInputs, tops: list[int], lefts: list[int]
    ) -> xr.Dataset:
        values = effect.double().cpu().numpy()
        values = values.reshape(*values.shape[:2], len(tops), len(lefts))
        labels = [str(task.label_text.get(i, i)) for i in range(values.shape[1])]
        says = {"units": "logit", "signed": 1}
        return xr.Dataset(
            {
                "effect": (
                    ("prompt", "label", "row", "column"), values,
                    {**says, "long_name": "effect of each patch: output with it less without it",
                     "sheet": "label", "panel": "logit"},
                ),
                "logit": (("prompt", "label"), base.double().cpu().numpy(),
                          {**says, "long_name": "output f(x)"}),
            },
            coords={"prompt": np.arange(len(values)), "label": labels, "row": tops,
                    "column": lefts},
            attrs={"patch": self.patch, "stride": self.stride, "fill": self.fill},
        )  # fmt: skip
