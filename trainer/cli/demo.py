"""The command `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import app


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="The folder for all files of the demo.")] = Path("demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The number of epochs, instead of the default of the demo.")
    ] = None,
) -> None:
    """Train one run on a drawn dataset and show the result."""
    from trainer.demo import run_demo

    raise typer.Exit(run_demo(folder.absolute(), epochs))
