"""Run each benchmark with a tiny size and check its figures."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.figures import HEADER
from tests.postgres_server import MissingBinary

# real trainings: on a busy machine a benchmark takes more than the usual 300 s
pytestmark = [pytest.mark.training, pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FIGURES = {"run": 4, "loader": 2, "stored_pixels": 2, "labels": 1, "sync": 3}
FIGURES |= {"datasets": 1, "storage": 1, "claim": 4, "heartbeats": 1, "idle": 2}


def test_every_benchmark_is_tested():
    assert set(FIGURES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_measures_each_of_its_figures(name):
    try:
        figures = list(importlib.import_module(f"benchmarks.{name}").figures(tiny=True))
    except MissingBinary as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))

    assert len(figures) == FIGURES[name]
    for figure in figures:
        assert re.search(r"\d", figure.measured)
        assert figure.line().count("|") == HEADER.splitlines()[0].count("|")


def test_benchmark_of_training_process_measures_each_of_its_figures():
    # this benchmark needs its own process, because it changes the environment for Ultralytics
    command = [sys.executable, "-m", "benchmarks.training", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n| ") + done.stdout.startswith("| ") == 5
