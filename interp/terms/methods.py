"""Method: a frozen spec that turns a model and a task into named arrays. Context: its company."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from interp.terms.checks import Check
from interp.terms.inputs import LabelledInputs, PromptPairs, Texts
from interp.terms.models import HookedModel

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

TASK_TYPES: dict[str, type] = {
    "PromptPairs": PromptPairs,
    "Texts": Texts,
    "LabelledInputs": LabelledInputs,
}


class Context(Protocol):
    """What a method may ask of whoever runs it."""

    memory: int
    """Bytes the method may use."""

    def advance(self, done: float, total: float) -> None:
        """Say how far it is (any unit); raises CancelledError if the person has cancelled."""
        ...

    def cancelled(self) -> bool:
        """Whether the person has asked to stop."""
        ...

    def save_chunk(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep finished numbers, so that a resumed run does not compute them again."""
        ...

    def load_chunk(self, key: str) -> dict[str, np.ndarray] | None:
        """Numbers kept under this key by an earlier try, or None."""
        ...

    def check(self, check: Check) -> None:
        """Add a line to the trust panel of this result."""
        ...

    def partial(self, make: Callable[[], xr.Dataset]) -> None:
        """Offer what is finished so far; ``make`` is called only if somebody looks."""
        ...

    def note(self, key: str, value: Any) -> None:
        """Add a fact to the provenance (the chunk partition, rules that were active…)."""
        ...

    def model(self, ref: str) -> HookedModel:
        """Open another model that a field of the spec names."""
        ...

    def result(self, ref: str) -> Any:
        """Open a stored result that a field of the spec names."""
        ...

    def dictionary(self, ref: str) -> Any:
        """Open a sparse autoencoder that a field of the spec names."""
        ...


class Method(BaseModel):
    """The parent of every method: a frozen pydantic model whose fields are its whole interface.

    A subclass sets ``title`` (a few words), ``question`` (what it answers, one sentence),
    ``citations`` (keys of docs/bibliography.bib), ``needs`` (capabilities it uses) and
    ``version`` (raised when its numbers change), and defines ``measure``. The annotation of
    ``measure``'s ``task`` says what it accepts. dtype, device, chunk and memory are no fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    title: ClassVar[str] = ""
    question: ClassVar[str] = ""
    citations: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1

    def measure(self, model: HookedModel, task: Any, context: Context) -> xr.Dataset:
        """Measure; every variable has ``units``, ``long_name`` and ``signed`` in its attrs."""
        raise AssertionError("a method defines measure")

    @classmethod
    def key(cls) -> str:
        """The registry key: snake_case of the class's name."""
        return snake_case(cls.__name__)

    @classmethod
    def accepts(cls) -> tuple[str, ...]:
        """Names of the task types it takes; ``"none"`` among them where it may go without."""
        hint = typing.get_type_hints(cls.measure).get("task", Any)
        parts = typing.get_args(hint) or (hint,)
        return tuple(
            "none" if p is type(None) else p.__name__ for p in parts if hasattr(p, "__name__")
        )

    @classmethod
    def takes_model(cls) -> bool:
        """Whether it measures a model; False where ``measure`` says ``model: None``."""
        return typing.get_type_hints(cls.measure).get("model", Any) is not type(None)

    def needed(self) -> tuple[str, ...]:
        """Capabilities this very spec uses (default: the class's ``needs``)."""
        return self.needs


def snake_case(name: str) -> str:
    """``ActivationPatching`` -> ``activation_patching``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
