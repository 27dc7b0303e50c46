"""The export formats that this host supports.

This module does not import torch, so that a request can be checked before a training process starts.
"""

from __future__ import annotations

from importlib.util import find_spec

from trainer.core.export_formats import PACKAGES


def available_exports() -> frozenset[str]:
    """Return the formats whose packages are installed.

    Other formats are refused, because a training process installs nothing.
    """
    return frozenset(name for name, modules in PACKAGES.items() if all(find_spec(module) for module in modules))
