"""The service starts, serves its queue and removes old files, whatever its folders contain."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from tests.acceptance.service import running
from trainer.disk.removal import remove_tree

QUICK = {"seconds_per_epoch": 0.01}
OUTSIDE = "must stay"


def aged(folder: Path, days=30.0) -> Path:
    """Set old modification times where possible, and return the folder."""
    then = time.time() - days * 86_400
    for path in [*folder.iterdir(), folder]:
        with contextlib.suppress(OSError):
            os.utime(path, (then, then), follow_symlinks=False)
    return folder


def nested(folder: Path, levels: int) -> None:
    at = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


NASTY = {
    "dangling link": lambda folder, outside: (folder / "x").symlink_to("nowhere"),
    "link to itself": lambda folder, outside: (folder / "x").symlink_to("x"),
    "link to the root": lambda folder, outside: (folder / "x").symlink_to("/"),
    "link outside": lambda folder, outside: (folder / "x").symlink_to(outside),
    "pipe": lambda folder, outside: os.mkfifo(folder / "x"),
    "folder without permissions": lambda folder, outside: (folder / "x").mkdir(mode=0),
    "name with a line break": lambda folder, outside: (folder / "a\nb").touch(),
    "name that is not text": lambda folder, outside: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).touch(),
    "deep": lambda folder, outside: nested(folder, 1200),
    "modified in the year 2100": lambda folder, outside: os.utime(folder, (4_102_444_800,) * 2),
}


def plant(root: Path, prefix: str, outside: Path, what: list[str]) -> list[Path]:
    """Create an old folder for each kind of strange file, and links and a file instead of folders."""
    folders = []
    for number, name in enumerate(what):
        folder = root / f"{prefix}{number}"
        folder.mkdir(parents=True)
        NASTY[name](folder, outside)
        folders.append(folder if "2100" in name else aged(folder))
    (root / f"{prefix}link").symlink_to(outside)
    (root / f"{prefix}dangling").symlink_to("nowhere")
    (root / f"{prefix}itself").symlink_to(f"{prefix}itself")
    (root / f"{prefix}file").touch()
    return folders


def everywhere(home: Path, outside: Path, prefix: str) -> list[Path]:
    """Create strange files in every folder of the service. Return the folders that the service must remove."""
    old = [name for name in NASTY if "2100" not in name]
    runs = plant(home / "runs", f"train_{prefix}", outside, old)
    views = plant(home / "datasets" / "datasets", f"run_{prefix}", outside, old)
    plant(home / "children", f"child-{prefix}", outside, list(NASTY))
    for folder in ("journal", "uploads", "uploaded", "datasets/.cache/in_use", "datasets/.cache/tmp"):
        (home / folder).mkdir(parents=True, exist_ok=True)
        for suffix in ("", ".jsonl", ".json", ".unreadable", ".1.jsonl", ".new"):
            (home / folder / f"{prefix}dangling{suffix}").symlink_to(f"nowhere{suffix}")
            (home / folder / f"{prefix}folder{suffix}").mkdir()
            (home / folder / f"{prefix}outside{suffix}").symlink_to(outside)
    return [*runs, *views]


def remaining(folders: list[Path], seconds=20.0) -> list[Path]:
    """Return the paths that still exist after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(os.path.lexists(folder) for folder in folders):
        time.sleep(0.1)
    return [folder for folder in folders if os.path.lexists(folder)]


@pytest.fixture
def home(tmp_path):
    yield tmp_path / "home"
    remove_tree(tmp_path / "home")  # pytest cannot remove folders that are nested this deeply


def test_service_completes_runs_with_strange_files_in_its_folders(tmp_path, home, data):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text(OUTSIDE)
    aged(outside)
    old = everywhere(home, outside, "before")

    with running(home, QUICK, SWEEP_SECONDS=0.5) as service:
        first = service.enqueue(data, epochs=1)
        assert service.wait(first, "completed", "failed")["status"] == "completed"
        assert remaining(old) == []

        old = everywhere(home, outside, "during")
        second = service.enqueue(data, epochs=1)
        assert service.wait(second, "completed", "failed")["status"] == "completed"
        assert remaining(old) == []

        assert service.stop() == 0
    assert (outside / "canary").read_text() == OUTSIDE
    assert [path.name for path in outside.iterdir()] == ["canary"]
    assert not [line for line in service.lines() if "exception" in line]
    assert "Traceback" not in service.log.read_text()
    folders = [line["folder"] for line in service.lines() if line["event"].startswith("old folder cannot be removed")]
    assert len(folders) == len(set(folders))
