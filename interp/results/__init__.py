"""Floor 5: what a run gave, shown, saved, exported, and told again as code."""

from interp.results.result import Result, load_result, result_of, stored_result
from interp.results.retelling import command_of, notebook_of, python_of

__all__ = [
    "Result",
    "command_of",
    "load_result",
    "notebook_of",
    "python_of",
    "result_of",
    "stored_result",
]
