"""Fixtures of the tests of queues."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "queue.db"
