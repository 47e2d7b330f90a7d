"""Placing: the dtype and the device that a person asks for, and a module put into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.terms import RefusedError, UsageError, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = {
    "float64": "float64",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
    "float32": "float32",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}
"""What a person may write -> torch's name."""

ROOM = 1.5
"""Free memory, in sizes of the model, for which ``auto`` takes an accelerator."""


def read_dtype(name: Any) -> torch.dtype | None:
    """torch's dtype for what a person wrote.

    Raises:
        UsageError: another name.
    """
    import torch

    if name is None or isinstance(name, torch.dtype):
        return name
    key = str(name).lower().removeprefix("torch.")
    if key not in DTYPES:
        if "8" in key or "4" in key:
            raise RefusedError(
                f"dtype {name!r} is quantised: its results depend on the batch.",
                remedy="Use float64, float32, bfloat16 or float16.",
            )
        raise unknown_name("dtype", str(name), ("float64", "float32", "bfloat16", "float16"))
    return getattr(torch, DTYPES[key])


def read_device(name: Any, size: int = 0) -> torch.device:
    """torch's device for what a person wrote.

    Args:
        name: a device, or ``auto``: the accelerator with the most free memory if the model has
            room there, else the CPU. A model is never split over devices.
        size: bytes of the model, for ``auto``.

    Raises:
        UsageError: no such device on this machine.
    """
    import torch

    if name == "auto":
        free = [torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())]
        best = max(range(len(free)), key=free.__getitem__, default=0)
        roomy = bool(free) and free[best] >= ROOM * size
        return torch.device("cuda", best) if roomy else torch.device("cpu")

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"{name!r} is no device.", remedy="Use 'cpu', 'cuda', 'cuda:0' or 'auto'."
        ) from error
    there = {"cpu": 1, "meta": 1, "cuda": torch.cuda.device_count()}
    if device.type == "mps" and torch.backends.mps.is_available():
        return device
    count = there.get(device.type, 0)
    if (device.index or 0) >= count:
        have = f"{there['cuda']} CUDA device(s)" if there["cuda"] else "no CUDA device"
        raise UsageError(
            f"The device {name!r} is not there: torch sees {have}.", remedy="Use device='cpu'."
        )
    return device


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.itemsize for p in module.parameters())


def cast(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Parameters in ``dtype``, in place; buffers (rotary frequencies) keep their precision."""
    if dtype is not None:
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
    return module
