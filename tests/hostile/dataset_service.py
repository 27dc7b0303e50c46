"""Helpers for the tests of datasets in rows: the datasets of a service with the rules for Supabase."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.process.sandbox_host import PROJECT
from trainer.core.dataset import DatasetOrder
from trainer.core.stop import StopSignal
from trainer.settings import Settings
from trainer.wiring.backend import open_backend
from trainer.wiring.datasets import build_datasets

DAEMON_MIB = 150  # the limit for the memory of the service
_PROGRAM = Path(__file__).parent / "programs/prepares_datasets.py"


def settings_in(folder, **values):
    supabase = {"supabase_url": "https://abc.supabase.co", "supabase_service_role_key": "k", "backend": "supabase"}
    return Settings.model_validate({**supabase, "trainer_home": folder / "home", **values})


@contextmanager
def service(settings):
    """Yield the datasets of a service with the rules for Supabase, whose objects are in a folder."""
    with ExitStack() as opened:
        local = opened.enter_context(open_backend(settings.model_copy(update={"backend": "local"}), StopSignal()))
        yield build_datasets(settings, local, opened)


def prepared(datasets, reference, **order):
    folder = datasets.rules.roots.dataset_root / "datasets" / f"run_{reference.encode().hex()[-40:]}"
    return datasets.prepare(DatasetOrder(sources=(reference,), **order), folder, StopSignal(), lambda _: None)


def prepared_by_service(home, sources, *, split=None, host="none.example"):
    """Prepare datasets in another process with the real sandbox. Return the outcome and the peak memory of each."""
    done = subprocess.run(
        [sys.executable, str(_PROGRAM), str(home), host],
        input="".join(json.dumps({"source": source, "split": split}) + "\n" for source in sources),
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True, timeout=280,
    )  # fmt: skip
    return list(map(json.loads, done.stdout.splitlines()))
