"""Fixtures for tests that fetch datasets or use the content cache."""

from dataclasses import replace

import pytest

from tests.dataset_sources import DATASET, SUPABASE, WatchedStore
from tests.web_server import web_server
from trainer.core.dataset import HttpRef
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots
from trainer.remote.web import GuardedClient
from trainer.storage.local import LocalObjectStore


@pytest.fixture
def cache(tmp_path):
    return ContentCache(tmp_path / "cache", max_bytes=1000, reserve=0)


@pytest.fixture
def store(tmp_path):
    made = WatchedStore(tmp_path / "store")
    made.put(DATASET)
    return made


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def fetcher(root, store, server):
    web = GuardedClient(allowed_hosts=[server.host], policy=RetryPolicy(tries=2, first_wait=0.01, total_seconds=5))
    cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=0)
    yield Fetcher(
        rules=ReferenceRules(Roots(root), "datasets"), cache=cache, web=web, store=store, concurrency=4, decode=here
    )
    web.close()


@pytest.fixture
def datasets(places):
    """Return the datasets of `places`, a fixture of the module with `DatasetPlaces`."""
    rules = ReferenceRules(Roots(places.root), "datasets", storage_url=SUPABASE)
    cache = ContentCache(places.root / ".cache", max_bytes=1 << 30, reserve=0)
    web = GuardedClient(allowed_hosts=[places.server.host])
    store = LocalObjectStore(places.bucket.parent)
    yield FetchedDatasets(
        fetcher=Fetcher(rules=rules, cache=cache, web=web, store=store, decode=here), rules=rules, decode=here
    )
    web.close()


@pytest.fixture
def fetch(fetcher, root):
    return fetching(fetcher, root)


@pytest.fixture
def allowing(fetcher, root):
    """Return a function that returns `fetch` for a fetcher with more allowed buckets."""
    return lambda *buckets: fetching(replace(fetcher, rules=replace(fetcher.rules, allowed_buckets=buckets)), root)


def fetching(fetcher, root):
    numbers = iter(range(100))

    def do(text, stop=None, on_event=lambda _: None, staging=None):
        ref = HttpRef(url=text) if text.startswith("http") else parse_reference(text, fetcher.rules)
        return fetcher.fetch(ref, staging or root / f"run{next(numbers)}/source", stop or StopSignal(), on_event)

    return do
