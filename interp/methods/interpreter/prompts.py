"""Prompts: votes of tokens, the remainder by source, and the gain of each layer's frozen map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from interp.engine.gradients import rule_set
from interp.engine.linear import (
    Frozen,
    block_map,
    freeze_prompt,
    prompt_logits,
    singular,
    straightened,
    transformer_of,
)
from interp.methods.interpreter.arrays import Gathered
from interp.methods.interpreter.trust import Ledger
from interp.terms import Context, HookedModel, PromptPairs, Site, Texts, UsageError

if TYPE_CHECKING:
    from interp.methods.interpreter.linear_interpreter import LinearInterpreter

FORWARD = {torch.float64: 1e-10, torch.float32: 1e-3}
SIDES = ("right", "wrong", "right - wrong")


class Prompts:
    """One measurement.

    Args:
        spec: the method.
        model: driven layer by layer.
        task: prompts; of a pair the clean one.
        context: company.

    Raises:
        UsageError: a tour of pictures, or a site or position that is not there.
    """

    def __init__(
        self, spec: LinearInterpreter, model: HookedModel, task: PromptPairs | Texts,
        context: Context,
    ) -> None:  # fmt: skip
        self.spec, self.task, self.context = spec, task, context
        self.model, self.honest = transformer_of(model), model
        if spec.tour in ("columns", "copy_template"):
            raise UsageError(
                f"tour={spec.tour!r} is for networks of pictures.",
                remedy="Use votes, residual, rows or svd on prompts.",
            )
        if spec.output_site not in (None, "", "logits"):
            raise UsageError(
                f"Output {spec.output_site!r} was asked for; prompts are explained at the logits.",
                remedy="Leave output_site empty.",
            )
        self.layer = layer_of_site(spec.input_site, model.shape.n_layers)
        self.tokens = task.clean if isinstance(task, PromptPairs) else task.tokens
        self.pairs = isinstance(task, PromptPairs) and spec.labels is None
        if spec.labels is not None and (bad := [c for c in spec.labels if c >= model.shape.vocab]):
            raise UsageError(
                f"Token {bad[0]} was asked for; the vocabulary has {model.shape.vocab}."
            )
        self.out, self.ledger = Gathered(), Ledger(spec.seed)
        self.components: list[str] = []

    def measured(self) -> xr.Dataset:
        """The tour's arrays, prompt by prompt."""
        spec = self.spec
        cap = "identity" if self.model.blocks.cap is not None else "grad"
        self.chosen = chosen = rule_set(
            "linear", mean=spec.mean, gate=spec.gate_rule, attn=spec.attn_rule, cap=cap
        )
        self._declare()
        with straightened(self.model, chosen, verify=True) as active:
            self.context.note("rules", active.to_json())
            for n, row in enumerate(self.tokens):
                key = f"{spec.tour}-{n}"
                kept = self.context.load_chunk(key)
                if kept is None:
                    kept = self._one(n, row)
                    kept |= self.ledger.pack()
                    self.context.save_chunk(key, kept)
                self.ledger.dtype = self.model.blocks.dtype
                self.out.keep(self.ledger.unpack(kept))
                self.context.advance(n + 1, len(self.tokens))
        if spec.jacobian and spec.tour != "svd":
            self._gradients()
        if self.components:
            self.out.coords["component"] = self.components
        if spec.attn_rule == "grad":
            self.ledger.note = "Patterns were not held (attn_rule='grad'): not the whole story."
        rounded = self.model is not self.honest
        self.ledger.tell(self.context, 0.1 if rounded else FORWARD[self.ledger.dtype])
        return self.out.dataset({
            "tour": spec.tour, "input_site": spec.input_site or "embed", "mean": spec.mean,
            "gate_rule": spec.gate_rule, "attn_rule": spec.attn_rule, "at": spec.at,
            "complete": int(self.ledger.complete),
            "caption": "Patterns, norm divisors and gates are held at the prompt's own.",
        })  # fmt: skip

    def _declare(self) -> None:
        out, tour = self.out, self.spec.tour
        out.coords["label"] = self._label_names()
        if tour == "svd":
            k = min(self.spec.k, self.model.shape.d_model)
            out.coords |= {"mode": list(range(1, k + 1)),
                           "layer": list(range(self.model.shape.n_layers))}  # fmt: skip
            out.declare("gain", ("layer",), "σ₁ of each layer's frozen map at the position", "1", 0)
            out.declare(
                "singular_value",
                ("layer", "mode"),
                "singular values of each layer's "
                "frozen map, resid_pre to resid_post at the position",
                "1",
                0,
            )
            out.declare("certificate", ("layer", "mode"), "certificate", "1", 0)
            return
        title = "votes of each token: row of F times its embedding"
        if tour == "rows":
            out.declare(
                "row_norm",
                ("label", "position"),
                "length of each token's row of F",
                "logit per unit",
                0,
            )
        elif tour == "votes":
            out.declare("vote", ("label", "position"), title)
        out.declare(
            "residual_by_source",
            ("label", "component"),
            "the logit from 0: votes of the tokens, then each source of the remainder",
            waterfall="linear",
        )
        out.declare("logit", ("label",), "logit")
        out.declare("linear", ("label",), "Σ votes")
        out.declare("residual", ("label",), "remainder r")
        out.declare("unattributed", ("label",), "what no source accounts for")
        if self.spec.jacobian:
            title = "‖F - J‖ over ‖J‖: how far the rows are from the gradient"
            out.declare("gradient_gap", ("label",), title, "1", 0)
        if self.spec.labels is None and not self.pairs:
            out.declare("label_id", ("label",), "most likely tokens", "token", 0)

    def _label_names(self) -> list[str]:
        if self.pairs:
            assert isinstance(self.task, PromptPairs)
            return list(SIDES if all(self.task.wrong) else SIDES[:1])
        if self.spec.labels is not None:
            return [str(c) for c in self.spec.labels]
        return ["top", "second", "third"]

    def _place(self, row: Sequence[int]) -> int:
        text = self.spec.at
        place = -1 if text == "last" else int(text) if text.lstrip("-").isdigit() else None
        if place is None or not -len(row) <= place < len(row):
            raise UsageError(
                f"at={text!r} is no position of a prompt of {len(row)} tokens.",
                remedy="Use last, or an index.",
            )
        return place % len(row)

    def _one(self, n: int, row: Sequence[int]) -> dict[str, np.ndarray]:
        at = self._place(row)
        full = prompt_logits(self.model, row, at)
        self._see_forward(row, at, full)
        if self.spec.tour == "svd":
            return self._gains(row, at)
        columns, weights = self._rows_of(n, full)
        memory = int(self.context.memory)
        frozen = freeze_prompt(self.model, row, columns, layer=self.layer, at=at, memory=memory)
        self.ledger.see(frozen)
        self.components = [s.name for s in frozen.sources]
        return self._shares(frozen, columns, weights)

    def _see_forward(self, row: Sequence[int], at: int, full: torch.Tensor) -> None:
        """The frozen network's logits beside the back-end's own."""
        own = self.honest.run([list(row)]).logits[0, at].detach().double()
        gap = float((own - full.double()).abs().max() / own.abs().max().clamp_min(1e-30))
        self.ledger.take("forward", gap)

    def _rows_of(self, n: int, full: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        """Columns of the logits, and the directions ``[label, column]`` that are explained."""
        if self.pairs:
            assert isinstance(self.task, PromptPairs)
            right, wrong = self.task.right[n][0], self.task.wrong[n]
            columns = [right, wrong[0]] if self.out.coords["label"][1:] else [right]
            weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
            return columns, weights if len(columns) == 2 else weights[:1, :1]
        columns = (
            list(self.spec.labels) if self.spec.labels is not None
            else full.topk(3).indices.tolist()
        )  # fmt: skip
        return columns, torch.eye(len(columns))

    def _shares(
        self, frozen: Frozen, columns: list[int], weights: torch.Tensor
    ) -> dict[str, np.ndarray]:
        v = weights.to(frozen.y)[:, None]
        rows, parts = frozen.pulls(v)
        values = (frozen.value * v[:, 0]).sum(-1)
        votes = (rows * frozen.x.detach()).sum(-1)[:, 0]
        linear, sources = votes.sum(-1), parts[:, 0]
        found: dict[str, Any] = {
            "residual_by_source": sources, "logit": values, "linear": linear,
            "residual": values - linear, "unattributed": values - linear - sources.sum(-1),
        }  # fmt: skip
        if "label_id" in self.out.dims:
            found["label_id"] = torch.tensor(columns)
        if self.spec.tour == "rows":
            found["row_norm"] = rows[:, 0].norm(dim=-1)
        elif self.spec.tour == "votes":
            found["vote"] = votes
        return {k: t.detach().double().cpu().numpy()[None] for k, t in found.items()}

    def _gradients(self) -> None:
        """How far each prompt's rows are from the model's own gradient."""
        for n, row in enumerate(self.tokens):
            at = self._place(row)
            columns, weights = self._rows_of(n, prompt_logits(self.model, row, at))
            found = []
            for name in ("linear", "none"):
                with straightened(self.model, self.chosen if name == "linear" else rule_set(name)):
                    frozen = freeze_prompt(self.model, row, columns, layer=self.layer, at=at)
                    found.append(frozen.pulls(weights.to(frozen.y)[:, None])[0].flatten(1))
            size = found[1].norm(dim=1)
            gap = torch.where(size > 0, (found[0] - found[1]).norm(dim=1) / size, torch.nan)
            self.out.keep({"gradient_gap": gap.double().cpu().numpy()[None]})

    def _gains(self, row: Sequence[int], at: int) -> dict[str, np.ndarray]:
        values, certificates = [], []
        for layer in self.out.coords["layer"]:
            frozen = block_map(self.model, row, layer, at)
            self.ledger.take("adjoint", frozen.adjoint(torch.Generator().manual_seed(0)))
            found = singular(frozen, self.spec.k, self.spec.solver, self.spec.seed)
            values.append(found.values)
            certificates.append(found.certificate)
            top = max(float(found.values[0]), 1e-300)
            self.ledger.take("certificate", float(found.certificate.max()) / top)
        sigma = np.stack(values)
        return {
            "singular_value": sigma[None], "certificate": np.stack(certificates)[None],
            "gain": sigma[None, :, 0],
        }  # fmt: skip


def layer_of_site(site: str | None, depth: int) -> int | None:
    """The layer whose ``resid_pre`` is the input, None for the token embedding.

    Raises:
        UsageError: token ids, or a site that is neither.
    """
    if site in (None, "", "embed"):
        return None
    if site in ("input", "tokens"):
        raise UsageError(
            "Token ids are no numbers that a network could be linear in.", remedy="Use embed."
        )
    found = Site.parse(str(site))
    if found.kind != "resid_pre" or found.layer is None or not 0 <= found.layer < depth:
        raise UsageError(
            f"Input {site!r} was asked for; wanted embed or resid_pre of a layer below {depth}.",
            remedy="Write for instance resid_pre L1.",
        )
    return found.layer
