"""A training leaves nothing that a later training reads: no shared memory, and no configuration of a library."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tracemalloc
import uuid
from pathlib import Path

import pytest

from tests.process import conftest as processes
from tests.process.conftest import PROGRAMS, Trained
from tests.process.sandbox_host import needs_landlock, sandbox_host
from trainer.core.errors import TrainerError
from trainer.training.child.socket_policy import mps_folder
from trainer.training.supervisor import font_list, shared_memory
from trainer.training.supervisor.process import ChildTrainer

home, program, leak_check = processes.home, processes.program, processes.leak_check
SHARED = Path("/dev/shm")


@pytest.fixture
def prefix():
    prefix = f"leftover-{uuid.uuid4()}"
    yield prefix
    for path in SHARED.glob(f"{prefix}*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root, for a process that sees no other processes",
)


@needs_root
def test_shared_memory_of_a_training_is_removed_unless_a_process_uses_it(tmp_path, home, prefix):
    for folder in ("dataset", "run"):
        (tmp_path / folder).mkdir()
    environment = os.environ | {"PYTHONPATH": str(PROGRAMS.parents[2])}
    subprocess.run(
        [*ALONE, sys.executable, __file__, tmp_path, home, prefix], env=environment, check=True, timeout=60
    )  # fmt: skip

    assert left_in_shared_memory(prefix) == ["-before", "-shared"]
    assert Path("/etc/passwd").exists()


def test_shared_memory_is_kept_if_the_user_runs_other_programs(program, prefix, monkeypatch):
    monkeypatch.setattr(shared_memory, "descendants", lambda _: [])  # so the process below belongs to another program
    (SHARED / f"{prefix}-shared").write_text("of another program")
    with subprocess.Popen(["sleep", "60"]) as other:
        program("leaves_files", prefix).train()
        other.kill()

    assert "-file" in left_in_shared_memory(prefix)


def left_in_shared_memory(prefix):
    return sorted(path.name.removeprefix(prefix) for path in SHARED.glob(f"{prefix}*"))


def train_alone(folder, home, prefix):
    """Train while this process uses one of the files. All processes that it sees are its own."""
    (SHARED / f"{prefix}-before").touch()
    program = (sys.executable, str(PROGRAMS / "leaves_files.py"), prefix)
    training = Trained(folder, ChildTrainer(environment=dict(os.environ), home=home, weights=home, program=program))
    opened = []

    def use_the_shared_file():
        processes.wait_until((SHARED / f"{prefix}-shared").exists)
        opened.append((SHARED / f"{prefix}-shared").open("wb", buffering=0))
        opened[0].write(b"in use")

    training.when(lambda t: t.of("phase"), use_the_shared_file)
    training.train()


def test_many_files_in_shared_memory_do_not_fill_the_memory_of_the_service(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "_is_only_program_of_user", lambda: True)
    monkeypatch.setattr(shared_memory.SharedMemory, "_names_in_use", lambda _: [f"{0:0200}"])
    monkeypatch.setattr(shared_memory, "_AT_ONCE", 100)
    (tmp_path / "before").touch()
    files = shared_memory.SharedMemory(tmp_path)
    for number in range(2000):
        (tmp_path / f"{number:0200}").touch()
    tracemalloc.start()
    files.remove_new()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{0:0200}", "before"]
    assert peak < 200_000  # all names have 500,000 bytes


@needs_landlock
def test_training_cannot_list_the_shared_memory_of_another_training(tmp_path, home, prefix):
    """The names are random, so a training can only use the files that it has created."""
    create = (
        "from multiprocessing import Lock, shared_memory as s; s.SharedMemory(create=True, size=9).unlink(); Lock(); "
    )
    create += f"import os, shutil; os.makedirs('/dev/shm/{prefix}/folder')"
    ways = [
        f"import os; os.{call}" for call in ("listdir('/dev/shm')", f"listdir('/dev/shm/{prefix}')", "listdir('/dev')")
    ]

    results = sandbox_host(tmp_path, home).execute(create, *ways)["results"]

    assert list(results.values()) == ["done", *3 * ["PermissionError"]]


def test_link_in_place_of_folder_of_multi_process_service_is_ignored(tmp_path):
    """Each user of the host can create names in /tmp. A training could write to the target of a link."""
    service, link = tmp_path / "service", tmp_path / "nvidia-mps"
    service.mkdir()
    link.symlink_to(service)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(service / "control"))

        assert mps_folder(service) == service
        assert mps_folder(link) is None
        (service / "control").unlink()
        (service / "control").touch()
        assert mps_folder(service) is None


def test_training_finds_no_configuration_of_an_earlier_training(program, home, prefix):
    training = program("leaves_files", prefix)
    font_list.make_font_list(home, os.environ)
    kept = {path: path.read_bytes() for path in home.rglob("fontlist-*")}
    reports = []
    for _ in range(2):
        training.when(lambda t: len(t.of("phase")) > len(reports), lambda: free_the_program(prefix))
        reports.append(training.train().report["environment"])

    assert [report["found"] for report in reports] == [[], []]
    assert not set(reports[0]["folders"]) & set(reports[1]["folders"])
    assert {path: path.read_bytes() for path in home.rglob("fontlist-*")} == kept
    assert len(kept) == 1


def free_the_program(prefix):
    processes.wait_until((SHARED / f"{prefix}-shared").exists)
    (SHARED / f"{prefix}-shared").write_text("continue")


def test_each_training_gets_its_own_copy_of_the_font_list(program, home):
    font_list.make_font_list(home, os.environ)
    folder = home / "private"
    folder.mkdir()
    font_list.copy_font_list(home, folder)
    look = "import matplotlib.font_manager as m, pathlib, os; print(m._load_fontmanager.__name__, len(m.fontManager.ttflist))"
    done = subprocess.run(
        [sys.executable, "-c", look], env=os.environ | {"MPLCONFIGDIR": str(folder / "matplotlib")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    (copy,) = (folder / "matplotlib").glob("fontlist-*.json")
    (kept,) = home.glob("fonts-*/fontlist-*.json")
    assert int(done.stdout.split()[1]) > 10
    assert copy.stat().st_ino != kept.stat().st_ino
    assert copy.read_bytes() == kept.read_bytes()


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_strace
@pytest.mark.long
def test_prestarted_process_opens_no_file_that_a_training_could_have_written(tmp_path, home):
    """The real process imports its packages before its training order arrives, and enters the sandbox afterwards."""
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2,execve", "-o", str(trace)]
    child = [sys.executable, "-m", "trainer.training.child.main"]
    trainer = ChildTrainer(
        environment=dict(os.environ), home=home, weights=tmp_path / "models", warm_start=True, program=[*strace, *child],
    )  # fmt: skip
    trainer.warm()
    private = next(home.glob("child-*"))
    training = Trained(tmp_path, trainer)
    trainer.warm_start = False
    with pytest.raises(TrainerError):
        training.train(epochs=1)  # the dataset does not exist

    before = trace.read_text().split(str(tmp_path), 1)[0]  # until the process uses its training order
    names = re.findall(r'(?:open|openat|openat2|execve)\((?:AT_FDCWD, )?"([^"]+)"', before)
    opened = {
        Path(os.path.normpath(private / "tmp" / name)) for name in names
    }  # the folder in which the process starts

    assert len(opened) > 1000
    system = [
        "/usr",
        "/lib",
        "/lib64",
        "/etc",
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
        "/var/cache/fontconfig",
        "/var/lib/libuuid",
    ]
    roots = [
        private,
        sys.prefix,
        os.path.realpath(sys.prefix),
        sys.base_prefix,
        PROGRAMS.parents[2],
        *filter(None, sys.path),
        *system,
        *os.environ["PATH"].split(":"),
    ]
    assert {path for path in opened if not any(map(path.is_relative_to, roots))} == set()


if __name__ == "__main__":
    train_alone(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
