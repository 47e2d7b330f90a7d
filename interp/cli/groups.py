"""Groups of commands: ``interp list …``, ``interp runs …``, ``interp jobs …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli import listing, stored
from interp.cli.options import Json, StoreAt, spoken
from interp.cli.say import Voice

list_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What there is: models, tasks, methods, metrics.",
)
runs_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Stored runs: list, show, compare, delete."
)
jobs_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Jobs of the worker: list, show, cancel, resume.",
)

# -- list -----------------------------------------------------------------------------------------


@list_app.command("models")
@spoken
def list_models(
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--models", metavar="DIR", help="Also checkpoint folders under DIR; may be repeated."
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Shipped models, and checkpoint folders under --models."""
    return listing.models(models or [], Voice(as_json))


@list_app.command("tasks")
@spoken
def list_tasks(as_json: Json = False) -> int:
    """Task families with their knobs."""
    return listing.tasks(Voice(as_json))


@list_app.command("methods")
@spoken
def list_methods(as_json: Json = False) -> int:
    """Methods with the question each answers and what it takes."""
    return listing.methods(Voice(as_json))


@list_app.command("metrics")
@spoken
def list_metrics(as_json: Json = False) -> int:
    """Metrics of a run's answer."""
    return listing.metrics(Voice(as_json))


# -- runs -----------------------------------------------------------------------------------------


@runs_app.command("list")
@spoken
def runs_list(
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    text: Annotated[str | None, typer.Option(help="Only where this text stands.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """Stored runs, newest first."""
    return stored.runs(
        store,
        Voice(as_json),
        method=method,
        model=model,
        task=task,
        tag=tag,
        text=text,
        limit=limit,
    )


@runs_app.command("show")
@spoken
def runs_show(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Its id, or the first characters.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it as one HTML file.")
    ] = None,
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """A stored run: trust panel, largest cells, provenance, and how to run it again."""
    return stored.show(run_id, store, html, Voice(as_json))


@runs_app.command("compare")
@spoken
def runs_compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A")],
    second: Annotated[str, typer.Argument(metavar="RUN_B")],
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """What differs between two runs: spec, provenance, numbers."""
    return stored.compare_runs(first, second, store, Voice(as_json))


@runs_app.command("delete")
@spoken
def runs_delete(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN...")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """Delete runs for good."""
    return stored.delete(run_ids, yes, store, Voice(as_json))


@runs_app.command("tag")
@spoken
def runs_tag(
    run_id: Annotated[str, typer.Argument(metavar="RUN")],
    tags: Annotated[list[str] | None, typer.Argument(metavar="TAG...")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Take this tag away; may be repeated.")
    ] = None,
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """Add tags to a run."""
    return stored.label(run_id, store, Voice(as_json), tags=tags or (), remove=remove or ())


@runs_app.command("note")
@spoken
def runs_note(
    run_id: Annotated[str, typer.Argument(metavar="RUN")],
    note: Annotated[str, typer.Argument(metavar="TEXT")],
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """Set the note of a run."""
    return stored.label(run_id, store, Voice(as_json), note=note)


# -- jobs -----------------------------------------------------------------------------------------


@jobs_app.command("list")
@spoken
def jobs_list(store: StoreAt = None, as_json: Json = False) -> int:
    """Jobs, newest first."""
    return stored.jobs(store, Voice(as_json))


@jobs_app.command("show")
@spoken
def jobs_show(
    job_id: Annotated[str, typer.Argument(metavar="JOB")],
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """One job: state, progress, error."""
    return stored.job("show", job_id, store, Voice(as_json))


@jobs_app.command("cancel")
@spoken
def jobs_cancel(
    job_id: Annotated[str, typer.Argument(metavar="JOB")],
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """Ask a job to stop at its next chunk; finished chunks stay."""
    return stored.job("cancel", job_id, store, Voice(as_json))


@jobs_app.command("resume")
@spoken
def jobs_resume(
    job_id: Annotated[str, typer.Argument(metavar="JOB")],
    store: StoreAt = None,
    as_json: Json = False,
) -> int:
    """Queue a cancelled or interrupted job again; it goes on from its finished chunks."""
    return stored.job("resume", job_id, store, Voice(as_json))
