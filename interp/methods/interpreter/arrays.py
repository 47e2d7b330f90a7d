"""Arrays: shapes of inputs and outputs as axes, and what each array of a tour says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from interp.terms import UsageError


@dataclass(frozen=True)
class Layout:
    """How the numbers of one input, or one output, lie.

    Args:
        shape: as they are drawn.
        axes: their names.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def picture(self) -> bool:
        """Whether there are rows and columns."""
        return len(self.axes) > 1

    def lay(self, values: np.ndarray) -> np.ndarray:
        """``[…, numbers]`` in this shape."""
        lead = values.shape[: values.ndim - 1]
        return values.reshape(*lead, *self.shape)


def layout_of(
    shape: Sequence[int], image: tuple[int, int] | None, suffix: str = "", flat: str = "feature"
) -> Layout:
    """Axes of an input or output of this shape.

    Args:
        shape: without the batch.
        image: height and width of a flat list that is a picture.
        suffix: of the axes of outputs, ``_out``.
        flat: axis of a flat list.

    Raises:
        UsageError: a picture of another size, or a shape with no axes for it.
    """
    shape = tuple(shape)
    if len(shape) == 1 and image is not None and not suffix:
        if image[0] * image[1] != shape[0]:
            raise UsageError(
                f"image = {image[0]} × {image[1]} was given and an input has {shape[0]} numbers."
            )
        return Layout(image, ("row", "column"))
    names = {3: ("channel", "row", "column"), 2: ("row", "column"), 1: (flat,)}
    if len(shape) not in names:
        raise UsageError(
            f"Inputs or outputs of shape {shape} cannot be laid out; wanted a list, a picture or "
            "channels of pictures.",
            remedy="Choose an input_site or output_site of another shape.",
        )
    axes = names[len(shape)]
    return Layout(shape, axes if len(shape) == 1 else tuple(f"{a}{suffix}" for a in axes))


class Gathered:
    """Arrays of a tour, put together prompt by prompt."""

    def __init__(self) -> None:
        self.dims: dict[str, tuple[str, ...]] = {}
        self.attrs: dict[str, dict[str, Any]] = {}
        self.values: dict[str, list[np.ndarray]] = {}
        self.coords: dict[str, Any] = {}
        self.units = "logit"

    def declare(
        self, name: str, dims: Sequence[str], title: str, units: str | None = None, signed: int = 1,
        **more: Any,
    ) -> None:  # fmt: skip
        """An array ``[prompt, *dims]``."""
        self.dims[name] = ("prompt", *dims)
        self.attrs[name] = {
            "units": units or self.units,
            "long_name": title,
            "signed": signed,
            **more,
        }

    def keep(self, found: Mapping[str, np.ndarray]) -> None:
        """The values of some prompts, ``[some, *dims]`` each."""
        for name, value in found.items():
            self.values.setdefault(name, []).append(np.asarray(value, dtype=float))

    def dataset(self, attrs: Mapping[str, Any]) -> xr.Dataset:
        """All of them; shorter prompts end in NaN."""
        data: dict[str, Any] = {}
        for name, dims in self.dims.items():
            if name in self.values:
                value = _joined(self.values[name])
                whole = self.attrs[name]["units"] == "token"
                data[name] = (dims, value.astype(np.int64) if whole else value, self.attrs[name])
        rows = max((len(v[1]) for v in data.values()), default=0)
        out = xr.Dataset(data, attrs=dict(attrs)).assign_coords(prompt=np.arange(rows))
        known = {
            k: v for k, v in self.coords.items()
            if (k in out.dims if not isinstance(v, tuple) else v[0] in out.dims)
        }  # fmt: skip
        return out.assign_coords(known)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts on top of each other; padded with NaN to the longest."""
    shape = tuple(max(p.shape[i] for p in parts) for i in range(1, parts[0].ndim))
    out = []
    for part in parts:
        wide = np.full((len(part), *shape), np.nan)
        wide[(slice(None), *(slice(0, n) for n in part.shape[1:]))] = part
        out.append(wide)
    return np.concatenate(out)
