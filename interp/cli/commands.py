"""The commands of ``interp``: each parses, calls the library, and says what came of it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli import listing, processes, stored
from interp.cli.groups import jobs_app, list_app, runs_app
from interp.cli.options import (
    PASS_ON,
    USUAL_BACKEND,
    Backend,
    Device,
    Dtype,
    Json,
    Memory,
    Quiet,
    StoreAt,
    spoken,
)
from interp.cli.say import DONE, FAILED, REFUSED, UNTRUSTED, Voice, tell_error
from interp.terms.errors import CancelledError, UsageError

app = typer.Typer(
    name="interp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A workbench for mechanistic interpretability: models, patching, trust, reports.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 done but a trust check failed, 4 refused, "
    "130 interrupted.",
)
app.add_typer(list_app, name="list")
app.add_typer(runs_app, name="runs")
app.add_typer(jobs_app, name="jobs")


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
    if model is None and spec.takes_model():
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
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(args=argv, prog_name="interp")
