"""The nnsight back-end: the loaded Hugging Face module under an nnsight TransformersModel.

The only door to nnsight. Values are read and set inside a trace, location by location in the
order in which the forward pass reaches them (nnsight's rule). Everything runs on this machine;
remote execution is asked for in code, run by run (``run(..., remote=True)``, or the runs inside
``with model.elsewhere():``). No ref, link, spec, form or command can ask for it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.models.adapter import PER_LAYER, first_tensor
from interp.models.attention import show_patterns
from interp.models.taps import Session, Watch
from interp.models.transformer import TransformerModel
from interp.terms import CapabilityError, Edit, Run, Site, UsageError

if TYPE_CHECKING:
    from interp.models.loading import Loaded

RANK = {
    k: n
    for n, k in enumerate(
        ("resid_pre", "ln1_scale", "q", "q_norm_scale", "k", "k_norm_scale", "v", *PER_LAYER[7:])
    )
}
"""Order in which a layer reaches its sites."""


SENT = (
    "interp.models.nnsight_adapter",
    "interp.models.taps",
    "interp.models.layouts",
    "interp.terms.sites",
    "interp.terms.edits",
    "interp.terms.errors",
)
"""Files whose functions travel with a remote run, which knows nothing of this package."""


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
class Stop:
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
        self.remote_runs = 0
        self._remote: bool | str = False
        self._away: bool | str = False

    @contextlib.contextmanager
    def elsewhere(self, remote: bool | str = True) -> Iterator[None]:
        """Every pass inside goes to another machine, unless a run says otherwise.

        The provenance of a result measured inside counts these passes (``remote_runs``).

        Args:
            remote: as for ``run``.
        """
        before, self._away = self._away, remote
        try:
            yield
        finally:
            self._away = before

    def wrapped(self) -> Any:
        """The nnsight TransformersModel."""
        return self._traced

    def _stops_of(self, session: Session) -> list[Stop]:
        """The locations a session needs, in the order in which the forward pass reaches them."""
        stops: dict[tuple[str, str], Stop] = {}
        for watch in session.watches:
            path, side = self._names[id(watch.tap.module)], watch.tap.side
            layer = {"embed": -1, "ln_final_scale": 1 << 30}.get(watch.site.kind, watch.site.layer)
            rank = (int(layer or 0), RANK.get(watch.site.kind, 0), 0)
            stop = stops.setdefault((path, side), Stop(path, side, rank))
            stop.rank = min(stop.rank, rank)
            stop.watches.append(watch)
        return sorted(stops.values(), key=lambda s: s.rank)

    def run(
        self,
        inputs: Any,
        *,
        edits: Iterable[Edit] = (),
        read: Iterable[Site] = (),
        grad: bool = False,
        positions: Any = None,
        vocab: Any = None,
        remote: bool | str | None = None,
    ) -> Run:
        """One forward pass; see ``terms.models.HookedModel.run``.

        Args:
            inputs: as there; likewise the following ones.
            edits: as there.
            read: as there.
            grad: as there; not for a remote run.
            positions: as there.
            vocab: as there.
            remote: run this pass on another machine: True for the service of the library's own
                configuration, an address, or ``"local"`` to rehearse it here. The inputs and
                edits leave this machine, and the service runs code that is sent to it. None, the
                default, stays here except inside ``elsewhere``.

        Raises:
            UsageError: gradients of a remote run.
            CapabilityError: a pattern, which is no module's output there.
        """
        remote = self._away if remote is None else remote
        if not remote:
            return super().run(
                inputs, edits=edits, read=read, grad=grad, positions=positions, vocab=vocab
            )
        edits, read = tuple(edits), tuple(read)
        if grad:
            raise UsageError(
                "A remote run keeps no graph, so it gives no gradients.",
                remedy="Run here, or leave grad out.",
            )
        if remote != "local" and any(
            s.kind == "pattern" for s in (*(e.site for e in edits), *read)
        ):
            raise CapabilityError("A remote model's attention pattern is no module's output.")
        self.remote_runs += 1
        self._remote = remote
        try:
            return super().run(inputs, edits=edits, read=read, positions=positions, vocab=vocab)
        finally:
            self._remote = False

    def _pass(
        self, session: Session, inputs: Tensor, positions: Tensor | None, vocab: Tensor | None
    ) -> Tensor:
        """One traced forward pass; logits at the positions and columns asked for."""
        stops, whole = self._stops_of(session), positions is None and vocab is None
        if self._remote:
            found = self._elsewhere(session, stops, inputs, whole)
        else:
            found = self._here(session, stops, inputs, whole)
        session.finish()
        if whole:
            return first_tensor(found)
        return self.head(found if positions is None else found[:, positions], vocab)

    def _here(self, session: Session, stops: list[Stop], inputs: Tensor, whole: bool) -> Any:
        """Trace on this machine; the model's output, or the normed hidden states."""
        traced, final = self._traced, self.family.final_norm
        found: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        with traced.trace(inputs, use_cache=False) as tracer:
            for stop in stops:
                visit(session, stop, traced.get(stop.path), seen)
            if whole:
                found["out"] = traced.output
            else:
                found["out"] = traced.get(final).output
                tracer.stop()
        return found["out"]

    def _elsewhere(self, session: Session, stops: list[Stop], inputs: Tensor, whole: bool) -> Any:
        """Trace on another machine: what goes there is data and this package's own functions."""
        import nnsight

        for name in SENT:
            nnsight.register(name)
        traced, final, pick = self._traced, self.family.final_norm, visit
        away = session.portable()
        by_site = {w.site: w for w in away.watches}
        plan = [Stop(s.path, s.side, s.rank, [by_site[w.site] for w in s.watches]) for s in stops]
        with traced.trace(inputs, use_cache=False, remote=self._remote):
            seen: dict[str, Any] = {}
            for stop in plan:
                pick(away, stop, traced.get(stop.path), seen)
            out = traced.output.logits if whole else traced.get(final).output
            result = nnsight.save((out, away))
        session.take(result[1])
        return result[0]


def visit(session: Session, stop: Stop, envoy: Any, seen: dict[str, Any]) -> None:
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
        loaded.module,
        task="text-generation",
        device=loaded.probe.device,  # its pipeline would move the module to the first accelerator
        tokenizer=stand_in_tokenizer() if known is None else copy.deepcopy(known),
    )


def stand_in_tokenizer() -> Any:
    """A tokenizer without words: nnsight's pipeline wants one, and must not look for it itself."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")),
        unk_token="?",
        pad_token="?",
    )
