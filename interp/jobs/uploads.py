"""A table of pairs that came as text: the worker reads it as it would read the file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.terms import PromptPairs, TooLargeError, UsageError

if TYPE_CHECKING:
    from interp.terms import HookedModel

MOST_CHARACTERS = 10_000_000
OPTIONS = (
    "form",
    "answer_form",
    "bos",
    "skip_bad",
    "n",
    "clean",
    "corrupt",
    "right",
    "wrong",
    "template",
)


def pairs_of_text(model: HookedModel, payload: Mapping[str, Any]) -> PromptPairs:
    """Pairs from ``{text, name, form, answer_form, bos, skip_bad, n, clean, …}``.

    The text is written to a file of the worker's own for as long as it is read, so that uploads
    and files go through one reader.

    Raises:
        UsageError: no text.
        TooLargeError: more than ten million characters.
        TaskError: rows that cannot be used, each with its line and reason.
    """
    from interp.tasks import task_from_file

    text = payload.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UsageError("The file is empty.", remedy="Give at least one row.")
    if len(text) > MOST_CHARACTERS:
        raise TooLargeError(
            f"The file has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read.",
            remedy="Split it.",
        )
    options = {k: payload[k] for k in OPTIONS if payload.get(k) is not None}
    with tempfile.TemporaryDirectory(prefix="interp-upload-") as folder:
        path = Path(folder) / "upload"
        path.write_text(text, encoding="utf-8")
        task = task_from_file(path, model, **options)
    name = " ".join(str(payload.get("name") or "uploaded pairs").split())[:80]
    return replace(task, ref=None, name=name)
