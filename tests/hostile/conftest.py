"""Fixtures for hostile references: a dataset root, a secret file outside the root, a web server, and a time limit."""

from __future__ import annotations

import os
import time

import pytest

from tests.hostile.references import SECRET
from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401
from tests.web_server import web_server
from trainer.core.retry import RetryPolicy
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.decoder import here
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots
from trainer.remote.web import GuardedClient
from trainer.storage.local import LocalObjectStore


@pytest.fixture
def _time_limit():
    """Fail a test that takes 20 s or longer."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def place(tmp_path):
    """Yield a folder with a dataset root and a secret. After the test, check that nothing outside the root changed."""
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/data.yaml").write_text(SECRET)
    yield tmp_path
    assert sorted(os.listdir(tmp_path)) in (["root", "secret"], ["root", "secret", "store"])
    assert os.listdir(tmp_path / "secret") == ["data.yaml"]
    assert (tmp_path / "secret/data.yaml").read_text() == SECRET


@pytest.fixture
def fetcher(place, server):
    web = GuardedClient(
        allowed_hosts=[server.host],
        max_bytes=4 << 20,
        policy=RetryPolicy(tries=1),
        max_seconds=10,
    )
    cache = ContentCache(place / "root/.cache", max_bytes=1 << 30, reserve=0)
    yield Fetcher(
        rules=ReferenceRules(Roots(place / "root"), "datasets"),
        cache=cache,
        web=web,
        store=LocalObjectStore(place / "store"),
        decode=here,
    )
    web.close()
