"""On PYTHONPATH of a training: notes when each batch ends, in `.batches` of the run's folder, as `seconds pid` lines.

Ours and the bare training are watched in this same way.
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

WATCHED = "ultralytics.engine.trainer"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec
        assert spec.loader
        execute = spec.loader.exec_module

        def watched(module: ModuleType) -> None:
            execute(module)
            _watch(module.BaseTrainer)

        spec.loader.exec_module = watched  # type: ignore[method-assign]
        return spec


def _watch(trainer_class: Any) -> None:
    run_callbacks = trainer_class.run_callbacks

    def noting(self: Any, event: str) -> Any:
        if event == "on_train_batch_end":
            with (Path(self.save_dir) / ".batches").open("a") as file:
                file.write(f"{time.time()} {os.getpid()}\n")
        return run_callbacks(self, event)

    trainer_class.run_callbacks = noting


sys.meta_path.insert(0, _Finder())
