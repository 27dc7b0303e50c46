"""Record the end time of each batch of a training in the file `.batches` of the run folder.

Each line is `seconds pid`, in Unix time. The folder of this file must be on the PYTHONPATH of the training. The service
and the baseline are measured in the same way.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "ultralytics.engine.trainer"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec
        assert spec.loader
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module.BaseTrainer)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch(trainer_class: Any) -> None:
    run_callbacks = trainer_class.run_callbacks

    def record_batch(self: Any, event: str) -> Any:
        if event == "on_train_batch_end":
            with (Path(self.save_dir) / ".batches").open("a") as file:
                file.write(f"{time.time()} {os.getpid()}\n")
        return run_callbacks(self, event)

    trainer_class.run_callbacks = record_batch


sys.meta_path.insert(0, _Finder())
