"""A folder that another process changes: only its own regular files are read, within limits and without waiting."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from trainer.disk.untrusted_folder import Unreadable, UntrustedFolder

IN_PLACE_OF_FILE = {
    "missing": lambda path, secret: None,
    "folder": lambda path, secret: path.mkdir(),
    "link": lambda path, secret: path.symlink_to(secret),
    "link to itself": lambda path, secret: path.symlink_to(path.name),
    "link into the folder": lambda path, secret: path.symlink_to("real"),
    "pipe": lambda path, secret: os.mkfifo(path),
    "socket": lambda path, secret: bound_socket(path),
}


def bound_socket(path):
    code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, path.name], cwd=path.parent, check=True)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "real").write_text("real")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "best.pt").write_text("secret")
    return tmp_path / "run"


@pytest.mark.parametrize("what", IN_PLACE_OF_FILE)
def test_only_regular_files_are_opened(place, what):
    IN_PLACE_OF_FILE[what](place / "weights" / "best.pt", place.parent / "outside" / "best.pt")

    with UntrustedFolder(place) as folder:
        assert not folder.is_file("weights/best.pt")
        with pytest.raises(Unreadable):
            folder.read("weights/best.pt", 100)
        assert folder.read("real", 100) == b"real"


@pytest.mark.parametrize("path", ["weights/best.pt", "weights/../../outside/best.pt", "weights"])
def test_links_in_the_middle_of_a_path_are_not_followed(place, path):
    (place / "weights").rmdir()
    (place / "weights").symlink_to(place.parent / "outside")

    with UntrustedFolder(place) as folder, pytest.raises(Unreadable), folder.file(path):
        pass


@pytest.mark.parametrize("what", ["missing", "link", "file", "pipe"])
def test_other_things_in_place_of_the_folder_count_as_empty(place, what):
    output = place / "output"
    if what == "link":
        output.symlink_to(place.parent / "outside")
    elif what == "file":
        output.touch()
    elif what == "pipe":
        os.mkfifo(output)

    with UntrustedFolder(output) as folder:
        assert not folder.is_file("best.pt")
        assert folder.listing(".", depth=1, entries=10, is_wanted=lambda _: True).files == []


def test_open_does_not_wait_for_a_lease_of_another_process(place):
    """The owner of a write lease can delay an open call by 45 seconds."""
    code = (
        "import fcntl, os, signal, sys; signal.signal(signal.SIGIO, signal.SIG_IGN); "
        "fd = os.open(sys.argv[1], os.O_RDWR); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(place / "real")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"ready\n"
        with UntrustedFolder(place) as folder, pytest.raises(Unreadable):
            folder.read("real", 100)
        owner.stdin.close()


def test_open_file_stays_the_same_file(place):
    with UntrustedFolder(place) as folder, folder.file("real") as file:
        (place / "real").unlink()
        (place / "real").symlink_to(place.parent / "outside" / "best.pt")

        assert file.path.read_text() == "real"
        assert file.sha256(lambda: None) == hashlib.sha256(b"real").hexdigest()


def test_growing_file_is_read_up_to_its_size_at_the_start(place):
    with UntrustedFolder(place) as folder, folder.file("real") as file:
        state = file.state
        with (place / "real").open("a") as writer:
            writer.write("x" * 1000)

        assert b"".join(file.chunks()) == b"real"
        assert file.state != state


def test_file_above_the_limit_is_not_read(place):
    os.truncate(place / "real", 2**40)

    with UntrustedFolder(place) as folder, pytest.raises(Unreadable, match="larger than"):
        folder.read("real", 2**20)


def test_calculation_of_checksum_can_be_stopped(place):
    os.truncate(place / "real", 2**40)
    seen = []

    def stop_at_third():
        seen.append(1)
        if len(seen) == 3:
            raise InterruptedError

    with UntrustedFolder(place) as folder, folder.file("real") as file, pytest.raises(InterruptedError):
        file.sha256(stop_at_third)


def test_link_has_the_content_of_the_open_file(place):
    target = place.parent / "resumed.pt"
    with UntrustedFolder(place) as folder, folder.file("real") as file:
        (place / "real").rename(place / "moved")
        (place / "real").write_text("other")
        file.link_to(target)

    assert target.samefile(place / "moved")


def test_copy_is_made_if_a_link_is_impossible(place):
    target = place.parent / "resumed.pt"
    with UntrustedFolder(place) as folder, folder.file("real") as file:
        (place / "real").unlink()  # a file without a name cannot be linked
        file.link_to(target)

    assert target.read_text() == "real"


def listed(place, *, depth=16, entries=1000, start="."):
    with UntrustedFolder(place) as folder:
        found = folder.listing(start, depth=depth, entries=entries, is_wanted=lambda path: "hidden" not in path)
        return {file.path: file.bytes for file in found.files}, found.is_complete


def test_listing_has_only_wanted_regular_files_with_their_sizes(place):
    (place / "weights" / "best.pt").write_text("best")
    (place / "hidden").mkdir()
    (place / "hidden" / "x").touch()
    (place / "link").symlink_to(place.parent / "outside")
    (place / "file link").symlink_to(place / "real")
    os.mkfifo(place / "pipe")

    assert listed(place) == ({"real": 4, "weights/best.pt": 4}, True)
    assert listed(place, start="weights") == ({"weights/best.pt": 4}, True)


def test_listing_reads_upper_levels_first_and_stops_at_its_limits(place):
    for number in range(100):
        (place / "weights" / str(number)).touch()
    below = place
    for _ in range(30):
        below = below / "d"
        below.mkdir()
        (below / "x").touch()

    assert len(listed(place, entries=20)[0]) < 20
    assert "real" in listed(place, entries=20)[0]
    assert listed(place, entries=20)[1] is False
    files, is_complete = listed(place, depth=3)
    assert max(path.count("/") for path in files) == 3
    assert not is_complete


def test_no_other_file_is_read_while_names_are_replaced(place):
    """A process replaces a file and a folder by links as fast as it can."""
    code = """
import os, sys
os.chdir(sys.argv[1])
os.mkdir("folder"); open("folder/best.pt", "w").write("own")
os.symlink("../outside", "link"); os.symlink("../outside/best.pt", "file link"); open("own", "w").write("own")
print("ready", flush=True)
while True:
    os.rename("folder", "f"); os.rename("link", "folder"); os.rename("folder", "link"); os.rename("f", "folder")
    os.link("own", "best.pt"); os.rename("best.pt", "best"); os.replace("file link", "best"); os.rename("best", "file link")
"""
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        seen = set()
        with UntrustedFolder(place) as folder:
            for _ in range(3000):
                for path in ("folder/best.pt", "best"):
                    try:
                        seen.add(folder.read(path, 100))
                    except Unreadable:
                        seen.add(b"unreadable")
        assert process.poll() is None
        process.kill()

    assert seen <= {b"own", b"unreadable"}


def test_descriptors_are_closed(place):
    before = len(os.listdir("/proc/self/fd"))
    (place / "link").symlink_to("real")
    with UntrustedFolder(place) as folder:
        for path in ("real", "link", "weights/none", "none/x", "weights"):
            folder.is_file(path)
        folder.listing(".", depth=1, entries=1, is_wanted=lambda _: True)

    assert len(os.listdir("/proc/self/fd")) == before
