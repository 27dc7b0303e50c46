"""The settings of buckets in Supabase Storage: public or private, and the size limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from trainer.core.errors import Misconfigured, ObjectMissing, TrainerError
from trainer.core.job import JsonObject
from trainer.core.stop import StopSignal
from trainer.remote.answers import amount, flag, mapping
from trainer.remote.storage_api import NoSuchRoute, StorageApi, Target, object_path

_CACHE_SECONDS = 300.0
# calls the function, and repeats the call while the server is unavailable
Persist: TypeAlias = Callable[[Callable[[], JsonObject], StopSignal], JsonObject]


class Buckets:
    """The settings of all buckets, each cached for five minutes."""

    def __init__(self, api: StorageApi, persist: Persist) -> None:
        self._api = api
        self._persist = persist
        self._known: dict[str, tuple[float, JsonObject]] = {}  # bucket → time of the request, and settings

    def settings(self, bucket: str, stop: StopSignal) -> JsonObject:
        """Return the settings of a bucket. Raises ObjectMissing for a bucket that the role cannot see."""
        asked_at, settings = self._known.get(bucket, (float("-inf"), {}))
        if time.monotonic() - asked_at > _CACHE_SECONDS:
            settings = self._persist(lambda: self._ask(bucket), stop)
            self._known[bucket] = (time.monotonic(), settings)
        return settings

    def is_public(self, bucket: str, stop: StopSignal) -> bool:
        try:
            return flag(self.settings(bucket, stop), "public")
        except NoSuchRoute:
            raise  # the server is not the Storage API, so its response says nothing about the bucket
        except (ObjectMissing, Misconfigured):
            return False  # a restricted role cannot read bucket settings; a signed URL works for any bucket

    def limit_advice(self, bucket: str, stop: StopSignal) -> str:
        """Return the advice for an object that is too large."""
        try:
            limit = amount(self.settings(bucket, stop), "file_size_limit")
        except TrainerError:  # the bucket has no limit of its own, or the role cannot read its settings
            return "raise the upload size limit of the project in the Storage settings"
        return f"the bucket's limit is {limit / 1e6:.1f} MB; raise this limit in the Storage settings"

    def _ask(self, bucket: str) -> JsonObject:
        path, target = object_path("bucket", bucket, "").rstrip("/"), Target(bucket=bucket)
        settings = mapping(self._api.call("GET", path, target).json(), "bucket")
        flag(settings, "public")
        return settings
