"""A folder with any content is removed, and files outside of the folder do not change."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from trainer.disk import removal
from trainer.disk.removal import remove_tree


@pytest.fixture
def outside(tmp_path):
    """Return a folder, and check after the test that its file is unchanged."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "canary").write_text("alive")
    yield folder
    assert (folder / "canary").read_text() == "alive"


@pytest.fixture
def doomed(tmp_path):
    folder = tmp_path / "doomed"
    folder.mkdir()
    return folder


def nested(folder, levels, name="d"):
    """Create `levels` nested folders. Their path can be longer than the limit of the system."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT, dir_fd=at))
    os.close(at)


def test_files_and_folders_are_removed(doomed, outside):
    (doomed / "a" / "b").mkdir(parents=True)
    for name in ("x", "a/y", "a/b/z"):
        (doomed / name).write_text(name)

    remove_tree(doomed)

    assert not doomed.exists()


def test_links_are_removed_and_not_followed(doomed, outside):
    (doomed / "sub").mkdir()
    for number, target in enumerate((outside, outside / "canary", "/", "nowhere", ".", "loop5")):
        (doomed / f"loop{number}").symlink_to(target)
        (doomed / "sub" / f"loop{number}").symlink_to(target)
    os.link(outside / "canary", doomed / "hard")

    remove_tree(doomed)

    assert not doomed.exists()


def test_link_in_place_of_folder_raises_error_and_is_kept(tmp_path, outside):
    link = tmp_path / "doomed"
    link.symlink_to(outside)

    with pytest.raises(NotADirectoryError):
        remove_tree(link)

    assert link.is_symlink()


def test_pipes_sockets_and_files_with_unusual_names_are_removed(doomed):
    os.mkfifo(doomed / "pipe")
    os.mknod(doomed / "socket", stat.S_IFSOCK | 0o600)
    for name in (b"line\nbreak", b"\xff\xfe", b"-rf", b"n" * 255):
        (doomed / os.fsdecode(name)).write_text("x")
        os.mkdir(os.fsencode(doomed) + b"/f" + name[:200])

    remove_tree(doomed)

    assert not doomed.exists()


def test_folders_nested_beyond_recursion_and_path_limits_are_removed(doomed):
    nested(doomed, 1200)
    nested(doomed, 60, "n" * 200)

    remove_tree(doomed)

    assert not doomed.exists()


def test_removal_of_deep_folders_needs_at_most_16_file_descriptors(doomed):
    nested(doomed, 200)
    code = (
        "import resource, sys; from pathlib import Path; from trainer.disk.removal import remove_tree;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)); remove_tree(Path(sys.argv[1]))"
    )

    subprocess.run([sys.executable, "-c", code, str(doomed)], check=True)

    assert not doomed.exists()


def test_more_entries_than_one_batch_are_removed(doomed, monkeypatch):
    monkeypatch.setattr(removal, "AT_ONCE", 10)
    for number in range(50):
        (doomed / f"f{number}").touch()
        (doomed / f"d{number}").mkdir()

    remove_tree(doomed)

    assert not doomed.exists()


AS_NOBODY = """
import os, sys
from pathlib import Path
from trainer.disk.removal import remove_tree
folder = Path(sys.argv[1])
os.setgid(65534), os.setuid(65534)
for name, mode in (("locked", 0o000), ("unreadable", 0o300), ("unwritable", 0o500), ("deep", 0o700)):
    below = folder / "top" / name / "below"
    below.mkdir(parents=True)
    (below / "file").touch()
    below.chmod(mode)
    below.parent.chmod(mode)
(folder / "top").chmod(0)
remove_tree(folder / "top")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_folders_without_permissions_are_removed_by_their_owner():
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place) / "of-another-user"
        folder.mkdir()
        Path(place).chmod(0o755)
        os.chown(folder, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not (folder / "top").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_other_entries_are_removed_before_error_is_raised(doomed):
    for name in ("a", "m", "z"):
        (doomed / name).write_text(name)
    if subprocess.run(["chattr", "+i", doomed / "m"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(PermissionError, match="'m'"):
            remove_tree(doomed)
        assert [path.name for path in doomed.iterdir()] == ["m"]
    finally:
        subprocess.run(["chattr", "-i", doomed / "m"], check=True)


def test_concurrent_removals_raise_only_file_not_found_error(doomed):
    for number in range(60):
        (doomed / f"d{number}" / "e").mkdir(parents=True)
        (doomed / f"d{number}" / "e" / "f").touch()
    errors = []

    def remove():
        try:
            remove_tree(doomed)
        except FileNotFoundError:
            pass
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=remove) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    assert not doomed.exists()
