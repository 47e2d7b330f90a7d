"""interp: a workbench for mechanistic interpretability.

>>> import interp
>>> model = interp.load_model("zoo:ioi")
>>> task = interp.load_task("ioi", model, n=32, seed=0)
>>> result = interp.run(interp.methods.ActivationPatching(site="resid_pre"), model, task)

Names come when they are asked for, so that importing this page costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

PAGE: dict[str, str] = {
    "load_model": "interp.models",
    "list_models": "interp.models",
    "doctor": "interp.models",
    "MODELS": "interp.models",
    "load_task": "interp.tasks",
    "task_from_file": "interp.tasks",
    "TASKS": "interp.tasks",
    "observables_of": "interp.tasks",
    "METRICS": "interp.engine",
    "METHODS": "interp.methods",
    "run": "interp.run",
    "report": "interp.report",
    "result_report": "interp.report",
    "Result": "interp.results",
    "load_result": "interp.results",
    "Store": "interp.store",
    "compare": "interp.store",
    "keep_task": "interp.store",
    "kept_task": "interp.store",
    "Queue": "interp.jobs",
    "start_worker": "interp.jobs",
    "figures_of": "interp.figures",
    "token_axis": "interp.figures",
    "fields_of": "interp.forms",
    "parse_values": "interp.forms",
    **dict.fromkeys(
        (
            "Site",
            "Edit",
            "PromptPairs",
            "Texts",
            "LabelledInputs",
            "Method",
            "Check",
            "Observable",
            "FeatureVector",
            "InterpError",
            "task_from_json",
        ),
        "interp.terms",
    ),
}
"""Public name -> the room it lives in."""

ROOMS = ("methods", "figures", "forms")
"""Rooms that are used by their own name, as in ``interp.methods.ActivationPatching``."""

__all__ = ["PAGE", "__version__", *PAGE, *ROOMS]  # noqa: PLE0604

if TYPE_CHECKING:
    from interp import figures as figures
    from interp import forms as forms
    from interp import methods as methods
    from interp.engine import METRICS as METRICS
    from interp.figures import figures_of as figures_of
    from interp.figures import token_axis as token_axis
    from interp.forms import fields_of as fields_of
    from interp.forms import parse_values as parse_values
    from interp.jobs import Queue as Queue
    from interp.jobs import start_worker as start_worker
    from interp.methods import METHODS as METHODS
    from interp.models import MODELS as MODELS
    from interp.models import doctor as doctor
    from interp.models import list_models as list_models
    from interp.models import load_model as load_model
    from interp.report import report as report
    from interp.report import result_report as result_report
    from interp.results import Result as Result
    from interp.results import load_result as load_result
    from interp.run import run as run
    from interp.store import Store as Store
    from interp.store import compare as compare
    from interp.store import keep_task as keep_task
    from interp.store import kept_task as kept_task
    from interp.tasks import TASKS as TASKS
    from interp.tasks import load_task as load_task
    from interp.tasks import observables_of as observables_of
    from interp.tasks import task_from_file as task_from_file
    from interp.terms import Check as Check
    from interp.terms import Edit as Edit
    from interp.terms import FeatureVector as FeatureVector
    from interp.terms import InterpError as InterpError
    from interp.terms import LabelledInputs as LabelledInputs
    from interp.terms import Method as Method
    from interp.terms import Observable as Observable
    from interp.terms import PromptPairs as PromptPairs
    from interp.terms import Site as Site
    from interp.terms import Texts as Texts
    from interp.terms import task_from_json as task_from_json


class _Page(types.ModuleType):
    """The page as a module: a name is looked up where it lives when it is first used."""

    def __getattr__(self, name: str) -> Any:
        if name in PAGE:
            value = getattr(importlib.import_module(PAGE[name]), name)
        elif name in ROOMS:
            value = importlib.import_module(f"interp.{name}")
        else:
            raise AttributeError(f"interp has no {name!r}; it has {', '.join(sorted(PAGE))}")
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """``run`` and ``report`` stay the functions when the files of that name are imported."""
        if name in PAGE and isinstance(value, types.ModuleType):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *PAGE, *ROOMS})


sys.modules[__name__].__class__ = _Page
