"""Monotonicity: in which inputs the outputs rise or fall in a box, for sure."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from interp.engine.affine import rows_that_fit
from interp.methods.lipschitz.certificates import attrs, centres, faithful, network_for, ordered
from interp.methods.lipschitz.jacobians import JacobianBounds
from interp.methods.lipschitz.preactivations import box_around, gate_ranges, slope_ranges
from interp.methods.lipschitz.sampling import draw_points
from interp.terms import Context, HookedModel, LabelledInputs, Method

ENDS = ("certified low", "sampled low", "sampled high", "certified high")
AXES = {1: ("feature",), 2: ("row", "column"), 3: ("channel", "row", "column")}


class Monotonicity(Method):
    """The sign of every partial derivative over a box, certified, refuted or unknown.

    Bounds l ≤ ∂f_j/∂x_i ≤ u over the Clarke Jacobian: l ≥ 0 is certified increasing, u ≤ 0
    certified decreasing. Gradients of both signs at sampled points refute both. Everything else is
    unknown. Sources: shi2022efficiently, zhang2019recurjac.
    """

    title: ClassVar[str] = "Monotonicity"
    question: ClassVar[str] = "In which inputs does an output rise or fall near here, for sure?"
    needs: ClassVar[tuple[str, ...]] = ("graph",)
    citations: ClassVar[tuple[str, ...]] = ("shi2022efficiently", "zhang2019recurjac")

    epsilon: Annotated[float, Field(ge=0, le=1e6)] = 0.05
    """Radius of the box, in the input's own units."""
    variant: Literal["best", "lbp", "interval"] = "best"
    """How the derivatives are bounded; best takes both."""
    pre: Literal["crown", "ibp"] = Field("crown", json_schema_extra={"advanced": True})
    """How the gates' inputs are bounded: by lines or by intervals."""
    domain: tuple[float, float] | None = Field(None, json_schema_extra={"advanced": True})
    """Lowest and highest value an input can have; boxes end there."""
    n_samples: Annotated[int, Field(ge=0, le=1_000_000, json_schema_extra={"advanced": True})] = 500
    """Points drawn in the box, to refute."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the points."""

    def measure(self, model: HookedModel, task: LabelledInputs, context: Context) -> xr.Dataset:
        """``sign [prompt, label, *input]`` (1, -1, 0 refuted, NaN unknown) and ``slope``."""
        x = centres(task, self.domain)
        network = network_for(model, x)
        context.check(faithful(network, model, np.asarray(task.inputs)[:1]))
        memory = int(context.memory)
        rows, inputs = network[network.output].size, network[network.input].shape
        eye = torch.eye(rows, dtype=torch.float64, device=network.device)
        seeds = eye.reshape(1, rows, *network[network.output].shape)
        ends = np.full((4, len(x), rows, *inputs), np.nan)
        generator = torch.Generator().manual_seed(self.seed)
        for i in range(len(x)):
            box = box_around(network.tensor(x[i : i + 1]), self.epsilon, self.domain)
            slopes = slope_ranges(network, gate_ranges(network, box, pre=self.pre, memory=memory))
            kinds = ("lbp", "interval") if self.variant == "best" else (self.variant,)
            found = [JacobianBounds(network, slopes, seeds, k, memory).entries() for k in kinds]
            ends[0, i] = torch.stack([f[0] for f in found]).amax(0)[0].cpu().numpy()
            ends[3, i] = torch.stack([f[1] for f in found]).amin(0)[0].cpu().numpy()
            points = draw_points(box, self.n_samples, generator)[0]
            widest = max(part.size for part in network)
            seen = [
                network.gradients(some, seeds)
                for some in points.split(rows_that_fit(memory, 64.0 * rows * widest))
            ]
            ends[1, i] = torch.stack([s.amin(0) for s in seen]).amin(0).cpu().numpy()
            ends[2, i] = torch.stack([s.amax(0) for s in seen]).amax(0).cpu().numpy()
            context.advance(i + 1, len(x))
        context.check(ordered(ends[0], ends[1]))
        context.check(ordered(ends[2], ends[3]))
        return self._dataset(ends, getattr(model, "feature_names", ()), inputs)

    def _dataset(
        self, ends: np.ndarray, names: tuple[str, ...], inputs: tuple[int, ...]
    ) -> xr.Dataset:
        sign: Any = np.full(ends.shape[1:], np.nan)
        sign[(ends[1] < 0) & (ends[2] > 0)] = 0.0
        sign[ends[3] <= 0] = -1.0
        sign[ends[0] >= 0] = 1.0
        axes = AXES.get(len(inputs), ("feature",))
        if len(axes) != len(inputs):
            sign = sign.reshape(*sign.shape[:2], -1)
            ends = ends.reshape(*ends.shape[:3], -1)
        box: dict[str, Any] = {"norm": "Linf", "scope": "box"}
        unknown = "unknown: the certified range holds 0 and sampling found one sign"
        dims = ("prompt", "label", *axes)
        data = xr.Dataset(
            {
                "sign": (dims, sign, {
                    **attrs("monotonicity", "upper", signed=1, **box),
                    "long_name": "monotonicity in the box: 1 certified rising, -1 certified "
                    "falling, 0 refuted (both signs found)", "undefined": unknown}),
                "slope": (("bound", *dims), ends, {
                    **attrs("partial derivative in the box", "upper", signed=1, **box),
                    "certificate": "by bound", "certified": 0, "long_name": "partial derivative "
                    "in the box: certified range and what sampling found"}),
                "count": (("statistic", "prompt"), _counted(sign), {
                    **attrs("inputs by verdict", "exact", units="inputs", **box),
                    "long_name": "inputs certified, refuted and unknown"}),
            },
            coords={
                "bound": list(ENDS), "prompt": np.arange(sign.shape[0]),
                "label": np.arange(sign.shape[1]),
                "statistic": ["certified", "refuted", "unknown"],
                **{a: np.arange(n) for a, n in zip(axes, sign.shape[2:], strict=True)},
            },
        )  # fmt: skip
        if names and axes == ("feature",) and len(names) == sign.shape[-1]:
            data = data.assign_coords(name=("feature", list(names)))
        data.attrs["epsilon"] = self.epsilon
        return data


def _counted(sign: np.ndarray) -> np.ndarray:
    """How many entries are certified, refuted and unknown, ``[3, prompt]``."""
    flat = sign.reshape(len(sign), -1)
    return np.stack([(np.abs(flat) == 1).sum(1), (flat == 0).sum(1), np.isnan(flat).sum(1)])
