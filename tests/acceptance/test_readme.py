"""The commands and programs of the documentation work as written."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.service import COMMAND, running
from tests.integration.whole_supabase import WebApp, put_dataset, settings_for, storage_for
from tests.test_docs import PAGES, blocks, commands, section
from trainer.demo import draw_dataset


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("cats"), images=8, size=32).parent


def test_documented_commands_succeed_in_documented_order(tmp_path, drawn):
    typed = [
        command for command in commands(section("Your own runs, without any server")) if command.startswith("python")
    ]
    assert typed[0] == "python trainer_service.py &"
    with running(tmp_path / "home", {"seconds_per_epoch": 0.01}) as service:
        run_id = "ID"
        for command in typed[1:]:
            arguments = command.replace("/data/cats", str(drawn)).replace("ID", run_id).split()[2:]
            done = service.run(*arguments, check=False)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            if "enqueue" in command:
                run_id = done.stdout.strip()

        assert service.wait(run_id, "completed")["attempt"] == 2, "the run must be requeued"
        assert (tmp_path / "home" / "cats.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def project(supabase, drawn):
    """A project with the dataset of the documentation, and its web app."""
    with storage_for(supabase) as storage, WebApp(supabase) as app:
        put_dataset(storage, drawn, prefix="cats")
        yield supabase, app


def inserted(stack):
    (row,) = stack.rows("select * from training_runs")
    return row


def by_sql(stack):
    (statement,) = blocks("sql", section("Insert a run", PAGES["runs"]))
    stack.sql(statement)


def by_javascript(stack):
    """Run the documented program with a fake client. The real client, supabase-js, also sends the object unchanged."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    (program,) = blocks("js", section("Insert a run", PAGES["runs"]))
    client = "const supabase = {from: table => ({insert: async row => console.log(JSON.stringify([table, row]))})}\n"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", client + program], capture_output=True, text=True, check=True,
    )  # fmt: skip
    table, row = json.loads(done.stdout)
    assert table == "training_runs"
    with WebApp(stack) as app:
        app._changed("POST", {}, row)


def by_python(stack):
    (program,) = blocks("python", section("Insert a run", PAGES["runs"]))
    settings = {**settings_for(stack), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", program], env=settings, check=True)


@pytest.mark.parametrize("insert", [by_sql, by_javascript, by_python])
def test_run_of_documented_insert_completes(project, tmp_path, insert):
    stack, app = project
    insert(stack)
    row = inserted(stack)
    assert (row["run_name"], row["status"], row["configuration"]["epochs"]) == ("cats", "queued", 100)

    (tmp_path / "models").mkdir()
    with zipfile.ZipFile(tmp_path / "models" / "yolo11n.pt", "w") as weights:
        weights.writestr("yolo11n/data.pkl", b"what Ultralytics publishes")
    settings = settings_for(stack) | {"MODELS_DIR": str(tmp_path / "models")}
    with running(tmp_path / "home", {"seconds_per_epoch": 0.001}, **settings) as service:
        deadline = time.monotonic() + 90
        while app.row(row["id"])["status"] not in ("completed", "failed"):
            assert time.monotonic() < deadline, service.log.read_text()[-3000:]
            time.sleep(0.2)

    assert app.row(row["id"])["status"] == "completed", app.row(row["id"])["error_message"]


def test_documented_updates_for_cancel_and_finish_are_accepted(supabase):
    run_id = supabase.rows("insert into training_runs (run_name, status) values ('cats', 'running') returning id")[0][
        "id"
    ]
    assert "`status = 'canceling', cancel_requested = true`" in PAGES["runs"]
    assert "set `finish_requested = true`" in PAGES["runs"].replace("\n", " ")
    supabase.sql(f"update training_runs set finish_requested = true where id = '{run_id}'")
    supabase.sql(f"update training_runs set status = 'canceling', cancel_requested = true where id = '{run_id}'")

    assert inserted(supabase)["status"] == "canceling"


@pytest.mark.training
@pytest.mark.long
def test_demo_trains_a_run(tmp_path):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [*COMMAND, "demo", "--folder", tmp_path / "demo", "--epochs", "1"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed" in done.stdout
    assert list(Path(tmp_path / "demo").rglob("best.pt"))
