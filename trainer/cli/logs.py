"""Print the log of a run."""

from __future__ import annotations

import codecs
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, RunId, app, echo_json, existing, fail, run_table, settings_or_exit
from trainer.core.ports import RunTable
from trainer.core.text import escaped
from trainer.settings import Settings

FOLLOW_SECONDS = 0.5
_CHUNK = 2**20  # bytes


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
            echo_json({"id": run_id, "log": text})
        elif not _print_logs(settings, table, run_id, follow=follow):
            fail(
                f"{run_id}: this host has no log of the run; a finished run has its log among the artifacts (run.log)."
            )


def _print_logs(settings: Settings, table: RunTable, run_id: str, *, follow: bool) -> bool:
    """Print the logs of the run. If `follow` is set, print until the run ends. Return whether this host has a log."""
    from trainer.wiring.host import run_logs

    printed: dict[Path, LogPrinter] = {}
    while True:
        ended = existing(table.get(run_id), run_id).has_ended
        for path in run_logs(settings, run_id):
            printed.setdefault(path, LogPrinter(path)).print_new()
        if ended or not follow:
            return bool(printed)
        time.sleep(FOLLOW_SECONDS)


class LogPrinter:
    """Prints what was appended to a file since the last call. Control characters become visible escapes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def print_new(self) -> None:
        """Print the new part of the file."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while content := file.read(_CHUNK):
                sys.stdout.buffer.write(escaped(self._decoder.decode(content)).encode())
            self._offset = file.tell()
        sys.stdout.buffer.flush()
