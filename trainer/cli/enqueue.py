"""Insert a run into the queue, and print the schema of its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated

import typer

from trainer.cli.app import AsJson, absolute_if_local, app, echo, echo_json, fail, run_table, settings_or_exit, warn
from trainer.core.errors import BadRequest, Conflict, TrainerError
from trainer.core.job import Json, JsonObject, RunRequest
from trainer.core.json_text import json_from_text
from trainer.core.run_row import WorkerRow


@app.command()
def enqueue(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="Settings as in `yolo train`: data=… model=yolo11n.pt epochs=50 imgsz=640. `schema` lists all of them.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="The dataset: a path, storage:BUCKET/PATH or a URL.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Weights, an architecture (yolo11n.yaml) or the ID of a run.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="The number of epochs.")] = None,
    name: Annotated[str | None, typer.Option(help="The name of the run.")] = None,
    config: Annotated[str | None, typer.Option(metavar="JSON", help="The configuration of the row, as JSON.")] = None,
    priority: Annotated[int, typer.Option(help="Runs with a higher priority start first.")] = 0,
    group: Annotated[str | None, typer.Option(help="The group of the run, for `status --group`.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="A tag for `status --tag`; can be given several times.")
    ] = None,
    own_id: Annotated[
        str | None,
        typer.Option("--id", metavar="UUID", help="The ID of the run. Repeating the command inserts no second run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Insert a run into the queue and print its ID. Exit with code 2 if a value is wrong."""
    from trainer.wiring.datasets import check_request

    options = {"data": data, "model": model, "epochs": epochs, "name": name}
    given = _by_name([*(settings or ()), *(f"{key}={value}" for key, value in options.items() if value is not None)])
    source = given.pop("data", None)
    request = RunRequest(
        data_yaml=absolute_if_local(source) if source else None,
        base_model=given.pop("model", None),
        name=given.pop("name", "run"),
        configuration=_configuration(config, {key: _value(text) for key, text in given.items()}),
        priority=priority,
        group=group or None,
        tags=tuple(tag for tag in tags or () if tag),
    )
    service = settings_or_exit()
    try:
        warn(*check_request(service, request))
    except BadRequest as error:
        fail(*error.problems, code=2)
    with run_table(service) as table:
        try:
            run_id = table.enqueue(request, own_id)
        except Conflict:
            raise
        except BadRequest as error:
            fail(*error.problems, code=2)
        echo_json({"id": run_id}) if as_json else echo(run_id)
        with suppress(TrainerError):  # some keys can insert runs, but cannot read the table of workers
            _warn_if_none_claims(table.workers())


@app.command()
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the content of docs/run-configuration.md instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of a run's configuration. It has the type, range, default and meaning of each setting."""
    from trainer.request.schema import json_schema, markdown as page  # isort: skip

    typer.echo(page() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)


def _by_name(pairs: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if not name or not text:
            fail(f"{pair}: write NAME=VALUE, for example epochs=50.", code=2)
        if name in found:
            fail(f"{name} is given twice: {found[name]} and {text}. Remove one value.", code=2)
        found[name] = text
    return found


def _value(text: str) -> Json:
    """Return the JSON value of `text`, or `text` if it is not JSON."""
    try:
        return None if text == "None" else json_from_text(text)
    except ValueError:
        return text


def _configuration(config: str | None, given: JsonObject) -> Json:
    try:
        configuration = None if config is None else json_from_text(config)
    except ValueError as error:
        fail(f"--config: {error}.", code=2)
    if not given:
        return configuration
    if configuration is not None and not isinstance(configuration, dict):
        fail(f"--config must be a JSON object when --epochs or NAME=VALUE is given ({', '.join(given)}).", code=2)
    return {**(configuration or {}), **given}


def _warn_if_none_claims(workers: Sequence[WorkerRow]) -> None:
    from trainer.terminal import is_long_ago

    alive = [worker for worker in workers if not is_long_ago(worker.last_seen)]
    if not alive:
        warn("no worker is running: the run stays queued until you start the service on a host.")
    elif all(worker.status_message for worker in alive):
        warn(f"no worker claims runs now. Worker {alive[0].worker_id}: {alive[0].status_message}")
