"""The wait between two tries of a call."""

import pytest

from trainer.core.retry import RetryPolicy


@pytest.mark.parametrize("again", [0, 5, 1023, 1024, 100_000])
def test_wait_is_bounded_after_any_number_of_failures(again):
    policy = RetryPolicy(first_wait=0.5, longest_wait=30.0)
    assert 0 <= policy.wait_before(again, None) <= 30
