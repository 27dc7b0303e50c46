"""Print the schema of the configuration of a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trainer.cli.app import app


@app.command()
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the content of docs/run-configuration.md instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of the configuration of a run: type, range, default and meaning of each setting."""
    from trainer.request.schema import json_schema, markdown as page  # isort: skip

    typer.echo(page() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)
