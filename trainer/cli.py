"""The command line: run the service, and talk to its queue."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer

from trainer import __version__
from trainer.core.dataset import Task
from trainer.core.errors import BadRequest, Misconfigured, TrainerError
from trainer.core.job import ENDED, JsonObject, RunRequest, Status
from trainer.core.json_text import json_from_text
from trainer.core.ports import RunTable
from trainer.core.stop import StopSignal
from trainer.logs import configure_logging
from trainer.settings import Settings, journal_reads, read_settings
from trainer.signals import signals_set
from trainer.streams import fill_standard_streams

log = structlog.get_logger()

app = typer.Typer(
    name="trainer_service.py",
    help=(
        "Insert a row, get a trained model.\n\n"
        "Without a command, runs the service: it claims queued runs, trains them on this machine and publishes the "
        "models, until SIGTERM, SIGHUP or Ctrl-C. Configuration comes from the environment and .env (see .env.example)."
    ),
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunId = Annotated[str, typer.Argument(metavar="ID", help="The run's id, as enqueue printed it.")]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Run the service when no command is given."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    settings = _settings()
    keys = (settings.supabase_service_role_key, settings.supabase_anon_key)
    form = "journal" if settings.log_format == "auto" and journal_reads(sys.stderr.fileno()) else settings.log_format
    configure_logging(form, settings.log_level, [key.get_secret_value() for key in keys if key])
    from trainer.wiring import build_service

    shutdown = StopSignal()
    try:
        with signals_set(shutdown), build_service(settings, shutdown) as daemon:
            if not daemon.run(shutdown):
                log.warning("the drain time is over; runs that did not end will go on from their last checkpoint")
    except TrainerError as error:  # wrong settings, a folder that cannot be written, a queue file on a full disk
        _fail(*str(error).splitlines(), code=2 if isinstance(error, Misconfigured) else 1)


@app.command()
def enqueue(
    data: Annotated[str | None, typer.Option(help="The dataset: a path, storage:BUCKET/PATH or a URL.")] = None,
    model: Annotated[str | None, typer.Option(help="Weights, an architecture (yolo11n.yaml) or a run's id.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs to train.")] = None,
    name: Annotated[str, typer.Option(help="What to call the run.")] = "run",
    config: Annotated[str | None, typer.Option(metavar="JSON", help="The row's configuration, any JSON.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Insert a run into the queue and print its id; exit code 2 for one that no worker could train."""
    from trainer.wiring import check_request

    configuration = _configuration(config, epochs)
    reference = _absolute(data)
    request = RunRequest(
        data_yaml=reference,
        base_model=model,
        configuration=configuration,
        name=name,
        priority=priority,
    )
    settings = _settings()
    try:
        check_request(settings, request)
    except BadRequest as error:
        _fail(*error.problems, code=2)
    with _table(settings) as table:
        run_id = table.enqueue(request)
    typer.echo(json.dumps({"id": run_id}) if as_json else run_id)


def _configuration(config: str | None, epochs: int | None) -> object:
    try:
        configuration = None if config is None else json_from_text(config)
    except ValueError as error:
        _fail(f"--config: {error}.")
    if epochs is None:
        return configuration
    if configuration is not None and not isinstance(configuration, dict):
        _fail("--epochs needs a --config that is a JSON object, or none; give the epochs inside --config.")
    return {**(configuration or {}), "epochs": epochs}


def _absolute(data: str | None) -> str | None:
    """A path that exists where the command was typed means that file, wherever the service runs."""
    return str(Path(data).absolute()) if data and Path(data).exists() else data


@app.command()
def status(
    run_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One run; without it, the newest ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest runs to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show a run's row, or list the newest runs and the workers that claim none."""
    from trainer import terminal

    with _table() as table:
        if run_id is None:
            rows, workers = table.recent(limit), table.workers()
            if as_json:
                typer.echo(json.dumps({"runs": rows, "workers": workers}))
            else:
                terminal.show_list(rows)
                terminal.show_unhealthy(workers)
        else:
            row = _found(table.get(run_id), run_id)
            typer.echo(json.dumps(row)) if as_json else terminal.show_row(row)


@app.command()
def watch(run_id: RunId) -> None:
    """Follow a run in the terminal until it ends; the exit code says whether it completed."""
    from trainer import terminal

    with _table() as table:
        row = terminal.watch(table, run_id)
        terminal.show_row(_found(row, run_id))
    raise typer.Exit(0 if row and row["status"] == Status.COMPLETED else 1)


@app.command()
def cancel(run_id: RunId, as_json: AsJson = False) -> None:
    """Cancel a run: a queued one at once, a running one at its next batch."""
    with _table() as table:
        row = _found(table.cancel(run_id), run_id)
    _tell_status(row, as_json=as_json)


@app.command()
def finish(run_id: RunId, as_json: AsJson = False) -> None:
    """End a training early: it stops after the present epoch, keeps its best model and completes."""
    with _table() as table:
        row = _found(table.request_finish(run_id), run_id)
    _tell_status(row, as_json=as_json)


@app.command()
def requeue(run_id: RunId, as_json: AsJson = False) -> None:
    """Queue an ended run again, with the settings that it has."""
    with _table() as table:
        row = _found(table.requeue(run_id), run_id)
        if row["status"] != Status.QUEUED:
            raise BadRequest(f"{run_id} is {row['status']}: cancel it or wait until it has ended, then queue it again.")
    _tell_status(row, as_json=as_json)


@app.command()
def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows, until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log of a run that this host has worked on; all its attempts, oldest first."""
    from trainer.wiring import run_logs

    settings = _settings()
    with _table(settings) as table:
        _found(table.get(run_id), run_id)
        if as_json:
            text = "".join(path.read_text(errors="replace") for path in run_logs(settings, run_id))
            typer.echo(json.dumps({"id": run_id, "log": text}))
            return
        read: dict[Path, int] = {}
        while True:
            ended = _found(table.get(run_id), run_id)["status"] in ENDED
            for path in run_logs(settings, run_id):
                read[path] = _print_from(path, read.get(path, 0))
            if ended or not follow:
                break
            time.sleep(0.5)
        if not read:
            _fail(f"{run_id}: no log on this host; the log of a finished run is among its artifacts (run.log).")


def _print_from(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        sys.stdout.buffer.write(file.read())
        sys.stdout.buffer.flush()
        return file.tell()


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that a run may start from, and the weights that are on this host."""
    from trainer import terminal
    from trainer.core.model_catalog import entries
    from trainer.wiring import weights_on_disk

    known, files = entries(), weights_on_disk(_settings())
    if as_json:
        typer.echo(json.dumps({"accepted": [asdict(entry) for entry in known], "on_disk": files}, default=dict))
    else:
        terminal.show_models(known, files)


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="PATH_OR_URI", help="As in enqueue --data.")],
    task: Annotated[Task | None, typer.Option(help="Check for this task instead of what the dataset says.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw labeled samples into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a dataset as a run would, and say everything that is wrong or odd; exit code 1 for errors."""
    from trainer import terminal
    from trainer.wiring import check_dataset

    configure_logging("auto", "WARNING")
    try:
        report = check_dataset(_settings(), str(_absolute(data)), task, sheet)
    except TrainerError as error:
        _fail(*str(error).splitlines())
    if as_json:
        findings = [asdict(finding) for finding in report.findings]
        typer.echo(json.dumps({"findings": findings, "summary": report.summary}))
    else:
        terminal.show_findings(report.findings, report.summary)
        if sheet:
            typer.echo(f"{report.drawn} samples drawn in {sheet}")
    raise typer.Exit(1 if any(finding.level == "error" for finding in report.findings) else 0)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check everything that usually goes wrong, with the mend; exit code 1 when something is."""
    from trainer import terminal
    from trainer.doctor import examine

    configure_logging("auto", "ERROR")
    found = []
    for line in examine():
        found.append(line)
        if not as_json:
            terminal.show_check(line.name, line.state, line.message)
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(line) for line in found]}))
    raise typer.Exit(1 if any(line.state == "fault" for line in found) else 0)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Fewer or more epochs than the demo's own.")] = None,
) -> None:
    """Draw a dataset, start a service on it, train one run and show what came out."""
    from trainer.demo import run_demo

    raise typer.Exit(run_demo(folder.absolute(), epochs))


def _settings() -> Settings:
    try:
        return read_settings()
    except Misconfigured as error:
        _fail(*str(error).splitlines(), code=2)


@contextmanager
def _table(settings: Settings | None = None) -> Iterator[RunTable]:
    """The queue's table; an expected error becomes one line on stderr and exit code 1."""
    configure_logging("auto", "WARNING")
    from trainer.wiring import open_backend

    try:
        with open_backend(settings or _settings(), StopSignal()) as backend:
            yield backend.runs
    except TrainerError as error:
        _fail(*str(error).splitlines())


def _found(row: JsonObject | None, run_id: str) -> JsonObject:
    if row is None:
        raise BadRequest(f"{run_id}: there is no such run; `status` lists the newest ones.")
    return row


def _tell_status(row: JsonObject, *, as_json: bool) -> None:
    typer.echo(json.dumps(row) if as_json else f"{row['id']} is {row['status']}")


def _fail(*lines: str, code: int = 1) -> NoReturn:
    for line in lines:
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(code)


def main() -> None:
    fill_standard_streams()
    app()
