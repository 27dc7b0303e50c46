"""The Retry-After header."""

import pytest

from trainer.remote.answers import retry_after_seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("", None), (None, None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)
def test_header_is_read_as_seconds(header, seconds):
    assert retry_after_seconds(header) == seconds
