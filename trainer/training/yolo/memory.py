"""Recognizes out-of-memory errors."""

from __future__ import annotations

import torch

_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a GPU or the host ran out of memory, by the type of the error or the messages of libraries."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(message in text for message in _MESSAGES)
