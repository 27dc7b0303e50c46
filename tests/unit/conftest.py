"""Fixtures of all unit tests."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Replace `os.fsync`, so that no test waits for the disk. Tests of syncs replace `os.fsync` again."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
