"""The service, which runs if no command is given."""

from __future__ import annotations

import sys
from typing import Annotated

import structlog
import typer

from trainer import __version__
from trainer.cli.app import app, fail, settings_or_exit
from trainer.core.errors import Misconfigured, TrainerError
from trainer.core.stop import StopSignal
from trainer.logs import configure_logging
from trainer.settings import Settings, journal_reads
from trainer.signals import signals_set

log = structlog.get_logger()


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Run the service if no command is given."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    settings = settings_or_exit()
    _configure_logging(settings)
    from trainer.wiring.service import build_service

    shutdown = StopSignal()
    try:
        with signals_set(shutdown), build_service(settings, shutdown) as daemon:
            if not daemon.run(shutdown):
                log.warning("drain timed out, unfinished runs resume from their last checkpoint")
    except TrainerError as error:  # for example a wrong setting, a read-only folder, or a full disk
        fail(*str(error).splitlines(), code=2 if isinstance(error, Misconfigured) else 1)


def _configure_logging(settings: Settings) -> None:
    keys = (settings.supabase_service_role_key, settings.supabase_anon_key)
    form = "journal" if settings.log_format == "auto" and journal_reads(sys.stderr.fileno()) else settings.log_format
    configure_logging(form, settings.log_level, [key.get_secret_value() for key in keys if key])
