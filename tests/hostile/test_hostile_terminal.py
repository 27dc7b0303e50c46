"""A row with markup and control characters in every text is shown by every command, in a terminal and in a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from trainer import terminal
from trainer.core.dataset import Finding
from trainer.core.job import RunRequest
from trainer.core.text import CONTROLS
from trainer.jobs.sqlite import SqliteQueue

ROOT = Path(__file__).parents[2]
ODD = "[/nonsense][bold]x[link=file:///etc/passwd]\x1b]0;owned\x07\x1b[2J\x9b2J\x7f\u2028\u202e\u2066 end"
OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")  # colors and cursor movements that rich prints
ANSI_CLEAR = "\x1b[2J"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def run_id(home):
    """Insert an ended run whose columns contain `ODD`, with a log that contains it too."""
    queue = SqliteQueue(home / "queue.db")
    run_id = queue.enqueue(RunRequest(data_yaml="d"))
    artifact = {"name": ODD, "path": ODD, "url": f"file://{ODD}", "bytes": 1, "sha256": ODD}
    results = {"artifacts": [artifact], "progress": {"phase": ODD, "eta": ODD, "epoch": ODD, "losses": {ODD: 1.0}}}
    columns = {
        "run_name": ODD, "status": "failed", "error_message": f"{ODD}\n{ODD}", "worker_id": ODD, "run_group": ODD,
        "run_tags": json.dumps([ODD]), "trained_model_url": ODD, "results": json.dumps(results | {"metrics": {ODD: 1}}),
    }  # fmt: skip
    with closing(sqlite3.connect(home / "queue.db")) as db, db:
        for name, value in columns.items():
            db.execute(f"update training_runs set {name} = ? where id = ?", [value, run_id])
    folder = home / "runs" / f"train_{run_id}"
    folder.mkdir(parents=True)
    (folder / "run.log").write_text(f"{ODD}\n", "utf-8")
    return run_id


def execute(home, *arguments, in_terminal):
    """Return the exit code and the output of a command."""
    environment = {
        **os.environ,
        "TRAINER_HOME": str(home),
        "COLUMNS": "800",
        "SUPABASE_URL": "",
        "TERM": "xterm-256color",
    }
    command = [sys.executable, str(ROOT / "trainer_service.py"), *arguments]
    if not in_terminal:
        done = subprocess.run(
            command, env=environment, cwd=home, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
        return done.returncode, (done.stdout + done.stderr).decode()
    output = bytearray()
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        while data := os.read(reader, 65536):
            output += data
    except OSError:  # the command has ended
        pass
    finally:
        os.close(reader)
    return process.wait(60), output.decode()


@pytest.mark.parametrize("in_terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize(
    "command",
    ["status ID", "status", "watch ID", "logs ID", "logs ID --json", "status --json", "requeue ID", "cancel ID"],
)
def test_command_shows_hostile_row_without_its_control_characters(home, run_id, command, in_terminal):
    code, output = execute(home, *command.replace("ID", run_id).split(), in_terminal=in_terminal)

    assert "Traceback" not in output
    assert code == (1 if command.startswith("watch") else 0), output
    if in_terminal:
        assert ANSI_CLEAR not in output
        output = OWN_SEQUENCES.sub("", output)
    assert not CONTROLS.search(output), repr(output)
    if "requeue" not in command and "cancel" not in command:
        assert "[/nonsense][bold]x[link=file:///etc/passwd]" in output


def test_check_shows_hostile_dataset_without_its_control_characters(home):
    folder = home / "datasets" / "odd"
    folder.mkdir(parents=True)
    (folder / "data.yaml").write_text(
        json.dumps({"train": f"images/{ODD}", "val": ODD, "names": [ODD, f"{ODD}\n{ODD}"]})
    )

    for arguments in (["check", str(folder)], ["check", str(folder), "--json"]):
        _, output = execute(home, *arguments, in_terminal=True)
        assert "Traceback" not in output
        assert ANSI_CLEAR not in output
        assert not CONTROLS.search(OWN_SEQUENCES.sub("", output)), repr(output)


def test_finding_with_line_breaks_does_not_look_like_other_findings(capsys):
    terminal.show_findings([Finding(level="error", code="x", message="a\nno errors\r\nwarning: b")], {})

    assert capsys.readouterr().out.splitlines()[:3] == ["error: a", "    no errors\\x0d", "    warning: b"]


def test_models_shows_odd_file_names_without_their_control_characters(home):
    (home / "models").mkdir(parents=True)
    (home / "models" / "[bold]x[\x1b]0;owned\x07.pt").write_bytes(b"")

    code, output = execute(home, "models", in_terminal=True)

    assert code == 0, output
    assert "[bold]x[\\x1b]0;owned\\x07.pt" in output
    assert not CONTROLS.search(OWN_SEQUENCES.sub("", output))
