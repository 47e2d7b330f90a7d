"""GlobalLipschitz: one constant for all inputs, from the weights alone."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from interp.engine.affine import Network
from interp.methods.lipschitz.certificates import (
    SLACK,
    attrs,
    centres,
    example_of,
    faithful,
    network_for,
    ordered,
)
from interp.methods.lipschitz.norms import LayerNorm, chain, eclipse_fast, product
from interp.methods.lipschitz.sampling import climb, row_sums
from interp.terms import CapabilityError, Context, HookedModel, LabelledInputs, Method

NAMES = {
    "sampled": "sampled (lower bound)",
    "exact": "the linear map itself (exact)",
    "fast": "ECLipsE-Fast (certified)",
    "product": "product of norms (certified)",
}

STARTS = 64
"""Drawn points from which the norm is climbed."""

CLIMB = 60
"""Steps of that ascent."""


class GlobalLipschitz(Method):
    """An upper bound of sup_x of the Jacobian's norm, over all inputs there could be.

    L2: σ_max, by the product of the layers' spectral norms or by ECLipsE-Fast, which is LipSDP's
    Schur complement in closed form and holds for gates with slopes in [0, 1]; chains only. L∞: the
    product of largest absolute row sums. A network without gates has its constant exactly. Layer
    norms are singular values where the layer's matrix is small, else a bound. What sampling and an
    ascent from the best samples find stands beside, as a lower bound. Sources: xu2024eclipse,
    fazlyab2019efficient, sedghi2019singular, delattre2023efficient.
    """

    title: ClassVar[str] = "Global Lipschitz bound"
    question: ClassVar[str] = "How fast can the outputs change anywhere, at most?"
    needs: ClassVar[tuple[str, ...]] = ("graph",)
    citations: ClassVar[tuple[str, ...]] = (
        "xu2024eclipse", "fazlyab2019efficient", "sedghi2019singular", "delattre2023efficient",
    )  # fmt: skip

    variant: Literal["best", "fast", "product"] = "best"
    """Which bound; best takes the least of those there are for this network."""
    norm: Literal["L2", "Linf"] = "L2"
    """How inputs and outputs are measured."""
    n_samples: Annotated[int, Field(ge=0, le=1_000_000, json_schema_extra={"advanced": True})] = 500
    """Points at which the Jacobian is taken for the lower bound."""
    spread: Annotated[float, Field(gt=0, le=1e6, json_schema_extra={"advanced": True})] = 1.0
    """Standard deviation of those points about the task's inputs, or about the example."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the points."""

    def measure(
        self, model: HookedModel, task: LabelledInputs | None, context: Context
    ) -> xr.Dataset:
        """``bound [variant]``, ``upper``, ``lower`` and ``norm [layer]``."""
        x = example_of(model) if task is None else centres(task, None)
        network = network_for(model, x)
        context.check(faithful(network, model, x[:1]))
        found, layers, why = self._bounds(network)
        context.advance(1, 2)
        lower = self._sampled(network, x)
        context.advance(2, 2)
        upper = min(found.values())
        context.check(ordered(np.array(lower), np.array(upper)))
        return self._dataset(found, layers, lower, why)

    def _bounds(self, network: Network) -> tuple[dict[str, float], tuple[LayerNorm, ...], str]:
        kind = "2" if self.norm == "L2" else "inf"
        whole = product(network, kind)
        if not network.gates:
            return {"exact": self._linear(network) * (1 + SLACK)}, whole.layers, ""
        found: dict[str, float] = {}
        why = ""
        if self.norm == "Linf" and self.variant == "fast":
            raise CapabilityError(
                "ECLipsE-Fast bounds the L2 norm.", remedy="Use norm='L2', or variant='product'."
            )
        if self.norm == "L2" and self.variant != "product":
            try:
                found["fast"] = eclipse_fast(chain(network)) * (1 + SLACK)
            except CapabilityError as error:
                if self.variant == "fast":
                    raise
                why = error.message
        if self.variant != "fast":
            found["product"] = whole.value * (1 + SLACK)
        return found, whole.layers, why

    def _jacobians(self, network: Network, x: torch.Tensor) -> torch.Tensor:
        out = network[network.output].shape
        size = network[network.output].size
        eye = torch.eye(size, dtype=torch.float64, device=network.device)
        return network.gradients(x, eye.reshape(1, size, *out)).flatten(2)

    def _measured(self, jacobians: torch.Tensor) -> torch.Tensor:
        if self.norm == "Linf":
            return row_sums(jacobians)
        return torch.linalg.matrix_norm(jacobians.flatten(2), ord=2)

    def _linear(self, network: Network) -> float:
        shape = (1, *network[network.input].shape)
        zero = torch.zeros(shape, dtype=torch.float64, device=network.device)
        return float(self._measured(self._jacobians(network, zero)).max())

    def _sampled(self, network: Network, x: np.ndarray) -> float:
        """The largest norm at drawn points, and on the ascent from the best of them."""
        generator = torch.Generator().manual_seed(self.seed)
        start = network.tensor(x[:1])
        best = self._measured(self._jacobians(network, start))
        done, step = 0, 64
        while done < self.n_samples:
            n = min(step, self.n_samples - done)
            pick = torch.randint(len(x), (n,), generator=generator).numpy()
            noise = torch.randn(n, *x.shape[1:], generator=generator, dtype=torch.float64)
            points = network.tensor(x[pick]) + self.spread * noise.to(network.device)
            norms = torch.cat([best, self._measured(self._jacobians(network, points))])
            best, index = norms.topk(min(STARTS, len(norms)))
            start = torch.cat([start, points])[index]
            done += n
        if not network.gates or not self.n_samples:
            return float(best.max())

        def move(at: torch.Tensor, slope: torch.Tensor, k: int) -> torch.Tensor:
            length = slope.flatten(1).norm(dim=1).clamp(min=1e-300)
            length = length.reshape(-1, *[1] * (slope.dim() - 1))
            return at + self.spread * 0.3 / (1 + k / 10) * slope / length

        out = network[network.output]
        rows = torch.eye(out.size, dtype=torch.float64, device=network.device)
        rows = rows.reshape(1, out.size, *out.shape).expand(len(start), -1, *out.shape)
        return float(climb(network, start, rows, self._measured, move, best, CLIMB).max())

    def _dataset(
        self, found: dict[str, float], layers: tuple[LayerNorm, ...], lower: float, why: str
    ) -> xr.Dataset:
        exact = "exact" in found
        kind: Any = "exact" if exact else "upper"
        scope: dict[str, Any] = {"norm": self.norm, "scope": "global"}
        sort = ["exact" if layer.exact else "upper" for layer in layers]
        shown = ["sampled", *found]
        mixed = {
            **attrs("Lipschitz constant", "upper", **scope), "certificate": "by variant",
            "certified": 0, "long_name": f"{self.norm} Lipschitz constant over all inputs: "
            "certified upper bounds and the largest that was found",
        }  # fmt: skip
        what = f"{self.norm} constant over all inputs"
        arrays: dict[str, Any] = {
            "bound": (("variant",), [lower, *found.values()], mixed),
            "upper": ((), min(found.values()), attrs(what, kind, **scope)),
            "lower": ((), lower, attrs(what, "lower", **scope)),
        }
        if layers:
            arrays["norm"] = (("layer",), [v.value for v in layers], {
                **attrs(f"{self.norm} norm of each layer",
                        "exact" if set(sort) == {"exact"} else "upper", **scope)})  # fmt: skip
        data = xr.Dataset(
            arrays,
            coords={
                "variant": shown, "name": ("variant", [NAMES[v] for v in shown]),
                "certificate": ("variant", ["lower", *[kind] * len(found)]),
                "layer": list(range(len(layers))),
                "layer_name": ("layer", [v.name for v in layers]),
                "found_by": ("layer", [v.how for v in layers]),
                "layer_certificate": ("layer", sort),
            },
        )  # fmt: skip
        data.attrs.update({"norm": self.norm, "left_out": why})
        return data
