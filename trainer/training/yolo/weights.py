"""Opens, describes and strips weights files with Ultralytics."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import load_checkpoint

from trainer.core.events import WeightsFile
from trainer.disk.checksum import sha256_of
from trainer.training.yolo.memory import is_out_of_memory

_LOAD_ERRORS = (
    *(TypeError, ValueError, KeyError, AttributeError, ImportError, EOFError, RuntimeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


def open_model(path: Path) -> Any:
    """Return Ultralytics' model for a `.pt` file or an architecture."""
    # a .pt file knows its family; for an architecture only the name shows it
    family = RTDETR if path.suffix == ".yaml" and path.stem.startswith("rtdetr") else YOLO
    return family(str(path))


def load_error(checkpoint: Path) -> Exception | None:
    """Return why a checkpoint cannot be loaded, or None. Raises the error if memory ran out.

    For example, another version of Ultralytics may have saved it.
    """
    try:
        load_checkpoint(checkpoint)
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return error
    return None


def weights_file(path: Path) -> WeightsFile:
    """Return the file with its size and checksum, which the supervisor compares before it publishes. Raises OSError."""
    return WeightsFile(path=str(path), sha256=sha256_of(path), bytes=path.stat().st_size)
