"""Floor 6: run one method. Refs in, a checked and stored result out."""

from interp.run.context import LocalContext, interruptible
from interp.run.fitting import check_fit
from interp.run.machine import (
    default_memory,
    facts_of_tensors,
    free_memory,
    git_revision,
    parse_bytes,
    versions,
)
from interp.run.measure import Measurement, run
from interp.run.shelf import Shelf
from interp.run.specs import method_of, spec_of, task_of, tokens_of

__all__ = [
    "LocalContext",
    "Measurement",
    "Shelf",
    "check_fit",
    "default_memory",
    "facts_of_tensors",
    "free_memory",
    "git_revision",
    "interruptible",
    "method_of",
    "parse_bytes",
    "run",
    "spec_of",
    "task_of",
    "tokens_of",
    "versions",
]
