"""Access rights in the database: anonymous users, signed-in users, workers, the service."""

import pytest

from tests.postgres_server import SqlError
from tests.supabase_stack import token
from trainer.core.errors import Misconfigured
from trainer.core.job import Completed, RunRequest, Verdict
from trainer.core.ports import Worker

ADA = {"role": "authenticated", "sub": "5d3c6c0a-0000-4000-8000-000000000001", "email": "ada@example.org"}
BOB = {"role": "authenticated", "sub": "5d3c6c0a-0000-4000-8000-000000000002", "email": "bob@example.org"}
CALLS = (
    "settle_training_runs()",
    "claim_training_run('w', gen_random_uuid(), 60)",
    "peek_training_run()",
    "beat_training_run(gen_random_uuid(), gen_random_uuid(), 60)",
    "finish_training_run(gen_random_uuid(), gen_random_uuid(), 'failed')",
    "release_training_run(gen_random_uuid(), gen_random_uuid())",
    "report_trainer_worker('w')",
    "read_training_run(gen_random_uuid())",
    "trainer_schema_version()",
    "trainer_access_warnings()",
)
HELPERS = ("trainer.see_worker('w')", "trainer.held(gen_random_uuid(), gen_random_uuid())")
TABLES = ("training_runs", "trainer_workers", "training_run_events")


def as_user(stack, claims, script):
    return stack.sql(script, role="authenticated", claims=claims)


def insert_for(stack, claims, owner):
    return as_user(
        stack, claims, f"insert into training_runs (run_name, created_by) values ('mine', '{owner}') returning id"
    )


@pytest.mark.parametrize("call", [*CALLS, *HELPERS])
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_users_cannot_call_functions_for_workers(supabase, role, call):
    with pytest.raises(SqlError, match="permission denied"):
        supabase.sql(f"select {call}", role=role)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("role", ["trainer_worker", "service_role"])
def test_workers_and_service_can_call_every_function(supabase, role, call):
    supabase.sql(f"select {call}", role=role)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("role", ["anon", "trainer_worker"])
def test_anonymous_users_and_workers_cannot_access_tables(supabase, role, table):
    for action in (f"select * from {table}", f"delete from {table}", f"insert into {table} default values",
                   f"update {table} set {'attempt = 1' if table != 'trainer_workers' else 'status = null'}"):  # fmt: skip
        with pytest.raises(SqlError, match="permission denied"):
            supabase.sql(action, role=role)


@pytest.mark.parametrize("owner", [ADA["email"], ADA["sub"]])
def test_signed_in_users_queue_and_read_their_own_runs_only(supabase, owner):
    run_id = insert_for(supabase, ADA, owner)
    assert as_user(supabase, ADA, "select id from training_runs") == run_id
    assert as_user(supabase, BOB, "select id from training_runs") == ""
    with pytest.raises(SqlError, match="row-level security"):
        insert_for(supabase, BOB, owner)


@pytest.mark.parametrize("columns", ["status", "cancel_requested", "priority", "worker_id", "results", "checkpoint"])
def test_signed_in_users_cannot_insert_values_into_queue_columns(supabase, columns):
    value = {"status": "'completed'", "cancel_requested": "true", "priority": "9"}.get(columns, "null")
    with pytest.raises(SqlError, match=r"row-level security|permission denied"):
        as_user(supabase, ADA,
                f"insert into training_runs (run_name, created_by, {columns}) values ('a', '{ADA['email']}', {value})")  # fmt: skip


@pytest.mark.parametrize(
    "change",
    ["results = '{}'", "claim_id = null", "trained_model_url = 'http://evil'", "created_by = 'bob@example.org'",
     "status = 'completed'", "status = 'queued'", "lease_expires_at = null", "checkpoint = '{}'", "priority = 1"],
)  # fmt: skip
def test_signed_in_users_cannot_change_runs_except_to_cancel(supabase, change):
    insert_for(supabase, ADA, ADA["email"])
    with pytest.raises(SqlError, match=r"row-level security|permission denied"):
        as_user(supabase, ADA, f"update training_runs set {change}")


def test_signed_in_users_cannot_delete_runs_or_change_history(supabase):
    insert_for(supabase, ADA, ADA["email"])
    for action in ("delete from training_runs", "delete from training_run_events", "update training_run_events set seq = 1",
                   "delete from trainer_workers", "update trainer_workers set status = 'busy'"):  # fmt: skip
        with pytest.raises(SqlError, match="permission denied"):
            as_user(supabase, ADA, action)


def test_signed_in_users_cancel_their_own_runs_as_web_app_does(supabase):
    run_id = insert_for(supabase, ADA, ADA["email"])
    as_user(
        supabase,
        ADA,
        f"""update training_runs set status = 'canceled', cancel_requested = true, canceled_at = now(),
        completed_at = now(), error_message = 'Canceled by user.' where id = '{run_id}'""",
    )
    assert supabase.sql("select status from training_runs") == "canceled"


@pytest.mark.parametrize("claims", [ADA, BOB], ids=["own run", "another's run"])
def test_cancel_function_uses_rights_of_caller(supabase, claims):
    run_id = insert_for(supabase, ADA, ADA["email"])
    as_user(supabase, claims, f"select status from cancel_training_run('{run_id}')")
    assert supabase.sql("select status from training_runs") == ("canceled" if claims is ADA else "queued")


def test_users_see_history_of_their_own_runs_only(supabase):
    run_id = insert_for(supabase, ADA, ADA["email"])
    supabase.sql(f"insert into training_run_events values ('{run_id}', 1, 1, now(), 'phase', '{{}}')")
    assert as_user(supabase, ADA, "select count(*) from training_run_events") == "1"
    assert as_user(supabase, BOB, "select count(*) from training_run_events") == "0"


def test_every_function_looks_up_temporary_types_last(supabase):
    functions = supabase.sql("""
        select string_agg(proname, ' ') from pg_proc
        where pronamespace in ('public'::regnamespace, 'trainer'::regnamespace)
          and (proconfig is null or not 'search_path=pg_catalog, pg_temp' = any (proconfig))""")
    assert functions == ""


def test_restricted_key_is_enough_for_whole_run(supabase_lab):
    worker = supabase_lab.another(supabase_lab.stack.worker_key)
    assert worker.check() == []
    run_id = supabase_lab.queue.enqueue(RunRequest(data_yaml="set/data.yaml"))
    assert worker.peek(Worker(id="w")).id == run_id
    lease = worker.claim(Worker(id="w"), "8d1a3a52-5f3a-4f1c-9a3d-000000000001", 60)
    assert worker.beat(lease, {"progress": {}}, []) is Verdict.OK
    assert worker.finish(lease, Completed(results={"mAP": 0.5}, trained_model_url=None), []) is not None
    assert worker.get(run_id).status == "completed"


def test_restricted_key_cannot_insert_or_list_runs(supabase_lab):
    worker = supabase_lab.another(supabase_lab.stack.worker_key)
    for action in (lambda: worker.enqueue(RunRequest(data_yaml="a")), lambda: worker.list(limit=1)):
        with pytest.raises(Misconfigured, match="permission denied"):
            action()


def test_secret_key_of_new_format_is_accepted(supabase_lab):
    queue = supabase_lab.another(supabase_lab.stack.secret_key)
    assert queue.check() == []
    run_id = queue.enqueue(RunRequest(data_yaml="set/data.yaml"))
    assert queue.claim(Worker(id="w"), "8d1a3a52-5f3a-4f1c-9a3d-000000000002", 60).job.id == run_id


@pytest.mark.parametrize("key", [token("anon"), token("authenticated", sub="x"), "sb_publishable_abc"])
def test_public_key_is_rejected_before_any_call(supabase_lab, key):
    with pytest.raises(Misconfigured, match=r"public key .*SUPABASE_SERVICE_ROLE_KEY"):
        supabase_lab.another(key).check()


@pytest.mark.parametrize(
    ("policy", "warned"),
    [
        ("for all to anon using (true)", "lets anonymous users write"),
        ("for update to public using (true)", "lets anonymous users update"),
        ("for all to authenticated using (true)", "lets all signed-in users write"),
        ("for insert to authenticated with check (true)", "lets all signed-in users insert"),
        ("for all to authenticated using (created_by = 'a')", None),
        ("for select to authenticated using (true)", None),
    ],
)
def test_policies_that_let_others_write_are_reported(supabase, supabase_lab, policy, warned):
    supabase.sql(f"create policy open_door on training_runs {policy};")
    try:
        expected = [f'policy "open_door" on training_runs {warned}'] if warned else []
        assert supabase_lab.queue.check() == expected
    finally:
        supabase.sql("drop policy open_door on training_runs;")


def test_restricted_role_reads_datasets_and_writes_artifacts_and_sees_no_other_bucket(supabase):
    supabase.sql("""
        insert into storage.buckets (id, name) values ('private', 'private');
        insert into storage.objects (bucket_id, name) values ('datasets', 'a'), ('training-artifacts', 'b'), ('private', 'c');""")
    try:
        assert (
            supabase.sql("select string_agg(name, ' ' order by name) from storage.objects", role="trainer_worker")
            == "a b"
        )
        supabase.sql(
            "insert into storage.objects (bucket_id, name) values ('training-artifacts', 'd')", role="trainer_worker"
        )
        for bucket in ("datasets", "private"):
            with pytest.raises(SqlError, match="row-level security"):
                supabase.sql(
                    f"insert into storage.objects (bucket_id, name) values ('{bucket}', 'e')", role="trainer_worker"
                )
        supabase.sql("delete from storage.objects where bucket_id = 'datasets'", role="trainer_worker")
        assert supabase.sql("select count(*) from storage.objects where bucket_id = 'datasets'") == "1"
    finally:
        supabase.sql("delete from storage.objects; delete from storage.buckets where id = 'private';")
