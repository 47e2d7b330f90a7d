"""Contexts: progress, cancelling, chunks and notes for a run on this machine."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.run.machine import default_memory
from interp.run.shelf import Shelf
from interp.terms import CancelledError, Check, UsageError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from interp.store import Chunks, Store
    from interp.terms import Context, HookedModel


class LocalContext:
    """A method's company in this process: a progress bar, Ctrl-C, other models and results.

    Args:
        memory: bytes the method may use; default a part of what is free.
        progress: draw a bar on stderr, where that is a terminal.
        title: words beside the bar.
        store: where ``result(id)`` looks.
        shelf: open models; default one of its own.
        device: where other models are opened; likewise ``dtype`` and ``backend``.
        dtype: see ``device``.
        backend: see ``device``.
    """

    def __init__(
        self,
        memory: int | None = None,
        *,
        progress: bool = False,
        title: str = "",
        store: Store | None = None,
        shelf: Shelf | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        backend: str | None = None,
    ) -> None:
        self.memory = default_memory(device) if memory is None else memory
        self.store = store
        self.shelf = Shelf() if shelf is None else shelf
        self._opening = {"device": device, "dtype": dtype, "backend": backend}
        self._bar = Bar(title) if progress and sys.stderr.isatty() else None
        self._cancel = threading.Event()
        self._kept: dict[str, dict[str, np.ndarray]] = {}
        self.done = self.total = 0.0

    def advance(self, done: float, total: float) -> None:
        """Say how far it is; raises CancelledError if the person has cancelled."""
        self.done, self.total = float(done), float(total)
        if self._bar is not None:
            self._bar.show(self.done, self.total)
        if self.cancelled():
            raise CancelledError(
                f"Cancelled at {self.done / self.total if self.total else 0:.0%}.",
                remedy="The same run goes on from its finished chunks where a store is used.",
            )

    def cancel(self) -> None:
        """Ask the run to stop at the next chunk."""
        self._cancel.set()

    def cancelled(self) -> bool:
        """Whether the person has asked to stop."""
        return self._cancel.is_set()

    def save_chunk(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Without a store, chunks are kept as long as this context is."""
        self._kept[key] = dict(arrays)

    def load_chunk(self, key: str) -> dict[str, np.ndarray] | None:
        """A chunk kept by this context."""
        return self._kept.get(key)

    def check(self, check: Check) -> None:
        """Nothing to do here; ``run`` keeps the list."""

    def partial(self, make: Callable[[], xr.Dataset]) -> None:
        """Nothing to do here; ``run`` keeps the latest offer."""

    def note(self, key: str, value: Any) -> None:
        """Nothing to do here; ``run`` keeps the facts."""

    def model(self, ref: str) -> HookedModel:
        """Open another model, on the same device, in the same dtype."""
        return self.shelf.get(ref, **self._opening)

    def result(self, ref: str) -> Any:
        """Open a stored result by its id, or a saved one by its path."""
        from interp.results import load_result, stored_result

        if Path(ref).is_dir():
            return load_result(ref)
        if self.store is None:
            raise UsageError(
                f"{ref!r} is no saved result, and no store was given to look it up.",
                remedy="Give store=interp.Store(), or the path of a saved result.",
            )
        return stored_result(self.store, ref)

    def dictionary(self, ref: str) -> Any:
        """Open a dictionary: ``zoo:NAME`` or a folder."""
        from interp.models import load_dictionary

        return load_dictionary(ref)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class Recorder:
    """A context around a context: keeps checks, notes, chunks and the last partial result.

    Args:
        inner: who shows progress and answers for cancelling.
        chunks: where chunks go; None leaves them to ``inner``.
    """

    def __init__(self, inner: Context, chunks: Chunks | None) -> None:
        self._inner, self._chunks = inner, chunks
        self.memory = inner.memory
        self.checks: list[Check] = []
        self.facts: dict[str, Any] = chunks.facts() if chunks is not None else {}
        self.latest: Callable[[], xr.Dataset] | None = None
        self.results: list[Any] = []
        self.done = self.total = 0.0

    def advance(self, done: float, total: float) -> None:
        """As the inner context's."""
        self.done, self.total = float(done), float(total)
        self._inner.advance(done, total)

    def cancelled(self) -> bool:
        """As the inner context's."""
        return self._inner.cancelled()

    def save_chunk(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """To the store's chunk folder, or to the inner context."""
        (self._inner.save_chunk if self._chunks is None else self._chunks.save)(key, arrays)

    def load_chunk(self, key: str) -> dict[str, np.ndarray] | None:
        """From the store's chunk folder, or from the inner context."""
        return (self._inner.load_chunk if self._chunks is None else self._chunks.load)(key)

    def check(self, check: Check) -> None:
        """Add a line to the trust panel; a later line of the same name replaces the first."""
        self.checks = [c for c in self.checks if c.name != check.name] + [check]
        self._inner.check(check)

    def partial(self, make: Callable[[], xr.Dataset]) -> None:
        """Keep the offer, and pass it on."""
        self.latest = make
        self._inner.partial(make)

    def note(self, key: str, value: Any) -> None:
        """Add a fact to the provenance."""
        self.facts[key] = value
        if self._chunks is not None:
            self._chunks.keep_facts(self.facts)
        self._inner.note(key, value)

    def model(self, ref: str) -> HookedModel:
        """As the inner context's."""
        return self._inner.model(ref)

    def result(self, ref: str) -> Any:
        """As the inner context's; kept, since a result about results speaks of their prompts."""
        self.results.append(self._inner.result(ref))
        return self.results[-1]

    def dictionary(self, ref: str) -> Any:
        """As the inner context's; which weights it held goes to the provenance."""
        found = self._inner.dictionary(ref)
        self.note("dictionary", {"ref": str(ref), "weight_hash": found.weight_hash})
        return found


class Bar:
    """A progress bar on stderr.

    Args:
        title: words before it.
    """

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: Any = None
        self._title = Text(title).markup

    def show(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take it away."""
        if self._task is not None:
            self._progress.stop()
            self._task = None


@contextlib.contextmanager
def interruptible(context: Any) -> Iterator[None]:
    """One Ctrl-C asks the run to stop at the next chunk; a second one stops it at once."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(context, "cancel"):
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        context.cancel()

    if before is None:
        yield
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
