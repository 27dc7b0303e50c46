"""F22: sixty runs, one after another, do not increase the resource use of the service."""

import os
from pathlib import Path
from statistics import linear_regression, mean

import psutil
import pytest

from tests.faults.cloud import BUCKET, wait_for

RUNS = 60
SETTLED = 20  # number of runs until caches and pools have their final size


def uploaded(cloud):
    """Return the keys of all objects that were ever written."""
    return {key for _, _, key in cloud.storage.writes}


@pytest.mark.timeout(240)
@pytest.mark.long
def test_resources_do_not_grow_over_sixty_runs(cloud, host):
    """F22 (I10): memory and the numbers of descriptors, threads and temporary files do not grow."""
    # one malloc arena: a new thread can create another arena, which looks like a leak
    a = host("a", {"seconds_per_epoch": 0.1}, POLL_INTERVAL=0.05, CHECKPOINT_INTERVAL=0.02, MALLOC_ARENA_MAX=1)
    service = psutil.Process(a.process.pid)
    seen = []
    runs = [cloud.enqueue(epochs=2) for _ in range(RUNS)]
    for run_id in runs:
        assert cloud.wait(run_id, "completed")["attempt"] == 1
        left = sum(
            len([*folders, *files])
            for folder in ("children", "journal", "uploads", "uploaded", "datasets/datasets", "datasets/.cache/in_use")
            for _, folders, files in os.walk(a.home / folder)
        )
        seen.append((service.num_fds(), service.num_threads(), service.memory_info().rss / 2**20, left))
    a.wait_idle()
    wait_for(
        lambda: not list((a.home / "uploaded").glob("*"))
    )  # the checkpoints of the last run are removed after its journal

    descriptors, threads, rss, files = (list(column)[SETTLED:] for column in zip(*seen, strict=True))
    # the service cleans up while the next run trains, so each count varies a little; only growth is a leak
    after = range(len(rss))
    assert linear_regression(after, descriptors).slope < 0.1, descriptors
    assert linear_regression(after, threads).slope < 0.1, threads
    # MiB per run, from the means of the first and last ten runs; the allocator takes whole MiB, which distorts a slope
    assert (mean(rss[-10:]) - mean(rss[:10])) / (len(rss) - 10) < 0.05, rss
    assert linear_regression(after, files).slope < 0.1, files
    assert service.num_fds() <= max(descriptors)
    for folder in (
        "datasets/datasets",
        "datasets/.cache/in_use",
        "datasets/.cache/tmp",
        "journal",
        "uploads",
        "uploaded",
    ):
        assert not list((a.home / folder).glob("*")), folder
    assert not [path for path in (a.home / "runs").glob("*") if path.name.startswith(".")]
    assert not list((a.home / "runs").glob("*/*/checkpoints"))
    stored = cloud.storage.stored(BUCKET)
    assert len([key for key in uploaded(cloud) if "/checkpoints/" in key]) >= RUNS
    assert not [key for key in stored if "/checkpoints/" in key]
    assert len([path for path in Path("/tmp").glob("*") if str(a.process.pid) in path.name]) == 0
