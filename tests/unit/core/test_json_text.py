"""JSON text with limits: every text becomes a value or a ValueError with a reason."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.core.json_text import DEEPEST, LONGEST, is_too_deep, json_from_text


def nested(levels, inner="1"):
    return "[" * levels + inner + "]" * levels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nested(DEEPEST + 1), "nested deeper than 32 levels"),
        (nested(1500), "nested deeper than 32 levels"),
        ('{"a":' * 1500 + "1" + "}" * 1500, "nested deeper than 32 levels"),
        ("[" * 60_000, "nested deeper than 32 levels"),
        (
            '{"epochs": ' + "1" + "0" * 5000 + "}",
            "10000000000000000000 is not a number that can be stored; it has more than 400 digits",
        ),
        ("9" * 401, "has more than 400 digits"),
        ("0." + "0" * 420 + "1", "has more than 400 digits"),
        ('{"epochs": 1e5000}', "1e5000 is not a number that can be stored"),
        ("NaN", "NaN is not a number that can be stored"),
        ("-Infinity", "-Infinity is not a number that can be stored"),
        ('{"a": ', "not JSON"),
        ("", "not JSON"),
        ("\x00", "not JSON"),
        ('"\ud800', "not JSON"),
        (f'"{"x" * LONGEST}"', "longer than 65536 characters"),
    ],
    ids=lambda value: value[:20],
)
def test_invalid_or_too_large_text_is_rejected_with_reason(text, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        json_from_text(text)
    assert len(str(refused.value)) < 200


def test_32_levels_and_extreme_numbers_are_read():
    assert json_from_text(nested(DEEPEST)) == json.loads(nested(DEEPEST))
    assert json_from_text("9" * 100) == int("9" * 100)
    assert json_from_text(f"{1.7e308:f}") == 1.7e308
    assert json_from_text(f"{5e-324:.330f}") == 5e-324
    assert json_from_text(nested(0, "-1.5e300")) == -1.5e300


@given(st.text() | st.binary().map(lambda content: content.decode("latin-1")))
def test_any_text_gives_value_or_value_error(text):
    with contextlib.suppress(ValueError):
        json_from_text(text)


def test_depth_counts_containers_of_every_kind():
    assert not is_too_deep(json.loads(nested(DEEPEST, "")))
    assert is_too_deep(json.loads(nested(DEEPEST + 1, "")))
    assert is_too_deep({"a": (json.loads(nested(DEEPEST)),)})
    assert not is_too_deep("[" * 100)
