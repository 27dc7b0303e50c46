"""A broken disk is a failure of the host, not of the dataset or the run."""

import errno
import os
from pathlib import Path

import pytest

from trainer.core.errors import DatasetError, HostFailed, HostSuspected, HostUnfit, MachineFailed, disk_failed
from trainer.core.stop import StopSignal
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.findings import Report
from trainer.datasets.formats.source_tree import Tree
from trainer.datasets.images.header import facts
from trainer.datasets.source.roots import Roots
from trainer.datasets.untrusted import read_file
from trainer.datasets.view.links import view_errors
from trainer.storage.files import disk_errors

BROKEN = [errno.EIO, errno.EROFS, errno.ESTALE, errno.EUCLEAN]
POSSIBLY_CAUSED_BY_RUN = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.ENAMETOOLONG, errno.ENOENT]


@pytest.mark.parametrize("number", BROKEN)
def test_errors_of_broken_disk_become_host_failed(number):
    assert type(disk_failed(OSError(number, os.strerror(number)), "x")) is HostFailed


@pytest.mark.parametrize("number", POSSIBLY_CAUSED_BY_RUN)
def test_errors_that_a_run_can_cause_become_machine_failed(number):
    assert type(disk_failed(OSError(number, os.strerror(number)), "x")) is MachineFailed


@pytest.mark.parametrize(
    "translate", [disk_errors, on_this_disk, lambda _: view_errors()], ids=["storage", "cache", "view"]
)
def test_every_writer_distinguishes_broken_disk_from_full_disk(translate):
    for number, kind in ((errno.EIO, HostFailed), (errno.ENOSPC, MachineFailed)):
        with pytest.raises(MachineFailed) as raised, translate(Path("/data")):
            raise OSError(number, os.strerror(number), "/data/x")
        assert type(raised.value) is kind


READERS = {
    "a file of the dataset": (os, "open", lambda path: read_file(path, 100)),
    "an image": (os, "open", lambda path: facts(str(path))),
    "a folder": (os, "scandir", lambda path: tree(path.parent).listing(str(path.parent))),
    "the dataset's path": (Path, "resolve", lambda path: Roots(Path("/")).admit(path)),
}


def tree(root):
    return Tree(root, lambda path: path, Report(), StopSignal(), is_owned=False)


@pytest.mark.parametrize(("owner", "name", "read"), READERS.values(), ids=READERS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_reading_dataset_from_broken_disk_raises_host_failed(tmp_path, monkeypatch, owner, name, read, number):
    """Another worker can perhaps read the dataset, so the run is retried."""
    path = tmp_path / "data.yaml"
    path.write_text("names: [a]")
    original = getattr(owner, name)

    def broken(asked, *arguments, **more):
        if str(asked).startswith(str(tmp_path)):
            raise OSError(number, os.strerror(number), str(path))
        return original(asked, *arguments, **more)

    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(HostSuspected, match=os.strerror(number)):
        read(path)


def test_missing_mount_of_dataset_raises_host_unfit(tmp_path):
    roots = Roots(tmp_path / "root", (tmp_path / "mnt",))

    with pytest.raises(HostUnfit, match=r"mnt, one of EXTRA_DATASET_ROOTS, does not exist. Mount it"):
        roots.admit(tmp_path / "mnt" / "cats" / "data.yaml")

    (tmp_path / "mnt").mkdir()
    with pytest.raises(DatasetError, match="does not exist"):
        roots.admit(tmp_path / "mnt" / "cats" / "data.yaml")
