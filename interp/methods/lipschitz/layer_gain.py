"""LayerGain: how much each layer enlarges a small change, at data. Estimates, never certified."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from interp.engine.affine import STEEPEST
from interp.methods.lipschitz.certificates import attrs, network_for
from interp.methods.lipschitz.norms import layer_norm
from interp.methods.lipschitz.probe import Depth, Probe, batches, depth_of, flat
from interp.methods.lipschitz.singular import top_singular
from interp.terms import (
    Check,
    Context,
    Edit,
    HookedModel,
    LabelledInputs,
    Method,
    PromptPairs,
    Site,
    Texts,
)

PARTS = ("block", "attention", "MLP")
ROWS = 8
"""Inputs at a time."""


class LayerGain(Method):
    """Layer sustainability: the relative change of each layer's value under a perturbation.

    ``CM_l = ‖φ_l(x) - φ_l(x̂)‖ / ‖φ_l(x)‖`` per input, Frobenius norm, x̂ the input (a transformer's
    first residual stream) moved by ``radius`` times its own length: at random, by projected
    gradient ascent on the last layer, or along the top right singular vector of the whole map.
    ``gain_l = CM_l / CM_{l-1}``; the most vulnerable layers are the ``k`` of largest median gain.
    For transformers also σ_max of the Jacobian of each block, attention and MLP, at data, by
    Lanczos. Of pairs the clean prompts are taken. A local gain certifies nothing. Sources:
    khalooei2022layerwise, castin2024smooth.
    """

    title: ClassVar[str] = "Layer gains"
    question: ClassVar[str] = "Which layers enlarge a small change of the input most?"
    needs: ClassVar[tuple[str, ...]] = ()
    citations: ClassVar[tuple[str, ...]] = ("khalooei2022layerwise", "castin2024smooth")

    perturbation: Literal["random", "pgd", "singular"] = "random"
    """How the input is moved: at random, by ascent, or along the map's top singular vector."""
    radius: Annotated[float, Field(gt=0, le=10)] = 0.01
    """How far, as a share of the input's own length."""
    k: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many of the most vulnerable layers are named."""
    sites: tuple[str, ...] = Field((), json_schema_extra={"advanced": True})
    """Places that are read, in order: sites or module paths; all layers if empty."""
    draws: Annotated[int, Field(ge=1, le=1000, json_schema_extra={"advanced": True})] = 4
    """Random perturbations of each input."""
    steps: Annotated[int, Field(ge=1, le=1000, json_schema_extra={"advanced": True})] = 12
    """Steps of the ascent and of Lanczos."""
    jacobians: Annotated[bool, Field(json_schema_extra={"advanced": True})] = True
    """Measure σ_max of every block of a transformer."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of perturbations and first vectors."""

    def needed(self) -> tuple[str, ...]:
        """Gradients, where the perturbation is found by them."""
        return () if self.perturbation == "random" else ("grad",)

    def measure(
        self, model: HookedModel, task: LabelledInputs | Texts | PromptPairs, context: Context
    ) -> xr.Dataset:
        """``cm``, ``gain [layer]`` with quantiles, ``vulnerable [top]``, ``jacobian``."""
        depth = depth_of(model, self.sites)
        generator = torch.Generator().manual_seed(self.seed)
        blocks = self.jacobians and not self.sites and depth.start.kind == "resid_pre"
        changes: dict[int, np.ndarray] = {}
        sizes: dict[int, np.ndarray] = {}
        found: list[tuple[list[int], np.ndarray, np.ndarray]] = []
        pieces = list(batches(task, ROWS))
        for done, (rows, inputs) in enumerate(pieces):
            probe = Probe(model, inputs, depth)
            moved = [self._changes(probe, d) for d in self._directions(probe, generator)]
            change, size = np.stack(moved), self._sizes(probe)
            for n, row in enumerate(rows):
                changes[row], sizes[row] = change[:, :, n], size[:, n]
            if blocks:
                found.append((rows, *self._jacobians(model, inputs, generator, context)))
            context.advance(done + 1, len(pieces))
        order = range(len(task))
        data = self._dataset(
            np.stack([changes[i] for i in order]), np.stack([sizes[i] for i in order]), depth
        )
        if blocks:
            data = self._with_jacobians(data, found, len(task), context)
        return self._with_norms(data, model, depth, context)

    # -- perturbations ----------------------------------------------------------------------------

    def _directions(self, probe: Probe, generator: torch.Generator) -> list[Tensor]:
        zeros = probe.zeros()
        if self.perturbation == "random":
            return [
                torch.randn(zeros.shape, generator=generator, dtype=torch.float64).to(zeros)
                for _ in range(self.draws)
            ]
        delta = zeros.requires_grad_(True)
        with torch.enable_grad():
            if self.perturbation == "singular":
                last = probe.values(delta, grad=True)[-1]
                return [top_singular(last, delta, self.steps, generator).vector]
        return [self._ascent(probe, generator)]

    def _ascent(self, probe: Probe, generator: torch.Generator) -> Tensor:
        """Projected gradient ascent on the change of the last place, on the sphere."""
        start = torch.randn(probe.zeros().shape, generator=generator, dtype=torch.float64)
        delta = probe.scaled(start.to(probe.base[0]), self.radius)
        for _ in range(self.steps):
            delta = delta.detach().requires_grad_(True)
            with torch.enable_grad():
                last = probe.values(delta, grad=True)[-1]
                change = (last - probe.base[-1].detach()).square().sum()
                (slope,) = torch.autograd.grad(change, delta)
            delta = probe.scaled(delta + probe.scaled(slope, self.radius), self.radius)
        return delta.detach()

    def _changes(self, probe: Probe, direction: Tensor) -> np.ndarray:
        """‖φ_l(x̂) - φ_l(x)‖ ``[start and places, row]``."""
        moved = probe.values(probe.scaled(direction, self.radius).detach())
        return np.stack([
            (flat(a) - flat(b)).norm(dim=-1).cpu().numpy()
            for a, b in zip(moved, probe.base, strict=True)
        ])  # fmt: skip

    def _sizes(self, probe: Probe) -> np.ndarray:
        return np.stack([flat(v).norm(dim=-1).cpu().numpy() for v in probe.base])

    # -- Jacobians of blocks ----------------------------------------------------------------------

    def _jacobians(
        self, model: HookedModel, inputs: Any, generator: torch.Generator, context: Context
    ) -> tuple[np.ndarray, np.ndarray]:
        """σ_max and residual of each part at data, ``[part, layer, row]``."""
        layers = range(model.shape.n_layers)
        middle = "resid_pre" if model.shape.parallel else "resid_mid"
        have = {c.name for c in model.capabilities() if c.ok}
        pairs = (("resid_pre", "resid_post"), ("resid_pre", "attn_out"), (middle, "mlp_out"))
        kinds = {k for pair in pairs for k in pair if k in have}
        values = np.full((2, len(PARTS), len(layers), len(inputs)), np.nan)
        with torch.enable_grad():
            read = [Site(k, layer=n) for n in layers for k in sorted(kinds)]
            start = Site("resid_pre", layer=0)
            example = model.run(inputs, read=[start]).reads[start]
            delta = torch.zeros_like(example).detach().requires_grad_(True)
            run = model.run(inputs, edits=[Edit(start, delta, "add")], read=read, grad=True)
            for n in layers:
                for p, (a, b) in enumerate(pairs):
                    if a not in have or b not in have:
                        continue
                    x, y = run.reads[Site(a, layer=n)], run.reads[Site(b, layer=n)]
                    top = top_singular(y, x, self.steps, generator)
                    values[0, p, n] = top.value.detach().cpu().numpy()
                    values[1, p, n] = top.residual.detach().cpu().numpy()
                if context.cancelled():
                    context.advance(0, 1)
        return values[0], values[1]

    def _with_jacobians(
        self, data: xr.Dataset, found: list[Any], n: int, context: Context
    ) -> xr.Dataset:
        shape = (len(PARTS), found[0][1].shape[1], n)
        sigma, residual = np.full(shape, np.nan), np.full(shape, np.nan)
        for rows, values, left in found:
            sigma[:, :, rows], residual[:, :, rows] = values, left
        at: dict[str, Any] = {"norm": "L2", "scope": "point"}
        dims = ("component", "layer", "prompt")
        data = data.assign(
            jacobian=(("component", "layer"), np.median(sigma, -1),
                      attrs("σ_max of each part's Jacobian, median over prompts", "estimate",
                            **at)),
            prompt_jacobian=(
                dims, sigma, attrs("σ_max of each part's Jacobian", "estimate", **at)),
        ).assign_coords(component=list(PARTS))  # fmt: skip
        worst = float(np.nanmax(residual))
        context.check(Check(
            "lanczos_converged", "largest residual of Lanczos, relative", worst, 0.1,
            note="Raise steps: an unconverged σ_max is too small.",
        ))  # fmt: skip
        return data

    # -- arrays ---------------------------------------------------------------------------------

    def _dataset(self, change: np.ndarray, size: np.ndarray, depth: Depth) -> xr.Dataset:
        """change ``[row, draw, start and places]``, size ``[row, start and places]``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            cm = change / size[:, None]
            gain = cm[..., 1:] / cm[..., :-1]
            absolute = change[..., 1:] / change[..., :-1]
        cm, gain, absolute = (np.where(np.isfinite(a), a, np.nan) for a in (cm, gain, absolute))
        flat_gain = gain.reshape(-1, gain.shape[-1])
        middle = np.nanmedian(flat_gain, 0)
        top = np.argsort(-np.nan_to_num(middle, nan=-1.0), kind="stable")[: self.k]
        at: dict[str, Any] = {"norm": "L2", "scope": "point"}
        arrays: dict[str, Any] = {
            "cm": (("layer",), _median(cm[..., 1:]), attrs(
                "relative change of each layer, median", "estimate", **at)),
            "cm_ci": (("bound", "layer"), _quartiles(cm[..., 1:]), attrs(
                "first and third quartile", "estimate", **at)),
            "gain": (("layer",), middle, attrs(
                "gain of each layer (relative change out ÷ in), median", "estimate", **at)),
            "gain_ci": (("bound", "layer"), _quartiles(gain), attrs(
                "first and third quartile", "estimate", **at)),
            "absolute_gain": (("layer",), np.nanmax(absolute.reshape(-1, gain.shape[-1]), 0), attrs(
                "change out ÷ change in, largest seen", "estimate", **at)),
            "vulnerable": (("top",), middle[top], attrs(
                "gain of the most vulnerable layers", "estimate", **at)),
            "prompt_cm": (("prompt", "layer"), cm[..., 1:].mean(1), attrs(
                "relative change of each layer", "estimate", **at)),
        }  # fmt: skip
        return xr.Dataset(arrays, coords={
            "layer": np.arange(gain.shape[-1]), "layer_name": ("layer", list(depth.names)),
            "prompt": np.arange(len(cm)), "bound": ["25 %", "75 %"],
            "top": np.arange(len(top)), "top_name": ("top", [depth.names[i] for i in top]),
            "vulnerable_layer": ("top", top),
        })  # fmt: skip

    def _with_norms(
        self, data: xr.Dataset, model: HookedModel, depth: Depth, context: Context
    ) -> xr.Dataset:
        """The certified norm of each layer beside its gain, where the model has a graph."""
        if depth.start.kind != "input" or not any(
            c.name == "graph" and c.ok for c in model.capabilities()
        ):
            return data
        network = network_for(model, model.example)  # type: ignore[attr-defined]
        by_path = {p.path: p for p in network if p.path and not p.group}
        norms = np.full(len(depth.names), np.nan)
        before = network.input
        for i, path in enumerate(depth.names):
            part = by_path.get(path)
            if part is None or part.inputs != (before,):
                before = part.name if part is not None else ""
                continue
            norms[i] = layer_norm(part, "2").value if part.map else STEEPEST[part.gate]
            before = part.name
        data = data.assign(certified=(("layer",), norms, attrs(
            "norm of each layer", "upper", norm="L2", scope="global")))  # fmt: skip
        excess = np.nan_to_num(data["absolute_gain"].values / norms - 1, nan=-1.0)
        context.check(Check(
            "gain_at_most_norm", "largest excess of a layer's gain over its certified norm",
            max(float(excess.max()), 0.0), 1e-3,
            note="A change cannot grow by more than the layer's norm.",
        ))  # fmt: skip
        return data


def _median(values: np.ndarray) -> np.ndarray:
    return np.nanmedian(values.reshape(-1, values.shape[-1]), 0)


def _quartiles(values: np.ndarray) -> np.ndarray:
    return np.nanquantile(values.reshape(-1, values.shape[-1]), [0.25, 0.75], axis=0)
