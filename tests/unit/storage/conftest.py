"""Fixtures: the fake Storage server, and Supabase stores that use it."""

from __future__ import annotations

import pytest

from tests.storage_server import StorageServer
from tests.unit.storage.files_and_objects import QUICK
from trainer.core.stop import StopSignal
from trainer.remote.storage_api import HttpTimes, StorageApi
from trainer.storage.supabase import SupabaseObjectStore


@pytest.fixture
def server():
    with StorageServer({"data": False, "open": True}, tus_host="http://storage.internal:5000") as server:
        yield server


@pytest.fixture
def make_store(server, tmp_path):
    """Return a function that creates a new store, as another process would create it."""
    apis: list[StorageApi] = []

    def make(key: str = "service-key", url: str = "", times: HttpTimes | None = None, **options) -> SupabaseObjectStore:
        apis.append(StorageApi(url or server.url, key, times=times))
        options = {"notes": tmp_path / "notes", "stop": StopSignal(), "policy": QUICK} | options
        return SupabaseObjectStore(apis[-1], **options)

    yield make
    for api in apis:
        api.close()


@pytest.fixture
def store(make_store):
    return make_store()
