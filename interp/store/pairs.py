"""Tasks kept by their content, so that a link can name prompts that a person typed or uploaded."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from interp.store.files import canonical, make_folder, read_bytes, replace_file
from interp.terms import DamagedError, UsageError

if TYPE_CHECKING:
    from interp.store.index import Store

KEY = re.compile(r"[0-9a-f]{32}")
MOST_BYTES = 64 * 2**20


def keep_task(store: Store, task: dict[str, Any]) -> str:
    """Keep a task's JSON (``task_to_json``); the key is its content, so twice is once."""
    image = canonical(task)
    key = hashlib.sha256(image).hexdigest()[:32]
    path = make_folder(store.root / "tasks") / f"{key}.json"
    if not path.exists():
        replace_file(path, image)
    return key


def kept_task(store: Store, key: str) -> dict[str, Any]:
    """A task that was kept.

    Raises:
        UsageError: there is none under this key.
        DamagedError: its content no longer fits its key.
    """
    path = store.root / "tasks" / f"{key}.json"
    if not KEY.fullmatch(key) or not path.is_file():
        raise UsageError(
            f"There are no prompts {key[:12]!r} in this store.", remedy="Build the pair again."
        )
    image = read_bytes(path, MOST_BYTES)
    if hashlib.sha256(image).hexdigest()[:32] != key:
        raise DamagedError(
            f"The prompts {key[:12]} were altered on disk.", remedy="Build the pair again."
        )
    return json.loads(image)
