"""The Typer application and the shared parts of its commands: options, the table of runs, error output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trainer.core.errors import BadRequest, Misconfigured, TrainerError
from trainer.core.ports import RunTable
from trainer.core.run_row import RunRow
from trainer.core.stop import StopSignal
from trainer.core.text import one_line, safe_json
from trainer.logs import configure_logging
from trainer.settings import Settings, read_settings

app = typer.Typer(
    name="yolo-trainer",
    help=(
        "Insert a row, get a trained model.\n\n"
        "Without a command, run the service: claim queued runs, train them on this host and publish the models, until "
        "SIGTERM, SIGHUP or Ctrl-C. Settings come from environment variables and .env (see .env.example)."
    ),
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
RunId = Annotated[str, typer.Argument(metavar="ID", help="The ID of the run, from the output of enqueue.")]


def fail(*lines: str, code: int = 1) -> NoReturn:
    """Print each line as an error on stderr and exit."""
    for line in lines:
        typer.echo(f"error: {one_line(line)}", err=True)
    raise typer.Exit(code)


def warn(*lines: str) -> None:
    """Print each line as a warning on stderr."""
    for line in lines:
        typer.echo(f"warning: {one_line(line)}", err=True)


def settings_or_exit() -> Settings:
    """Return the settings. Exit with code 2 if a setting is not valid."""
    try:
        return read_settings()
    except Misconfigured as error:
        fail(*str(error).splitlines(), code=2)


@contextmanager
def run_table(settings: Settings | None = None) -> Iterator[RunTable]:
    """Yield the table of runs. An expected error becomes lines on stderr and exit code 1, or 2 for wrong settings."""
    configure_logging("auto", "WARNING")
    from trainer.wiring.backend import open_backend

    try:
        with open_backend(settings or settings_or_exit(), StopSignal()) as backend:
            yield backend.runs
    except TrainerError as error:
        fail(*str(error).splitlines(), code=2 if isinstance(error, Misconfigured) else 1)


def existing(row: RunRow | None, run_id: str) -> RunRow:
    """Return `row`, or raise BadRequest if the run does not exist."""
    if row is None:
        raise BadRequest(f"{run_id}: there is no such run; `status` lists the newest runs.")
    return row


def echo(text: object) -> None:
    """Print one line. A row can contain any text, so control characters become visible escapes."""
    typer.echo(one_line(str(text)))


def echo_json(value: object, **options: Any) -> None:
    """Print a value as JSON. `options` are those of json.dumps."""
    typer.echo(safe_json(value, **options))


def print_status(row: RunRow, *, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(row))
    else:
        echo(f"{row.id} is {row.status}")


def absolute_if_local(data: str) -> str:
    """Return `data` as an absolute path if it exists on this host: the service has another working directory."""
    return str(Path(data).absolute()) if data and Path(data).exists() else data
