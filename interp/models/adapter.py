"""What every adapter shares: inputs to tensors, runs under taps, generation, the public face.

An adapter wraps one model for one back-end. It says where each site stands (``_tap``), how the
model is called (``_call``), and which kinds it lacks (``capabilities.py`` has the reasons).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.models.taps import Session, Tap, edited, put, select
from interp.terms import (
    Capability,
    CapabilityError,
    Check,
    Edit,
    InterpError,
    ModelShape,
    Run,
    Site,
    UsageError,
)

if TYPE_CHECKING:
    from interp.terms import Blocks, Tokenizer, Weights

PER_LAYER = (
    "resid_pre",
    "ln1_scale",
    "q",
    "k",
    "v",
    "q_norm_scale",
    "k_norm_scale",
    "pattern",
    "z",
    "ln1_post_scale",
    "attn_out",
    "resid_mid",
    "ln2_scale",
    "mlp_post",
    "ln2_post_scale",
    "mlp_out",
    "resid_post",
)
"""Kinds of a layer, in the order in which a forward pass reaches them."""


class Adapter:
    """A wrapped model (the HookedModel Protocol). Subclasses are the back-ends."""

    backend = ""
    id: str
    weight_hash: str
    shape: ModelShape
    tokenizer: Tokenizer | None
    checks: tuple[Check, ...] = ()

    # -- what a back-end fills in ------------------------------------------------------------

    def _tap(self, site: Site) -> Tap:
        """Where a whole site is caught; only called for sites that ``require`` let through."""
        raise AssertionError("an adapter says where its sites stand")

    def _call(self, inputs: Tensor, positions: Tensor | None, vocab: Tensor | None) -> Tensor:
        """Run the model; logits at the positions and columns asked for."""
        raise AssertionError("an adapter calls its model")

    def capabilities(self) -> tuple[Capability, ...]:
        """Every site kind and feature, each 'no' with its reason."""
        raise AssertionError("an adapter says what it can do")

    def module(self) -> nn.Module:
        """The unwrapped ``torch.nn.Module``."""
        raise AssertionError("an adapter holds a module")

    def wrapped(self) -> Any:
        """The back-end's own object."""
        return self.module()

    # -- facts -------------------------------------------------------------------------------

    def can(self, name: str) -> bool:
        """Whether a site kind or feature is there."""
        return any(c.ok for c in self.capabilities() if c.name == name)

    def require(self, name: str) -> None:
        """Refuse what is not there.

        Raises:
            CapabilityError: with the reason.
        """
        for capability in self.capabilities():
            if capability.name == name:
                if capability.ok:
                    return
                raise CapabilityError(
                    f"{self.id} ({self.backend}) has no {name}: {capability.reason}"
                )
        raise CapabilityError(f"{self.id} ({self.backend}) has no {name}.")

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every whole site that can be read, in the order in which a forward pass reaches them."""
        have = {c.name for c in self.capabilities() if c.ok}
        found = [Site("input")] if "input" in have else []
        found += [Site("embed")] if "embed" in have else []
        for layer in range(self.shape.n_layers):
            found += [Site(k, layer=layer) for k in PER_LAYER if k in have]
        return (*found, *(Site(k) for k in ("ln_final_scale", "logits") if k in have))

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the first parameter."""
        return next((p.device for p in self.module().parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next((p.dtype for p in self.module().parameters()), torch.float32)

    @property
    def blocks(self) -> Blocks:
        """What the engine drives layer by layer."""
        self.require("blocks")
        return self._blocks  # type: ignore[attr-defined]

    @property
    def weights(self) -> Weights:
        """Weights by head and neuron."""
        self.require("weights")
        return self._weights  # type: ignore[attr-defined]

    def graph(self) -> Any:
        """Linear, add and gate nodes.

        Raises:
            CapabilityError: the network has other parts, with the reason.
        """
        self.require("graph")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.shape.architecture}>"

    # -- running -----------------------------------------------------------------------------

    def run(
        self,
        inputs: Any,
        *,
        edits: Iterable[Edit] = (),
        read: Iterable[Site] = (),
        grad: bool = False,
        positions: Any = None,
        vocab: Any = None,
    ) -> Run:
        """One forward pass; see ``terms.models.HookedModel.run``."""
        edits, read = tuple(edits), tuple(read)
        tensor = self.to_inputs(inputs)
        for site in (*(e.site for e in edits), *read):
            self._check_site(site)
        places = self._indices(positions, tensor.shape[1] if tensor.dim() > 1 else 1, "position")
        columns = self._indices(vocab, self.shape.vocab, "token")
        with torch.enable_grad() if grad else torch.no_grad():
            return self._run(tensor, edits, read, grad, places, columns)

    def _run(
        self,
        inputs: Tensor,
        edits: tuple[Edit, ...],
        read: tuple[Site, ...],
        grad: bool,
        positions: Tensor | None,
        vocab: Tensor | None,
    ) -> Run:
        """Edits and reads by torch hooks; logits are edited and read after the call."""
        ends = {"logits", "input"}
        inner = [(n, e) for n, e in enumerate(edits) if e.site.kind not in ends]
        session = Session(
            self._tap, [e for _, e in inner], [s for s in read if s.kind not in ends], grad
        )
        fired = [0.0] * len(edits)
        reads: dict[Site, Tensor] = {}
        inputs = self._end("input", inputs, edits, read, grad, reads, fired)
        if any(s.kind == "logits" for s in (*(e.site for e in edits), *read)):
            # A site names positions of the prompt, so these need all of them.
            logits = self._pass(session, inputs, None, None)
            logits = self._end("logits", logits, edits, read, grad, reads, fired)
            logits = logits if positions is None else logits[:, positions]
            logits = logits if vocab is None else logits[..., vocab]
        else:
            logits = self._pass(session, inputs, positions, vocab)
        for (n, _), change in zip(inner, session.fired, strict=True):
            fired[n] = change
        reads.update(session.reads)
        return Run(logits, {site: reads[site] for site in read}, tuple(fired))

    def _end(
        self,
        kind: str,
        value: Tensor,
        edits: Sequence[Edit],
        read: Sequence[Site],
        grad: bool,
        reads: dict[Site, Tensor],
        fired: list[float],
    ) -> Tensor:
        """Edit and read the raw input or the logits, which need no hook."""
        for number, edit in enumerate(edits):
            if edit.site.kind == kind:
                value, change = edited(value, edit)
                fired[number] = float(change)
        for site in read:
            if site.kind == kind:
                part = select(value, site)
                if grad and part.is_floating_point():
                    part = part.clone() if part.requires_grad else part.clone().requires_grad_()
                    value = put(value, site, part)
                reads[site] = part
        return value

    def _pass(
        self, session: Session, inputs: Tensor, positions: Tensor | None, vocab: Tensor | None
    ) -> Tensor:
        """One forward pass under a session's hooks; logits at the positions and columns asked."""
        with session:
            return self._call(inputs, positions, vocab)

    def _check_site(self, site: Site) -> None:
        """Refuse a site the model does not have.

        Raises:
            CapabilityError: the kind is not there, with the reason.
            UsageError: a layer that does not exist.
        """
        self.require(site.kind)
        if not site.spec.per_layer:
            return
        if site.layer is None:
            raise UsageError(f"Site {site.kind!r} needs a layer.", remedy="Give layer=0 or up.")
        if not 0 <= site.layer < self.shape.n_layers:
            raise UsageError(
                f"{site} asks for layer {site.layer} and the model has {self.shape.n_layers}.",
                remedy=f"Give a layer from 0 to {self.shape.n_layers - 1}.",
            )

    def _indices(self, given: Any, size: int, what: str) -> Tensor | None:
        """Positions or columns as a tensor of non-negative indices.

        Raises:
            UsageError: an index outside.
        """
        if given is None:
            return None
        index = torch.as_tensor(np.atleast_1d(_host(given)), dtype=torch.long)
        if index.numel() == 0 or int(index.min()) < -size or int(index.max()) >= size:
            raise UsageError(
                f"Logits were asked for at {what} {given!r} and there are {size}.",
                remedy=f"Give {what}s from 0 to {size - 1}.",
            )
        return (index % size).to(self.device)

    # -- inputs ------------------------------------------------------------------------------

    def to_inputs(self, inputs: Any) -> Tensor:
        """Token ids ``[batch, position]`` from ids, nested lists, arrays or a text.

        Raises:
            CapabilityError: a text, and no tokenizer.
            UsageError: ids that do not fit the model.
        """
        if isinstance(inputs, str):
            if self.tokenizer is None:
                raise CapabilityError(
                    f"{self.id} has no tokenizer, so a text cannot become tokens.",
                    remedy="Give token ids.",
                )
            inputs = [list(self.tokenizer.encode(inputs))]
        if not isinstance(inputs, Tensor):
            try:
                inputs = np.asarray(inputs)
            except ValueError:
                raise UsageError(
                    "Prompts of unequal length cannot be one batch.",
                    remedy="Run them in groups of equal length.",
                ) from None
            if inputs.dtype.kind not in "iu":
                raise UsageError(
                    f"Token ids are whole numbers; {inputs.dtype} was given.",
                    remedy="Give ids [batch, position], or a text.",
                )
        tokens = torch.as_tensor(inputs)  # looked at where it is: no wait for an accelerator
        if tokens.is_floating_point() or tokens.dim() not in (1, 2) or tokens.numel() == 0:
            raise UsageError(
                f"Token ids are whole numbers [batch, position]; {tuple(tokens.shape)} "
                f"{tokens.dtype} was given."
            )
        tokens = tokens.long()
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        self._check_tokens(tokens)
        return tokens.to(self.device)

    def _check_tokens(self, tokens: Tensor) -> None:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.shape.vocab:
            raise UsageError(
                f"Token id {low if low < 0 else high} is not in the vocabulary of "
                f"{self.shape.vocab}.",
                remedy=f"Give ids from 0 to {self.shape.vocab - 1}.",
            )
        limit = self.shape.n_ctx
        if limit is not None and tokens.shape[1] > limit:
            raise UsageError(
                f"The prompt has {tokens.shape[1]} tokens and the model's context holds {limit}.",
                remedy="Shorten the prompt.",
            )

    # -- generation --------------------------------------------------------------------------

    def generate(
        self,
        prompt: Any,
        *,
        edits: Iterable[Edit] = (),
        max_tokens: int = 20,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Continue one prompt under edits; greedy at temperature 0.

        An edit holds where it stands in the prompt at every step; one whose value has no position
        axis and no chosen position holds at the new tokens too. Stops at the end-of-text token
        of the tokenizer and at the context's end.

        Args:
            prompt: a text or token ids of one prompt.
            edits: interventions, values as for ``run``.
            max_tokens: how many tokens at most.
            temperature: divides the logits before sampling; 0 takes the largest.
            seed: of the sampling.

        Returns:
            The new token ids.

        Raises:
            UsageError: more than one prompt, or a negative temperature.
        """
        self.require("generate")
        tokens = self.to_inputs(prompt)
        if tokens.shape[0] != 1 or temperature < 0 or max_tokens < 0:
            raise UsageError(
                f"generate was given {tokens.shape[0]} prompts, temperature {temperature} and "
                f"max_tokens {max_tokens}; wanted one prompt and no negative number."
            )
        edits = tuple(_pinned(e, tokens.shape[1]) for e in edits)
        dice = torch.Generator().manual_seed(seed)
        new: list[int] = []
        while len(new) < max_tokens and tokens.shape[1] <= (self.shape.n_ctx or 1 << 60):
            logits = self.run(tokens, edits=edits, positions=[-1]).logits[0, -1].double().cpu()
            if temperature == 0:
                chosen = int(logits.argmax())
            else:
                odds = (logits / temperature).softmax(-1)
                chosen = int(torch.multinomial(odds, 1, generator=dice))
            new.append(chosen)
            if chosen in self._stops():
                break
            tokens = torch.cat([tokens, tokens.new_tensor([[chosen]])], dim=1)
        return new

    def _stops(self) -> tuple[int, ...]:
        """Token ids that end a text."""
        return ()


def _host(given: Any) -> Any:
    return given.detach().cpu().numpy() if isinstance(given, Tensor) else given


def _pinned(edit: Edit, length: int) -> Edit:
    """An edit made for a prompt of this length, so that it stays there when the text grows."""
    site, value = edit.site, edit.with_
    position = site.position
    if position is None:
        dims = len(site.spec.dims) - sum(
            getattr(site, f) is not None for f in ("head", "neuron", "feature", "key")
        )
        shape = () if isinstance(value, str) else np.shape(_host(value))
        if len(shape) > dims and shape[-dims - 1] == length > 1:
            return Edit(site.at(tuple(range(length))), value, edit.mode, edit.reader)
        return edit
    if isinstance(position, str):
        return edit
    pinned = position % length if isinstance(position, int) else tuple(p % length for p in position)
    return Edit(site.at(pinned), value, edit.mode, edit.reader)


def first_tensor(output: Any) -> Tensor:
    """The tensor in a module's output: itself, ``.logits``, or the first of a tuple.

    Raises:
        InterpError: there is none.
    """
    for candidate in (
        output,
        getattr(output, "logits", None),
        getattr(output, "last_hidden_state", None),
    ):
        if isinstance(candidate, Tensor):
            return candidate
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InterpError(
        f"The model returned {type(output).__name__}, in which no tensor of outputs was found."
    )
