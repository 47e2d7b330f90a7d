"""What a task family is: name, question, described knobs, and the function that makes it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.terms import TaskRef, UsageError, unknown_name

if TYPE_CHECKING:
    from interp.terms import HookedModel, Task


class Knob(NamedTuple):
    """One choice a task leaves open.

    Args:
        type: ``int``, ``float``, ``bool`` or ``str``.
        default: the value used where none is given.
        bounds: (lowest, highest) for numbers, the allowed words for text, () for none.
        phrase: what it does, in a few words.
    """

    type: type
    default: Any
    bounds: tuple[Any, ...]
    phrase: str

    def read(self, name: str, value: Any) -> Any:
        """``value`` as this knob's type.

        Raises:
            UsageError: another type, or outside the bounds.
        """
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        fits = isinstance(value, (int, float) if self.type is float else self.type)
        if not fits or (isinstance(value, bool) and self.type is not bool):
            raise UsageError(f"{name} was given as {value!r}; wanted {kinds[self.type]}.")
        if self.type is str and self.bounds and value not in self.bounds:
            raise unknown_name(f"choice of {name}", str(value), self.bounds)
        if self.type in (int, float) and self.bounds:
            low, high = self.bounds
            if not low <= value <= high:
                raise UsageError(f"{name} was given as {value}; wanted {low} to {high}.")
        return value

    def schema(self) -> dict[str, Any]:
        """The JSON schema of this knob, as a form reads it."""
        kinds = {int: "integer", float: "number", bool: "boolean", str: "string"}
        out: dict[str, Any] = {
            "type": kinds[self.type],
            "default": self.default,
            "description": self.phrase,
        }
        if self.type is str and self.bounds:
            out["enum"] = list(self.bounds)
        elif self.bounds:
            out["minimum"], out["maximum"] = self.bounds
        return out


N = Knob(int, 32, (1, 10_000), "how many prompt pairs")
SEED = Knob(int, 0, (0, 2**31 - 1), "which pairs are drawn; the same seed gives the same pairs")
SPLIT = ("any", "train", "held_out")


@dataclass(frozen=True)
class TaskFamily:
    """A kind of task, made for a model by name, with knobs.

    Args:
        name: the key in ``TASKS``.
        title: a few words.
        question: what a model that does it must know, one sentence.
        knobs: name -> ``Knob``; every family has ``n`` and ``seed``.
        make: ``make(model, **knobs)`` gives the task.
        type_name: the type of what it gives (``PromptPairs``).
        held_out: what the training sentences of the shipped models never hold, in words.
    """

    name: str
    title: str
    question: str
    knobs: Mapping[str, Knob]
    make: Callable[..., Task]
    type_name: str = "PromptPairs"
    held_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def load(self, model: HookedModel, **knobs: Any) -> Task:
        """The task for this model, with its ``ref`` set.

        Raises:
            UsageError: an unknown knob, or a value that does not fit.
            TaskError: the model's tokenizer cannot hold the words.
        """
        for name in knobs:
            if name not in self.knobs:
                raise unknown_name(f"knob of task {self.name!r} called", name, self.knobs)
        values = {
            name: knob.read(name, knobs.get(name, knob.default))
            for name, knob in self.knobs.items()
        }
        shown = {
            k: v for k, v in values.items() if k in ("n", "seed") or v != self.knobs[k].default
        }
        ref = str(TaskRef(self.name, {k: _word(v) for k, v in shown.items()}))
        return replace(self.make(model, **values), ref=ref, name=f"{self.title} ({ref})")

    def schema(self) -> dict[str, Any]:
        """JSON schema of the knobs."""
        return {
            "title": self.title,
            "description": self.question,
            "type": "object",
            "properties": {
                name: {"title": name.replace("_", " "), **knob.schema()}
                for name, knob in self.knobs.items()
            },
        }


def _word(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def draws(seed: int, name: str) -> random.Random:
    """The random generator of one task: seed and name decide it, on every machine alike."""
    return random.Random(f"{name}/{seed}")


def distinct(
    make: Callable[[], Any], n: int, key: Callable[[Any], Any], tries: int = 30
) -> Iterable[Any]:
    """``n`` rows, each tried ``tries`` times to be new; repeats only where the words run out."""
    seen: set[Any] = set()
    for _ in range(n):
        row = make()
        for _ in range(tries):
            if key(row) not in seen:
                break
            row = make()
        seen.add(key(row))
        yield row
