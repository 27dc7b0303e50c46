"""One cloud for all tests, and the hosts and disks that a test creates."""

import os

import pytest

from tests.faults.cloud import running_cloud
from tests.faults.disks import GIB_AND_A_HALF, Disk, DiskUnavailable, PowerCut
from tests.faults.hosts import Host
from tests.postgres_server import MissingBinary
from trainer.demo import draw_dataset

SLOW = {"seconds_per_epoch": 0.25}
QUICK = {"seconds_per_epoch": 0.01}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"), images=6, size=32)


@pytest.fixture(scope="session")
def cloud_servers(drawn):
    """One cloud for all tests. If a server program is missing, the tests are skipped, and in CI they fail."""
    try:
        with running_cloud(drawn) as cloud:
            yield cloud
    except MissingBinary as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture
def cloud(cloud_servers):
    """A cloud with empty tables and without faults. The invariants are checked after the test."""
    cloud_servers.clear()
    yield cloud_servers
    cloud_servers.check_invariants()


@pytest.fixture
def wire(cloud):
    """A proxy between one host and the cloud."""
    with cloud.proxy() as proxy:
        yield proxy


@pytest.fixture
def host(cloud, tmp_path):
    """Start hosts by name: `host("a", SLOW, STALL_SECONDS=2)`."""
    hosts = []

    def start(name, behavior, **settings):
        hosts.append(Host(cloud, tmp_path / name, behavior, **settings).start())
        return hosts[-1]

    yield start
    for each in hosts:
        each.end()


@pytest.fixture
def mounted():
    """Mount disks for the test. The hosts that use the disks must have ended before the disks are unmounted."""
    opened = []

    def mount(disk):
        try:
            opened.append(disk.__enter__())
        except DiskUnavailable as reason:
            # a kernel without the file system is also accepted in CI; any other problem is an error in CI
            if os.environ.get("CI") and "kernel" not in str(reason):
                raise
            pytest.skip(str(reason))
        return disk

    yield mount
    for each in opened:
        each.__exit__(None, None, None)


@pytest.fixture
def disk(mounted, tmp_path):
    """Create small disks that can fail."""
    return lambda name, kind="full", mebibytes=GIB_AND_A_HALF: mounted(Disk(kind, tmp_path / name, mebibytes))


@pytest.fixture
def power_cut(mounted, tmp_path):
    """Create disks that can lose their power: `power_cut("data").fail()`, then `.restore()`."""
    return lambda name: mounted(PowerCut(tmp_path / name))
