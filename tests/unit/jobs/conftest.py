"""Fixtures for the queue tests."""

import pytest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "queue.db"
