"""The nnsight back-end: the loaded Hugging Face module under an nnsight TransformersModel.

The only door to nnsight. Values are read and set inside a trace, location by location in the
order in which the forward pass reaches them (nnsight's rule). Everything runs on this machine;
remote execution is asked for run by run (``run(..., remote=True)``) and never implied.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.models.adapter import PER_LAYER, first_tensor
from interp.models.attention import show_patterns
from interp.models.taps import Session, Watch
from interp.models.transformer import TransformerModel

if TYPE_CHECKING:
    from interp.models.loading import Loaded

RANK = {
    k: n for n, k in enumerate(
        ("resid_pre", "ln1_scale", "q", "q_norm_scale", "k", "k_norm_scale", "v", *PER_LAYER[7:])
    )
}
"""Order in which a layer reaches its sites."""


def wrap(loaded: Loaded, *, verify: bool = True) -> NnsightModel:
    """Wrap a loaded Hugging Face module; its attention implementation is changed in place.

    Args:
        loaded: what ``loading.load`` gave.
        verify: run the self-checks (design: what an adapter proves when it wraps a model).
    """
    model = NnsightModel(loaded)
    if verify:
        from interp.models.checks import self_checks

        model.checks = self_checks(model, loaded.probe, loaded.reference)
    return model


@dataclass
class _Stop:
    """One location of the trace, with the sites that stand there."""

    path: str
    side: str
    rank: tuple[int, int, int]
    watches: list[Watch] = field(default_factory=list)


class NnsightModel(TransformerModel):
    """A model under an nnsight TransformersModel."""

    backend = "nnsight"

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        if self.family.name != "gpt_neo":  # its pattern passes through a dropout module
            show_patterns(self._module, self.family)
        self._names = {id(m): n for n, m in self._module.named_modules()}
        self._traced = trace_model(loaded)

    def wrapped(self) -> Any:
        """The nnsight TransformersModel."""
        return self._traced

    def _stops_of(self, session: Session) -> list[_Stop]:
        """The locations a session needs, in the order in which the forward pass reaches them."""
        stops: dict[tuple[str, str], _Stop] = {}
        for watch in session.watches:
            path, side = self._names[id(watch.tap.module)], watch.tap.side
            layer = {"embed": -1, "ln_final_scale": 1 << 30}.get(watch.site.kind, watch.site.layer)
            rank = (int(layer or 0), RANK.get(watch.site.kind, 0), 0)
            stop = stops.setdefault((path, side), _Stop(path, side, rank))
            stop.rank = min(stop.rank, rank)
            stop.watches.append(watch)
        return sorted(stops.values(), key=lambda s: s.rank)

    def _pass(
        self, session: Session, inputs: Tensor, positions: Tensor | None, vocab: Tensor | None
    ) -> Tensor:
        """One traced forward pass; logits at the positions and columns asked for."""
        stops, traced = self._stops_of(session), self._traced
        whole = positions is None and vocab is None
        final = self.family.final_norm
        found: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        with traced.trace(inputs, use_cache=False) as tracer:
            for stop in stops:
                visit(session, stop, traced.get(stop.path), seen)
            if whole:
                found["out"] = traced.output
            else:
                found["hidden"] = traced.get(final).output
                tracer.stop()
        session.finish()
        if whole:
            return first_tensor(found["out"])
        hidden = found["hidden"]
        return self.head(hidden if positions is None else hidden[:, positions], vocab)


def visit(session: Session, stop: _Stop, envoy: Any, seen: dict[str, Any]) -> None:
    """Edit and read at one location of a running trace."""
    divided = any(w.tap.divisor is not None for w in stop.watches)
    if (divided or stop.side == "input") and stop.path not in seen:
        seen[stop.path] = envoy.input
    before = seen[stop.path] if stop.side == "input" else envoy.output
    after = before
    for watch in sorted(stop.watches, key=lambda w: w.tap.order):
        after = session.pass_through(watch, after, seen.get(stop.path))
    if after is not before:
        if stop.side == "input":
            envoy.input = after
        else:
            envoy.output = after


def trace_model(loaded: Loaded) -> Any:
    """A TransformersModel on the loaded module; a stand-in where there is no tokenizer."""
    from nnsight import TransformersModel

    known = loaded.hf_tokenizer
    return TransformersModel(
        loaded.module, task="text-generation",
        tokenizer=stand_in_tokenizer() if known is None else copy.deepcopy(known),
    )


def stand_in_tokenizer() -> Any:
    """A tokenizer without words: nnsight's pipeline wants one, and must not look for it itself."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?",
        pad_token="?",
    )
