from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.process.conftest import Trained, alive, gone, second, subreapers, wait_until
from trainer.core.errors import MachineFailed
from trainer.core.stop import Stopped, StopReason
from trainer.training.supervisor import subreaper as subreaper_script

PR_SET_CHILD_SUBREAPER = 36
HIDE = """
import ctypes, os, sys, time
if os.fork():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
else:
    os.setsid()
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
    os.replace(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(20)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv, to mount another /proc"
)
def test_process_hidden_from_proc_ends_when_its_training_ends(tmp_path):
    """The host mounts /proc with hidepid=2."""
    mount = 'mount -t proc -o hidepid=2,gid=65534 proc /proc && exec setpriv --bounding-set -sys_ptrace --inh-caps -sys_ptrace "$@"'
    with under_subreaper(tmp_path, HIDE, prefix=["unshare", "--mount", "sh", "-c", mount, "sh"]) as (process, lifeline):
        assert lifeline.recv(1) == b""
        assert process.wait() == 0

    assert not alive(int((tmp_path / "pid").read_text()))


@contextmanager
def under_subreaper(tmp_path, program, prefix=()):
    """Yield the first subreaper of a program, and the supervisor's end of the socket between both."""
    ours, lifeline = socket.socketpair()
    ours.settimeout(10)
    command = [sys.executable, "-I", "-S", subreaper_script.__file__, str(lifeline.fileno()), str(tmp_path / "folder")]
    command = [*prefix, *command, sys.executable, "-S", "-c", program, str(tmp_path / "pid")]
    with ours, subprocess.Popen(command, pass_fds=[lifeline.fileno()], start_new_session=True) as process:
        lifeline.close()
        yield process, ours


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8])
def test_subreaper_killed_during_shutdown_leaves_no_process(tmp_path, milliseconds):
    with under_subreaper(tmp_path, HIDE + "time.sleep(20)") as (process, lifeline):
        wait_until((tmp_path / "pid").exists)
        lifeline.shutdown(socket.SHUT_WR)
        time.sleep(milliseconds / 1000)
        process.kill()
        assert lifeline.recv(1) == b""

    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("stopped", [(True, False), (False, True), (True, True)], ids=["first", "second", "both"])
def test_training_process_is_killed_even_if_its_subreapers_are_suspended(program, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr("trainer.training.supervisor.process_tree._KILL_SECONDS", 1.5)
    training = program("daemonizes", str(tmp_path / "pids"))

    def stop_the_subreapers():
        (first,) = subreapers()
        for subreaper, is_stopped in zip((first, second(first)), stopped, strict=True):
            if is_stopped:
                subreaper.suspend()
        training.stop.set(StopReason.LOST)

    training.when(lambda t: len(t.of("phase")) == 2, stop_the_subreapers)
    with pytest.raises(Stopped):
        training.train()
    assert subreapers() == []
    assert not alive(int((tmp_path / "pids").read_text()))


@pytest.fixture(params=["first", "second"])
def kill_a_subreaper(request):
    return lambda: [(subreaper if request.param == "first" else second(subreaper)).kill() for subreaper in subreapers()]


def test_killed_subreaper_ends_training_process(program, kill_a_subreaper):
    training = program("ignores_every_signal")
    pids = []

    def kill():
        (subreaper,) = subreapers()
        pids.extend(process.pid for process in subreaper.children(recursive=True))
        kill_a_subreaper()

    training.when(lambda t: t.events, kill)
    with pytest.raises(MachineFailed, match="SIGKILL"):
        training.train()
    assert len(pids) == 2
    assert gone(pids)


@pytest.mark.parametrize("name", ["leaks_children", "daemonizes"])
def test_killed_subreaper_leaves_no_grandchildren(program, tmp_path, home, leak_check, kill_a_subreaper, name):
    """Grandchildren in a new session, orphans and hidden processes also end."""
    training = program(name, str(tmp_path / "pids"), "wait")
    training.when(lambda t: len(t.of("phase")) == 2, kill_a_subreaper)

    with pytest.raises(MachineFailed):
        training.train()

    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids
    assert not any(map(alive, pids))
    assert list(home.glob("*child-*")) == []


@pytest.fixture
def adopts_orphans():
    """Let this process adopt orphans, as the first process of a container does."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def test_killed_subreaper_leaves_no_zombie_in_adopting_service(
    program,
    tmp_path,
    adopts_orphans,
    kill_a_subreaper,
):
    before = psutil.Process().children()
    training = program("daemonizes", str(tmp_path / "pids"))
    training.when(lambda t: len(t.of("phase")) == 2, kill_a_subreaper)

    with pytest.raises(MachineFailed):
        training.train()

    assert psutil.Process().children() == before


def test_killed_subreaper_does_not_affect_other_training(program, tmp_path):
    for name in ("killed", "other"):
        (tmp_path / name).mkdir()
    killed = Trained(tmp_path / "killed", program("leaks_children", str(tmp_path / "pids"), "wait").trainer)
    other = Trained(tmp_path / "other", program("trains_quickly").trainer).behave(seconds_per_epoch=0.2)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(other.train(epochs=10)))
    thread.start()
    other.wait_for(lambda t: t.of("epoch"))
    (other_subreaper,) = subreapers()
    killed.when(
        lambda t: len(t.of("phase")) == 2, lambda: [g.kill() for g in subreapers() if g.pid != other_subreaper.pid],
    )  # fmt: skip

    with pytest.raises(MachineFailed):
        killed.train()

    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    thread.join(20)
    assert ended[0].report["epochs_completed"] == 10
