"""The command `models`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from trainer.cli.app import AsJson, app, settings_or_exit


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that a run can start from."""
    from trainer import terminal
    from trainer.core.model_catalog import entries
    from trainer.wiring.datasets import weights_on_disk

    known, files = entries(), weights_on_disk(settings_or_exit())
    if as_json:
        typer.echo(json.dumps({"accepted": [asdict(entry) for entry in known], "on_disk": files}, default=dict))
    else:
        terminal.show_models(known, files)
