"""Which variants of a test run in `make test`, and which ones only in `make test-long`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def long_except(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return the parameters `values`, all marked `long` except the `quick` ones. A tuple is one set of parameters."""
    marked = [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=[] if value in quick else [pytest.mark.long]
        )
        for value in values
    ]
    assert sum(not parameter.marks for parameter in marked) == len(quick), f"not all of {quick} are among the values"
    return marked
