"""A wrong setting raises `Misconfigured`. A server that does not answer raises `Unavailable`."""

import socket
import time
import uuid

import pytest

from tests.supabase_gateway import Gateway
from tests.supabase_stack import PostgREST, token
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy
from trainer.jobs.supabase import SCHEMA_VERSION, SupabaseQueue
from trainer.remote.supabase import CallLimits, Project

ONCE = RetryPolicy(tries=1)


QUICK = {"claim": ONCE, "beat": ONCE, "finish": ONCE, "read": ONCE}


WORKER = Worker(id="w1")


def error_of(url, key):
    project = Project(url, key, CallLimits(connect=3, read=5, total=8))
    with project, pytest.raises((Misconfigured, Unavailable)) as caught:
        SupabaseQueue(project, **QUICK).check()
    assert "\n" not in str(caught.value)
    assert key not in str(caught.value)
    return caught.value


def test_closed_port_is_unavailable(supabase):
    error = error_of("http://127.0.0.1:9", supabase.service_key)
    assert isinstance(error, Unavailable)
    assert "127.0.0.1:9" in str(error)


def test_silent_server_times_out(supabase):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        limits = CallLimits(connect=1, read=0.3, total=60)
        project = Project(f"http://127.0.0.1:{silent.getsockname()[1]}", supabase.service_key, limits)
        began = time.monotonic()
        with project, pytest.raises(Unavailable, match="no answer within the time limit"):
            SupabaseQueue(project, **QUICK).claim(WORKER, str(uuid.uuid4()), 60)
        assert time.monotonic() - began < 20


def test_unknown_host_name_is_unavailable(supabase):
    error = error_of("http://no-such-project.invalid", supabase.service_key)
    assert isinstance(error, Unavailable)
    assert "no-such-project.invalid" in str(error)
    assert "cannot be resolved" in str(error)


def test_url_of_another_server_is_misconfigured(supabase):
    error = error_of(f"{supabase.url}/elsewhere", supabase.service_key)
    assert isinstance(error, Misconfigured)
    assert "SUPABASE_URL" in str(error)


def test_key_of_another_project_is_misconfigured(supabase):
    header, payload, signature = supabase.service_key.split(".")
    error = error_of(supabase.url, f"{header}.{payload}.{signature[::-1]}")
    assert isinstance(error, Misconfigured)
    assert "SUPABASE_SERVICE_ROLE_KEY" in str(error)


def test_expired_key_is_misconfigured(supabase):
    error = error_of(supabase.url, token("service_role", exp=1_600_000_000))
    assert isinstance(error, Misconfigured)
    assert "expired" in str(error)


def test_anonymous_key_is_also_refused_by_database(supabase_lab):
    anonymous = supabase_lab.another(supabase_lab.stack.anon_key, **QUICK)
    with pytest.raises(Misconfigured, match=r"its role is anon.*SUPABASE_SERVICE_ROLE_KEY"):
        anonymous.claim(WORKER, str(uuid.uuid4()), 60)


@pytest.fixture
def other_project(supabase, tmp_path):
    """Return a function that starts another project on a database named `other`."""
    started = []

    def start(*, migrated: bool, then: str = "") -> str:
        supabase.postgres.create_database("other", migrated=migrated)
        supabase.sql(then, database="other")
        server = PostgREST(tmp_path, supabase.postgres.port, "other")
        server.start()
        gateway = Gateway({"/rest/v1": f"http://127.0.0.1:{server.port}"})
        gateway.start()
        started.extend([gateway, server])
        return gateway.url

    yield start
    for each in started:
        each.stop()
    supabase.sql("drop database if exists other with (force);", database="postgres")


def test_missing_migrations_are_misconfigured(supabase, other_project):
    error = error_of(other_project(migrated=False), supabase.service_key)
    assert isinstance(error, Misconfigured)
    assert "apply the migrations in supabase/migrations/" in str(error)


def test_old_migrations_are_misconfigured(supabase, other_project):
    older = f"create or replace function trainer_schema_version() returns integer language sql as 'select {SCHEMA_VERSION - 1}';"
    error = error_of(other_project(migrated=True, then=older), supabase.service_key)
    assert isinstance(error, Misconfigured)
    assert f"version {SCHEMA_VERSION - 1}" in str(error)
    assert "apply the migrations" in str(error)
