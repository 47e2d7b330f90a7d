"""Floor 0: the words the whole house uses — data and Protocols, nothing that computes."""

from interp.terms.axes import AXES, SMALL_AXES, check_dataset
from interp.terms.checks import Check
from interp.terms.circuits import Circuit
from interp.terms.edits import Edit
from interp.terms.errors import (
    CancelledError,
    CapabilityError,
    DamagedError,
    DiskFullError,
    InterpError,
    RefusedError,
    TaskError,
    TooLargeError,
    UnsafeError,
    UsageError,
    near_misses,
    unknown_name,
)
from interp.terms.inputs import (
    LabelledInputs,
    PromptPairs,
    Task,
    Texts,
    digest,
    task_from_json,
    task_to_json,
)
from interp.terms.methods import Context, Method, snake_case
from interp.terms.models import (
    Block,
    Blocks,
    Capability,
    HookedModel,
    ModelShape,
    Run,
    Tokenizer,
    Weights,
)
from interp.terms.observables import (
    STAGES,
    TREATMENTS,
    FeatureVector,
    Observable,
    Reading,
)
from interp.terms.refs import DictionaryRef, ModelRef, ResultRef, TaskRef
from interp.terms.sites import KINDS, Site, SiteKind

__all__ = [
    "AXES",
    "KINDS",
    "SMALL_AXES",
    "STAGES",
    "TREATMENTS",
    "Block",
    "Blocks",
    "CancelledError",
    "Capability",
    "CapabilityError",
    "Check",
    "Circuit",
    "Context",
    "DamagedError",
    "DictionaryRef",
    "DiskFullError",
    "Edit",
    "FeatureVector",
    "HookedModel",
    "InterpError",
    "LabelledInputs",
    "Method",
    "ModelRef",
    "ModelShape",
    "Observable",
    "PromptPairs",
    "Reading",
    "RefusedError",
    "ResultRef",
    "Run",
    "Site",
    "SiteKind",
    "Task",
    "TaskError",
    "TaskRef",
    "Texts",
    "Tokenizer",
    "TooLargeError",
    "UnsafeError",
    "UsageError",
    "Weights",
    "check_dataset",
    "digest",
    "near_misses",
    "snake_case",
    "task_from_json",
    "task_to_json",
    "unknown_name",
]
