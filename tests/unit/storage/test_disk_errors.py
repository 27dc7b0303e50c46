"""The messages of disk errors in the stores."""

import pytest

from trainer.core.errors import MachineFailed
from trainer.disk.untrusted_folder import UntrustedFolder
from trainer.storage.files import disk_errors


def test_error_names_the_file_and_not_its_descriptor(tmp_path):
    """An operator cannot look up a descriptor of the service."""
    (tmp_path / "best.pt").touch()

    with (
        UntrustedFolder(tmp_path) as folder,
        folder.file("best.pt") as file,
        pytest.raises(MachineFailed, match=f"^{tmp_path}/best.pt cannot be read or written"),
        disk_errors(file.path),
    ):
        raise OSError(5, "Input/output error")
