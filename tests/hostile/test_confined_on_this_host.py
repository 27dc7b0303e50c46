"""The process that reads datasets, on hosts with few descriptors and with datasets in unusual places."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from pathlib import Path

import pytest

from tests.dataset_painter import OnDisk, paint
from tests.hostile.test_confined_datasets import prepare
from tests.process.sandbox_host import needs_landlock
from trainer.core.dataset import DatasetOrder
from trainer.core.errors import MachineFailed
from trainer.core.stop import StopSignal
from trainer.datasets.confined.process import ConfinedDecoder
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots


def test_service_without_free_descriptors_reports_the_host_and_recovers(tmp_path):
    data = paint(tmp_path / "roots/set")
    decode, most = (
        ConfinedDecoder(environment=dict(os.environ), sandbox="required"),
        resource.getrlimit(resource.RLIMIT_NOFILE),
    )
    for spare in range(12):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, most[1]))
        try:
            with contextlib.suppress(MachineFailed, OSError):  # a retry of the run may succeed
                prepare(data, decode, run=f"few{spare}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert prepare(data, decode, run="enough").images


@needs_landlock
@pytest.mark.parametrize("is_named_by_yaml", [True, False])
def test_dataset_in_memory_of_the_host_can_be_checked(tmp_path, is_named_by_yaml):
    """A local run can name a dataset in /dev/shm, although other parts of /dev are closed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        data = paint(Path(folder) / "set").parent
        own = tmp_path / "roots/own"
        own.mkdir(parents=True)
        (own / "data.yaml").write_text(f"path: {data}\n" + (data / "data.yaml").read_text())
        roots = Roots(tmp_path / "roots", extra=(Path("/"),), hidden_names=True)
        datasets = FetchedDatasets(
            OnDisk(), ReferenceRules(roots, "datasets"), decode=ConfinedDecoder(environment=dict(os.environ))
        )
        order = DatasetOrder(sources=(str(own if is_named_by_yaml else data),))
        assert datasets.prepare(order, tmp_path / "run", StopSignal(), lambda _: None).images["train"]
