"""Masking: a network run on part of a picture, without a colour for the part that is missing.

balasubramanian2023towards: before each convolution the map is masked and padded from its known
neighbours, and the mask goes through a max-pool of the convolution's own kernel and stride. Padding
here: (k - 1) rings, each unknown pixel the mean of its known 3 × 3 neighbours. What stands under
the mask is never read; a mask of ones changes nothing, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp.terms import UsageError


def filled(x: Tensor, mask: Tensor, rings: int) -> Tensor:
    """Unknown pixels next to known ones become their mean, ring by ring; the rest is 0.

    Args:
        x: ``[batch, channel, row, column]``.
        mask: ``[batch, 1, row, column]``, True where known.
        rings: how many.
    """
    if bool(mask.all()):
        return x
    value = torch.where(mask, x, torch.zeros_like(x))
    known = mask
    for _ in range(rings):
        if bool(known.all()):
            break
        weight = known.to(x.dtype)
        count = F.avg_pool2d(weight, 3, 1, 1, divisor_override=1)
        total = F.avg_pool2d(value, 3, 1, 1, divisor_override=1)
        new = ~known & (count > 0.5)
        value = torch.where(new, total / count.clamp_min(1.0), value)
        known = known | new
    return value


class Masking(TorchFunctionMode):
    """Convolutions and pools that see the known part alone.

    Args:
        x: the pictures; ``mask`` says where they are known.
        mask: ``[batch, 1, row, column]``, True where known.
    """

    def __init__(self, x: Tensor, mask: Tensor) -> None:
        super().__init__()
        self._masks: dict[int, tuple[Tensor, Tensor]] = {id(x): (x, mask)}

    def mask_of(self, x: Any) -> Tensor | None:
        """Where this very tensor is known; None where nothing is missing."""
        found = self._masks.get(id(x))
        return found[1] if found is not None and found[0] is x else None

    def _keep(self, out: Tensor, mask: Tensor) -> Tensor:
        self._masks[id(out)] = (out, mask)
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call on the known part of what it is given."""
        kwargs = dict(kwargs or {})
        masked = [a for a in args if isinstance(a, Tensor) and self.mask_of(a) is not None]
        if not masked:
            return func(*args, **kwargs)
        name = str(getattr(func, "__name__", func)).rstrip("_")
        x, mask = masked[0], self.mask_of(masked[0])
        assert mask is not None
        if name == "conv2d":
            known = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation"), args,
                             strict=False)) | kwargs  # fmt: skip
            return self._convolved(func, args, kwargs, known, mask)
        if name in ("max_pool2d", "avg_pool2d"):
            return self._pooled(func, name, args, kwargs, mask)
        if name in ("adaptive_avg_pool2d", "mean", "flatten", "reshape", "view"):
            everything = max(x.shape[-2:])
            out = func(filled(x, mask, everything), *args[1:], **kwargs)
            return out
        if len(masked) > 1:
            everything = max(x.shape[-2:])
            whole = [filled(a, self.mask_of(a), everything) if self.mask_of(a) is not None else a  # type: ignore[arg-type]
                     for a in args]  # fmt: skip
            joint = mask | self.mask_of(masked[1])  # type: ignore[operator]
            return self._keep(func(*whole, **kwargs), joint)
        out = func(*args, **kwargs)
        same = isinstance(out, Tensor) and out.dim() == 4 and out.shape[-2:] == x.shape[-2:]
        return self._keep(out, mask) if same else out

    def _convolved(
        self, func: Any, args: Any, kwargs: Any, known: dict[str, Any], mask: Tensor
    ) -> Tensor:
        size = known["weight"].shape[-2:]
        stride, padding = _two(known.get("stride", 1)), known.get("padding", 0)
        dilation = _two(known.get("dilation", 1))
        reach = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]
        if isinstance(padding, str):
            padding = tuple(r // 2 for r in reach) if padding == "same" else (0, 0)
        out = func(filled(args[0], mask, max(reach)), *args[1:], **kwargs)
        return self._keep(out, _grown(mask, size, stride, _two(padding), dilation))

    def _pooled(self, func: Any, name: str, args: Any, kwargs: Any, mask: Tensor) -> Tensor:
        names = ("input", "kernel_size", "stride", "padding")
        known = dict(zip(names, args, strict=False)) | kwargs
        size = _two(known["kernel_size"])
        stride = size if known.get("stride") is None else _two(known["stride"])
        x = args[0]
        if name == "max_pool2d":
            low = torch.full_like(x, -torch.inf)
            out = func(torch.where(mask, x, low), *args[1:], **kwargs)
        else:
            out = func(filled(x, mask, max(size) - 1), *args[1:], **kwargs)
        grown = _grown(mask, size, stride, _two(known.get("padding", 0)), (1, 1))
        return self._keep(torch.where(grown, out, torch.zeros_like(out)), grown)


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    return (int(value[0]), int(value[-1]))


def _grown(mask: Tensor, size: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """The mask through a max-pool of this kernel."""
    wide = F.pad(mask.float(), (padding[1], padding[1], padding[0], padding[0]))
    return F.max_pool2d(wide, tuple(size), stride, 0, dilation) > 0.5


def run_masked(module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """The network's output where only the masked part of each picture is known.

    Args:
        module: a network of pictures in eval mode.
        x: ``[batch, channel, row, column]``.
        mask: ``[batch, 1, row, column]``, True where known.

    Raises:
        UsageError: a picture of which nothing is known.
    """
    if not bool(mask.flatten(1).any(1).all()):
        raise UsageError(
            "Nothing of a picture is left by its mask.", remedy="Take smaller patches away."
        )
    x = torch.where(mask, x, torch.zeros_like(x)) if not bool(mask.all()) else x
    with torch.no_grad(), Masking(x, mask):
        return module(x)
