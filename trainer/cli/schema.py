"""Print what the configuration of a run may hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trainer.cli.app import app


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/run-configuration.md instead.")] = False,
) -> None:
    """Print the JSON Schema of a run's configuration: each setting with type, range, default and meaning."""
    from trainer.request.schema import json_schema, markdown as page  # isort: skip

    typer.echo(page() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)
