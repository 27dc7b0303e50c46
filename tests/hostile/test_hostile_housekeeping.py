"""Strange, vanishing and unreadable files in every folder that is swept never end the service.

The service runs without the privileges of root, because root can read and remove every file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.acceptance.service import Service
from tests.unit.worker.harness import wait_for
from trainer.demo import draw_dataset
from trainer.jobs.sqlite import SqliteQueue

OTHER_USER = 65534
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown"]
OLD = time.time() - 30 * 86_400
# folder → the prefix of the names that are swept there
SWEPT = {
    "runs": "train_", "datasets/datasets": "run_", "children": "child-", "tmp": "yolo-trainer-child-", "journal": "",
    "uploaded": "", "uploads": "", "storage": "", "models": "", "models/.runs": "", "datasets/.cache/in_use": "",
    "datasets/.cache/tmp": "", "datasets/.cache/objects/ab": "", "datasets/.cache/derived/ab": "",
    "datasets/.cache/trees": "",
}  # fmt: skip
SUFFIXES = ("", ".jsonl", ".new", ".unreadable", ".json", ".pt", ".lock", ".1.jsonl")

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")


def plant(folder: Path, prefix: str) -> None:
    """Create strange files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in SUFFIXES:
        (folder / f"{prefix}dangling{suffix}").symlink_to("nowhere")
        (folder / f"{prefix}itself{suffix}").symlink_to(f"{prefix}itself{suffix}")
        (folder / f"{prefix}root{suffix}").symlink_to("/")
        (folder / f"{prefix}folder{suffix}").mkdir()
        (folder / f"{prefix}closed{suffix}").mkdir(mode=0)
        os.mkfifo(folder / f"{prefix}pipe{suffix}")
        (folder / f".{prefix}locked{suffix}.lock").symlink_to("nowhere")
        (folder / f"{prefix}line\nbreak{suffix}").mkdir()
        Path(os.fsdecode(os.fsencode(folder / prefix) + b"\xff\xfe" + suffix.encode())).mkdir()
        unreadable = folder / f"{prefix}unreadable{suffix}"
        unreadable.write_text("x")
        unreadable.chmod(0)
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(folder):
        bound.bind(f"{prefix}socket")


def give_away(home: Path) -> None:
    """Make all entries old. Give those with the names `closed.pt` and `unreadable.pt` to another user."""
    for path in [home, *home.rglob("*")]:
        if path.name.endswith(("closed.pt", "unreadable.pt")):
            os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)
        with contextlib.suppress(OSError):
            os.utime(path, (OLD, OLD), follow_symlinks=False)


def churn(home: Path, ended: threading.Event) -> None:
    """Create and remove entries in every swept folder until `ended` is set."""
    for number in range(10**9):
        if ended.wait(0.005):
            return
        for name, prefix in SWEPT.items():
            path = home / name / f"{prefix}vanishing{number % 7}{SUFFIXES[number % len(SUFFIXES)]}"
            with contextlib.suppress(OSError):
                path.mkdir() if number % 2 else path.symlink_to("nowhere")
                (path / "inner").touch()
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if number % 2 else path.unlink()


@pytest.fixture
def home():
    """Return a folder with a short path, because sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True) as name:
        yield Path(name) / "home"


def test_strange_files_never_end_service_without_privileges(home):
    home.mkdir()
    SqliteQueue(home / "queue.db")
    data = draw_dataset(home / "datasets" / "drawn", images=6, size=32)
    for name, prefix in SWEPT.items():
        plant(home / name, prefix)
    service = Service(home, {"seconds_per_epoch": 0.01}, SWEEP_SECONDS=0.2, TMPDIR=home / "tmp", KEEP_RUNS_DAYS=0)
    service.command = [*UNPRIVILEGED, *service.command]
    give_away(home)
    ended = threading.Event()
    churning = threading.Thread(target=churn, args=(home, ended))
    churning.start()
    try:
        service.start()
        for _ in range(2):
            run_id = service.insert(data, epochs=1, model="yolo11n.yaml")
            assert service.wait(run_id, "completed", "failed", seconds=120)["status"] == "completed"
        # the journals keep the folders of the runs `folder` and `closed`, but not of `folder.pt` and `closed.json`
        for swept in ("runs/train_folder.pt", "datasets/datasets/run_closed.json"):
            wait_for(lambda path=home / swept: not os.path.lexists(path))
        assert service.process.poll() is None
        assert service.stop() == 0
    finally:
        ended.set()
        churning.join()
        if service.process and service.process.poll() is None:
            service.process.kill()
            service.process.wait()

    text = service.log.read_text()
    assert "Traceback" not in text, text[text.index("Traceback") - 2000 :][:4000]
    assert not [line for line in service.lines() if "chore failed" in line["event"]]
