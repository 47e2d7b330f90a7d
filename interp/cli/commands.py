"""The commands of ``interp``: each parses, calls the library, and says what came of it."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import listing, processes, stored
from interp.cli.say import DONE, FAILED, REFUSED, UNTRUSTED, Voice, tell_error
from interp.terms.errors import CancelledError, InterpError, UsageError

app = typer.Typer(
    name="interp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A workbench for mechanistic interpretability: models, patching, trust, reports.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but a trust check failed, 4 refused, "
    "130 interrupted.",
)
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
app.add_typer(list_app, name="list")
app.add_typer(runs_app, name="runs")
app.add_typer(jobs_app, name="jobs")

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
        except (typer.Exit, typer.Abort, typer.TyperException, KeyboardInterrupt, BrokenPipeError):
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


def _version(asked: bool) -> None:
    if asked:
        import interp

        typer.echo(f"interp {interp.__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


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


# -- run, report, doctor --------------------------------------------------------------------------


@app.command("run", context_settings=PASS_ON)
@spoken
def run_command(
    ctx: typer.Context,
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="`interp list methods` shows them.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="M", help="zoo:NAME, a local folder, or a hub id.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK|FILE", help="As 'ioi:n=64,seed=1', or a file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also save the result as this folder.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write it as one HTML file.")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    backend: Backend = USUAL_BACKEND,
    memory: Memory = None,
    store: StoreAt = None,
    no_store: Annotated[
        bool, typer.Option("--no-store", help="Do not keep the run in the store.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again although the store has this run.")
    ] = False,
    help_: Annotated[
        bool, typer.Option("--help", "-h", help="Help, with the method's knobs.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure: one METHOD on one model and task. Knobs follow as --knob value."""
    voice = Voice(as_json, quiet)
    if help_ or method is None:
        return listing.help_of_run(ctx, method, voice, asked=help_)
    from interp.cli.knobs import method_from

    if method.startswith("-"):
        raise UsageError(
            f"{method!r} stands where the method's name is wanted.",
            remedy="Write interp run METHOD --knob value.",
        )
    spec = method_from(method, ctx.args)
    if model is None:
        raise UsageError("No model was given.", remedy="Add --model zoo:ioi, a folder or a hub id.")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty.", remedy="Choose another folder.")
    from interp.run import run
    from interp.store import Store

    kept = None if no_store else Store(store)
    try:
        result = run(
            spec,
            model,
            task,
            memory=memory,
            progress=voice.progress,
            store=kept,
            seed=seed,
            fresh=fresh,
            device=device,
            dtype=dtype,
            backend=None if backend == USUAL_BACKEND else backend,
        )
    except CancelledError as error:
        return _cancelled(error, out, voice)
    return _told(result, out, html, voice)


def _cancelled(error: CancelledError, out: Path | None, voice: Voice) -> int:
    """Keep what was done before Ctrl-C."""
    partial = getattr(error, "partial", None)
    if partial is not None and out is not None and hasattr(partial, "save"):
        partial.save(out)
        voice.note(f"The partial result is in {out}.")
    return tell_error(error, voice)


def _told(result: Any, out: Path | None, html: Path | None, voice: Voice) -> int:
    if out is not None:
        result.save(out)
    if html is not None:
        from interp.report import result_report

        html = result_report(result, html)
    if voice.as_json:
        voice.document(stored.body_of(result, out=out, html=html))
        return DONE if result.passed else UNTRUSTED
    code = stored.tell(result, voice)
    for what, place in (("Saved as", out), ("Report:", html)):
        if place is not None:
            voice.note(f"{what} {place}")
    if result.run_id:
        again = "found in the store" if result.provenance.get("found_in_store") else "kept"
        voice.note(f"Run {result.run_id[:8]} ({again}); `interp runs show {result.run_id[:8]}`.")
    return code


@app.command("report")
@spoken
def report_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Models, tasks, methods.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for report.html and the runs.")],
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    shard: Annotated[str | None, typer.Option(metavar="i/n", help="Run every n-th cell.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; finished runs stay.")] = False,
    pictures: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="Also figures as png or svg, where a browser is found."
        ),
    ] = None,
    memory: Memory = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run models × tasks × methods and write one HTML file that opens offline."""
    import json

    from interp.report import report

    voice = Voice(as_json, quiet)

    def say(done: int, total: int, title: str) -> None:
        voice.note(f"[{min(done + 1, total)}/{total}] {title}")

    page = report(
        spec,
        out,
        resume=resume,
        shard=shard,
        engine=engine,
        pictures=pictures,
        memory=memory,
        progress=voice.progress,
        on_cell=say if voice.progress else None,
    )
    folder = page.parent if (page.parent / "report.json").exists() else page.with_suffix("")
    summary = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    cells = summary["cells"]
    if as_json:
        voice.document({"report": str(page), **summary})
    else:
        voice.table(
            ["state", "method", "model", "task", "checks", "reason"],
            [
                [
                    c["state"],
                    c["method"],
                    c["model"],
                    c["task"],
                    {True: "passed", False: "FAILED", None: ""}[c["passed"]],
                    c["reason"],
                ]
                for c in cells
            ],
        )
        voice.line(f"Report: {page}")
    return _report_code(cells)


def _report_code(cells: list[dict[str, Any]]) -> int:
    states = [c["state"] for c in cells]
    if "failed" in states:
        return FAILED
    if any(c["passed"] is False for c in cells):
        return UNTRUSTED
    return REFUSED if states and all(s == "misfit" for s in states) else DONE


@app.command("doctor")
@spoken
def doctor_command(
    model: Annotated[str | None, typer.Option(help="zoo:NAME, a folder, or a hub id.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    backend: Backend = USUAL_BACKEND,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """What works with a model: self-checks, capabilities, versions, drift per dtype."""
    voice = Voice(as_json, quiet)
    if model is None:
        return listing.machine(voice)
    from interp.models import doctor

    return listing.doctor(doctor(model, device=device, dtype=dtype, backend=backend), voice)


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


# -- other processes ------------------------------------------------------------------------------


@app.command("app", context_settings=PASS_ON)
@spoken
def app_command(ctx: typer.Context) -> int:
    """Open the workbench in a browser (`interp app --help` lists its options)."""
    return processes.workbench(ctx.args)


@app.command("bench", context_settings=PASS_ON)
@spoken
def bench_command(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME|all]")] = None,
) -> int:
    """Timings against other tools, each in a process of its own (`interp bench` lists them)."""
    return processes.bench(name, ctx.args)


def main(argv: list[str] | None = None) -> None:
    """The entry point; leaves by ``SystemExit`` with the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(args=argv, prog_name="interp")
