"""Options that commands share, and how a command answers."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.say import DONE, Voice, tell_error
from interp.terms.errors import CancelledError, InterpError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
StoreAt = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Where runs are kept (default: $INTERP_HOME or ~/.local/share/interp).",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16, float16.")]
Backend = Annotated[str, typer.Option(help="transformer_lens, nnsight or torch_module.")]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory a run may use, as 8GiB (default: part of what is free)."
    ),
]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
USUAL_BACKEND = "transformer_lens"


def spoken(command: Callable[..., int | None]) -> Callable[..., None]:
    """A command that answers with an exit code and tells errors without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        voice = Voice(bool(kwargs.get("as_json")), bool(kwargs.get("quiet")))
        if not voice.progress:
            os.environ.setdefault("TQDM_DISABLE", "1")
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            code = command(*args, **kwargs)
        except InterpError as error:
            code = tell_error(error, voice)
        except KeyboardInterrupt:
            code = tell_error(CancelledError("Interrupted."), voice)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            code = _unexpected(error, voice)
        raise typer.Exit(code or DONE)

    return wrapped


def _unexpected(error: Exception, voice: Voice) -> int:
    """A mistake of ours: one sentence here, the whole story in the log."""
    if os.environ.get("INTERP_DEBUG"):
        raise error
    from interp.store import default_root

    log = default_root() / "interp.log"
    told = "".join(traceback.format_exception(error))
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(
            os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            "a",
            encoding="utf-8",
            errors="backslashreplace",
        ) as stream:
            stream.write(told + "\n")
        where = f"The whole story is in {log}; INTERP_DEBUG=1 shows it here."
    except OSError:
        where = "INTERP_DEBUG=1 shows the whole story."
    first = (str(error).splitlines() or ["no message"])[0][:300]
    return tell_error(InterpError(f"{type(error).__name__}: {first}.", remedy=where), voice)
