"""Files, objects and processes for the tests of the Supabase store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.storage_server import StorageServer
from trainer.core.dataset import ObjectRef
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.storage.supabase import SupabaseObjectStore

MIB = 1024 * 1024
CHUNK = 6 * MIB
QUICK = RetryPolicy(tries=3, first_wait=0.01, total_seconds=20)
REF = ObjectRef(bucket="data", key="runs/1/best.pt")
DOWNLOAD = "GET /object/data"


def source_file(tmp_path: Path, size: int) -> tuple[Path, bytes]:
    path, content = tmp_path / "best.pt", os.urandom(size)
    path.write_bytes(content)
    return path, content


def fetched(store: SupabaseObjectStore, tmp_path: Path, **options) -> bytes:
    store.download(REF, tmp_path / "out" / "best.pt", StopSignal(), **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best.pt"]
    return (tmp_path / "out/best.pt").read_bytes()


def in_another_process(server: StorageServer, tmp_path: Path, statements: str) -> subprocess.Popen[str]:
    script = f"""
import resource
from pathlib import Path
from trainer.core.dataset import ObjectRef
from trainer.core.stop import StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore
folder, ref = Path({str(tmp_path)!r}), ObjectRef(bucket={REF.bucket!r}, key={REF.key!r})
store = SupabaseObjectStore(StorageApi({server.url!r}, "service-key"), notes=folder / "notes", stop=StopSignal())
{statements}
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def kill_when(condition, server: StorageServer, tmp_path: Path, statement: str) -> None:
    """Run `statement` with a new store in another process. Kill the process when `condition` is true."""
    with in_another_process(server, tmp_path, statement) as process:
        deadline = time.monotonic() + 20
        while not condition():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").glob("*"))


def fill(server: StorageServer, count: int) -> set[str]:
    keys = {f"set/{'images' if n % 2 else 'labels/deep'}/{n:05}.txt" for n in range(count)}
    server.put("data", "one", b"12345")
    server.objects["data"] |= dict.fromkeys(keys, server.objects["data"].pop("one"))
    return keys


def listed(store: SupabaseObjectStore, prefix: str = "set", bucket: str = "data") -> list[str]:
    return [info.ref.key for info in store.list(ObjectRef(bucket=bucket, key=prefix))]
