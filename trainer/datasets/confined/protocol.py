"""The messages between the service and the confined process: one JSON object per line.

    service → process     {"job": NAME, "arguments": {…}, "sandbox": "required"|"auto"|"0"}    only as the first line
                          {"continue": true}                         the answer to `make_room`
    process → service     {"make_room": BYTES}                       before BYTES bytes are written; at most once
                          {"missing": ["…"]}                         the protections that this host does not have; once
                          {"result": {…}}                            the last message of a job that is done
                          {"error": KIND, "problems": ["…"]}         the last message of a job that failed

The service trusts no message: each has a limited size, a result has the type of its job, and a kind of error is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainer.core.errors import BadRequest, DatasetError, HostUnfit, MachineFailed, TrainerError
from trainer.core.job import Json
from trainer.core.json_text import is_too_deep, storable

LONGEST = 16 << 20  # bytes of a message; the names of 20,000 classes have at most 16 MB
# commas and brackets of a message: they limit the number of its values, and so the memory of the parsed message
MOST_VALUES = 250_000
OUT_OF_MEMORY, CRASHED = "out_of_memory", "crashed"
# HostFailed is not here: the process could use it to take the host out of service
_KINDS: Mapping[str, type[BadRequest | MachineFailed]] = {
    kind.__name__: kind for kind in (DatasetError, HostUnfit, MachineFailed)
}
_MOST_PROBLEMS = 1000
_LONGEST_PROBLEM = 10_000  # characters


def encoded(message: Mapping[str, Any]) -> bytes:
    """Return a message as one line."""
    return json.dumps(message, allow_nan=False).encode() + b"\n"


def decoded(line: bytes) -> dict[str, Any]:
    """Return the message of one line, whose texts can be stored in the database. Raises ValueError."""
    values = sum(line.count(sign) for sign in (b",", b"[", b"{"))
    if len(line) > LONGEST or values > MOST_VALUES:
        raise ValueError(f"a message of {len(line):,} bytes with {values:,} values is too large")
    try:
        message = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message is not an object")  # noqa: TRY004 - the caller expects ValueError
    if is_too_deep(message):
        raise ValueError("a message is nested too deeply")
    return {storable(key): _storable(value) for key, value in message.items()}


def error_message(error: TrainerError) -> dict[str, Any]:
    """Return the message about an error of a job."""
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), MachineFailed.__name__)
    problems = error.problems if isinstance(error, BadRequest) else [str(error)]
    return {"error": kind, "problems": [text[:_LONGEST_PROBLEM] for text in problems[:_MOST_PROBLEMS]]}


def not_confined(error: OSError) -> dict[str, Any]:
    """Return the message of a process that cannot enter its sandbox."""
    text = (
        "The process that reads the dataset cannot enter its sandbox on this host, so the dataset was not read "
        f"({error}). Fix the cause; `doctor` shows what this kernel supports."
    )
    return error_message(HostUnfit(text))


def error_of(message: Mapping[str, Any], memory: int) -> TrainerError:
    """Return the error that a message describes. `memory` is the limit of the process in bytes. Raises ValueError."""
    kind, problems = message["error"], message.get("problems")
    if kind == OUT_OF_MEMORY:
        return DatasetError(
            f"The dataset needs more than {memory >> 30} GiB of memory to check. Split the dataset, or remove parts that "
            "expand, for example annotation files with millions of empty objects."
        )
    if not isinstance(problems, list) or not 0 < len(problems) <= _MOST_PROBLEMS:
        raise ValueError("an error without a list of problems")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_PROBLEM for text in problems):
        raise ValueError("a problem is not text, or too long")
    if kind == CRASHED:
        return MachineFailed(f"The process that reads the dataset failed: {problems[0]}")
    if kind not in _KINDS:
        raise ValueError("an unknown kind of error")
    return _KINDS[kind](problems) if kind == DatasetError.__name__ else _KINDS[kind]("\n".join(problems))


def _storable(value: Json) -> Json:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return {storable(key): _storable(item) for key, item in value.items()} if isinstance(value, dict) else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")
