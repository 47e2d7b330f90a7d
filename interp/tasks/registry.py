"""The registry of task families, and the one door by which a ref becomes a task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.tasks.addition import ADDITION
from interp.tasks.agreement import AGREEMENT
from interp.tasks.balanced_digits import BALANCED_DIGITS
from interp.tasks.brackets import BRACKET
from interp.tasks.code import CODE
from interp.tasks.concepts import CONCEPTS
from interp.tasks.digits import DIABETES, DIGITS
from interp.tasks.families import TaskFamily
from interp.tasks.files import FILE_OPTIONS, task_from_file
from interp.tasks.greater_than import GREATER_THAN
from interp.tasks.hops import HOPS
from interp.tasks.induction import INDUCTION
from interp.tasks.ioi import IOI
from interp.tasks.modular_addition import MODULAR_ADDITION
from interp.tasks.pronouns import PRONOUN
from interp.tasks.scenes import SCENES
from interp.terms import TaskRef, unknown_name

if TYPE_CHECKING:
    from interp.terms import HookedModel, Task

TASKS: dict[str, TaskFamily] = {
    "ioi": IOI,
    "agreement": AGREEMENT,
    "pronouns": PRONOUN,
    "greater_than": GREATER_THAN,
    "brackets": BRACKET,
    "addition": ADDITION,
    "modular_addition": MODULAR_ADDITION,
    "induction": INDUCTION,
    "hops": HOPS,
    "digits": DIGITS,
    "diabetes": DIABETES,
    "balanced_digits": BALANCED_DIGITS,
    "scenes": SCENES,
    **CONCEPTS,
    **CODE,
}


def load_task(ref: str | TaskRef | os.PathLike[str], model: HookedModel, **knobs: Any) -> Task:
    """A task for this model.

    Args:
        ref: a key of ``TASKS``, that key with knobs (``"ioi:n=64,seed=1"``), a ``TaskRef``, or
            the path of a file (``"pairs.csv"``, ``"pairs.csv::corrupt=corrupted_hard"``).
        model: whose tokenizer decides the tokens.
        **knobs: knobs of the family, or options of ``task_from_file``; they win over the ref's.

    Raises:
        UsageError: no such task, knob or value, with the near misses.
        TaskError: the model cannot hold the task, or rows of a file that cannot be used.
    """
    if isinstance(ref, os.PathLike):
        ref = TaskRef(os.fspath(ref))
    elif isinstance(ref, str):
        ref = TaskRef.parse(ref)
    values = {**ref.knobs, **knobs}
    key = ref.name.replace("-", "_")
    if key in TASKS:
        return TASKS[key].load(model, **values)
    if _is_path(ref.name):
        return task_from_file(ref.name, model, **_options(values))
    raise unknown_name("task", ref.name, TASKS)


def _options(values: dict[str, Any]) -> dict[str, Any]:
    """Options of a file, checked; a column's name may look like a number."""
    out = {}
    for name, value in values.items():
        if name not in FILE_OPTIONS:
            raise unknown_name("option of a file called", name, FILE_OPTIONS)
        knob = FILE_OPTIONS[name]
        if knob.type is str and type(value) in (int, float):
            value = str(value)
        out[name] = None if value is None else knob.read(name, value)
    return out


def _is_path(name: str) -> bool:
    return bool(Path(name).suffix) or os.sep in name or Path(name).exists()
