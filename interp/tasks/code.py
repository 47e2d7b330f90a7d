"""Code: short files in C and in Python, for observables that tell the languages apart."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.tasks.families import SEED, Knob, TaskFamily, draws
from interp.tasks.fitting import tokenizer_of
from interp.tasks.observables import OBSERVABLES, check_words
from interp.terms import LabelledInputs, TaskError

if TYPE_CHECKING:
    from interp.terms import HookedModel

VERBS = ("count", "find", "sum", "scale", "shift", "copy", "check", "merge", "split", "read")
THINGS = ("items", "values", "rows", "names", "scores", "lines", "points", "words", "keys", "bits")
C_PARTS: tuple[str, ...] = (
    "int {f}(int *{a}, int n) {{\n  int total = 0;\n  for (int i = 0; i < n; i++) {{\n"
    "    total += {a}[i];\n  }}\n  return total;\n}}\n",
    "void {f}(double *{a}, int n, double k) {{\n  int i = 0;\n  while (i < n) {{\n"
    "    {a}[i] = {a}[i] * k;\n    i++;\n  }}\n}}\n",
    "int {f}(const int *{a}, int n, int key) {{\n  for (int i = 0; i < n; i++) {{\n"
    "    if ({a}[i] == key) {{\n      return i;\n    }}\n  }}\n  return -1;\n}}\n",
    "static int {f}(int {a}, int limit) {{\n  if ({a} > limit) {{\n    return limit;\n  }}\n"
    "  return {a};\n}}\n",
)
PYTHON_PARTS: tuple[str, ...] = (
    "def {f}({a}):\n    total = 0\n    for x in {a}:\n        total += x\n    return total\n\n",
    "def {f}({a}, k):\n    i = 0\n    while i < len({a}):\n        {a}[i] = {a}[i] * k\n"
    "        i += 1\n\n",
    "def {f}({a}, key):\n    for i in range(len({a})):\n        if {a}[i] == key:\n"
    "            return i\n    return None\n\n",
    "def {f}({a}, limit):\n    if {a} > limit:\n        return limit\n    return {a}\n\n",
)


def source(rng: random.Random, parts: tuple[str, ...], functions: int = 12) -> str:
    """One file: functions one after the other, with drawn names."""
    out = []
    for _ in range(functions):
        thing = rng.choice(THINGS)
        name = f"{rng.choice(VERBS)}_{thing}"
        out.append(rng.choice(parts).format(f=name, a=thing))
    return "\n".join(out)


def _make(
    model: HookedModel, name: str, plus_is_c: bool, *, n: int, seed: int, window: int
) -> LabelledInputs:
    """Windows of files, one a file, labelled 1 in the language the observable counts for."""
    tokenizer = tokenizer_of(model, name)
    check_words(name, model)
    if model.shape.n_ctx is not None and window > model.shape.n_ctx:
        raise TaskError(
            f"A window has {window} tokens and the model's context holds {model.shape.n_ctx}.",
            remedy="Take a smaller window.",
        )
    rng = draws(seed, name)
    rows: list[list[int]] = []
    labels = []
    for i in range(n):
        is_c = i % 2 == 0
        ids = list(tokenizer.encode(source(rng, C_PARTS if is_c else PYTHON_PARTS)))
        start = rng.randrange(max(1, len(ids) - window))
        if len(ids) < window:
            raise TaskError(
                f"A file has {len(ids)} tokens and a window of {window} was asked for.",
                remedy="Take a smaller window.",
            )
        rows.append(ids[start : start + window])
        labels.append(int(is_c == plus_is_c))
    side = ("Python", "C") if plus_is_c else ("C", "Python")
    return LabelledInputs(np.array(rows, np.int64), np.array(labels), dict(enumerate(side)))


def _family(name: str, plus_is_c: bool) -> TaskFamily:
    def make(model: HookedModel, **knobs: Any) -> LabelledInputs:
        return _make(model, name, plus_is_c, **knobs)

    return TaskFamily(
        name,
        OBSERVABLES[name].title,
        "Is this file C or Python?",
        {
            "n": Knob(int, 64, (8, 10_000), "how many files, half in each language"),
            "seed": SEED,
            "window": Knob(int, 128, (8, 1024), "tokens of each file that are read"),
        },
        make,
        type_name="LabelledInputs",
    )


CODE: dict[str, TaskFamily] = {
    "code_brace": _family("code_brace", True),
    "code_comment": _family("code_comment", False),
}
"""Observables of programming languages; entries of ``TASKS``."""
