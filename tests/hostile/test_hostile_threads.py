"""Threads that started before the sandbox: the kernel does not restrict them, so a process with such a thread has none."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.process.sandbox_host import PROJECT, needs_landlock, sandbox_host
from trainer.training.supervisor.process import ChildTrainer
from trainer.training.wire import encode_order

pytestmark = needs_landlock

# a thread that exists before the sandbox would open any file for the training
ATTACK = """
import json, os, queue, sys, threading
from trainer.training.child.confinement import confine
from trainer.training.wire import decode_command
order = decode_command(sys.stdin.buffer.readline())
wanted, found = queue.Queue(), queue.Queue()
def read():
    found.put(open(wanted.get()).read())
threading.Thread(target=read, daemon=True).start()
try:
    confine(order, os.environ)
except OSError as error:
    print(json.dumps({"refused": str(error)}))
else:
    wanted.put(sys.argv[1])
    print(json.dumps({"read": found.get()}))
"""


@pytest.fixture
def host(tmp_path):
    return sandbox_host(tmp_path, tmp_path / "home")


def test_process_with_an_earlier_thread_does_not_enter_the_sandbox(host):
    secret = host.root / "secret"
    secret.write_text("key")

    done = subprocess.run(
        [sys.executable, "-c", ATTACK, str(secret)],
        input=encode_order(host.order), env=host.environment, stdout=subprocess.PIPE, check=True, timeout=30, cwd=PROJECT,
    )  # fmt: skip

    assert "threads that the sandbox would not restrict: python" in json.loads(done.stdout)["refused"]


def test_ended_thread_is_not_listed():
    code = "import threading; from trainer.sandbox.landlock import other_threads as t; h = threading.Thread(target=print); h.start(); h.join(); print(t())"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)

    assert done.stdout.strip() == "[]"


@pytest.mark.long
def test_prestarted_process_has_only_the_thread_that_reads_its_order(tmp_path):
    """The slow packages start threads at their import unless the environment forbids it."""
    trainer = ChildTrainer(environment=os.environ, home=tmp_path / "home", weights=tmp_path, warm_start=True)
    try:
        trainer.warm()
        process = _process_with("libtorch_python", "_imaging", "_path")

        assert sorted(thread.id == process.pid for thread in process.threads()) == [False, True]
    finally:
        trainer.close()


def _process_with(*libraries):
    """Return the child process that has loaded all these libraries and now waits."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            try:
                loaded = " ".join(found.path for found in process.memory_maps())
                used = process.cpu_times().user
                time.sleep(0.5)
                if all(name in loaded for name in libraries) and process.cpu_times().user == used:
                    return process
            except psutil.NoSuchProcess:
                continue
    raise AssertionError("no process has loaded the libraries")
