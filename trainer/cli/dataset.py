"""Check a dataset without training on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, absolute_if_local, app, fail, settings_or_exit
from trainer.core.dataset import Task
from trainer.core.errors import TrainerError
from trainer.logs import configure_logging


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="PATH_OR_URI", help="The dataset, as for enqueue --data.")],
    task: Annotated[Task | None, typer.Option(help="Check for this task instead of the task of the dataset.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw labeled samples into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a dataset like a run, and report every problem. Exit with code 1 if there are errors."""
    from trainer import terminal
    from trainer.wiring.datasets import check_dataset

    configure_logging("auto", "WARNING")
    try:
        report = check_dataset(settings_or_exit(), absolute_if_local(data), task, sheet)
    except TrainerError as error:
        fail(*str(error).splitlines())
    if as_json:
        findings = [asdict(finding) for finding in report.findings]
        typer.echo(json.dumps({"findings": findings, "summary": report.summary}))
    else:
        terminal.show_findings(report.findings, report.summary)
        if sheet:
            typer.echo(f"{report.drawn} samples drawn in {sheet}")
    raise typer.Exit(1 if any(finding.level == "error" for finding in report.findings) else 0)
