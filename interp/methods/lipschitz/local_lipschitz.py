"""LocalLipschitz: how fast the outputs may change in a box around an input, from both sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator
from torch import Tensor

from interp.engine.affine import Network, rows_that_fit
from interp.methods.lipschitz.certificates import (
    SLACK,
    attrs,
    centres,
    faithful,
    network_for,
    ordered,
)
from interp.methods.lipschitz.jacobians import JacobianBounds
from interp.methods.lipschitz.norms import product
from interp.methods.lipschitz.preactivations import (
    Box,
    Range,
    box_around,
    gate_ranges,
    slope_ranges,
    unstable,
)
from interp.methods.lipschitz.sampling import largest_gradients
from interp.methods.lipschitz.search import Found, Search
from interp.terms import Context, HookedModel, LabelledInputs, Method, UsageError

LADDER = ("lbp", "recurjac", "interval", "naive")
NAMES = {
    "sampled": "sampled (lower bound)",
    "bab": "branch and bound (certified)",
    "lbp": "LBP (certified)",
    "recurjac": "RecurJac-like (certified)",
    "interval": "interval (certified)",
    "naive": "product of norms (certified)",
}
MOST_SEARCHED = 2_000
"""Rows (inputs × ε × labels) that are searched by branch and bound, at most."""


class LocalLipschitz(Method):
    """L∞ Lipschitz constants in boxes, bounded from above and found from below.

    ``L_j(x₀, ε) = max ‖∂f_j‖₁`` over the Clarke Jacobian in the box ``‖x - x₀‖_∞ ≤ ε``; for
    margins f_c - f_j in place of f_j, c the label. Upper bounds by linear bound propagation on the
    gradient's graph, a RecurJac-like variant, intervals, and the product of norms; branch and
    bound between them and the gradients found by sampling. ``radius`` is the certified radius
    min(ε, min_j margin_j / L_cj(ε)). Sources: shi2022efficiently, zhang2018efficient,
    zhang2019recurjac, weng2018towards.
    """

    title: ClassVar[str] = "Local Lipschitz bounds"
    question: ClassVar[str] = "How fast can the outputs change near this input, at most?"
    needs: ClassVar[tuple[str, ...]] = ("graph",)
    citations: ClassVar[tuple[str, ...]] = (
        "shi2022efficiently", "zhang2018efficient", "zhang2019recurjac", "weng2018towards",
    )  # fmt: skip

    epsilons: Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], Field(min_length=1)] = (
        0.001, 0.003, 0.01, 0.03, 0.1, 0.3,
    )  # fmt: skip
    """Radii of the boxes, in the input's own units."""
    outputs: Literal["logits", "margins"] = "logits"
    """Each output, or the label's output less each other one."""
    variant: Literal["best", "lbp", "recurjac", "interval", "naive"] = "best"
    """Which upper bound; best takes the least of all."""
    bab_nodes: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Branches a row may be split into to sharpen its bound; 0 does not split."""
    bab_seconds: Annotated[float, Field(gt=0, le=86_400, json_schema_extra={"advanced": True})] = 10
    """Time a row's search may take."""
    tighten: Annotated[bool, Field(json_schema_extra={"advanced": True})] = False
    """Carry what a branch fixes to the gates above: slower branches, tighter."""
    pre: Annotated[Literal["crown", "ibp"], Field(json_schema_extra={"advanced": True})] = "crown"
    """How the gates' inputs are bounded: by lines or by intervals."""
    domain: Annotated[tuple[float, float] | None, Field(json_schema_extra={"advanced": True})] = (
        None
    )
    """Lowest and highest value an input can have; boxes end there."""
    n_samples: Annotated[int, Field(ge=0, le=1_000_000, json_schema_extra={"advanced": True})] = 100
    """Points drawn in each box for the lower bound, beside its centre."""
    seed: Annotated[int, Field(ge=0, json_schema_extra={"advanced": True})] = 0
    """Seed of the drawn points."""

    @field_validator("epsilons")
    @classmethod
    def _in_order(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(values)))

    def measure(self, model: HookedModel, task: LabelledInputs, context: Context) -> xr.Dataset:
        """``upper``, ``lower [prompt, epsilon, label]``, ``bound [variant, epsilon, prompt]``."""
        x = centres(task, self.domain)
        network = network_for(model, x)
        self._refuse(network, task)
        context.check(faithful(network, model, np.asarray(task.inputs)[:1]))
        work = _Work(self, network, x, np.asarray(task.labels), context)
        work.run()
        data = work.dataset()
        context.check(ordered(data["lower"].values, data["upper"].values))
        return data

    def variants(self) -> tuple[str, ...]:
        """The upper bounds that are computed; the product costs nothing and is always there."""
        chosen = LADDER[:-1] if self.variant == "best" else (self.variant,)
        return tuple(dict.fromkeys((*chosen, "naive")))

    def _refuse(self, network: Network, task: LabelledInputs) -> None:
        out = network[network.output].shape
        if len(out) != 1:
            raise UsageError(
                f"The network's output has shape {tuple(out)}; wanted one row of outputs an input.",
            )
        if self.outputs == "margins" and not ((task.labels >= 0) & (task.labels < out[0])).all():
            raise UsageError(
                f"Margins need labels from 0 to {out[0] - 1}.", remedy="Use outputs='logits'."
            )
        if not network.gates and self.bab_nodes:
            raise UsageError(
                "The network has no gates to branch on: its bound is exact already.",
                remedy="Use bab_nodes=0.",
            )
        rows = len(task) * len(self.epsilons) * out[0]
        if self.bab_nodes and rows > MOST_SEARCHED:
            raise UsageError(
                f"{rows} rows would be searched one by one; at most {MOST_SEARCHED} are.",
                remedy="Take fewer inputs or radii, or bab_nodes=0.",
            )


@dataclass
class _Work:
    """One measurement on its way: numbers by input and radius, kept chunk by chunk."""

    spec: LocalLipschitz
    network: Network
    x: np.ndarray
    labels: np.ndarray
    context: Context
    found: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.spec.variants()
        most = max(self.spec.bab_nodes, 1)
        self.budgets = [k for k in (4**i for i in range(12)) if k < most] + [most]
        self.rows = self.network[self.network.output].shape[0]
        n, e = len(self.x), len(self.spec.epsilons)
        shape = (n, e, self.rows)
        self.found = {
            "lower": np.full(shape, np.nan), "nodes": np.zeros(shape),
            "unstable": np.full((n, e), np.nan),
            **{v: np.full(shape, np.nan) for v in (*self.names, "bab")},
            "gaps": np.full((n, e, len(self.budgets)), np.nan),
        }  # fmt: skip
        self.naive = product(self.network, "inf").value
        values = self.network.values(self.network.tensor(self.x))[self.network.output]
        self.outputs = values.cpu().numpy()

    def run(self) -> None:
        """All chunks of inputs at all radii."""
        e = len(self.spec.epsilons)
        widest = max(part.size for part in self.network)
        step = rows_that_fit(int(self.context.memory), 64.0 * self.rows * widest)
        step = max(1, min(step, len(self.x)))
        starts = range(0, len(self.x), step)
        self.context.note("partition", {"inputs": len(self.x), "at_a_time": step})
        self.context.partial(self.dataset)
        for c, start in enumerate(starts):
            part = slice(start, min(start + step, len(self.x)))
            for k, radius in enumerate(self.spec.epsilons):
                key = f"{start}-{step}-{k}"
                kept = self.context.load_chunk(key)
                if kept is None:
                    kept = self._one(part, k, radius, (c * e + k, len(starts) * e))
                    self.context.save_chunk(key, kept)
                self._keep(part, k, kept)
                self.context.advance(c * e + k + 1, len(starts) * e)

    def _keep(self, part: slice, k: int, values: dict[str, np.ndarray]) -> None:
        for name, array in values.items():
            self.found[name][part, k] = array

    def _seeds(self, part: slice) -> Tensor:
        eye = torch.eye(self.rows, dtype=torch.float64, device=self.network.device)
        if self.spec.outputs == "logits":
            return eye[None]
        own = eye[torch.as_tensor(self.labels[part], device=eye.device)]
        return own[:, None] - eye[None]

    def _one(
        self, part: slice, k: int, radius: float, at: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """One chunk of inputs at one radius."""
        spec, network, memory = self.spec, self.network, int(self.context.memory)
        box = box_around(network.tensor(self.x[part]), radius, spec.domain)
        seeds = self._seeds(part)
        ranges = gate_ranges(network, box, pre=spec.pre, memory=memory)
        slopes = slope_ranges(network, ranges)
        size = seeds.abs().sum(-1).expand(len(box), -1)
        found = {"naive": size * self.naive}
        for name in self.names:
            if name != "naive":
                kind: Any = name
                norms = JacobianBounds(network, slopes, seeds, kind, memory).norm()
                found[name] = norms.expand(len(box), -1)
        lower = largest_gradients(network, box, seeds, spec.n_samples, spec.seed, memory)
        out = {k: (v * (1 + SLACK)).cpu().numpy() for k, v in found.items()}
        out["lower"] = lower.cpu().numpy()
        count = unstable(slopes) if slopes else torch.zeros(len(box))
        out["unstable"] = count.cpu().numpy().astype(float)
        if spec.bab_nodes:
            best = np.min([out[v] for v in self.names], axis=0)
            self._keep(part, k, {**out, "bab": best})
            out |= self._search(box, seeds, ranges, out["lower"], self.found["bab"][part, k], at)
        return out

    def _search(
        self,
        box: Box,
        seeds: Tensor,
        ranges: dict[str, Range],
        lower: np.ndarray,
        bound: np.ndarray,
        at: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """Branch and bound on every row of every box.

        ``bound`` ``[box, row]`` falls in place while the search runs, so that what is known so far
        is there when it is cancelled.
        """
        nodes = np.zeros_like(bound)
        within = np.zeros((*bound.shape, len(self.budgets)))
        for i, (b, j) in enumerate(np.ndindex(*bound.shape)):
            own = seeds[min(b, len(seeds) - 1), j][None, None]

            def tell(found: Found, done: int = i, where: tuple[int, int] = (b, j)) -> None:
                bound[where] = min(bound[where], found.bound * (1 + SLACK))
                share = (done + found.nodes / max(self.spec.bab_nodes, found.nodes)) / bound.size
                self.context.advance(at[0] + share, at[1])

            search = Search(
                self.network, box.select(slice(b, b + 1)), own,
                {g: (lo[b : b + 1], hi[b : b + 1]) for g, (lo, hi) in ranges.items()},
                pre=self.spec.pre, tighten=self.spec.tighten, memory=int(self.context.memory),
            )  # fmt: skip
            done = search.run(
                float(bound[b, j]) / (1 + SLACK), float(lower[b, j]),
                nodes=self.spec.bab_nodes, seconds=self.spec.bab_seconds, tell=tell,
            )  # fmt: skip
            bound[b, j] = min(bound[b, j], done.bound * (1 + SLACK))
            nodes[b, j] = done.nodes
            within[b, j] = [min(v for n, v in done.path if n <= k) for k in self.budgets]
        least = np.maximum(lower.max(-1), 1e-300)[:, None]
        return {"bab": bound.copy(), "nodes": nodes, "gaps": within.max(1) / least - 1}

    # -- arrays ---------------------------------------------------------------------------------

    def dataset(self) -> xr.Dataset:
        """What is known so far; curves over ε are made monotone (a bound at ε′ ≥ ε holds at ε)."""
        names = [*(["bab"] if self.spec.bab_nodes else []), *self.names]
        tight = {v: _falling(self.found[v]) for v in names}
        upper = np.minimum.reduce(list(tight.values()))
        lower = np.maximum.accumulate(np.nan_to_num(self.found["lower"], nan=-np.inf), axis=1)
        lower[np.isnan(self.found["lower"])] = np.nan
        ladder = np.stack([lower, *tight.values()]).max(-1).transpose(0, 2, 1)
        shown = ["sampled", *names]
        data = xr.Dataset(
            self._arrays(ladder, upper, lower),
            coords={
                "epsilon": list(self.spec.epsilons), "prompt": np.arange(len(self.x)),
                "label": np.arange(self.rows), "variant": shown,
                **({"budget": self.budgets} if self.spec.bab_nodes else {}),
                "name": ("variant", [NAMES[v] for v in shown]),
                "certificate": ("variant", ["lower", *["upper"] * len(names)]),
            },
        )  # fmt: skip
        data.attrs.update({
            "outputs": self.spec.outputs, "pre": self.spec.pre, "naive": self.naive,
            "n_gates": sum(p.size for p in self.network.gates),
        })  # fmt: skip
        return data

    def _arrays(self, ladder: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> dict[str, Any]:
        """Every array with its axes and what it says of itself."""
        what = "margins" if self.spec.outputs == "margins" else "outputs"
        box: dict[str, Any] = {"norm": "Linf", "scope": "box"}
        dims = ("prompt", "epsilon", "label")
        arrays: dict[str, Any] = {
            "bound": (("variant", "epsilon", "prompt"), ladder, {
                **attrs(f"largest constant over {what}", "upper", **box),
                "certificate": "by variant", "certified": 0,
                "long_name": f"L∞ Lipschitz constant, largest over {what}: upper bounds are "
                "certified, the sample is not", "scale": "log",
            }),
            "upper": (dims, upper, attrs(f"L∞ constant of {what}", "upper", **box)),
            "lower": (dims, lower, attrs(f"L∞ constant of {what}", "lower", **box)),
            "unstable": (("prompt", "epsilon"), self.found["unstable"], attrs(
                "gates whose derivative is open", "upper", units="gates", **box)),
            "ladder": (("variant",), _times_lower(ladder), {
                **attrs("bound over what sampling found, largest ε, geometric mean", "upper",
                        **box), "certificate": "by variant", "certified": 0,
                "long_name": "tightness at the largest ε: bound ÷ sampled lower "
                "bound, geometric mean over inputs"}),
        }  # fmt: skip
        if self.spec.outputs == "margins":
            arrays["radius"] = (
                ("prompt", "epsilon"),
                self._radius(upper),
                attrs("radius in which the label cannot change", "upper", **box),
            )
            arrays["radius"][2]["long_name"] = "certified radius (no input in it changes the label)"
        if self.spec.bab_nodes:
            arrays["nodes"] = (
                dims,
                self.found["nodes"],
                attrs("branches that were bounded", "exact", units="branches", **box),
            )
            arrays["gap"] = (
                ("budget", "prompt"),
                self.found["gaps"][:, -1].T,
                {
                    **attrs("gap", "upper", **box),
                    "certificate": "by variant",
                    "certified": 0,
                    "long_name": "what a search leaves open at the largest ε, by branches allowed: "
                    "certified bound ÷ sampled lower bound - 1, largest over outputs",
                },
            )
        return arrays

    def _radius(self, upper: np.ndarray) -> np.ndarray:
        """min(ε, min_j margin_j / L_cj(ε)), 0 where the label is not the largest output."""
        n = np.arange(len(self.x))
        margin = self.outputs[n, self.labels][:, None] - self.outputs
        share = margin[:, None] / np.maximum(upper, 1e-300)
        share[n, :, self.labels] = np.inf
        radius = np.minimum(np.array(self.spec.epsilons), share.min(-1))
        return np.where(np.isnan(upper).any(-1), np.nan, np.maximum(radius, 0.0))


def _falling(values: np.ndarray) -> np.ndarray:
    """The least over this and every larger ε, NaN where it is not known yet."""
    filled = np.nan_to_num(values, nan=np.inf)
    out = np.minimum.accumulate(filled[:, ::-1], axis=1)[:, ::-1]
    return np.where(np.isinf(out), np.nan, out)


def _times_lower(ladder: np.ndarray) -> np.ndarray:
    """Each line over the first at the largest ε, geometric mean over inputs."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(ladder[:, -1] / ladder[:1, -1])
    known = np.isfinite(ratio)
    count = known.sum(-1)
    total = np.where(known, ratio, 0.0).sum(-1)
    return np.where(count > 0, np.exp(total / np.maximum(count, 1)), np.nan)
