"""Files that the service creates are private, and `doctor` finds files that are not."""

import os
import stat
from contextlib import contextmanager

import pytest

from tests.acceptance.service import running


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def modes_of(home, others=frozenset({"behavior.json", "service.log"})):
    """Return the permissions of the files that the service and its training process created."""
    found = {path: path.lstat() for path in home.rglob("*") if path.name not in others}
    return {str(path.relative_to(home)): stat.S_IMODE(s.st_mode) for path, s in found.items() if not path.is_symlink()}


@pytest.mark.parametrize(
    ("before", "forbidden"), [(0o022, 0o077), (0o002, 0o077), (0o000, 0o077), (0o027, 0o027), (0o007, 0o007)]
)
def test_files_of_a_run_are_private_or_shared_with_the_group(home, data, before, forbidden):
    with umask(before), running(home, {}) as service:
        run_id = service.enqueue(data, epochs=1)
        service.wait(run_id, "completed")
        assert service.stop() == 0
        modes = modes_of(home)

    assert {"queue.db", f"runs/train_{run_id}", "datasets/.cache"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & forbidden} == {}
    if before == 0o027:
        assert any(mode & 0o040 for mode in modes.values())


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_environment_file_that_others_can_read_is_a_warning(a_host, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    a_host.monkeypatch.setattr("trainer.settings.Settings.model_config", {"env_file": ".env", "extra": "ignore"})
    (tmp_path / ".env").write_text("SUPABASE_SERVICE_ROLE_KEY=secret\n")
    (tmp_path / ".env").chmod(mode)

    (warning,) = [check for check in a_host.findings("warning") if check.name == "permissions"]
    assert warning.message.startswith(f"other users of this host can read {tmp_path}/.env")
    assert "secret" not in warning.message

    (tmp_path / ".env").chmod(0o640)
    assert "permissions" not in [check.name for check in a_host.findings("warning")]


@pytest.mark.parametrize("name", ["TRAINER_HOME", "DATASET_ROOT", "RUNS_DIR", "MODELS_DIR"])
def test_folder_that_others_can_write_is_a_warning(a_host, tmp_path, name):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    a_host.set(**{name: folder})

    (warning,) = [check for check in a_host.findings("warning") if check.name == "permissions"]
    assert warning.message == f"other users of this host can write to {folder}: chmod o-w {folder}"
