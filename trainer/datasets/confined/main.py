"""The confined process: `python -m trainer.datasets.confined.main`. It executes one job and exits.

The job arrives on stdin, and the result leaves on stdout (see protocol.py). The process limits its memory at once. If it
was started before its job exists, it imports the slow packages while it waits. When the job has arrived, the process
enters the sandbox (limits.py). Only then does it open an untrusted file. End of file on stdin means that the service has
ended or has no job: the process exits.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import select
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO, NoReturn

from trainer.core.errors import TrainerError
from trainer.core.stop import StopSignal
from trainer.datasets.confined.limits import confine, limit_resources
from trainer.datasets.confined.protocol import CRASHED, OUT_OF_MEMORY, encoded, error_message, not_confined
from trainer.datasets.confined.registry import JOBS
from trainer.datasets.decoder import Room

SLOW = (
    "concurrent.futures.thread",
    "trainer.datasets.checks.check",
    "trainer.datasets.formats.detect",
    "trainer.datasets.view.build",
    "trainer.datasets.yaml_text",
)


def main() -> NoReturn:
    """Execute the job from stdin."""
    service = _Service(sys.stdin.buffer, _take_stdout())
    with _reported(service):
        limit_resources()
    if not select.select([0], [], [], 0)[0]:
        _import_slow_packages()
    order = service.next()
    gc.disable()  # the process is short-lived, and a collection would traverse millions of parsed values
    job = JOBS[order["job"]](**order["arguments"])
    with _reported(service):
        missing = confine(job.access, order["sandbox"])
    if missing:
        service.send({"missing": missing})
    service.listen()
    service.send(_outcome(job, service))
    os._exit(0)  # the destructors of 100,000 samples would take a second


@contextmanager
def _reported(service: _Service) -> Iterator[None]:
    """Report an error of the host and exit: a process without its limits must not open an untrusted file."""
    try:
        yield
    except OSError as error:
        service.send(not_confined(error))
        os._exit(1)


def _outcome(job: Any, service: _Service) -> dict[str, Any]:
    try:
        return {"result": asdict(job.run(StopSignal(), Room(make=service.make_room)))}
    except TrainerError as error:
        return error_message(error)
    except MemoryError:
        return {"error": OUT_OF_MEMORY}
    except Exception as error:  # noqa: BLE001 - top level of the process: every failure is reported
        traceback.print_exception(error)  # stderr goes to the log of the service
        return {"error": CRASHED, "problems": [f"{type(error).__name__}: {error}"[:500]]}


class _Service:
    """The service, at the other end of stdin and stdout."""

    def __init__(self, requests: BinaryIO, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._received: queue.Queue[bytes] = queue.Queue()

    def next(self) -> dict[str, Any]:
        """Wait for the job. End of file ends the process."""
        line = self._requests.readline()
        if not line:
            os._exit(0)
        message: dict[str, Any] = json.loads(line)
        return message

    def listen(self) -> None:
        """Receive the answers of the service. End of file ends the process: the service has ended."""
        threading.Thread(target=self._listen, name="service", daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        line = encoded(message)
        while line:
            line = line[os.write(self._answers, line) :]

    def make_room(self, size: int) -> None:
        self.send({"make_room": size})
        self._received.get()

    def _listen(self) -> None:
        for line in self._requests:
            self._received.put(line)
        os._exit(0)


def _take_stdout() -> int:
    """Return a copy of stdout, and let prints of libraries go to stderr."""
    own = os.dup(1)
    os.dup2(2, 1)
    return own


def _import_slow_packages() -> None:
    for name in SLOW:
        importlib.import_module(name)
    importlib.import_module("PIL.Image").init()  # the plugins of all formats


if __name__ == "__main__":
    main()
