"""A real training works in the sandbox, and attacker code in the training cannot leave the sandbox."""

import ctypes
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from child_run import order_for, run_child
from drawn import draw

from trainer.core.dataset import Task
from trainer.core.events import EpochFinished, Finished, Warned
from trainer.core.stop import StopReason
from trainer.training.wire import SANDBOX, encode_stop

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(ctypes.CDLL(None).syscall(444, None, 0, 1) < 1, reason="this kernel has no Landlock"),
]


@pytest.fixture(scope="module", params=["started for this run", "prestarted"])
def attacked(request, tmp_path_factory):
    """The training, its home folder, and the process that the attacker tries to kill."""
    home = tmp_path_factory.mktemp("attacked")
    outside = home / "outside"
    outside.mkdir()
    (outside / "secret").write_text("SUPABASE_SERVICE_ROLE_KEY=planted")
    order = order_for(draw(home / "data", Task.CLASSIFY), home / "run", epochs=2, args={"workers": 2, "plots": True})

    def finish(event, process):
        if isinstance(event, EpochFinished) and event.epoch == 1:
            process.stdin.write(encode_stop(StopReason.FINISH))
            process.stdin.flush()

    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        env = {"OUTSIDE": str(outside), "PORT": str(listener.getsockname()[1]), "VICTIM": str(victim.pid)}
        without = ("CUDA_VISIBLE_DEVICES",) if request.param == "prestarted" else ()
        run = run_child(order, home, program="attacker_code.py", env=env, without=without, on_event=finish)
    yield run, home, victim
    victim.kill()
    victim.wait()
    victim.stdin.close()


def test_no_attack_succeeds_in_sandbox(attacked):
    _, home, victim = attacked
    tried = [json.loads(line) for line in (home / "run" / "attacks.jsonl").read_text().splitlines()]

    assert {attempt["where"] for attempt in tried} == {"training", "loader", "commands"}
    assert [attempt["succeeded"] for attempt in tried] == [[]] * len(tried)
    assert sorted(path.name for path in (home / "outside").iterdir()) == ["secret"]
    assert "planted" in (home / "outside" / "secret").read_text()
    assert victim.poll() is None


def test_sandboxed_training_completes(attacked):
    run, home, _ = attacked

    assert isinstance(run.last, Finished), run.output
    assert not run.of(Warned)
    assert run.missing == ()
    assert "Permission denied" not in run.output
    assert "not writable" not in run.output
    assert (home / "run" / "results.csv").exists()
    assert list((home / "run").glob("train_batch*.jpg"))


@pytest.mark.long
def test_view_with_links_to_any_folder_is_trained_on(tmp_path):
    """Some datasets on a user's disk consist of links to images."""
    dataset = replace(draw(tmp_path / "view", Task.DETECT), readable=(tmp_path,))
    for number, path in enumerate(sorted((tmp_path / "view" / "images").rglob("*.png"))):
        target = tmp_path / f"disk{number % 2}" / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        if number % 3 == 0:
            (tmp_path / "links").mkdir(exist_ok=True)
            target = (tmp_path / "links" / path.name).symlink_to(target) or tmp_path / "links" / path.name
        path.symlink_to(os.path.relpath(target, path.parent) if number % 2 else target)
    run = run_child(order_for(dataset, tmp_path / "run", args={"cache": "disk"}), tmp_path / "home")

    assert isinstance(run.last, Finished), run.output
    assert not run.of(Warned)
    assert run.missing == ()
    assert run.folder.best.exists()


@pytest.mark.long
def test_sandbox_can_be_disabled(tmp_path):
    """Some GPU drivers do not work in the sandbox."""
    order = order_for(draw(tmp_path / "data", Task.CLASSIFY), tmp_path / "run", epochs=1)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("planted")
    with subprocess.Popen(["sleep", "600"]) as victim:
        env = {"OUTSIDE": str(tmp_path / "outside"), "PORT": "9", "VICTIM": str(victim.pid), SANDBOX: "0"}
        run = run_child(order, tmp_path, program="attacker_code.py", env=env)
        victim.kill()

    assert isinstance(run.last, Finished), run.output
    tried = [json.loads(line) for line in (tmp_path / "run" / "attacks.jsonl").read_text().splitlines()]
    assert any(attempt["succeeded"] for attempt in tried)
