"""What every unit test gets."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Nothing waits for the disk. Tests of the syncs themselves replace this again."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
