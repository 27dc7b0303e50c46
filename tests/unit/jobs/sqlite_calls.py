"""Helper functions for the tests of the SQLite queue."""

import subprocess
import sys
import uuid
from pathlib import Path

from trainer.core.job import RunRequest
from trainer.core.ports import Worker

ROOT = Path(__file__).parents[3]


def claim(queue, worker="w1", seconds=60.0):
    return queue.claim(Worker(id=worker), str(uuid.uuid4()), seconds)


def enqueue(queue, **request):
    return queue.enqueue(RunRequest(data_yaml="d", **request))


def python(code, *args, **options):
    """Start `code` in a Python process with pipes for its input and output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip
