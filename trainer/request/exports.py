"""Which formats a row may ask its model to be exported to."""

from __future__ import annotations

from trainer.core.export_formats import PACKAGES, UNSERVED
from trainer.core.text import shown
from trainer.request.configuration import Configuration, squeezed

_ALIASES = {"tensorrt": "engine", "trt": "engine", "savedmodel": "saved_model", "tflite": "litert"}


def read_exports(found: Configuration, available: frozenset[str]) -> tuple[str, ...]:
    """The formats asked for, each once; what is not `available` on this worker is a problem."""
    given = found.take("exports")
    if given is None or given.value is False:
        return ()
    names = given.value.split(",") if isinstance(given.value, str) else given.value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names) or len(names) > 20:
        found.wrong(given, f"a list of {', '.join(PACKAGES)}")
        return ()
    formats = dict.fromkeys(_ALIASES.get(squeezed(name), name.strip().lower()) for name in names)
    for name in formats:
        if name not in available:
            offered = ", ".join(sorted(available)) or "none"
            found.problems.append(
                f"{given.spelling} = {shown(name)}: {_reason(name)}; formats of this worker: {offered}"
            )
    return tuple(formats)


def _reason(name: str) -> str:
    if name in UNSERVED:
        return "needs a tool chain that is not served"
    if name not in PACKAGES:
        return "no such export format"
    return f"needs the packages {', '.join(PACKAGES[name])} on the worker"
