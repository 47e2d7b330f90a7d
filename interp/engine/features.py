"""Features: what flows at named places of a network, batch by batch, as rows with labels.

A place is a site that the model knows, or the input or output of a part of the module by its
path. Everything runs in eval mode without gradients; train or eval, the generators and running
statistics are afterwards as they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from interp.terms import KINDS, HookedModel, LabelledInputs, PromptPairs, Site, Texts, UsageError
from interp.terms import unknown_name as unknown

Pool = Literal["flatten", "mean", "last", "cls"]
ROWS = 1024
"""Rows of a batch of labelled inputs, at most."""

NORMED = "final norm"
"""Name of the place where a language model's unembedding reads."""


@dataclass(frozen=True)
class Place:
    """Where features are read.

    Args:
        name: what it is called on an axis.
        site: a site of the model, or None.
        path: else the path of a part of the module; "" is the module itself.
        side: its input or its output.
    """

    name: str
    site: Site | None = None
    path: str = ""
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True)
class LinearHead:
    """The linear maps at a network's end, W_1 … W_M, without anything between.

    Args:
        names: their paths, the first reads the features.
        weights: ``[out, in]`` each.
        bias: of the last one, or None.
        reason: why there is no head, where ``weights`` is empty.
    """

    names: tuple[str, ...] = ()
    weights: tuple[Tensor, ...] = ()
    bias: Tensor | None = None
    reason: str = ""

    def from_boundary(self, boundary: int) -> Tensor:
        """W_M ⋯ W_l for l = ``boundary`` (1 … M): what maps H_l to the logits ``[K, D_l]``."""
        product = self.weights[-1].detach().double()
        for weight in reversed(self.weights[boundary - 1 : -1]):
            product = product @ weight.detach().double()
        return product


@dataclass(frozen=True)
class Call:
    """One call of a linear map or convolution during a pass."""

    path: str
    module: nn.Module
    given: Tensor
    output: Tensor


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes and generators are as they were."""
    modes = [(part, part.training) for part in module.modules()]
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for part, training in modes:
            part.training = training


def calls_of(module: nn.Module, run: Callable[[], Any]) -> tuple[list[Call], Any]:
    """The linear maps and convolutions that a pass calls, in order, and what the pass returned."""
    found: list[Call] = []
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def keep(path: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            found.append(Call(path, part, args[0], output))

        return hook

    hooks = [
        part.register_forward_hook(keep(path))
        for path, part in module.named_modules()
        if isinstance(part, kinds)
    ]
    try:
        output = run()
    finally:
        for hook in hooks:
            hook.remove()
    return found, output


def head_of(calls: Sequence[Call], output: Tensor, path: str | None = None) -> LinearHead:
    """The linear head of a network: the map that gives the output, and linear maps before it.

    Args:
        calls: of one pass.
        output: what the pass returned.
        path: the head's own path, where the output is not its logits.

    Raises:
        UsageError: ``path`` is no linear map that the network calls.
    """
    linear = [c for c in calls if isinstance(c.module, nn.Linear)]
    if path is not None:
        chosen = [c for c in linear if c.path == path]
        if not chosen:
            raise unknown("linear map called", path, [c.path for c in linear])
        last = chosen[-1]
    else:
        same = [c for c in linear if c.output is output or _equal(c.output, output)]
        if not same:
            return LinearHead(reason="the output is not that of a linear map (nn.Linear)")
        last = same[-1]
    if last.given.dim() != 2:
        return LinearHead(reason=f"the head reads {last.given.dim()} axes; wanted [batch, width]")
    chain = [last]
    while True:
        before = [c for c in linear if c.output is chain[0].given and c.module.bias is None]
        if not before:
            break
        chain.insert(0, before[-1])
    return LinearHead(
        tuple(c.path for c in chain),
        tuple(c.module.weight for c in chain),  # type: ignore[misc]
        last.module.bias,  # type: ignore[arg-type]
    )


def _equal(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)


def usual_places(calls: Sequence[Call], head: LinearHead) -> list[Place]:
    """What each linear map or convolution reads, up to the head's first; one name a tensor."""
    out: list[Place] = []
    seen: list[Tensor] = []
    for call in calls:
        if call.path in head.names[1:]:
            continue
        if not any(call.given is t for t in seen):
            seen.append(call.given)
            out.append(Place(f"{call.path}:input", path=call.path, side="input"))
    return out


def places_of(texts: Sequence[str], module: nn.Module, n_layers: int) -> list[Place]:
    """Places from texts.

    A text is a kind of site (all its layers), a site (``resid_post L3``), ``input``, a module's
    path, or that path with ``:input``.

    Raises:
        UsageError: neither a site nor a part of the module.
    """
    parts = dict(module.named_modules())
    out: list[Place] = []
    for text in texts:
        word = text.split()[0].split(":")[0] if text.split() else ""
        if word in KINDS and word != "module" and text not in parts:
            site = Site.parse(text)
            layers = range(n_layers) if site.spec.per_layer and site.layer is None else [None]
            for layer in layers:
                at = site if layer is None else Site(site.kind, layer=layer)
                out.append(Place(str(at), site=at))
            continue
        path = text.removeprefix("module:")
        bare = path.removesuffix(":input")
        if bare not in parts:
            raise unknown("site or part of the module called", bare, [*KINDS, *parts])
        out.append(Place(path, path=bare, side="input" if bare != path else "output"))
    return out


def pooled(value: Tensor, pool: Pool, name: str = "features") -> Tensor:
    """``[batch, …]`` as ``[batch, width]``.

    ``flatten`` keeps everything; ``mean`` averages positions ``[batch, position, width]`` or an
    image ``[batch, channel, …]``; ``last`` and ``cls`` take the last and first position.

    Raises:
        UsageError: no positions to pool.
    """
    if value.dim() <= 2:
        return value[:, None] if value.dim() == 1 else value
    if pool == "flatten":
        return value.flatten(1)
    if pool == "mean":
        return value.mean(1) if value.dim() == 3 else value.flatten(2).mean(-1)
    if value.dim() != 3:
        raise UsageError(
            f"{name} has shape {tuple(value.shape)}, which has no positions.",
            remedy="Use pool='mean' or 'flatten'.",
        )
    return value[:, -1] if pool == "last" else value[:, 0]


class Features:
    """Features of labelled inputs at some places, batch by batch, as often as asked.

    Args:
        module: the network.
        places: where.
        batches: inputs and labels, as the network takes them.
        run: how the network is called: ``run(inputs, sites)`` gives the values of sites.
        pool: how a value becomes a row.
        keep: bytes of features that may be kept, so that a second pass runs nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        places: Sequence[Place],
        batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        run: Callable[[Tensor, list[Site]], dict[Site, Tensor]],
        pool: Pool = "flatten",
        keep: int = 2**28,
    ) -> None:
        self.module, self.places, self._source, self._run = module, list(places), batches, run
        self.pool: Pool = pool
        self._room = keep
        self._kept: list[tuple[dict[str, Tensor], Tensor]] | None = []

    def batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Name -> features ``[row, width]``, and labels ``[row]``."""
        if self._kept:
            yield from self._kept
            return
        kept: list[tuple[dict[str, Tensor], Tensor]] | None = []
        room = self._room
        for inputs, labels in self._source():
            with undisturbed(self.module):
                found = self._read(inputs)
            labels = labels.to(next(iter(found.values())).device)
            room -= sum(v.numel() * v.element_size() for v in found.values())
            kept = None if room < 0 or kept is None else [*kept, (found, labels)]
            yield found, labels
        self._kept = kept

    def _read(self, inputs: Tensor) -> dict[str, Tensor]:
        caught: dict[str, Tensor] = {}
        parts = dict(self.module.named_modules())

        def catch(place: Place) -> Callable[..., None]:
            def before(part: nn.Module, args: tuple[Any, ...]) -> None:
                caught[place.name] = args[0].detach()

            def after(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                value = output[0] if isinstance(output, tuple) else output
                caught[place.name] = value.detach()

            return before if place.side == "input" else after

        hooks = []
        for place in self.places:
            if place.site is None:
                part = parts[place.path]
                add = (
                    part.register_forward_pre_hook
                    if place.side == "input"
                    else part.register_forward_hook
                )
                hooks.append(add(catch(place)))
        try:
            reads = self._run(inputs, [p.site for p in self.places if p.site is not None])
        finally:
            for hook in hooks:
                hook.remove()
        for place in self.places:
            if place.site is not None:
                caught[place.name] = reads[place.site].detach()
            elif place.name not in caught:
                raise UsageError(f"The network does not call {place.path!r}, so it has no value.")
        return {p.name: pooled(caught[p.name], self.pool, p.name) for p in self.places}


def labelled_batches(
    inputs: Any, labels: Any, to_inputs: Callable[[Any], Tensor], rows: int = ROWS
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Batches of inputs with labels."""
    y = torch.as_tensor(np.asarray(labels) if not isinstance(labels, Tensor) else labels)

    def make() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(y), rows):
            yield to_inputs(inputs[start : start + rows]), y[start : start + rows]

    return make


def model_features(
    model: HookedModel, task: LabelledInputs, places: Sequence[Place], pool: Pool, keep: int
) -> Features:
    """Features of a model's labelled inputs."""

    def run(inputs: Tensor, sites: list[Site]) -> dict[Site, Tensor]:
        return dict(model.run(inputs, read=sites).reads)

    to_inputs = getattr(model, "to_inputs", torch.as_tensor)
    batches = labelled_batches(task.inputs, task.labels, to_inputs)
    return Features(model.module(), places, batches, run, pool, keep)


Row = tuple[tuple[int, ...], list[int], list[int]]
"""A prompt, positions in it, and the token that came next at each."""


def next_token_rows(task: Texts | PromptPairs) -> list[Row]:
    """Prompt, positions and the token that came next at each.

    Of a pair the clean prompt is taken, and after it the first right answer. Marks of ``Texts``
    choose the tokens that count.
    """
    if isinstance(task, PromptPairs):
        return [
            (p, list(range(len(p))), [*p[1:], r[0]])
            for p, r in zip(task.clean, task.right, strict=True)
        ]
    marks = task.answer_mask or tuple((1,) * len(t) for t in task.tokens)
    out = []
    for tokens, mark in zip(task.tokens, marks, strict=True):
        at = [i for i in range(len(tokens) - 1) if mark[i + 1]]
        if at:
            out.append((tokens, at, [tokens[i + 1] for i in at]))
    return out


class NextTokenFeatures:
    """Residual rows of a language model with the token that came next as label.

    The places are ``resid_post`` of every layer (or those asked for) and, where the engine drives
    the model, what the unembedding reads after the final norm.

    Args:
        model: a language model.
        task: texts, or pairs whose clean side is read.
        texts: sites, as for ``places_of``; None for the usual ones.
        keep: bytes of features that may be kept.

    Raises:
        UsageError: no token has a successor.
    """

    def __init__(
        self, model: HookedModel, task: Texts | PromptPairs, texts: Sequence[str] | None, keep: int
    ) -> None:
        self.model, self._room = model, keep
        self._rows = next_token_rows(task)
        self.rows = sum(len(r[1]) for r in self._rows)
        if not self._rows:
            raise UsageError("No token of these texts has a successor.", remedy="Give longer ones.")
        asked = ["resid_post"] if texts is None else list(texts)
        self.places = places_of(
            [t for t in asked if t != NORMED], model.module(), model.shape.n_layers
        )
        self.places = [p for p in self.places if p.site is not None]
        self._last = Site("resid_post", layer=model.shape.n_layers - 1)
        self.head = LinearHead(reason="the engine does not drive this model's final norm")
        blocks: Any = model.blocks if _has(model, "blocks") else None
        self._norm = getattr(blocks, "final_norm", None)
        if hasattr(blocks, "w_unembed") and (texts is None or NORMED in asked):
            self.places.append(Place(NORMED))
            weight = blocks.w_unembed.weight
            self.head = LinearHead(("unembed",), (weight,), blocks.w_unembed.bias)
        self._kept: list[tuple[dict[str, Tensor], Tensor]] | None = []

    def batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Name -> features ``[row, width]``, and next tokens ``[row]``."""
        if self._kept:
            yield from self._kept
            return
        kept: list[tuple[dict[str, Tensor], Tensor]] | None = []
        room = self._room
        for group in self._groups():
            found, labels = self._read(group)
            room -= sum(v.numel() * v.element_size() for v in found.values())
            kept = None if room < 0 or kept is None else [*kept, (found, labels)]
            yield found, labels
        self._kept = kept

    def _groups(self) -> Iterator[list[Any]]:
        """Prompts of one length, a few thousand tokens at a time."""
        by_length: dict[int, list[Any]] = {}
        for row in self._rows:
            by_length.setdefault(len(row[0]), []).append(row)
        for length, rows in sorted(by_length.items()):
            step = max(1, 4096 // length)
            for start in range(0, len(rows), step):
                yield rows[start : start + step]

    def _read(self, group: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        sites = [p.site for p in self.places if p.site is not None]
        wanted = [*dict.fromkeys([*sites, self._last])]
        with undisturbed(self.model.module()):
            reads = self.model.run(
                np.array([r[0] for r in group]), read=wanted, positions=[-1]
            ).reads
            row = torch.tensor([n for n, r in enumerate(group) for _ in r[1]])
            at = torch.tensor([p for r in group for p in r[1]])
            found = {}
            norm: Any = self._norm
            for place in self.places:
                value = reads[self._last if place.site is None else place.site][row, at]
                if place.site is None and norm is not None:
                    value = norm(value)
                found[place.name] = value.flatten(1).detach()
        labels = torch.tensor([t for r in group for t in r[2]])
        return found, labels.to(next(iter(found.values())).device)


def _has(model: HookedModel, name: str) -> bool:
    return any(c.name == name and c.ok for c in model.capabilities())
