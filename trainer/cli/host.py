"""Use this host without the queue: list its models, check a dataset, check the installation, run the demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli.app import AsJson, absolute_if_local, app, echo, echo_json, fail, settings_or_exit
from trainer.core.dataset import Task
from trainer.core.errors import TrainerError
from trainer.logs import configure_logging


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that a run can start from."""
    from trainer import terminal
    from trainer.core.model_catalog import entries
    from trainer.wiring.datasets import weights_on_disk

    known, files = entries(), weights_on_disk(settings_or_exit())
    if as_json:
        echo_json({"accepted": [asdict(entry) for entry in known], "on_disk": files}, default=dict)
    else:
        terminal.show_models(known, files)


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="PATH_OR_URI", help="The dataset, as for enqueue --data.")],
    task: Annotated[Task | None, typer.Option(help="Check for this task instead of the task of the dataset.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw labeled samples into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a dataset as a run does, and report every problem. Exit with code 1 if there are errors."""
    from trainer import terminal
    from trainer.wiring.datasets import check_dataset

    configure_logging("auto", "WARNING")
    try:
        report = check_dataset(settings_or_exit(), absolute_if_local(data), task, sheet)
    except TrainerError as error:
        fail(*str(error).splitlines())
    if as_json:
        findings = [asdict(finding) for finding in report.findings]
        echo_json({"findings": findings, "summary": report.summary})
    else:
        terminal.show_findings(report.findings, report.summary)
        if sheet:
            echo(f"{report.drawn} samples drawn in {sheet}")
    raise typer.Exit(1 if any(finding.level == "error" for finding in report.findings) else 0)


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
        echo_json({"checks": [asdict(line) for line in found]})
    raise typer.Exit(1 if any(line.state == "fault" for line in found) else 0)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="The folder for all files of the demo.")] = Path("demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="The number of epochs, instead of the default of the demo.")
    ] = None,
) -> None:
    """Train one run on a drawn dataset and show the result."""
    from trainer.demo import run_demo

    try:
        raise typer.Exit(run_demo(folder.absolute(), epochs))
    except OSError as error:
        fail(
            f"{folder}: the demo cannot write its files there ({error.strerror}). Choose another folder with --folder."
        )
