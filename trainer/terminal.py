"""Print rows as tables, and follow a run in a live view."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Console, Group
from rich.highlighter import JSONHighlighter
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from trainer.core.dataset import Finding
from trainer.core.job import Json, JsonObject, Status
from trainer.core.model_catalog import Entry
from trainer.core.ports import RunTable
from trainer.core.results import artifacts_in
from trainer.core.run_row import RunRow, WorkerRow
from trainer.core.text import escaped, one_line, safe_json

COLORS: Mapping[str, str] = {
    Status.QUEUED: "cyan",
    Status.RUNNING: "blue",
    Status.CANCELING: "yellow",
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.CANCELED: "yellow",
}
LEVELS = {"error": "red", "warning": "yellow", "note": "dim"}
STATES = {"ok": "green", "warning": "yellow", "fault": "red"}
REFRESH_SECONDS = 0.5
UNBOUNDED = 10_000  # width of the console in characters; wider than every row
GONE_AFTER = timedelta(minutes=10)  # a worker with an older report is not running; a worker reports every POLL_INTERVAL


def _console() -> Console:
    """Return a console on stdout. In a pipe or a file, lines are not truncated or wrapped."""
    return Console() if sys.stdout.isatty() else Console(width=UNBOUNDED)


def show_list(rows: Sequence[RunRow]) -> None:
    """Print the newest runs, one per line."""
    table = Table(
        Column("id", no_wrap=True, min_width=36),
        "name",
        "status",
        "epoch",
        "mAP",
        "worker",
        "created",
        box=None,
        pad_edge=False,
    )
    for row in rows:
        results = _object(row.results)
        progress = _object(results.get("progress"))
        epoch = f"{progress.get('epoch', 0)}/{progress.get('total_epochs', 0)}" if progress else ""
        table.add_row(
            _text(row.id), _text(row.run_name), _status(row), _text(epoch), _number(results.get("mAP")),
            _text(row.worker_id or ""), _text(str(row.created_at)[:19]),
        )  # fmt: skip
    _console().print(table if rows else "There are no runs; `enqueue --data …` inserts one.")


def is_long_ago(seen: Json) -> bool:
    """Return whether `seen`, an ISO 8601 time, is more than 10 minutes ago. Return True for an invalid time."""
    try:
        return datetime.now(UTC) - datetime.fromisoformat(str(seen)) > GONE_AFTER
    except (ValueError, TypeError, OverflowError):  # "infinity", or a time without a time zone
        return True


def show_unhealthy(workers: Sequence[WorkerRow]) -> None:
    """Print the workers that claim no runs, one per line, with the reason."""
    for worker in workers:
        if worker.status_message and not is_long_ago(worker.last_seen):
            seen = str(worker.last_seen)[:19]
            line = f"worker {worker.worker_id} claims no runs (last seen {seen}): {worker.status_message}"
            _console().print(_text(line, 5000, "red"), soft_wrap=True)


def show_row(row: RunRow) -> None:
    """Print one run: its status, its metrics and the paths of its artifacts."""
    results = _object(row.results)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("run", _text(f"{_short(row.run_name)} ({row.id})"))
    table.add_row("status", _status(row))
    if row.tags:
        table.add_row("tags", _text(", ".join(row.tags), 5000))
    times_and_model = ("started_at", "completed_at", "trained_model_url")
    for name in ("group", "priority", "error_message", "worker_id", "attempt", *times_and_model):
        if value := getattr(row, name):
            table.add_row(name, _lines(value, 5000))
    for name in ("mAP", "mAP50", "precision", "recall"):
        if results.get(name) is not None:
            table.add_row(name, _number(results[name]))
    console = _console()
    console.print(table)
    artifacts = artifacts_in(row.results)
    if artifacts:
        console.print("artifacts", style="bold")
    for artifact in artifacts:
        # print the key, because a signed URL is long and expires soon
        is_local = artifact.url.startswith("file://")
        place = artifact.url.removeprefix("file://") if is_local else artifact.path
        console.print(_text(f"  {artifact.name:<32} {place}", 5000), soft_wrap=True)


def show_models(known: Sequence[Entry], files: Sequence[str]) -> None:
    """Print the models that a run can use: known names by task, and files on disk."""
    table = Table("name", "pretrained for", "from scratch (NAME.yaml) for", box=None, pad_edge=False)
    for entry in known:
        table.add_row(entry.stem, " ".join(entry.weights), " ".join(entry.architectures))
    console = _console()
    console.print(table)
    console.print("in MODELS_DIR:", *(_text(name) for name in files or ["no weights yet"]))


def show_findings(findings: Sequence[Finding], summary: JsonObject) -> None:
    """Print the findings about a dataset, errors first, and its summary."""
    console = _console()
    order = ("error", "warning", "note")
    for finding in sorted(findings, key=lambda finding: order.index(finding.level)):
        level = Text(f"{finding.level}: ", style=LEVELS[finding.level])
        # indented, because a line must not look like another finding
        console.print(level + _lines(finding.message.replace("\n", "\n    "), 5000))
        for example in finding.examples:
            console.print(_text(f"    {example}", 5000))
    console.print(
        Text("no errors" if all(f.level != "error" for f in findings) else "this dataset cannot be used for a training")
    )
    shown = {name: value for name, value in summary.items() if name != "findings"}
    console.print(JSONHighlighter()(safe_json(shown, indent=2, ensure_ascii=False)), soft_wrap=True)


def show_check(name: str, state: str, message: str) -> None:
    """Print one line of the report of `doctor`."""
    _console().print(
        Text(f"{state:<8}", style=STATES[state]), _text(f"{name:<26}"), _text(message, 5000), soft_wrap=True
    )


def watch(runs: RunTable, run_id: str) -> RunRow | None:
    """Show the run until it ends: in a terminal as a live view, elsewhere with one line for each change.

    Return its last row, or None if the run does not exist.
    """
    console = _console()
    if not sys.stdout.isatty():
        return _followed(runs, run_id, _line_printer(console))
    with Live(console=console, refresh_per_second=4) as live:
        return _followed(runs, run_id, lambda row: live.update(_picture(row)))


def _line_printer(console: Console) -> Callable[[RunRow], None]:
    """Return a function that prints a line about a row if its status, phase or epoch has changed."""
    printed = ""

    def show(row: RunRow) -> None:
        nonlocal printed
        done = _object(_object(row.results).get("progress"))
        state = _short(row.status if row.has_ended else done.get("phase") or row.status)
        line = f"{_short(row.run_name)}: {state}" + (f", {_epoch(done)}" if done else "")
        if line != printed:
            console.print(_text(line, 1000), soft_wrap=True)
            printed = line

    return show


def _epoch(done: JsonObject) -> str:
    return f"epoch {done.get('epoch', 0)}/{done.get('total_epochs', 0)}"


def _followed(runs: RunTable, run_id: str, show: Callable[[RunRow], object]) -> RunRow | None:
    while True:
        row = runs.get(run_id)
        if row is None:
            return None
        show(row)
        if row.has_ended:
            return row
        time.sleep(REFRESH_SECONDS)


def _picture(row: RunRow) -> Group:
    results = _object(row.results)
    done, metrics = _object(results.get("progress")), _object(results.get("metrics"))
    percent = done.get("percent")
    bar = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(40), TextColumn("{task.percentage:>5.1f} %")
    )
    task = bar.add_task(one_line(f"{_short(row.run_name)}: {_short(done.get('phase') or row.status)}"), total=100)
    bar.update(task, completed=percent if isinstance(percent, int | float) else 0)
    epoch = _epoch(done) if done else "waiting for a worker"
    batch = (
        f"  batch {done['batch']}/{done['total_batches']}" if done.get("batch") and done.get("total_batches") else ""
    )
    left = f"  {done['eta']} left" if done.get("eta") else ""
    losses = "  ".join(f"{name} {_number(value)}" for name, value in _object(done.get("losses")).items())
    scores = "  ".join(
        f"{name.removeprefix('metrics/')} {_number(value)}"
        for name, value in metrics.items()
        if name.startswith("metrics/") and value is not None
    )
    lines = (f"  {epoch}{batch}{left}", ""), (f"  {losses}", "dim"), (f"  {scores}", "green")
    return Group(bar, *(_text(line, 1000, style) for line, style in lines))


def _status(row: RunRow) -> Text:
    return _text(row.status, style=COLORS.get(str(row.status), ""))


# a row can contain any value; an invalid value must not break the output or hide other rows


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _short(value: Json, longest: int = 200) -> str:
    text = str(value)[: longest + 1]
    return text if len(text) <= longest else f"{text[:longest]}…"


def _text(value: Json, longest: int = 200, style: str = "") -> Text:
    """Return the value as one line of text. Markup is not interpreted, and control characters are escaped."""
    return Text(one_line(_short(value, longest)), style)


def _lines(value: Json, longest: int) -> Text:
    """Return the value as text that can have several lines."""
    return Text(escaped(_short(value, longest)))


def _number(value: Json) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else ""
