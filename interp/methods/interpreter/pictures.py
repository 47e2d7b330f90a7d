"""Pictures: votes and remainder of a network that reads numbers (images, vectors)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.engine.linear import (
    Ends,
    Frozen,
    culprits,
    freeze,
    frozen_batches,
    module_of,
    tensors_of,
)
from interp.methods.interpreter.arrays import Gathered, Layout, layout_of
from interp.methods.interpreter.telling import telling_pixels
from interp.methods.interpreter.trust import COMPLETE, Ledger
from interp.terms import Context, HookedModel, LabelledInputs, UsageError

if TYPE_CHECKING:
    from interp.methods.interpreter.linear_interpreter import LinearInterpreter

AT_ONCE = 64
"""Inputs frozen together, at most."""

FORWARD = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Batches round otherwise than single inputs do; one by one nothing differs by a bit."""

ALL = 10
"""Up to so many outputs all are explained."""


class Pictures:
    """One measurement.

    Args:
        spec: the method.
        model: a network of numbers.
        task: its inputs.
        context: company.

    Raises:
        UsageError: labels, pixels or sites that the network does not have.
    """

    def __init__(
        self, spec: LinearInterpreter, model: HookedModel, task: LabelledInputs, context: Context
    ) -> None:
        self.spec, self.model, self.task, self.context = spec, model, task, context
        self.module = module_of(model)
        self.x = tensors_of(self.module, np.asarray(task.inputs))
        self.how: dict[str, Any] = {
            "ends": Ends(_path(spec.input_site, "input"), _path(spec.output_site, "logits")),
            "declared": {k: v for k, _, v in (d.partition("=") for d in spec.declared)},
            "mean": spec.mean, "gate": spec.gate_rule, "attn": spec.attn_rule,
        }  # fmt: skip
        self.out = Gathered()
        self.ledger = Ledger(spec.seed)
        self.first = next(iter(self._frozen(self.x[:1])))[1]
        shape = self.first.x.shape[1:]
        self.into = layout_of(shape, spec.image)
        self.onto = layout_of(self.first.value.shape[1:], None, "_out", "label")
        self.out.units = "output" if self.onto.picture else "logit"
        self.k = min(spec.k, self.first.inputs, self.first.outputs)
        if self.k < spec.k:
            context.note("k", f"{spec.k} were asked for; F has {self.k} singular values.")

    def _frozen(self, x: Tensor) -> Any:
        alone = self.spec.tour in ("svd", "copy_template")
        memory = int(self.context.memory)
        return frozen_batches(self.module, x, 1 if alone else AT_ONCE, memory, **self.how)

    def measured(self) -> xr.Dataset:
        """The tour's arrays, input by input; finished ones are kept for a run taken up again."""
        tour = getattr(self, f"_{self.spec.tour}")
        getattr(self, f"_declare_{self.spec.tour}")()
        self.out.declare("input", self.into.axes, "x₀, what is explained", "input", signed=0)
        done = 0
        for rows, frozen in self._frozen(self.x):
            key = f"{self.spec.tour}-{rows.start}-{rows.stop}"
            kept = self.context.load_chunk(key)
            if kept is None:
                self.ledger.see(frozen)
                self._see_forward(rows, frozen)
                kept = {"input": self._lay(frozen.x.detach()), **tour(frozen)}
                kept |= self.ledger.pack()
                self.context.save_chunk(key, kept)
            self.ledger.dtype = frozen.x.dtype
            self.out.keep(self.ledger.unpack(kept))
            done += frozen.rows
            self.context.advance(done, len(self.x))
        self._tell()
        return self.out.dataset(self._attrs())

    def _see_forward(self, rows: slice, frozen: Frozen) -> None:
        """The frozen network's values beside the model's own."""
        if self.spec.output_site or self.spec.input_site:
            self.ledger.take("forward", 0.0)  # ``freeze`` has compared them
            return
        own = self.model.run(self.x[rows]).logits.detach().to(frozen.value)
        size = own.abs().max().clamp_min(1e-30)
        self.ledger.take("forward", float((own - frozen.value).abs().max() / size))

    def _tell(self) -> None:
        if not self.ledger.complete:
            found = culprits(self.module, self.x[:1], COMPLETE[self.ledger.dtype], **self._plain())
            self.ledger.note = _blame(self.first, [str(c) for c in found], self.spec.attn_rule)
            self.context.note("not_complete", self.ledger.note)
        self.ledger.tell(self.context, FORWARD[self.ledger.dtype])
        self.context.note("sources", [s.name for s in self.first.sources])

    def _plain(self) -> dict[str, Any]:
        return {k: v for k, v in self.how.items() if k not in ("ends", "declared")}

    def _attrs(self) -> dict[str, Any]:
        spec = self.spec
        caption = (
            "F is the matrix of the frozen network, not the gradient, wherever units are smooth or "
            "norms divide."
        )
        return {
            "tour": spec.tour, "mean": spec.mean, "gate_rule": spec.gate_rule,
            "attn_rule": spec.attn_rule, "inputs": self.first.inputs,
            "outputs": self.first.outputs, "complete": int(self.ledger.complete),
            "caption": caption,
        }  # fmt: skip

    # -- labels -----------------------------------------------------------------------------------

    def _labels(self) -> list[int] | None:
        """The outputs explained for all inputs alike; None for the top three of each."""
        wanted = self.spec.labels
        if wanted is None and self.onto.picture:
            return [int(p) for p in self._pixels(self.onto, self.first.value)]
        if wanted is None:
            return list(range(self.first.outputs)) if self.first.outputs <= ALL else None
        if bad := [c for c in wanted if c >= self.first.outputs]:
            raise UsageError(
                f"Output {bad[0]} was asked for; the network has outputs 0 to "
                f"{self.first.outputs - 1}."
            )
        return list(wanted)

    def _name_labels(self) -> int:
        """Set the label axis; how many there are."""
        labels = self._labels()
        if labels is None:
            self.out.coords["label"] = ["top", "second", "third"][: min(3, self.first.outputs)]
            self.out.declare("label_id", ("label",), "which output", "output", signed=0)
            return len(self.out.coords["label"])
        words = self.task.label_text
        if self.onto.picture:
            width = self.onto.shape[-1]
            names: list[Any] = [f"row {c // width % self.onto.shape[-2]}, column {c % width}"
                                for c in labels]  # fmt: skip
        else:
            names = [str(words.get(c, c)) for c in labels]
        self.out.coords["label"] = names
        return len(labels)

    def _chosen(self, frozen: Frozen) -> Tensor:
        """Which outputs, ``[label, batch]``."""
        labels = self._labels()
        flat = frozen.value.reshape(frozen.rows, -1)
        if labels is None:
            return flat.topk(min(3, frozen.outputs), dim=1).indices.T
        return torch.tensor(labels, device=flat.device)[:, None].expand(-1, frozen.rows)

    def _pixels(self, layout: Layout, values: Tensor) -> list[int]:
        """Whose rows or columns: as asked, or three telling ones."""
        size = int(np.prod(layout.shape))
        if self.spec.pixels is not None:
            if bad := [p for p in self.spec.pixels if p >= size]:
                raise UsageError(f"Pixel {bad[0]} was asked for; there are 0 to {size - 1}.")
            return list(self.spec.pixels)
        return telling_pixels(layout.lay(values.reshape(len(values), -1).cpu().numpy())[0])

    def _name_pixels(self, layout: Layout, pixels: list[int], words: bool) -> None:
        self.out.coords["pixel"] = pixels
        names = []
        for n, p in enumerate(pixels):
            at = np.unravel_index(p, layout.shape)
            place = f"{at[-2]}, {at[-1]}" if layout.picture else f"{layout.axes[-1]} {p}"
            kind = ("corner", "edge", "flat")[n] if words and layout.picture and n < 3 else ""
            names.append(f"{kind} ({place})" if kind else place)
        self.out.coords["pixel_name"] = ("pixel", names)

    # -- votes and the remainder ------------------------------------------------------------------

    def _declare_votes(self) -> None:
        self._name_labels()
        out = self.out
        out.declare(
            "vote",
            ("label", *self.into.axes),
            "votes: row of F times x₀",
            sheet="label",
            beside="input",
            panel="logit residual",
        )
        self._declare_shares()
        out.coords["component"] = [s.name for s in self.first.sources]

    def _declare_shares(self) -> None:
        out = self.out
        out.declare(
            "residual_by_source",
            ("label", "component"),
            "the output from 0: votes of the input, then each source of the remainder",
            waterfall="linear",
        )
        out.declare("logit", ("label",), "output f(x₀)")
        out.declare("linear", ("label",), "Σ votes, F·x₀")
        out.declare("residual", ("label",), "remainder r = f(x₀) - F·x₀")
        out.declare("unattributed", ("label",), "what no source accounts for")
        if self.spec.jacobian:
            title = "‖F - J‖ over ‖J‖: how far the rows are from the gradient"
            out.declare("gradient_gap", ("label",), title, "1", 0)

    def _shares(self, frozen: Frozen) -> tuple[dict[str, np.ndarray], Tensor]:
        """Arrays of the chosen outputs, and their rows ``[label, batch, *in]``."""
        chosen = self._chosen(frozen)
        rows, parts = frozen.pulls(frozen.one_hots(chosen))
        values = frozen.value.reshape(frozen.rows, -1).gather(1, chosen.T)
        linear = (rows * frozen.x.detach()).flatten(2).sum(-1).T
        found = {
            "residual_by_source": parts.transpose(0, 1), "logit": values, "linear": linear,
            "residual": values - linear, "unattributed": values - linear - parts.sum(-1).T,
        }  # fmt: skip
        if "label_id" in self.out.dims:
            found["label_id"] = chosen.T
        if self.spec.jacobian:
            found["gradient_gap"] = self._gradient_gap(frozen, chosen, rows)
        return {k: v.double().cpu().numpy() for k, v in found.items()}, rows

    def _gradient_gap(self, frozen: Frozen, chosen: Tensor, rows: Tensor) -> Tensor:
        """``[batch, label]``; NaN where the gradient vanishes."""
        start = sum(len(v) for v in self.out.values.get("input", ()))
        x = self.x[start : start + frozen.rows]
        plain = freeze(self.module, x, rules="none", ends=self.how["ends"])
        gradient = plain.pulls(plain.one_hots(chosen))[0].flatten(2)
        size = gradient.norm(dim=-1)
        gap = (rows.flatten(2) - gradient).norm(dim=-1) / size
        return torch.where(size > 0, gap, torch.nan).T

    def _votes(self, frozen: Frozen) -> dict[str, np.ndarray]:
        shares, rows = self._shares(frozen)
        votes = (rows * frozen.x.detach()).transpose(0, 1)
        return {"vote": self._lay(votes, lead=2), **shares}

    def _declare_residual(self) -> None:
        self._name_labels()
        self._declare_shares()
        self.out.coords["component"] = [s.name for s in self.first.sources]
        self.out.coords["side"] = ["f", "F·x₀ alone", "r alone"]
        if self.onto.picture:
            self.out.declare("remainder", self.onto.axes, "remainder r(x₀)", "output")
        self.out.declare("share", (), "‖r‖ over ‖f‖", "1", signed=0)
        self.out.declare("right", ("side",), "whether the largest output is the label", "1", 0)

    def _residual(self, frozen: Frozen) -> dict[str, np.ndarray]:
        shares, _ = self._shares(frozen)
        f, linear = (t.reshape(frozen.rows, -1) for t in (frozen.value, frozen.linear_part()))
        r = f - linear
        size = f.norm(dim=1)
        share = torch.where(size > 0, r.norm(dim=1) / size, torch.nan)
        found = {"share": share.double().cpu().numpy(), **shares}
        if self.onto.picture:
            found["remainder"] = self.onto.lay(r.double().cpu().numpy())
        else:
            found["right"] = self._right(f, linear, r, frozen)
        return found

    def _right(self, f: Tensor, linear: Tensor, r: Tensor, frozen: Frozen) -> np.ndarray:
        """1 where a part's largest output is the label, NaN where it is zero throughout."""
        start = sum(len(v) for v in self.out.values.get("input", ()))
        labels = torch.as_tensor(self.task.labels[start : start + frozen.rows], device=f.device)
        out = torch.stack([(v.argmax(1) == labels).double() for v in (f, linear, r)], 1)
        silent = r.abs().amax(1) <= 1e-13 * f.abs().amax(1)
        out[silent, 2] = torch.nan
        return out.cpu().numpy()

    def _lay(self, values: Tensor, lead: int = 1) -> np.ndarray:
        """``[lead axes, *in]`` as the input is drawn."""
        return self.into.lay(values.flatten(lead).double().cpu().numpy())


def _path(site: str | None, whole: str) -> str:
    """The module that a site names, empty for the network's own end.

    Raises:
        UsageError: a site of transformers, or of no kind.
    """
    if site in (None, "", whole):
        return ""
    kind, _, path = str(site).partition(":")
    if kind != "module" or not path:
        raise UsageError(
            f"{site!r} is no end of a network of numbers.",
            remedy=f"Leave it empty ({whole}), or write module:PATH.",
        )
    return path


def _blame(frozen: Frozen, found: list[str], attn_rule: str) -> str:
    """One sentence on what keeps the network from being complete."""
    if attn_rule == "grad":
        return "Attention patterns were not held (attn_rule='grad'), so F is not the whole story."
    if found:
        return (
            f"Not complete: {'; '.join(found[:3])}. Declare it: declared=['PATH=secant'] where it "
            "acts entry by entry, 'PATH=stop' where it decides."
        )
    calls = "; ".join(dict.fromkeys(f"{p or 'forward'}: {n}" for p, n in frozen.complaints))
    return f"Not complete: no rule covers {calls or 'some part of the network'}."
