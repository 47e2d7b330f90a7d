"""Does it fit: the method's needs and the model's capabilities, the task's type and its tokens."""

from __future__ import annotations

import re
from typing import Any

from interp.terms import (
    KINDS,
    Capability,
    CapabilityError,
    HookedModel,
    LabelledInputs,
    Method,
    PromptPairs,
    Task,
    TaskError,
    Texts,
)


def check_fit(method: Method, model: HookedModel, task: Task | None) -> None:
    """Raise where method, model and task do not go together.

    Raises:
        CapabilityError: with what the model lacks and a site or task that works.
        TaskError: tokens the model does not have, or a prompt over its context.
    """
    _check_task(method, task)
    _check_needs(method, model)
    if isinstance(task, PromptPairs):
        _check_tokens(model, "clean", task.clean)
        _check_tokens(model, "corrupt", task.corrupt)
        _check_answers(model, task)
    elif isinstance(task, Texts):
        _check_tokens(model, "text", task.tokens)


def _words(type_name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type_name).lower()


def _check_task(method: Method, task: Task | None) -> None:
    accepts = method.accepts()
    given = "none" if task is None else type(task).__name__
    if given in accepts or "Any" in accepts:
        return
    wanted = " or ".join(_words(a) for a in accepts if a != "none") or "no task"
    known = {c.__name__ for c in (PromptPairs, Texts, LabelledInputs)}
    said = "no task" if task is None else _words(given) if given in known else repr(given)
    raise CapabilityError(
        f"{method.title or method.key()} measures {wanted}, and {said} was given.",
        remedy=_task_remedy(accepts),
    )


def _task_remedy(accepts: tuple[str, ...]) -> str:
    from interp.tasks import TASKS

    fitting = [name for name, family in TASKS.items() if family.type_name in accepts]
    if not fitting:
        return "Leave the task out." if "none" in accepts else ""
    return f"Give a task such as {', '.join(fitting[:4])}."


def _check_needs(method: Method, model: HookedModel) -> None:
    there = {c.name: c for c in model.capabilities()}
    missing = []
    for name in method.needed():
        found = there.get(name)
        if found is None:
            missing.append(Capability(name, False, "the model does not know of it"))
        elif not found.ok:
            missing.append(found)
    if not missing:
        return
    reasons = "; ".join(f"{c.name}: {c.reason or 'not there'}" for c in missing)
    raise CapabilityError(
        f"{method.title or method.key()} needs what {model.id} does not have ({reasons}).",
        remedy=_remedy(missing[0].name, there),
    )


def _remedy(name: str, there: dict[str, Capability]) -> str:
    """A site of the same shape that works here, else a shipped model that has it."""
    if name in KINDS:
        kind = KINDS[name]
        works = [
            k
            for k, other in KINDS.items()
            if there.get(k, Capability(k, False)).ok
            and other.dims == kind.dims
            and other.per_layer == kind.per_layer
        ]
        if works:
            return f"On this model {' or '.join(map(repr, works[:3]))} works."
    return (
        f"Take a model that has {name!r}, such as zoo:ioi; `interp doctor --model M` lists "
        "what a model has."
    )


def _check_tokens(model: HookedModel, side: str, rows: Any) -> None:
    vocab, limit = model.shape.vocab, model.shape.n_ctx
    bad = []
    for i, row in enumerate(rows):
        if vocab and any(not 0 <= t < vocab for t in row):
            odd = next(t for t in row if not 0 <= t < vocab)
            bad.append(
                (i + 1, f"token {odd} of its {side} prompt is not among the model's {vocab}")
            )
        elif limit and len(row) > limit:
            bad.append(
                (
                    i + 1,
                    f"its {side} prompt has {len(row)} tokens and the model's context "
                    f"holds {limit}",
                )
            )
    _raise(model, bad)


def _check_answers(model: HookedModel, task: PromptPairs) -> None:
    vocab = model.shape.vocab
    bad = [
        (i + 1, f"answer {t} is not among the model's {vocab} tokens")
        for i, row in enumerate(zip(task.right, task.wrong, strict=True))
        for t in (*row[0], *row[1])
        if vocab and not 0 <= t < vocab
    ]
    _raise(model, bad)


def _raise(model: HookedModel, bad: list[tuple[int, str]]) -> None:
    if bad:
        shown = "; ".join(f"row {n}: {why}" for n, why in bad[:3])
        raise TaskError(
            f"{len(bad)} prompts do not fit {model.id}: {shown}.",
            rows=bad,
            remedy="Make the task for this model, with its own tokenizer.",
        )
