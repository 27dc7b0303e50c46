"""Compare our object store with other programs: a model upload with httpx and curl, many downloads with an httpx loop.

    python -m benchmarks.storage [--objects 1000] [--megabytes 200] [--tiny]

The server is the fake Storage server (tests/storage_server.py). It uses the same cores, so only the ratios are
meaningful.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from benchmarks.figures import Figure
from trainer.core.dataset import ObjectRef
from trainer.core.ports import ObjectInfo
from trainer.core.stop import StopSignal
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore

KEY = "service-key"
SIZE = 50_000  # bytes of one object
THREADS = (1, 8, 16, 32)
ROUNDS = 3


@contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.storage_server", "--port", "0", "--bucket", "data", "--key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_threads(count: int, work: Callable[[ObjectInfo], object], objects: Iterable[ObjectInfo]) -> float:
    with ThreadPoolExecutor(count) as pool:
        return seconds(lambda: list(pool.map(work, objects)))


def downloads(store: SupabaseObjectStore, url: str, folder: Path, count: int) -> None:
    source = folder / "object"
    source.write_bytes(os.urandom(SIZE))
    refs = [ObjectRef(bucket="data", key=f"set/{n % 10}/{n:06}.jpg") for n in range(count)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda ref: store.upload(source, ref, StopSignal()), refs))
    took = seconds(lambda: list(store.list(ObjectRef(bucket="data", key="set"))))
    objects = list(store.list(ObjectRef(bucket="data", key="set")))
    print(f"listing: {count} objects in {took:.2f} s = {count / took:,.0f} objects/s")

    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, limits=limits) as client:

        def baseline(info: ObjectInfo) -> None:
            path = folder / "baseline" / info.ref.key.replace("/", "-")
            with (
                client.stream("GET", f"{url}/storage/v1/object/data/{info.ref.key}") as response,
                path.open("wb") as out,
            ):
                for block in response.iter_raw():
                    out.write(block)

        def ours(info: ObjectInfo) -> None:
            path = folder / "ours" / info.ref.key.replace("/", "-")
            store.download(info.ref, path, StopSignal(), expected=info)

        kinds = {"plain httpx": baseline, "ours": ours}
        rates = {name: [0.0] * len(THREADS) for name in kinds}
        for again in range(ROUNDS):
            for place, threads in enumerate(THREADS):
                # both are measured in turn, so that other load on the host affects both; the best rate counts
                for name in sorted(kinds, reverse=again % 2 == 0):
                    for kind in ("baseline", "ours"):
                        shutil.rmtree(folder / kind, ignore_errors=True)
                        (folder / kind).mkdir()
                    rate = count / in_threads(threads, kinds[name], objects)
                    rates[name][place] = max(rates[name][place], rate)
    print("files/s downloaded, threads: " + " ".join(f"{threads:>7}" for threads in THREADS) + "    best")
    for name, found in rates.items():
        print(f"{name:>28} " + " ".join(f"{rate:>7.0f}" for rate in found) + f" {max(found):>7.0f}")
    print(
        f"best rate of ours / best rate of plain httpx: {max(rates['ours']) / max(rates['plain httpx']):.2f} (target 0.90)"
    )


def large(store: SupabaseObjectStore, url: str, folder: Path, megabytes: int) -> Figure:
    """Measure the upload rate of our store, httpx and curl in turn, and the download rate of our store."""
    path = folder / "best.pt"
    with path.open("wb") as out:
        for _ in range(megabytes):
            out.write(os.urandom(1_000_000))
    ref = ObjectRef(bucket="data", key="best.pt")

    def plain_upload() -> None:
        headers = {"Authorization": f"Bearer {KEY}", "x-upsert": "true", "Content-Length": str(path.stat().st_size)}
        with path.open("rb") as source:
            answer = httpx.post(f"{url}/storage/v1/object/data/plain.pt", content=source, headers=headers, timeout=60)
            answer.raise_for_status()

    def curl_upload() -> None:
        command = ["curl", "-sSf", "-H", f"Authorization: Bearer {KEY}", "-H", "x-upsert: true", "-T", path]
        subprocess.run([*command, f"{url}/storage/v1/object/data/curl.pt"], check=True, stdout=subprocess.DEVNULL)

    peers = {"httpx": plain_upload, **({"curl": curl_upload} if shutil.which("curl") else {})}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for _ in range(ROUNDS):
        for name, upload in peers.items():
            rates[name].append(megabytes / seconds(upload))
        rates["ours"].append(megabytes / seconds(lambda: store.upload(path, ref, StopSignal())))
    down = megabytes / seconds(lambda: store.download(ref, folder / "back.pt", StopSignal()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    up, best = max(rates["ours"]), max(max(rates[name]) for name in peers)
    return Figure(
        what=f"upload of a {megabytes} MB model",
        target="≥ 0.9 x the rate of the fastest compared program; can resume",
        measured=f"{up:.0f} MB/s, {up / best:.2f} x the fastest compared program; +{(peak - before) / 1024:.0f} MiB of memory; download {down:.0f} MB/s",
        peer=", ".join(f"{name} {max(rates[name]):.0f} MB/s" for name in peers),
        met=up / best >= 0.9,
        why="our upload sends one request per 6 MiB, one after the other; the compared programs send one request and cannot resume",
    )


def figures(*, tiny: bool) -> Iterator[Figure]:
    with opened() as (store, url, folder):
        yield large(store, url, folder, 8 if tiny else 200)


@contextmanager
def opened() -> Iterator[tuple[SupabaseObjectStore, str, Path]]:
    """Yield a store on a server, the URL of the server and a temporary folder."""
    with server() as url, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with closing(SupabaseObjectStore(StorageApi(url, KEY), notes=folder / "notes", stop=StopSignal())) as store:
            yield store, url, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--tiny", action="store_true", help="run one small round, to test the benchmark")
    options = parser.parse_args()
    count, megabytes = (30, 8) if options.tiny else (options.objects, options.megabytes)
    with opened() as (store, url, folder):
        print(large(store, url, folder, megabytes).line())
        downloads(store, url, folder, count)


if __name__ == "__main__":
    main()
