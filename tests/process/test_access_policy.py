"""The access policy of a run, and the device file that is created before the sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.process.sandbox_host import needs_landlock, reading
from trainer.training.child import access_policy as policy
from trainer.training.child import confinement

pytestmark = needs_landlock


def test_samples_of_policy_include_imported_packages(host):
    """The sandbox tries to open the samples. Without this check, a training could fail with an ImportError."""
    samples = policy.access_policy(host.order, host.environment).samples

    assert [path.parent.name for path in samples[-4:]] == ["torch", "ultralytics", "numpy", "trainer"]
    assert all(path.is_file() for path in samples[-4:])


def test_training_process_writes_only_to_its_own_folders_and_to_devices(host):
    """What other trainings read must not be among these folders."""
    order, private = host.order, Path(host.environment["HOME"])
    own = {order.run_dir, order.dataset.root, private, private / "tmp"}

    others = set(policy.access_policy(order, host.environment).write) - own

    assert all(str(path).startswith(("/dev/", f"/proc/{os.getpid()}/", "/tmp/nvidia-mps")) for path in others)


def test_packages_beside_an_installed_project_can_be_imported(host, monkeypatch):
    """`pip install .` copies this project into the folder of all packages."""
    torch, _, _, project = policy.access_policy(host.order, host.environment).samples[-4:]
    monkeypatch.setattr(policy, "_PROJECT", torch.parents[1])

    programs = policy.access_policy(host.order, host.environment).run

    assert any(map(torch.is_relative_to, programs))
    assert any(map(project.is_relative_to, programs))


def test_tree_without_excluded_path_contains_all_other_paths(tmp_path):
    for name in ("app/.env", "app/code.py", "lib/x", "bin/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    parts = set(policy.without(tmp_path, tmp_path / "app" / ".env"))

    assert parts == {tmp_path / "lib", tmp_path / "bin", tmp_path / "app" / "code.py"}
    assert list(policy.without(tmp_path / "app", tmp_path / "app")) == []
    assert list(policy.without(tmp_path / "app", tmp_path / "lib")) == [tmp_path / "app"]


def test_links_of_view_are_followed_to_final_folder(host):
    found = policy.linked_files(host.order.dataset.root, host.order.dataset.readable)

    assert set(found) == {host.root / "images_of_user", host.root / "elsewhere"}
    assert found[host.root / "elsewhere"] == host.root / "elsewhere" / "2.png"


def test_broken_links_and_missing_view_are_ignored(host):
    (host.order.dataset.root / "images" / "train" / "3.png").symlink_to("/nowhere/3.png")
    (host.order.dataset.root / "images" / "train" / "4.png").symlink_to("4.png")

    found = policy.linked_files(host.order.dataset.root, host.order.dataset.readable)
    assert set(found) == {host.root / "images_of_user", host.root / "elsewhere"}
    assert policy.linked_files(host.root / "gone", [Path("/")]) == {}
    assert host.results_of([reading(host.root / "queue.db")]) == {"PermissionError"}


@pytest.mark.parametrize(
    ("devices", "is_created"), [(["nvidiactl"], True), (["nvidiactl", "nvidia-uvm"], False), ([], False)]
)
def test_missing_nvidia_uvm_device_is_created_if_driver_is_loaded(tmp_path, monkeypatch, devices, is_created):
    for name in devices:
        (tmp_path / name).touch()
    program = tmp_path / "nvidia-modprobe"
    program.write_text(f"#!/bin/sh\necho $@ > {tmp_path / 'arguments'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    confinement.create_gpu_device(tmp_path)

    assert (tmp_path / "arguments").exists() == is_created
    if is_created:
        assert (tmp_path / "arguments").read_text() == "-u -c 0\n"
