"""Which formats a model can be exported to on this host; imports no torch, so that a request can be checked early."""

from __future__ import annotations

from importlib.util import find_spec

from trainer.core.export_formats import PACKAGES


def available_exports() -> frozenset[str]:
    """The formats whose packages are installed; Ultralytics would install the others by itself, which it never may."""
    return frozenset(name for name, modules in PACKAGES.items() if all(find_spec(module) for module in modules))
