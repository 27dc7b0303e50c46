"""Limits of the process that reads datasets: time, processor time, progress and disk space."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataset_painter import paint
from tests.hostile.test_confined_datasets import attacked, lying, prepare  # noqa: F401 - `lying` is a fixture
from tests.process.sandbox_host import needs_landlock
from trainer.core.errors import DatasetError, HostUnfit, MachineFailed
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.confined import watch

LOOP = "[0 for _ in iter(int, 1)]"


@pytest.fixture
def data(tmp_path):
    return paint(tmp_path / "roots/set")


def test_process_that_only_sleeps_is_ended(data, lying, monkeypatch):  # noqa: F811
    monkeypatch.setattr(watch, "IDLE_SECONDS", 0.5)
    with pytest.raises(MachineFailed, match="did nothing"):
        prepare(data, lying(after="time.sleep(1000)"))


def test_process_that_works_is_not_idle(data, lying, monkeypatch):  # noqa: F811
    monkeypatch.setattr(watch, "IDLE_SECONDS", 2.0)
    monkeypatch.setattr(watch, "SECONDS", 4.0)
    with pytest.raises(DatasetError, match="cannot be read within"):
        prepare(data, lying(after=LOOP))


def test_time_in_which_the_service_was_paused_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    limits = watch.Watch(os.getpid(), ())
    now[0] = 7 * 24 * 3600.0
    limits.check()


@needs_landlock
def test_processor_time_is_limited_with_a_clear_message(data):
    code = (
        "import resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_CPU)\n"
        "assert soft < hard\n"
        f"resource.setrlimit(resource.RLIMIT_CPU, (1, hard)); {LOOP}"
    )
    with pytest.raises(DatasetError, match="more than 4 hours of processor time"):
        prepare(data, attacked(code))


def test_endless_output_ends_the_process(data, lying):  # noqa: F811
    with pytest.raises(MachineFailed, match="MiB of other output"):
        prepare(data, lying(after="while True: os.write(2, bytes(1 << 16))"))


FILLS = {
    "bytes": "open(job.view + '/full', 'wb').write(bytes(3 << 20))",
    "files": "[open(f'{job.made}/{n}', 'w').close() for n in range(300)]",
}


@needs_landlock
@pytest.mark.parametrize("case", FILLS)
def test_process_cannot_fill_the_disk(data, monkeypatch, case):
    def small_disk(folder):
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return (4 << 20) - sum(path.stat().st_size for path in files), 500 - len(files)

    monkeypatch.setattr(watch, "_free", small_disk)
    with pytest.raises(HostUnfit, match="became too full"):
        prepare(data, attacked(FILLS[case] + "; import time; time.sleep(100)"))


def test_folders_of_any_depth_are_removed_from_the_cache(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 30, reserve=0)
    with cache.temporary() as tree:
        tree.mkdir()
        folder = os.open(tree, os.O_RDONLY)
        for _ in range(2000):
            os.mkdir("a", dir_fd=folder)
            deeper = os.open("a", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = deeper
        os.close(folder)
    assert not tree.exists()
