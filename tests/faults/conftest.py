"""One cloud for all, and hosts that come and go."""

import os

import pytest

from tests.faults.cloud import running_cloud
from tests.faults.disks import GIB_AND_A_HALF, Disk, NotHere, PowerCut
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
    """Without the binaries the matrix is skipped on a laptop, and fails in CI."""
    try:
        with running_cloud(drawn) as cloud:
            yield cloud
    except MissingBinary as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture
def cloud(cloud_servers):
    """Empty tables and no faults; afterwards, whatever the test did, the invariants hold."""
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
    """Starts hosts by name: `host("a", SLOW, STALL_SECONDS=2)`."""
    hosts = []

    def start(name, behavior, **settings):
        hosts.append(Host(cloud, tmp_path / name, behavior, **settings).start())
        return hosts[-1]

    yield start
    for each in hosts:
        each.end()


@pytest.fixture
def mounted():
    """Mounts disks that a test made; hosts that use them must have ended before."""
    opened = []

    def mount(disk):
        try:
            opened.append(disk.__enter__())
        except NotHere as reason:
            # a kernel without the file system has no such disk at all; anything else is amiss in CI
            if os.environ.get("CI") and "kernel" not in str(reason):
                raise
            pytest.skip(str(reason))
        return disk

    yield mount
    for each in opened:
        each.__exit__(None, None, None)


@pytest.fixture
def disk(mounted, tmp_path):
    """Makes small disks."""
    return lambda name, kind="full", mebibytes=GIB_AND_A_HALF: mounted(Disk(kind, tmp_path / name, mebibytes))


@pytest.fixture
def power_cut(mounted, tmp_path):
    """Makes disks that lose their power: `power_cut("data").strike()`, then `.mend()`."""
    return lambda name: mounted(PowerCut(tmp_path / name))
