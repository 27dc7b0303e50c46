"""Datasets from Supabase Storage."""

import os

import pytest

from tests.dataset_sources import DATASET, YAML, content, zipped
from tests.storage_server import StorageServer
from trainer.core.errors import ObjectMissing
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.decoder import here
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots
from trainer.remote.storage_api import StorageApi
from trainer.remote.web import GuardedClient
from trainer.storage.supabase import SupabaseObjectStore


@pytest.fixture
def supabase(root, server):
    """Return a Supabase Storage server, and a fetcher that downloads from this server."""
    with StorageServer({"datasets": False}) as storage:
        api = StorageApi(storage.url, "service-key")
        policy = RetryPolicy(tries=4, first_wait=0.01, total_seconds=20)
        store = SupabaseObjectStore(api, notes=root / "notes", stop=StopSignal(), policy=policy)
        web = GuardedClient()
        cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=0)
        yield (
            storage,
            Fetcher(rules=ReferenceRules(Roots(root), "datasets"), cache=cache, web=web, store=store, decode=here),
        )
        web.close()
        api.close()


def test_supabase_listing_of_several_pages_is_complete(supabase, root):
    storage, fetcher = supabase
    files = {f"images/train/{n}.jpg": f"image {n}".encode() for n in range(1100)} | {"data.yaml": YAML.encode()}
    for name, data in files.items():
        storage.put("datasets", f"p/s/{name}", data)
    ref = parse_reference("storage:p/s/data.yaml", ReferenceRules(Roots(root), "datasets"))
    storage.fault("status", on="GET /object/", status=503, times=3)
    assert content(fetcher.fetch(ref, root / "run1", StopSignal(), lambda _: None)) == files
    sent = storage.sent
    assert content(fetcher.fetch(ref, root / "run2", StopSignal(), lambda _: None)) == files
    assert storage.sent == sent


def test_error_about_missing_supabase_dataset_names_key_and_bucket(supabase, root):
    storage, fetcher = supabase
    storage.put("datasets", "a/data.yaml", YAML.encode())
    for text in ("storage:nope/x.yaml", "storage:nope", "storage:a/x/data.yaml", "storage:datasets/b/data.yaml"):
        ref = parse_reference(text, ReferenceRules(Roots(root), "datasets"))
        with pytest.raises(ObjectMissing, match=r"the storage has no '(nope|a/x|datasets/b).*' in bucket 'datasets'"):
            fetcher.fetch(ref, root / f"run-{text.replace('/', '-')}", StopSignal(), lambda _: None)


def test_supabase_folder_at_top_of_bucket_is_accepted(supabase, root):
    storage, fetcher = supabase
    storage.put("datasets", "a/data.yaml", YAML.encode())
    storage.put("datasets", "ab/data.yaml", YAML.encode())
    ref = parse_reference("storage:a", ReferenceRules(Roots(root), "datasets"))
    assert list(content(fetcher.fetch(ref, root / "run1", StopSignal(), lambda _: None))) == ["data.yaml"]


def test_interrupted_download_of_archive_is_resumed(supabase, root):
    storage, fetcher = supabase
    files = DATASET | {"images/train/big.jpg": os.urandom(20 << 20)}
    archive = zipped(root / "x.zip", files)
    storage.put("datasets", "p/set.zip", archive)
    ref = parse_reference("storage:p/set.zip", ReferenceRules(Roots(root), "datasets"))
    storage.fault("slow", on="GET /object/", rate=20e6)
    stop = StopSignal()

    def give_up(event):
        if event.bytes > 5 << 20:
            stop.set(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        fetcher.fetch(ref, root / "run1", stop, give_up)
    before = storage.sent_when_idle()
    assert content(fetcher.fetch(ref, root / "run2", StopSignal(), lambda _: None)) == files
    assert storage.sent - before < len(archive) - (4 << 20)
    assert os.listdir(root / ".cache/tmp") == []
