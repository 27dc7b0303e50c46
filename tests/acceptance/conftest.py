"""Servers, hosts and datasets for the acceptance tests."""

import pytest

from tests.acceptance.host_under_test import HostUnderTest
from tests.integration.whole_supabase import settings_for, storage_for
from tests.supabase_fixtures import supabase, supabase_servers  # noqa: F401
from trainer.demo import draw_dataset


@pytest.fixture
def a_host(tmp_path, monkeypatch):
    return HostUnderTest(tmp_path / "home", monkeypatch)


@pytest.fixture
def project(supabase, a_host):  # noqa: F811 (a fixture)
    """A healthy host with a complete Supabase project."""
    with storage_for(supabase) as storage:
        a_host.set(**settings_for(supabase))
        a_host.stack, a_host.storage = supabase, storage
        yield a_host


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"), images=10, size=64)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"
