"""`doctor` finds wrong settings of a Supabase project, and problems of its database, buckets and clock."""

import email.utils
import time

import pytest

from tests import supabase_gateway
from tests.supabase_stack import PostgREST, token
from trainer import doctor
from trainer.jobs.supabase import SCHEMA_VERSION


def test_healthy_host_with_project_has_no_fault(project):
    checks = {check.name: check for check in doctor.examine()}

    assert not [check for check in checks.values() if check.state == "fault"]
    assert "role service_role" in checks["queue"].message
    assert f"schema version {SCHEMA_VERSION}" in checks["queue"].message
    assert checks["bucket datasets"].state == checks["bucket training-artifacts"].state == checks["clock"].state == "ok"
    assert not project.storage.objects["training-artifacts"], "the check must remove its object"


def test_invalid_url_is_a_fault(project):
    project.set(SUPABASE_URL="abc.supabase.co")

    assert "must be the project's URL, such as https://" in project.fault().message


def test_unreachable_project_is_one_fault(project):
    project.set(SUPABASE_URL="http://127.0.0.1:9")

    fault = project.fault()

    assert fault.name == "queue"
    assert "127.0.0.1:9 does not answer" in fault.message


def test_wrong_key_is_a_fault(project):
    key = project.stack.service_key[:-8] + "AAAAAAAA"
    project.set(SUPABASE_SERVICE_ROLE_KEY=key)

    faults = {check.name: check.message for check in project.findings()}

    assert "set SUPABASE_SERVICE_ROLE_KEY to" in faults["queue"]
    assert "check the key" in faults["bucket training-artifacts"]
    assert key not in str(faults)


def test_key_of_another_worker_is_a_fault(project):
    project.set(SUPABASE_SERVICE_ROLE_KEY=token("trainer_worker", worker_id="gpu1"), WORKER_ID="gpu2")

    faults = [check.message for check in project.findings() if check.name == "queue"]
    assert faults == ["the key belongs to the worker gpu1: set WORKER_ID=gpu1, or use another key"]

    project.set(WORKER_ID="gpu1")
    assert "queue" not in [check.name for check in project.findings()]


def test_anonymous_key_is_a_fault(project):
    project.set(SUPABASE_SERVICE_ROLE_KEY=project.stack.anon_key)

    assert "is a public key (anon): set SUPABASE_SERVICE_ROLE_KEY" in project.findings()[0].message


@pytest.fixture
def another_database(project, tmp_path):
    """Return a function that connects the URL of the project to another database."""
    servers = []

    def serve(*, migrated, then=""):
        project.stack.postgres.create_database("another", migrated=migrated)
        project.stack.sql(then, database="another")
        servers.append(PostgREST(tmp_path, project.stack.postgres.port, "another"))
        servers[0].start()
        project.monkeypatch.setitem(
            project.stack.gateway.routes, "/rest/v1", f"http://127.0.0.1:{servers[0].port}",
        )  # fmt: skip

    yield serve
    for server in servers:
        server.stop()
    project.stack.sql("drop database if exists another with (force);", database="postgres")


def test_missing_migrations_are_a_fault(project, another_database):
    another_database(migrated=False)

    assert "apply the migrations in supabase/migrations/" in project.fault().message


def test_outdated_migrations_are_a_fault(project, another_database):
    older = "create or replace function trainer_schema_version() returns integer language sql as 'select 0';"
    another_database(migrated=True, then=older)

    assert "has version 0 of the trainer's schema" in project.fault().message
    assert "apply the migrations" in project.fault().message


def test_missing_datasets_bucket_is_a_fault(project):
    project.set(SUPABASE_DATASETS_BUCKET="pictures")

    assert "bucket 'pictures' does not exist" in project.fault().message


def test_missing_artifacts_bucket_is_a_fault(project):
    project.set(SUPABASE_ARTIFACTS_BUCKET="models")

    assert "bucket 'models' does not exist: create it, or apply the migrations" in project.fault().message


def test_read_only_artifacts_bucket_is_a_fault(project):
    refusal = b'{"statusCode":"403","error":"Unauthorized","message":"new row violates row-level security policy"}'
    project.storage.fault("status", on="POST /object/training-artifacts", status=400, body=refusal, times=9)

    fault = project.fault()

    assert fault.name == "bucket training-artifacts"
    assert "its role has no permission for this: check the key" in fault.message


def test_bucket_that_refuses_the_file_type_is_a_fault(project):
    project.storage.buckets["training-artifacts"].mime_types = ["image/png"]

    assert "extend its allowed MIME types" in project.fault().message


@pytest.mark.parametrize(("seconds", "says"), [(300, "behind the server"), (-300, "ahead of the server")])
def test_wrong_clock_is_a_fault(project, seconds, says):
    project.monkeypatch.setattr(
        supabase_gateway._GatewayHandler,
        "date_time_string",
        lambda *_: email.utils.formatdate(time.time() + seconds, usegmt=True),
    )

    fault = project.fault()

    assert (fault.name, says in fault.message, "timedatectl set-ntp true" in fault.message) == ("clock", True, True)


def test_server_without_date_header_is_a_fault(project):
    project.monkeypatch.setattr(supabase_gateway._GatewayHandler, "date_time_string", lambda *_: "noon")

    assert project.fault().message == "127.0.0.1 sends no valid Date header"
