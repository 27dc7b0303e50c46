"""Select the variants of a test for `make test`. The other variants run only in `make test-long`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def long_except(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return `values` as parameters, marked `long` unless they are in `quick`. A tuple is one set of parameters."""
    marked = [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=[] if value in quick else [pytest.mark.long]
        )
        for value in values
    ]
    assert sum(not parameter.marks for parameter in marked) == len(quick), (
        f"each of {quick} must occur once in the values"
    )
    return marked
