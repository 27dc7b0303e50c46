from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.process.conftest import alive, gone, is_subreaper, second, subreapers, wait_until
from trainer.core.errors import MachineFailed
from trainer.core.stop import Stopped, StopReason
from trainer.training.supervisor.process import ChildTrainer

HERE = Path(__file__).parent


def test_detached_children_and_orphans_end_when_training_finishes(
    program,
    tmp_path,
    leak_check,
):
    began = time.monotonic()

    program("leaks_children", str(tmp_path / "pids"), "end").train()

    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 4
    assert not any(map(alive, pids))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("reason", [StopReason.CANCELED, StopReason.LOST])
def test_detached_children_and_orphans_end_when_training_is_stopped(
    program,
    tmp_path,
    leak_check,
    reason,
):
    training = program("leaks_children", str(tmp_path / "pids"), "wait", grace=0.2)
    training.when(lambda t: len(t.of("phase")) == 2, lambda: training.stop.set(reason))

    with pytest.raises(Stopped):
        training.train()

    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_processes_that_keep_forking_are_killed_when_training_finishes(program, tmp_path, leak_check):
    began = time.monotonic()

    program("changes_its_pid", str(tmp_path / "lock")).train()

    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "name",
    ["dies_without_result", "closes_the_pipe", "floods_stdout", "many_events", "cannot_be_imported"],
)
def test_no_descriptor_thread_or_process_is_left_after_training(program, leak_check, name):
    training = program(name)
    for _ in range(3):
        try:
            training.train()
        except MachineFailed:
            continue


def test_private_folder_is_removed_with_its_content(program, home):
    training = program("reports_its_environment")

    folder = Path(training.train().report["environment"]["environment"]["HOME"])

    assert folder.parent == home
    assert not folder.exists()


def test_deeply_nested_private_folder_is_removed(program, home):
    report = program("nests_folders_deeply").train().report

    assert not Path(report["environment"]["HOME"]).exists()
    assert list(home.glob("*child-*")) == []


def test_private_folder_of_killed_service_is_removed_by_next_service(tmp_path, home):
    with supervisor(tmp_path, home, "ignores_every_signal", prestarted=True) as process:
        wait_until(lambda: len(list(home.glob("child-*"))) == 2 and len(subreapers_of(process)) == 2)
        below = [subreaper for first in subreapers_of(process) for subreaper in (first, second(first))]
        for subreaper in below:
            subreaper.suspend()  # otherwise the subreaper removes the folder
        process.kill()
        process.wait()
        for subreaper in below:
            subreaper.kill()
    assert len(list(home.glob("child-*"))) == 2

    # start another service with the same folder
    with supervisor(tmp_path, home, "ignores_every_signal", stall=30) as alive:
        wait_until(lambda: len(list(home.glob("child-*"))) == 3)
        time.sleep(0.3)
        trainer = ChildTrainer(environment={}, home=home, weights=home)
        trainer.tidy()

        assert len(list(home.glob("child-*"))) == len(list(home.glob(".child-*"))) == 1
        alive.kill()
        alive.wait()
        wait_until(lambda: not list(home.glob("child-*")))
        trainer.tidy()
    assert list(home.glob("*child-*")) == []


def subreapers_of(process):
    """Return the first subreapers of a supervisor process."""
    return [child for child in psutil.Process(process.pid).children() if is_subreaper(child)]


SUPERVISOR = """
    import sys, threading
    from pathlib import Path
    sys.path[:0] = [{here!r}, {project!r}]
    from conftest import PROGRAMS, ChildTrainer, TimeLimits, Trained
    trainer = ChildTrainer(
        environment={{"PATH": "/usr/bin:/bin"}}, home=Path({home!r}), weights=Path({tmp!r}), warm_start={prestarted!r},
        program=(sys.executable, str(PROGRAMS / {program!r}), *{arguments!r}), limits=TimeLimits(stall={stall!r}),
    )
    # the prestarted process must outlive the thread that started it
    warming = threading.Thread(target=trainer.warm)
    warming.start()
    warming.join()
    training = Trained(Path({tmp!r}), trainer)
    (training.root / "behavior.json").write_text('{{"seconds_per_epoch": {seconds}}}')
    print(training.train(epochs=10).report["epochs_completed"])
"""


def supervisor(tmp_path, home, program, *arguments, prestarted=False, stall=0.5, seconds=0.1):
    """Start a process that supervises one of the programs."""
    script = textwrap.dedent(SUPERVISOR).format(
        here=str(HERE),
        project=str(HERE.parents[1]),
        tmp=str(tmp_path),
        home=str(home),
        program=f"{program}.py",
        arguments=arguments,
        prestarted=prestarted,
        stall=stall,
        seconds=seconds,
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("name", "processes"), [("leaks_children", 4), ("daemonizes", 1)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_training_ends_when_its_supervisor_is_killed(tmp_path, home, how, name, processes):
    with supervisor(tmp_path, home, name, str(tmp_path / "pids"), "wait", prestarted=True, stall=60.0) as process:
        wait_until((tmp_path / "pids").exists)
        tree = psutil.Process(process.pid).children(recursive=True)
        folders = {Path(part) for below in tree for part in below.cmdline() if Path(part).parent == home}
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert len(pids) == processes
        os.kill(process.pid, how)
        process.wait()

    assert gone([below.pid for below in tree] + pids)
    # only the folders of running processes are checked; the next service removes a folder that has no process yet
    assert folders
    wait_until(lambda: not any(map(Path.exists, folders)))


def test_training_is_not_killed_as_stuck_after_suspension_of_supervisor(tmp_path, home):
    with supervisor(tmp_path, home, "trains_quickly") as process:
        wait_until(lambda: list(tmp_path.glob("run/checkpoints/*")))
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)

        assert process.communicate(timeout=10)[0] == "10\n"


@pytest.mark.long
def test_training_is_not_killed_as_stuck_after_suspension_of_whole_host(tmp_path, home):
    """A pause of the virtual machine suspends the supervisor and the training process together."""
    with supervisor(tmp_path, home, "trains_quickly", stall=2.0, seconds=0.6) as process:
        wait_until(lambda: list(tmp_path.glob("run/checkpoints/*")))
        time.sleep(0.15)  # waits for a moment between two events, so that no event is in the pipe
        tree = [below.pid for below in psutil.Process(process.pid).children(recursive=True)]
        for pid in (process.pid, *tree):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.3)  # the supervisor checks the training before the training continues
        for pid in tree:
            os.kill(pid, signal.SIGCONT)

        assert process.communicate(timeout=20)[0] == "10\n"


def test_out_of_memory_killer_prefers_training_process(program):
    training = program("ignores_every_signal")
    scores = []

    def look():
        (child,) = second(subreapers()[0]).children()
        scores.append(int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()))
        training.stop.set(StopReason.LOST)

    training.when(lambda t: t.events, look)
    with pytest.raises(Stopped):
        training.train()
    assert scores == [500]
