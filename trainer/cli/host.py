"""Check this host and its settings."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from trainer.cli.app import AsJson, app
from trainer.logs import configure_logging


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation and suggest fixes. Exit with code 1 if a check finds a fault."""
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
