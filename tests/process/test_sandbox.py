"""The sandbox: what a real process can and cannot do, on the real kernel."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.model import Architecture
from trainer.core.plan import TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.training.sandbox import landlock, policy
from trainer.training.supervisor.environment import child_environment, private_folder
from trainer.training.wire import encode_order

PROGRAM = Path(__file__).parent / "programs" / "tries_what_it_may.py"
PROJECT = Path(__file__).parents[2]
LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1)  # its version; negative if unavailable

pytestmark = pytest.mark.skipif(LANDLOCK < 1, reason="this kernel has no Landlock")


@dataclass
class Place:
    """A small host: the folders of a run, and other files beside them."""

    root: Path
    order: TrainingOrder
    environment: dict[str, str]

    def try_each(self, *attempts, order=None):
        done = subprocess.run(
            [sys.executable, str(PROGRAM)],
            input=encode_order(order or self.order) + json.dumps(attempts).encode(),
            env=self.environment, stdout=subprocess.PIPE, check=True, timeout=30,
        )  # fmt: skip
        return json.loads(done.stdout)

    def how_it_went(self, attempts, **order):
        results = self.try_each(*attempts, **order)
        assert not results["missing"]
        return set(results["results"].values())


def order_for(root, **changes):
    dataset = PreparedDataset(
        root=root / "view",
        data=root / "view" / "data.yaml",
        task=Task.DETECT,
        names=("disc",),
        images={"train": 4},
        fingerprint="f",
    )
    plan = TrainPlan(
        sources=("/data",),
        model=Architecture(stem="yolo11n"),
        task=None,
        epochs=1,
        batch=4,
        imgsz=64,
        device=None,
    )
    order = {
        "plan": plan,
        "model": root / "models" / "mine.pt",
        "dataset": dataset,
        "run_dir": root / "runs" / "train_1",
    }
    return TrainingOrder(**order | changes)


@pytest.fixture
def place(tmp_path, home):
    for name in (
        "view/data.yaml", "view/images/train/0.png", "models/mine.pt", "models/other.pt", "runs/train_2/best.pt",
        "queue.db", ".env", "kept/epoch-3.pt", "images_of_user/1.png", "elsewhere/2.png", "strangers/3.png",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "view/images/train/1.png").symlink_to(tmp_path / "images_of_user" / "1.png")
    (tmp_path / "images_of_user/2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "view/images/train/2.png").symlink_to(tmp_path / "images_of_user" / "2.png")
    folder = private_folder(home, tmp_path / "models")
    environment = child_environment(dict(os.environ), folder, home, devices=())
    return Place(tmp_path, order_for(tmp_path), environment)


def reading(path):
    return f"open({str(path)!r}).close()"


def writing(path):
    return f"open({str(path)!r}, 'w').close()"


def test_inputs_of_run_are_readable(place):
    order = order_for(place.root, resume=place.root / "kept" / "epoch-3.pt")
    files = [
        "view/data.yaml", "view/images/train/0.png", "view/images/train/1.png", "view/images/train/2.png", "models/mine.pt",
        "kept/epoch-3.pt",
    ]  # fmt: skip

    assert place.how_it_went((reading(place.root / name) for name in files), order=order) == {"done"}


def test_other_files_are_not_readable(place):
    names = ["queue.db", ".env", "models/other.pt", "runs/train_2/best.pt", "strangers/3.png", "kept/epoch-3.pt"]

    assert place.how_it_went(reading(place.root / name) for name in names) == {"PermissionError"}


def test_operators_files_are_not_readable(place):
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
    there = [path for path in paths if os.path.exists(path)]

    assert len(there) >= 3
    assert place.how_it_went(f"import os; os.open({str(path)!r}, os.O_RDONLY)" for path in there) == {"PermissionError"}


def test_environment_of_service_is_not_readable(place):
    """It contains the keys, and belongs to the same user."""
    attempt = "import os; open(f'/proc/{os.getppid()}/environ').read()"

    assert place.how_it_went([attempt]) == {"PermissionError"}


def test_own_folders_are_writable(place):
    run, private = place.order.run_dir, Path(place.environment["HOME"])
    attempts = [
        writing(run / "results.csv"),
        f"import os; os.makedirs({str(run / 'weights' / 'deep')!r})",
        f"import os; os.replace({str(run / 'results.csv')!r}, {str(run / 'weights' / 'moved.csv')!r})",
        f"import os; os.symlink('moved.csv', {str(run / 'weights' / 'link')!r})",
        f"import os; os.remove({str(run / 'weights' / 'link')!r})",
        writing(place.order.dataset.root / "labels.cache"),
        writing(private / "settings.json"),
        "import tempfile; tempfile.mkdtemp()",
        "from multiprocessing import Lock, shared_memory; shared_memory.SharedMemory(create=True, size=9).unlink(); Lock()",
        writing("/dev/null"),
    ]
    results = place.try_each(*attempts)

    assert {code: how for code, how in results["results"].items() if how != "done"} == {}
    assert (run / "weights" / "moved.csv").exists()


def test_other_folders_are_not_writable_even_through_links(place):
    names = [
        "new",
        "queue.db",
        "models/mine.pt",
        "runs/train_2/best.pt",
        "runs/new",
        "images_of_user/1.png",
        "view/images/train/1.png",
    ]
    before = {path: path.read_text() for path in place.root.rglob("*") if path.is_file()}

    assert place.how_it_went(writing(place.root / name) for name in names) == {"PermissionError"}
    assert {path: path.read_text() for path in place.root.rglob("*") if path.is_file()} == before


def test_other_files_can_be_neither_changed_nor_moved_in(place):
    ways = [
        "os.remove({0!r})", "os.truncate({0!r}, 0)", "os.rename({0!r}, {0!r} + '2')", "os.symlink('x', {0!r} + '2')",
        "os.mkdir({0!r} + '2')", "os.link({0!r}, {1!r})", "os.rename({0!r}, {1!r})", "os.mkfifo({0!r} + '2')",
    ]  # fmt: skip
    paths = str(place.root / "queue.db"), str(place.order.run_dir / "mine")
    results = place.how_it_went("import os; " + way.format(*paths) for way in ways)

    assert results <= {"PermissionError", "OSError"}  # EXDEV: programs then copy instead
    assert sorted(path.name for path in place.root.glob("queue.db*")) == ["queue.db"]
    assert (place.root / "queue.db").read_text() == "content"


def test_device_files_cannot_be_created(place):
    """Root could create a device file for the disk and bypass the sandbox."""
    code = f"import os, stat; os.mknod({str(place.order.run_dir / 'disk')!r}, stat.S_IFBLK | 0o600, os.makedev(254, 0))"

    assert place.how_it_went([code]) == {"PermissionError"}


def test_written_files_cannot_be_executed(place):
    program = place.order.run_dir / "program"
    code = (
        f"import os, subprocess; open({str(program)!r}, 'w').write('#!/bin/sh\\n'); os.chmod({str(program)!r}, 0o755); "
    )
    code += f"subprocess.run([{str(program)!r}], check=True)"

    assert place.how_it_went([code]) == {"PermissionError"}
    assert program.exists()


def test_host_programs_run_inside_the_sandbox(place):
    run = "import subprocess, sys; subprocess.run([sys.executable, '-c', {0!r}], check=True, stderr=subprocess.DEVNULL)"
    inside = run.format(f"import trainer.core.job, numpy; {writing(place.order.run_dir / 'new')}")
    outside = run.format(writing(place.root / "new")).replace("check=True", "check=False")

    assert place.how_it_went([inside, outside]) == {"done"}
    assert (place.order.run_dir / "new").exists()
    assert not (place.root / "new").exists()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


CONNECT = "import socket; socket.create_connection(('127.0.0.1', {0}), 5).close()"


def test_network_is_closed_even_to_this_host(place, listener):
    ring = "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.syscall(425, 1, (ctypes.c_char * 120)()); "
    ring += "raise OSError(ctypes.get_errno(), 'io_uring')"
    attempts = [
        CONNECT.format(listener.getsockname()[1]),
        "import socket; socket.create_server(('127.0.0.1', 0)).close()",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()",
        "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()",
        # other system call numbers are refused too
        ring,
    ]

    assert place.how_it_went(attempts) == {"PermissionError"}


def test_network_is_closed_for_existing_threads(tmp_path, listener):
    code = f"""
import threading, socket
from trainer.training.sandbox.landlock import close_network
go, done = threading.Event(), []
def connect():
    go.wait()
    try:
        {CONNECT.format(listener.getsockname()[1]).partition("; ")[2]}
    except PermissionError:
        done.append("refused")
thread = threading.Thread(target=connect); thread.start()
close_network(); go.set(); thread.join(); print(done)
"""
    results = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert results.stdout == "['refused']\n"


def test_unix_sockets_of_run_work(place):
    code = "import socket, tempfile; a = socket.socket(socket.AF_UNIX); a.bind(tempfile.mkdtemp() + '/s'); a.listen(); "
    code += "b = socket.socket(socket.AF_UNIX); b.connect(a.getsockname()); socket.socketpair(); "
    code += "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()"

    assert place.how_it_went([code]) == {"done"}


def test_run_on_several_gpus_keeps_tcp(place, listener):
    order = order_for(place.root, devices=(0, 1))

    assert place.how_it_went([CONNECT.format(listener.getsockname()[1])], order=order) == {"done"}
    assert place.how_it_went([reading(place.root / "queue.db")], order=order) == {"PermissionError"}


@pytest.mark.skipif(LANDLOCK < 6, reason="signals are closed from Landlock 6 on")
def test_other_processes_cannot_be_signaled(place):
    own = "import subprocess; p = subprocess.Popen(['sleep', '60']); p.kill(); p.wait()"
    results = place.try_each("import os; os.kill(os.getppid(), 0)", own)["results"]

    assert list(results.values()) == ["PermissionError", "done"]


def test_entering_sandbox_takes_milliseconds(place):
    """Measured as processor time, so that other processes on this host do not count."""
    assert min(place.try_each()["milliseconds"] for _ in range(3)) < 20


def test_missing_protection_is_reported_and_training_continues(place, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise landlock.SandboxUnavailable(38, "Function not implemented")

    monkeypatch.setattr(policy, "confine_files", refuse)
    monkeypatch.setattr(policy, "close_network", refuse)

    files, network = policy.confine(place.order, place.environment)

    assert files == "files (Landlock: Function not implemented)"
    assert network == "network (seccomp: Function not implemented)"


def test_unreadable_sample_leaves_everything_open(tmp_path):
    """Some network file systems change file identities, which would make a dataset unreadable."""
    (tmp_path / "needed").write_text("x")
    code = f"""
from pathlib import Path
from trainer.training.sandbox.landlock import AccessPolicy, SandboxUnavailable, confine_files
try:
    confine_files(AccessPolicy(read=(Path("/usr"),), samples=(Path({str(tmp_path / "needed")!r}),)), tcp=False)
except SandboxUnavailable as error:
    print(error.strerror)
print(open({str(tmp_path / "needed")!r}).read())
"""
    results = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert results.stdout == f"Permission denied: {tmp_path / 'needed'}\nx\n"


def test_unknown_processor_is_reported(monkeypatch):
    monkeypatch.setattr(landlock.platform, "machine", lambda: "vax")

    with pytest.raises(landlock.SandboxUnavailable, match="vax"):
        landlock.close_network()


# ── the access policy ──


def test_imported_packages_are_among_samples(place):
    """Otherwise an unusual installation would end in an ImportError."""
    tried = policy.access_policy(place.order, place.environment).samples

    assert [path.parent.name for path in tried[-4:]] == ["torch", "ultralytics", "numpy", "trainer"]
    assert all(path.is_file() for path in tried[-4:])


def test_existing_font_list_is_read_only(place):
    fonts = Path(place.environment["MPLCONFIGDIR"])

    assert fonts in policy.access_policy(place.order, place.environment).write
    (fonts / "fontlist-v390.json").write_text("{}")
    assert fonts not in policy.access_policy(place.order, place.environment).write
    assert fonts in policy.access_policy(place.order, place.environment).read


def test_tree_without_hole_keeps_everything_else(tmp_path):
    for name in ("app/.env", "app/code.py", "lib/x", "bin/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    parts = set(policy.without(tmp_path, tmp_path / "app" / ".env"))

    assert parts == {tmp_path / "lib", tmp_path / "bin", tmp_path / "app" / "code.py"}
    assert list(policy.without(tmp_path / "app", tmp_path / "app")) == []
    assert list(policy.without(tmp_path / "app", tmp_path / "lib")) == [tmp_path / "app"]


def test_links_of_view_are_followed_to_final_folder(place):
    found = policy.linked_files(place.order.dataset.root)

    assert set(found) == {place.root / "images_of_user", place.root / "elsewhere"}
    assert found[place.root / "elsewhere"] == place.root / "elsewhere" / "2.png"


def test_broken_links_and_missing_view_are_ignored(place):
    (place.order.dataset.root / "images" / "train" / "3.png").symlink_to("/nowhere/3.png")
    (place.order.dataset.root / "images" / "train" / "4.png").symlink_to("4.png")

    assert Path("/nowhere") in policy.linked_files(place.order.dataset.root)
    assert policy.linked_files(place.root / "gone") == {}
    assert place.how_it_went([reading(place.root / "queue.db")]) == {"PermissionError"}


@pytest.mark.parametrize(("there", "woken"), [(["nvidiactl"], True), (["nvidiactl", "nvidia-uvm"], False), ([], False)])
def test_gpu_device_is_created_before_sandbox(tmp_path, monkeypatch, there, woken):
    for name in there:
        (tmp_path / name).touch()
    program = tmp_path / "nvidia-modprobe"
    program.write_text(f"#!/bin/sh\necho $@ > {tmp_path / 'asked'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    policy.create_gpu_device(tmp_path)

    assert (tmp_path / "asked").exists() == woken
    if woken:
        assert (tmp_path / "asked").read_text() == "-u -c 0\n"
