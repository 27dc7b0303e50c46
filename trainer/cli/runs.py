"""Show, follow and change runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from trainer.cli.app import AsJson, RunId, app, echo, echo_json, existing, fail, print_status, run_table
from trainer.core.errors import BadRequest
from trainer.core.job import Status
from trainer.core.run_row import ALL_RUNS, RunFilter


@app.command()
def status(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The ID of a run. Without an ID, list the newest runs.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The number of runs in the list.")] = 20,
    statuses: Annotated[
        list[Status] | None, typer.Option("--status", help="List runs with this status; can be given several times.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="List the runs of this group.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="List runs with this tag; if repeated, runs with all given tags.")
    ] = None,
    worker: Annotated[str | None, typer.Option(metavar="ID", help="List the runs of this worker.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one run, or list the newest runs and the unhealthy workers."""
    from trainer import terminal

    wanted = RunFilter(status=tuple(statuses or ()), group=group, tags=tuple(tags or ()), worker_id=worker)
    if run_id is not None and wanted != ALL_RUNS:
        fail("Give the ID of one run, or options that select runs, not both.", code=2)
    with run_table() as table:
        if run_id is None:
            rows, workers = table.list(wanted, limit=limit).runs, table.workers()
            if as_json:
                listed = {"runs": list(map(asdict, rows)), "workers": list(map(asdict, workers))}
                echo_json(listed)
            else:
                terminal.show_list(rows)
                terminal.show_unhealthy(workers)
        else:
            row = existing(table.get(run_id), run_id)
            echo_json(asdict(row)) if as_json else terminal.show_row(row)


@app.command()
def watch(run_id: RunId) -> None:
    """Follow a run in the terminal until it ends. Exit with code 0 only if the run completed."""
    from trainer import terminal

    with run_table() as table:
        row = terminal.watch(table, run_id)
        terminal.show_row(existing(row, run_id))
    raise typer.Exit(0 if row and row.status == Status.COMPLETED else 1)


@app.command()
def cancel(run_id: RunId, as_json: AsJson = False) -> None:
    """Cancel a run. A queued run ends immediately. A running run ends at its next batch."""
    with run_table() as table:
        row = existing(table.cancel(run_id), run_id)
    print_status(row, as_json=as_json)


@app.command()
def finish(run_id: RunId, as_json: AsJson = False) -> None:
    """Complete a run early. The run stops after the current epoch and keeps the best model."""
    with run_table() as table:
        row = existing(table.request_finish(run_id), run_id)
    print_status(row, as_json=as_json)


@app.command()
def requeue(run_id: RunId, as_json: AsJson = False) -> None:
    """Requeue an ended run with its current settings."""
    with run_table() as table:
        row = existing(table.requeue(run_id), run_id)
        if row.status != Status.QUEUED:
            raise BadRequest(f"{run_id} is {row.status}: cancel it or wait until it has ended, then requeue it.")
    print_status(row, as_json=as_json)


@app.command(context_settings={"ignore_unknown_options": True})  # a negative number must not be read as an option
def priority(
    run_id: RunId,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Runs with a higher priority start first.")],
    as_json: AsJson = False,
) -> None:
    """Change the priority of a run. For a running run, the priority applies after a requeue."""
    with run_table() as table:
        row = existing(table.set_priority(run_id, number), run_id)
    echo_json(asdict(row)) if as_json else echo(f"{row.id} has priority {row.priority}")


@app.command()
def delete(run_id: RunId, as_json: AsJson = False) -> None:
    """Delete a run and its history; its artifacts stay in the bucket. A running run must be canceled first."""
    with run_table() as table:
        if not table.delete(run_id):
            existing(None, run_id)
    echo_json({"id": run_id, "deleted": True}) if as_json else echo(f"{run_id} is deleted")
