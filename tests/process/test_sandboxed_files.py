"""The files that a process in the sandbox can read, write and execute, on the real kernel."""

from __future__ import annotations

import os
from pathlib import Path

from tests.process.sandbox_host import PROJECT, needs_landlock, order_for, reading, writing

pytestmark = needs_landlock


def test_inputs_of_run_are_readable(host):
    order = order_for(host.root, resume=host.root / "downloads" / "epoch-3.pt")
    files = [
        "view/data.yaml", "view/images/train/0.png", "view/images/train/1.png", "view/images/train/2.png", "models/mine.pt",
        "downloads/epoch-3.pt",
    ]  # fmt: skip

    assert host.results_of((reading(host.root / name) for name in files), order=order) == {"done"}


def test_files_that_the_run_does_not_need_are_not_readable(host):
    names = ["queue.db", ".env", "models/other.pt", "runs/train_2/best.pt", "other_user/3.png", "downloads/epoch-3.pt"]

    assert host.results_of(reading(host.root / name) for name in names) == {"PermissionError"}


def test_system_files_and_disks_are_not_readable(host):
    paths = [
        "/etc/shadow",
        "/root/.profile",
        "/var/log",
        "/var/lib",
        "/dev/vda",
        "/dev/sda",
        "/dev/mem",
        PROJECT / "README.md",
    ]
    existing = [path for path in paths if os.path.exists(path)]

    assert len(existing) >= 3
    assert host.results_of(f"import os; os.open({str(path)!r}, os.O_RDONLY)" for path in existing) == {
        "PermissionError"
    }


def test_environment_of_service_is_not_readable(host):
    """The environment contains API keys. Its file in /proc belongs to the user that runs the training process."""
    snippet = "import os; open(f'/proc/{os.getppid()}/environ').read()"

    assert host.results_of([snippet]) == {"PermissionError"}


def test_folders_of_run_are_writable(host):
    run, private = host.order.run_dir, Path(host.environment["HOME"])
    snippets = [
        writing(run / "results.csv"),
        f"import os; os.makedirs({str(run / 'weights' / 'deep')!r})",
        f"import os; os.replace({str(run / 'results.csv')!r}, {str(run / 'weights' / 'moved.csv')!r})",
        f"import os; os.symlink('moved.csv', {str(run / 'weights' / 'link')!r})",
        f"import os; os.remove({str(run / 'weights' / 'link')!r})",
        writing(host.order.dataset.root / "labels.cache"),
        writing(private / "settings.json"),
        "import tempfile; tempfile.mkdtemp()",
        "from multiprocessing import Lock, shared_memory; shared_memory.SharedMemory(create=True, size=9).unlink(); Lock()",
        writing("/dev/null"),
    ]
    results = host.execute(*snippets)

    assert {code: how for code, how in results["results"].items() if how != "done"} == {}
    assert (run / "weights" / "moved.csv").exists()


def test_other_folders_are_not_writable_even_through_links(host):
    names = [
        "new",
        "queue.db",
        "models/mine.pt",
        "runs/train_2/best.pt",
        "runs/new",
        "images_of_user/1.png",
        "view/images/train/1.png",
    ]
    before = {path: path.read_text() for path in host.root.rglob("*") if path.is_file()}

    assert host.results_of(writing(host.root / name) for name in names) == {"PermissionError"}
    assert {path: path.read_text() for path in host.root.rglob("*") if path.is_file()} == before


def test_other_files_cannot_be_changed_or_moved_into_run_folder(host):
    ways = [
        "os.remove({0!r})", "os.truncate({0!r}, 0)", "os.rename({0!r}, {0!r} + '2')", "os.symlink('x', {0!r} + '2')",
        "os.mkdir({0!r} + '2')", "os.link({0!r}, {1!r})", "os.rename({0!r}, {1!r})", "os.mkfifo({0!r} + '2')",
    ]  # fmt: skip
    paths = str(host.root / "queue.db"), str(host.order.run_dir / "mine")
    results = host.results_of("import os; " + way.format(*paths) for way in ways)

    assert results <= {"PermissionError", "OSError"}  # the OSError is EXDEV, which makes programs copy the file instead
    assert sorted(path.name for path in host.root.glob("queue.db*")) == ["queue.db"]
    assert (host.root / "queue.db").read_text() == "content"


def test_device_files_cannot_be_created(host):
    """Root could create a device file for the disk and bypass the sandbox."""
    code = f"import os, stat; os.mknod({str(host.order.run_dir / 'disk')!r}, stat.S_IFBLK | 0o600, os.makedev(254, 0))"

    assert host.results_of([code]) == {"PermissionError"}


def test_written_files_cannot_be_executed(host):
    program = host.order.run_dir / "program"
    code = (
        f"import os, subprocess; open({str(program)!r}, 'w').write('#!/bin/sh\\n'); os.chmod({str(program)!r}, 0o755); "
    )
    code += f"subprocess.run([{str(program)!r}], check=True)"

    assert host.results_of([code]) == {"PermissionError"}
    assert program.exists()


def test_started_programs_are_also_in_the_sandbox(host):
    run = "import subprocess, sys; subprocess.run([sys.executable, '-c', {0!r}], check=True, stderr=subprocess.DEVNULL)"
    inside = run.format(f"import trainer.core.job, numpy; {writing(host.order.run_dir / 'new')}")
    outside = run.format(writing(host.root / "new")).replace("check=True", "check=False")

    assert host.results_of([inside, outside]) == {"done"}
    assert (host.order.run_dir / "new").exists()
    assert not (host.root / "new").exists()
