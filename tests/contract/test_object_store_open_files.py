"""The contract of every object store: the upload of an open file, whose name can refer to another file meanwhile."""

from __future__ import annotations

import os

import pytest
from stored_objects import fetch

from trainer.core.dataset import ObjectRef
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.disk.untrusted_folder import UntrustedFolder

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [1000, 20 * MIB])
@pytest.mark.parametrize("when", ["before the upload", "during the upload"])
def test_upload_sends_the_open_file_after_its_name_was_replaced(store, tmp_path, size, when):
    content, secret = os.urandom(size), tmp_path / "secret"
    secret.write_bytes(b"of another tenant")
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    ref = ObjectRef(bucket="data", key="best.pt")

    def replace(_sent=0):
        path.unlink(missing_ok=True)
        path.symlink_to(secret)

    with UntrustedFolder(tmp_path) as folder, folder.file("best.pt") as file:
        if when == "before the upload":
            replace()
        store.upload(file.path, ref, StopSignal(), on_bytes=replace)

    assert fetch(store, ref, tmp_path / "back") == content


def test_stopped_upload_of_open_file_can_be_repeated(store, tmp_path):
    content, ref, stop = os.urandom(20 * MIB), ObjectRef(bucket="data", key="best.pt"), StopSignal()
    (tmp_path / "best.pt").write_bytes(content)

    with UntrustedFolder(tmp_path) as folder:
        with pytest.raises(Stopped), folder.file("best.pt") as file:
            store.upload(file.path, ref, stop, on_bytes=lambda _: stop.set(StopReason.SHUTDOWN))
        with folder.file("best.pt") as file:
            store.upload(file.path, ref, StopSignal())

    assert fetch(store, ref, tmp_path / "back") == content
