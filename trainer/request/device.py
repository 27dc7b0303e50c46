"""Where a row wants to be trained: on the CPU, on so many GPUs, or wherever there is room."""

from __future__ import annotations

from trainer.core.job import Json
from trainer.core.text import shown
from trainer.request import arguments
from trainer.request.configuration import Configuration, is_left_open

_RULE = "'cpu', a GPU index like 0, or a list of different ones like [0, 1]"
_MOST = 64  # GPUs that a row can name; a text of millions of commas is not read to its end
_INDEX = arguments.whole(-1, _MOST - 1)


def read_device(found: Configuration) -> tuple[int, ...] | None:
    """GPU indices, () for the CPU, None when the row leaves it open. `compute` is the web app's word for it."""
    compute, given = found.take("compute"), found.take("device")
    wanted = _compute(compute.value) if compute else None
    if compute and wanted is None:
        found.wrong(compute, "'gpu' or 'cpu'")
    if given is None:
        return wanted
    try:
        device = _devices(given.value)
    except ValueError:
        found.wrong(given, _RULE)
        return None
    if compute and device is not None and wanted is not None and (device == ()) != (wanted == ()):
        found.problems.append(
            f"{compute.spelling} = {shown(compute.value)} and {given.spelling} = {shown(given.value)}: "
            "these contradict each other; keep one",
        )
    return wanted if device is None else device


def _compute(value: Json) -> tuple[int, ...] | None:
    word = value.strip().lower() if isinstance(value, str) else ""
    return {"cpu": (), "gpu": (0,), "cuda": (0,)}.get(word)


def _devices(value: Json) -> tuple[int, ...] | None:
    """Raises ValueError for what is no device."""
    if is_left_open(value):
        return None
    if _compute(value) is not None:
        return _compute(value)
    if isinstance(value, str):
        value = value.strip().lower().removeprefix("cuda:").split(",", _MOST)
    items = value if isinstance(value, list | tuple) else [value]
    indices = [_INDEX.read(item) for item in items[: _MOST + 1]]
    if not 0 < len(indices) <= _MOST or (len(set(indices)) != len(indices) and set(indices) != {-1}):
        raise ValueError(value)
    # -1 is "any free GPU", and which GPU a slot holds is not the row's business anyway
    return tuple(range(len(indices))) if -1 in indices else tuple(indices)
