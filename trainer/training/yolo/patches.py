"""Disables features of Ultralytics: installing packages, running code of a dataset, reading git, telemetry.

The environment of the process (supervisor/environment.py) disables most of these features; `isolate` checks this and
disables the rest. It works with the version of Ultralytics in requirements.txt.
tests/unit/training/test_ultralytics_facts.py fails for another version.
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
from trainer.training.wire import FAST_LOADER

# the classes and functions that a label cache may use
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
    """The training process was started without the environment that isolates it."""


def isolate() -> None:
    """Disable the features that this module names, and install the speedups if the environment enables them.

    Call this function once, after the imports. Raises `NotIsolated`.
    """
    if not ultralytics.utils.SAFE_LOAD or ultralytics.utils.checks.AUTOINSTALL:
        raise NotIsolated(
            "The training process must be started with ULTRALYTICS_SAFE_LOAD=1 and YOLO_AUTOINSTALL=false."
        )
    git = ultralytics.utils.GIT
    git.__dict__.clear()  # removes the cached git data
    git.root = git.gitdir = git.refdir = None
    # this function would add telemetry, the vendor's platform, MLflow and others to each trainer, validator and exporter
    ultralytics.utils.callbacks.add_integration_callbacks = lambda _instance: None
    ultralytics.data.dataset.load_dataset_cache_file = load_label_cache
    if most_bytes := int(os.environ.get(FAST_LOADER, "0")):
        labels.install()
        pixels.install(most_bytes)


def load_label_cache(path: Path) -> Any:
    """Return a label cache without running code in it. Raises `pickle.UnpicklingError` for types not in `_PLAIN`."""
    with Path(path).open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read(file)
        return _PlainUnpickler(io.BytesIO(file.read())).load().item()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"a label cache must not use {module}.{name}")
        return super().find_class(module, name)
