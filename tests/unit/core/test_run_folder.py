"""The names of run folders, and the keys of checkpoints in the bucket."""

from pathlib import Path

import pytest

from trainer.core import artifact_keys
from trainer.core.run_folder import RunFolder

UUID = "a1b2c3d4-0000-4000-8000-123456789012"


@pytest.mark.parametrize("run_id", ["7", "a-b", UUID])
@pytest.mark.parametrize("attempt", [1, 2, 99_999_999])
def test_attempt_is_read_back_from_folder_name(run_id, attempt):
    folder = RunFolder.of(Path("runs"), run_id, attempt)

    assert folder.path.name == (f"train_{run_id}" if attempt == 1 else f"train_{run_id}-{attempt}")
    assert folder.attempt == attempt


def test_checkpoint_key_is_recognized():
    key = artifact_keys.checkpoint_key(UUID, 3, epoch=7, sha256="0123456789abcdef" * 4)

    assert key == f"training_runs/{UUID}/3/checkpoints/epoch-00007-01234567.pt"
    assert artifact_keys.attempt_of(key) == 3
    assert artifact_keys.is_checkpoint_of(UUID, key)


@pytest.mark.parametrize(
    "key",
    [
        f"training_runs/{UUID}/3/best.pt",
        f"training_runs/{UUID}/3/checkpoints/../best.pt",
        "training_runs/other/3/checkpoints/epoch-00007-01234567.pt",
        f"training_runs/{UUID}/3/checkpoints/epoch-00007-01234567.pt/x",
        f"training_runs/{UUID}/99999999999/checkpoints/epoch-00007-01234567.pt",
    ],
)
def test_other_key_is_not_a_checkpoint_of_the_run(key):
    assert not artifact_keys.is_checkpoint_of(UUID, key)
