"""Fixtures of all unit tests."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Replace `os.fsync`, so that no test waits for the disk. Tests of syncs install their own replacement."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
