"""Rows with any content are printed and do not hide other rows."""

import json
from datetime import UTC, datetime

import pytest

from trainer import terminal
from trainer.jobs.row import run_row, worker_row

ROW = {
    "id": "0b8e1a52-2b1e-4a57-9a3e-6a1c6bb8f0aa", "run_name": "nuts", "status": "completed", "worker_id": "w1",
    "created_at": "2026-01-02T03:04:05+00:00", "error_message": None, "attempt": 1, "trained_model_url": "https://x/best.pt",
    "results": {
        "mAP": 0.51234, "progress": {"epoch": 3, "total_epochs": 9, "percent": 33.3, "losses": {"box": 1.5}, "eta": "0:10"},
        "metrics": {"metrics/mAP50": 0.7}, "artifacts": [{"name": "best.pt", "path": "a/best.pt", "url": "https://x"}],
    },
}  # fmt: skip
ODD = [None, 7, True, "text", "[/red] [link=x]", "\x1b[31m\x07", "n" * 10_000_000, [], [1], {"a": 1}, {"progress": 5, "mAP": "x"},
       {"progress": {"epoch": [], "percent": "x", "losses": [1], "batch": 1}, "metrics": [], "artifacts": 5},
       {"artifacts": [1, {"url": 5}, {}], "metrics": {"metrics/a": "x"}, "progress": {"losses": {"a": None}}}, "configuring"]  # fmt: skip


def test_list_and_row_show_status_progress_and_metrics(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    terminal.show_list([run_row(ROW)])
    terminal.show_row(run_row(ROW))
    shown = capsys.readouterr().out
    assert all(
        text in shown
        for text in (ROW["id"], "nuts", "completed", "3/9", "0.512", "w1", "2026-01-02T03:04:05", "a/best.pt")
    )


@pytest.mark.parametrize("odd", ODD, ids=lambda value: json.dumps(value)[:30])
@pytest.mark.parametrize("column", [name for name in ROW if name != "id"])
def test_unusual_row_is_shown_and_does_not_hide_other_rows(capsys, monkeypatch, column, odd):
    monkeypatch.setenv("COLUMNS", "200")
    row = run_row(ROW | {column: odd, "id": "odd"})
    terminal.show_list([row, run_row(ROW)])
    terminal.show_row(row)
    terminal._picture(row)
    shown = capsys.readouterr().out
    assert "odd" in shown
    assert ROW["id"] in shown
    assert "\x1b" not in shown
    assert len(shown) < 100_000


@pytest.mark.parametrize("seen", ["infinity", "-infinity", "2026-01-02T03:04:05", "", None, 7])
def test_worker_with_invalid_time_is_offline_and_does_not_hide_other_workers(capsys, seen):
    now = datetime.now(UTC).isoformat()
    odd = {"worker_id": "odd", "status_message": "full", "last_seen": seen}
    full = {"worker_id": "w1", "status_message": "\x1b[31mfull", "last_seen": now}
    terminal.show_unhealthy([worker_row(odd), worker_row(full)])
    shown = capsys.readouterr().out
    assert "odd" not in shown
    assert "worker w1 claims no runs" in shown
    assert "\x1b" not in shown


class OneRun:
    """A run table with at most one run."""

    def __init__(self, row):
        self.row = row

    def get(self, run_id):
        return self.row


@pytest.fixture
def no_terminal(monkeypatch):
    """Standard output is a pipe, but the environment describes a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")


def test_list_in_pipe_has_one_complete_line_per_run(capsys, no_terminal):
    long = ROW | {"run_name": "n" * 150, "worker_id": "w" * 100, "status": "completed"}
    terminal.show_list([run_row(ROW), run_row(long)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(text in lines[2] for text in (ROW["id"], "n" * 150, "completed", "w" * 100, "2026-01-02T03:04:05"))


def test_row_in_pipe_has_one_complete_line_per_column(capsys, no_terminal):
    message = "data.yaml: " + "the path does not exist. " * 20
    terminal.show_row(run_row(ROW | {"error_message": message}))
    assert message.rstrip() in capsys.readouterr().out


def test_watch_in_pipe_prints_one_line_per_change(capsys, monkeypatch, no_terminal):
    monkeypatch.setattr(terminal, "REFRESH_SECONDS", 0)
    progress = {"phase": "training", "epoch": 1, "total_epochs": 2}
    states = [
        {"status": "queued", "results": None},
        {"status": "running", "results": {"progress": progress | {"percent": 10}}},
        {"status": "running", "results": {"progress": progress | {"percent": 20}}},
        {"status": "running", "results": {"progress": progress | {"epoch": 2}}},
        {"status": "completed", "results": {"progress": progress | {"epoch": 2, "phase": "ending"}}},
    ]
    rows = [run_row(ROW | {"run_name": "cats"} | state) for state in states]

    class Changing:
        def get(self, _):
            return rows.pop(0)

    last = rows[-1]
    assert terminal.watch(Changing(), ROW["id"]) == last
    assert capsys.readouterr().out.splitlines() == [
        "cats: queued",
        "cats: training, epoch 1/2",
        "cats: training, epoch 2/2",
        "cats: completed, epoch 2/2",
    ]


def test_watch_of_unknown_run_prints_nothing(capsys):
    assert terminal.watch(OneRun(None), "gone") is None
    assert capsys.readouterr().out == ""
