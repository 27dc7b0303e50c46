"""Print the log of a run."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, RunId, app, existing, fail, run_table, settings_or_exit
from trainer.core.ports import RunTable
from trainer.settings import Settings

FOLLOW_SECONDS = 0.5


@app.command()
def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log of a run on this host. All attempts are printed, the oldest attempt first."""
    from trainer.wiring.host import run_logs

    settings = settings_or_exit()
    with run_table(settings) as table:
        existing(table.get(run_id), run_id)
        if as_json:
            text = "".join(path.read_text(errors="replace") for path in run_logs(settings, run_id))
            typer.echo(json.dumps({"id": run_id, "log": text}))
        elif not _print_logs(settings, table, run_id, follow=follow):
            fail(
                f"{run_id}: this host has no log of the run; a finished run has its log among the artifacts (run.log)."
            )


def _print_logs(settings: Settings, table: RunTable, run_id: str, *, follow: bool) -> bool:
    """Print the logs of the run. If `follow` is set, print until the run ends. Return whether this host has a log."""
    from trainer.wiring.host import run_logs

    offsets: dict[Path, int] = {}
    while True:
        ended = existing(table.get(run_id), run_id).has_ended
        for path in run_logs(settings, run_id):
            offsets[path] = _print_from(path, offsets.get(path, 0))
        if ended or not follow:
            return bool(offsets)
        time.sleep(FOLLOW_SECONDS)


def _print_from(path: Path, offset: int) -> int:
    """Print a file from the byte `offset`. Return the offset of the end of the file."""
    with path.open("rb") as file:
        file.seek(offset)
        sys.stdout.buffer.write(file.read())
        sys.stdout.buffer.flush()
        return file.tell()
