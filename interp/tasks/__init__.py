"""Tasks: the only room with sentences a model reads. One family a file, one registry."""

from interp.tasks.families import Knob, TaskFamily
from interp.tasks.files import FILE_OPTIONS, task_from_file
from interp.tasks.observables import OBSERVABLES, observables_of
from interp.tasks.registry import TASKS, load_task

__all__ = [
    "FILE_OPTIONS",
    "OBSERVABLES",
    "TASKS",
    "Knob",
    "TaskFamily",
    "load_task",
    "observables_of",
    "task_from_file",
]
