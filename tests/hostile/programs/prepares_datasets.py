"""A service that prepares datasets, one after the other: `prepares_datasets.py HOME HOST`.

Reads one JSON object per line: `source`, and the train ratio `split` or null. After each dataset, it prints the outcome
and the peak memory of the service in KiB since the last dataset. HOST is a web server that the rows can name.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from trainer.core.dataset import DatasetOrder, SplitRequest
from trainer.core.errors import TrainerError
from trainer.core.stop import StopSignal
from trainer.settings import Settings
from trainer.wiring.backend import open_backend
from trainer.wiring.datasets import build_datasets
from trainer.wiring.service import build_service  # noqa: F401 - the service has its modules in memory

home, host = Path(sys.argv[1]), sys.argv[2]
supabase = {"supabase_url": "https://abc.supabase.co", "supabase_service_role_key": "k", "backend": "supabase"}
settings = Settings.model_validate(
    {**supabase, "trainer_home": home, "sandbox": "required", "allowed_dataset_hosts": [host], "warm_start": True}
)
with ExitStack() as opened:
    # the rules for rows of Supabase, with objects in a folder
    local = opened.enter_context(open_backend(settings.model_copy(update={"backend": "local"}), StopSignal()))
    datasets = build_datasets(settings, local, opened)
    for number, line in enumerate(sys.stdin):
        case = json.loads(line)
        split = SplitRequest(train_ratio=case["split"]) if case["split"] else None
        order = DatasetOrder(sources=(case["source"],), split=split, imgsz=8)
        folder = settings.datasets_folder / f"datasets/run_{number}"
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        try:
            datasets.prepare(order, folder, StopSignal(), lambda _: None)
            outcome = "ok"
        except TrainerError as error:
            outcome = f"{type(error).__name__}: {error}"
        datasets.discard(folder)
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(json.dumps({"outcome": outcome[:500], "peak": peak}), flush=True)
