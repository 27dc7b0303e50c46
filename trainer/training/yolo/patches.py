"""What Ultralytics would do beside training, and must not: install packages, run a dataset's code, leak git, report.

The environment of the process (environment.py) switches most of it off; `isolate` checks that it did and closes the
rest. It patches the exact version that requirements.txt names; tests/unit/training/test_ultralytics_facts.py notices another.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import ultralytics.data.dataset
import ultralytics.utils
import ultralytics.utils.callbacks
import ultralytics.utils.checks

from trainer.training.speedups import labels, pixels
from trainer.training.supervisor.environment import FAST_LOADER

_PLAIN = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (core, name)
        for core in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ),
    *(("pathlib", name) for name in ("Path", "PosixPath")),
    ("numpy._core.numeric", "_frombuffer"),
}


class NotIsolated(RuntimeError):
    """The training process was started without the environment that keeps it harmless."""


def isolate() -> None:
    """Close every way out of this process that is not a result. Raises `NotIsolated`; call it once, after imports."""
    _check_environment()
    git = ultralytics.utils.GIT
    git.__dict__.clear()  # drops what it cached already
    git.root = git.gitdir = git.refdir = None
    # telemetry, the vendor's platform, MLflow and the like would be added to each trainer, validator and exporter here
    ultralytics.utils.callbacks.add_integration_callbacks = _add_nothing
    ultralytics.data.dataset.load_dataset_cache_file = load_label_cache
    if most_bytes := int(os.environ.get(FAST_LOADER, "0")):
        labels.install()
        pixels.install(most_bytes)


def load_label_cache(path: Path) -> Any:
    """A label cache, read without running anything that it contains. Raises `pickle.UnpicklingError` if it would."""
    with Path(path).open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read(file)
        return _PlainUnpickler(io.BytesIO(file.read())).load().item()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"a label cache has no business with {module}.{name}")
        return super().find_class(module, name)


def _check_environment() -> None:
    wrong = [
        name
        for name, is_set in {
            "ULTRALYTICS_SAFE_LOAD=1": ultralytics.utils.SAFE_LOAD,
            "YOLO_AUTOINSTALL=false": not ultralytics.utils.checks.AUTOINSTALL,
        }.items()
        if not is_set
    ]
    if wrong:
        raise NotIsolated(f"The training process has to be started with {' '.join(wrong)}.")


def _add_nothing(_instance: object) -> None:
    """Stands in for Ultralytics' add_integration_callbacks."""
