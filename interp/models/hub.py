"""Hub: a model's files by id, pinned to a commit, configuration first, weights only if it is safe.

Only the files that a checkpoint needs are fetched (never Python, never pickles). Offline, what is
in the cache works, and an id that is not there gets a sentence that says what does work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.models import safety
from interp.terms import InterpError, RefusedError, UnsafeError, UsageError, near_misses

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
REVISION = re.compile(r"[\w][\w./-]{0,200}")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def fetch(repo: str, revision: str | None = None, *, others: bool = False) -> tuple[Path, str]:
    """The folder with a model's files and the commit it stands for.

    Args:
        repo: an id, as ``gpt2`` or ``owner/name``.
        revision: branch, tag or commit; the main branch if None.
        others: as for ``safety.inspect``.

    Raises:
        UsageError: a malformed or unknown id, or an unknown revision.
        RefusedError: gated, or not reachable and not in the cache.
        UnsafeError: as ``safety.inspect``.
    """
    if not ID.fullmatch(repo) or ".." in repo:
        raise UsageError(
            f"{repo!r} is no folder here and no id of the hub.",
            remedy="Give zoo:NAME, the path of a checkpoint folder, or an id such as "
            "'openai-community/gpt2'.",
        )
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{revision!r} is no branch, tag or commit.")
    config = _get(repo, "config.json", revision, required=True)
    assert config is not None
    folder = config.parent
    commit = folder.name
    safety.refuse_code_fields(safety.read_json(config), "config.json")
    safety.check_architecture(safety.read_json(config), others=others)
    for name in ("generation_config.json", *TOKENIZER_FILES):
        _get(repo, name, commit)
    index = _get(repo, safety.INDEX, commit)
    if index is not None:
        shards = safety.read_json(index).get("weight_map") or {}
        for name in sorted({str(n) for n in shards.values()}):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UnsafeError(f"The index of {repo} points to {name!r}, no file of its own.")
            _get(repo, name, commit, required=True)
    elif _get(repo, safety.WEIGHTS, commit) is None:
        raise UnsafeError(
            f"{repo} has no safetensors weights at commit {commit[:12]}.",
            remedy="If it has a .bin file: download it and run python -m interp.models.convert "
            "FILE FOLDER, then use that folder.",
        )
    return folder, commit


def _get(repo: str, name: str, revision: str | None, required: bool = False) -> Path | None:
    """One file, from the cache or the hub; None where the model has no such file."""
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(_quietly(hf_hub_download, repo, name, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        if not required and constants.HF_HUB_OFFLINE:
            return None
        raise _unreachable(repo, revision) from error
    except errors.EntryNotFoundError as error:
        if not required:
            return None
        raise UsageError(f"{repo} has no {name}, so it is no model interp can read.") from error
    except errors.GatedRepoError as error:
        raise RefusedError(
            f"{repo} is gated: its owner asks you to accept terms first.",
            remedy="Accept them on the model's page and log in with 'hf auth login'. "
            + _what_works(repo),
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(
            f"{repo} has no revision {revision!r}.", remedy="Name a branch, a tag or a commit."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"The hub has no model {repo!r} that you may read.",
            remedy="Check the spelling; a private one needs 'hf auth login'. " + _what_works(repo),
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repo!r} is no id of the hub.") from error
    except OSError as error:  # offline mode, no connection, no space
        if getattr(error, "errno", None) == 28:
            raise RefusedError(f"The disk is full: {name} of {repo} was not kept.") from error
        raise _unreachable(repo, revision) from error


def _quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Progress bars of downloads show on a terminal only."""
    import sys

    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or sys.stderr.isatty():
        return call(*args, **kwargs)
    disable_progress_bars()
    try:
        return call(*args, **kwargs)
    finally:
        enable_progress_bars()


def cached_ids() -> list[str]:
    """Ids of the models in the local cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not cache.is_dir():
        return []
    return sorted(
        p.name.removeprefix("models--").replace("--", "/")
        for p in cache.iterdir()
        if p.name.startswith("models--") and any((p / "snapshots").glob("*/config.json"))
    )


def _what_works(repo: str) -> str:
    from interp.models.registry import MODELS

    cached = cached_ids()
    close = near_misses(repo, [*cached, *(f"zoo:{n}" for n in MODELS)])
    here = f"; in the cache: {', '.join(cached[:5])}" if cached else ""
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    shipped = "zoo:ioi" if "ioi" in MODELS else f"zoo:{next(iter(MODELS))}"
    return (
        f"What works now: the shipped models ({shipped}, …), a local checkpoint folder"
        f"{here}.{meant}"
    )


def _unreachable(repo: str, revision: str | None) -> InterpError:
    which = f"{repo} at {revision}" if revision else repo
    return RefusedError(
        f"{which!r} is no folder here, is not in the local cache, and the hub was not reached.",
        remedy=_what_works(repo),
    )
