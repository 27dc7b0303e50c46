"""Fixtures of the contract tests."""

from __future__ import annotations

import pytest
from queue_adapters import queue_lab  # noqa: F401

from tests.storage_server import StorageServer
from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401
from trainer.core.dataset import ObjectRef
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.local import LocalObjectStore
from trainer.storage.router import StoreRouter
from trainer.storage.supabase import SupabaseObjectStore


@pytest.fixture(params=["local", "supabase", "router"])
def store(request, tmp_path):
    if request.param != "supabase":
        (tmp_path / "buckets" / "data").mkdir(parents=True)
        local = LocalObjectStore(tmp_path / "buckets")
        yield local if request.param == "local" else StoreRouter({"local": local}, default="local")
        return
    with StorageServer({"data": False}, tus_host="http://storage.internal:5000") as server:
        api = StorageApi(server.url, "service-key")
        policy = RetryPolicy(tries=2, first_wait=0.01)
        store = SupabaseObjectStore(api, notes=tmp_path / "notes", stop=StopSignal(), policy=policy)
        yield store
        store.close()


@pytest.fixture
def put(store, tmp_path):
    """Return a function that uploads content to a key of the bucket `data` and returns the reference."""

    def put(key: str, content: bytes) -> ObjectRef:
        source = tmp_path / "source"
        source.write_bytes(content)
        ref = ObjectRef(bucket="data", key=key)
        store.upload(source, ref, StopSignal())
        return ref

    return put
