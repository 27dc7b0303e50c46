"""A service that prepares one dataset: `prepares_dataset.py HOME REFERENCE`. Prints the outcome and its peak memory in KiB."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from trainer.core.dataset import DatasetOrder
from trainer.core.errors import TrainerError
from trainer.core.stop import StopSignal
from trainer.settings import Settings
from trainer.wiring.backend import open_backend
from trainer.wiring.datasets import build_datasets
from trainer.wiring.service import build_service  # noqa: F401 - the service has its modules in memory

home, reference = Path(sys.argv[1]), sys.argv[2]
settings = Settings(backend="local", trainer_home=home, sandbox="required")
with ExitStack() as opened:
    datasets = build_datasets(settings, opened.enter_context(open_backend(settings, StopSignal())), opened)
    order = DatasetOrder(sources=(reference,))
    try:
        datasets.prepare(order, home / "datasets/datasets/run_1", StopSignal(), lambda _: None)
        outcome = "ok"
    except TrainerError as error:
        outcome = f"{type(error).__name__}: {error}"
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(json.dumps({"outcome": outcome, "peak": peak}))
