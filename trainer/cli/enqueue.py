"""Insert a run into the queue."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trainer.cli.app import AsJson, absolute_if_local, app, fail, run_table, settings_or_exit
from trainer.core.errors import BadRequest
from trainer.core.job import RunRequest
from trainer.core.json_text import json_from_text


@app.command()
def enqueue(
    data: Annotated[str | None, typer.Option(help="The dataset: a path, storage:BUCKET/PATH or a URL.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Weights, an architecture (yolo11n.yaml) or the ID of a run.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs to train.")] = None,
    name: Annotated[str, typer.Option(help="The name of the run.")] = "run",
    config: Annotated[str | None, typer.Option(metavar="JSON", help="The configuration of the row, any JSON.")] = None,
    priority: Annotated[int, typer.Option(help="Runs with a higher priority start first.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Insert a run into the queue and print its ID. Exit with code 2 if no worker could train it."""
    from trainer.wiring import check_request

    request = RunRequest(
        data_yaml=absolute_if_local(data) if data else data,
        base_model=model,
        configuration=_configuration(config, epochs),
        name=name,
        priority=priority,
    )
    settings = settings_or_exit()
    try:
        check_request(settings, request)
    except BadRequest as error:
        fail(*error.problems, code=2)
    with run_table(settings) as table:
        run_id = table.enqueue(request)
    typer.echo(json.dumps({"id": run_id}) if as_json else run_id)


def _configuration(config: str | None, epochs: int | None) -> object:
    try:
        configuration = None if config is None else json_from_text(config)
    except ValueError as error:
        fail(f"--config: {error}.")
    if epochs is None:
        return configuration
    if configuration is not None and not isinstance(configuration, dict):
        fail("--epochs needs a --config that is a JSON object, or none; give the epochs inside --config.")
    return {**(configuration or {}), "epochs": epochs}
