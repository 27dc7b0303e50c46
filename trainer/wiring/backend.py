"""The backend of a service: its queue, its run table and its store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from trainer.core.ports import ObjectStore, Queue, RunTable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_schema import SCHEMA_VERSION
from trainer.settings import Settings
from trainer.storage.local import LocalObjectStore
from trainer.storage.router import StoreRouter


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The queue of the runs and the store of the objects. The local backend is one SQLite file and one folder."""

    queue: Queue
    runs: RunTable
    store: ObjectStore
    check: Callable[[], Sequence[str]]  # raises an error if the access fails; returns warnings
    schema_version: Callable[[], int]
    tidy: Callable[[], None]  # removes the temporary files of abandoned uploads from this host
    url: str | None  # URL of Supabase; None for the local backend


@contextmanager
def open_backend(settings: Settings, stop: StopSignal) -> Iterator[Backend]:
    """Open the backend that the settings select. No request is sent."""
    if not settings.uses_supabase:
        queue = SqliteQueue(settings.trainer_home / "queue.db")
        store = LocalObjectStore(settings.trainer_home / "storage")
        yield Backend(
            queue=queue,
            runs=queue,
            store=StoreRouter({store.name: store}, default=store.name),
            check=lambda: (),
            schema_version=lambda: SCHEMA_VERSION,
            tidy=store.tidy,
            url=None,
        )
        return
    # imported here because a local service does not need the client library
    from trainer.jobs.supabase import SupabaseQueue
    from trainer.remote.storage_api import StorageApi
    from trainer.remote.supabase import Project
    from trainer.storage.supabase import SupabaseObjectStore

    assert settings.supabase_url is not None
    assert settings.supabase_service_role_key is not None
    url, key = settings.supabase_url, settings.supabase_service_role_key.get_secret_value()
    apikey = settings.supabase_anon_key.get_secret_value() if settings.supabase_anon_key else None
    with Project(url, key, apikey=apikey) as project, closing(StorageApi(url, key, apikey=apikey)) as api:
        # the tries of one heartbeat end before the next heartbeat
        beat = RetryPolicy(tries=3, first_wait=0.5, longest_wait=2.0, total_seconds=0.8 * beat_seconds(settings))
        supabase = SupabaseQueue(project, beat=beat)
        objects = SupabaseObjectStore(api, notes=settings.trainer_home / "uploads", stop=stop)
        yield Backend(
            queue=supabase,
            runs=supabase,
            store=StoreRouter({objects.name: objects}, default=objects.name),
            check=supabase.check,
            schema_version=supabase.schema_version,
            tidy=objects.tidy,
            url=settings.supabase_url,
        )


def beat_seconds(settings: Settings) -> float:
    """Return the seconds between two heartbeats. A heartbeat renews the lease and also checks for a cancel request."""
    return min(settings.cancel_check_interval, settings.heartbeat_interval)
