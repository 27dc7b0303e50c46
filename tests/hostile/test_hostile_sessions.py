"""Hostile sessions of the real database: temporary types, users without an email, events and hardware of a worker."""

import uuid

import pytest

from tests.hostile.database_rules import EVENT_RULE, rule  # noqa: F401 - a fixture
from tests.postgres_server import SqlError
from trainer.core.ports import Worker

USER = {"role": "authenticated", "email": "ada@example.org"}
TYPES = ("jsonb", "text", "uuid", "timestamptz", "numeric", "int4", "interval", "name")
CALLS = {
    "authenticated": """
        insert into training_runs (run_name, created_by, configuration)
          values ('r', 'ada@example.org', '"{\\"device\\": \\"0,1\\"}"'::pg_catalog.jsonb);
        select id from cancel_training_run(gen_random_uuid());
        update training_runs set status = 'canceling', cancel_requested = true;""",
    "trainer_worker": """
        select id from claim_training_run('w', '22222222-2222-2222-2222-222222222222'::pg_catalog.uuid, 60);
        select id from peek_training_run();
        select beat_training_run(gen_random_uuid(), gen_random_uuid(), 60);
        select report_trainer_worker('w', 'broken', '{"slots": 1}'::pg_catalog.jsonb);""",
}


@pytest.mark.parametrize("role", CALLS)
def test_temporary_types_of_the_caller_are_not_used(supabase, role):
    """The check of such a type would run with the rights of the owner of the functions."""
    supabase.sql("insert into training_runs (run_name) values ('r')")
    types = "".join(f"create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.attack());" for name in TYPES)
    supabase.sql(
        f"""
        create function pg_temp.attack() returns boolean language plpgsql as $$
          begin raise exception 'the code of the caller runs as %', current_user; end $$;
        {types}
        {CALLS[role]}""",
        role=role, claims=USER,
    )  # fmt: skip


def test_users_without_an_email_do_not_share_the_runs_of_an_empty_owner(supabase):
    """Supabase sets an empty email for users who signed in anonymously or with a phone number."""
    supabase.sql("insert into training_runs (run_name, created_by) values ('secret', '')")
    for claims in ({"sub": "5d3c6c0a-0000-4000-8000-000000000003", "email": ""}, {"sub": "", "email": ""}):
        assert supabase.sql("select run_name from training_runs", role="authenticated", claims=claims) == ""
        with pytest.raises(SqlError, match="row-level security"):
            supabase.sql(
                "insert into training_runs (run_name, created_by) values ('r', '')",
                role="authenticated",
                claims=claims,
            )


@pytest.mark.parametrize("amount", ['"NaN"', '"-Infinity"', "1e5000", '"1e131000"', "1e-16000", "-1"])
def test_hardware_of_a_worker_does_not_hide_the_workers(supabase_lab, amount):
    """A program that lists the workers cannot read a number with thousands of digits."""
    hardware = f'{{"gpu_memory_gb": {amount}, "ram_gb": 31.1, "gpu": "{"x" * 100_000}"}}'
    for call in (
        f"report_trainer_worker('a', repeat('x', 100000), '{hardware}')",
        f"claim_training_run('b', gen_random_uuid(), 60, '{{\"hardware\": {hardware}}}')",
    ):
        supabase_lab.stack.sql(f"select {call}", role="trainer_worker")
    for worker in supabase_lab.queue.workers():
        assert worker.hardware["ram_gb"] == 31.1
        assert worker.hardware.get("gpu_memory_gb") in (None, 0)
        assert len(str(worker)) < 12_000


def test_name_of_a_worker_has_a_limit(supabase):
    for call in (
        "claim_training_run(repeat('w', 1001), gen_random_uuid(), 60)",
        "report_trainer_worker(repeat('w', 1001))",
    ):
        with pytest.raises(SqlError, match="worker_id: longer than 1000 characters"):
            supabase.sql(f"select {call}", role="trainer_worker")


LARGE = "(select string_agg(md5(n::text), '') from generate_series(1, 600000) as n)"  # 19 MB that cannot be compressed
CHECKPOINT_EVENT = f"""jsonb_build_array(jsonb_build_object(
    'seq', 1, 'at', now(), 'kind', 'checkpoint', 'data', jsonb_build_object('key', {LARGE})))"""


@pytest.mark.parametrize(
    ("call", "column"),
    [
        (f"beat_training_run('{{run}}', '{{claim}}', 0, jsonb_build_object('x', {LARGE}))", "results"),
        (f"finish_training_run('{{run}}', '{{claim}}', 'queued', jsonb_build_object('x', {LARGE}))", "results"),
        (f"finish_training_run('{{run}}', '{{claim}}', 'queued', trained_model_url => {LARGE})", "trained_model_url"),
        (f"release_training_run('{{run}}', '{{claim}}', jsonb_build_object('key', {LARGE}))", "checkpoint"),
        (f"beat_training_run('{{run}}', '{{claim}}', 0, null, {CHECKPOINT_EVENT})", "checkpoint"),
    ],
)  # fmt: skip
def test_worker_cannot_make_the_row_of_a_run_large(supabase_lab, call, column):
    """Each claim rewrites the row: with 200 MB in the next run, each claim would exceed the time limit of a statement."""
    supabase_lab.insert()
    lease = supabase_lab.queue.claim(Worker(id="w"), str(uuid.uuid4()), 60)
    with pytest.raises(SqlError, match=f"{column}: larger than"):
        supabase_lab.stack.sql(
            f"select {call.format(run=lease.job.id, claim=lease.claim_id)}", role="trainer_worker"
        )  # fmt: skip


def test_results_have_a_limit_over_many_heartbeats(supabase_lab):
    supabase_lab.insert()
    lease = supabase_lab.queue.claim(Worker(id="w"), str(uuid.uuid4()), 60)
    part = "(select string_agg(md5(n::text), '') from generate_series(1, 300000) as n)"
    beats = "".join(
        f"select beat_training_run('{lease.job.id}', '{lease.claim_id}', 60, jsonb_build_object('x{n}', {part}));"
        for n in range(2)
    )
    with pytest.raises(SqlError, match="results: larger than 16777216 bytes"):
        supabase_lab.stack.sql(beats, role="trainer_worker")


def lost_run(lab, *events):
    """Let a worker claim a run, store events and stop. Return the ID of the run."""
    lab.insert()
    lease = lab.queue.claim(Worker(id="gone"), str(uuid.uuid4()), 60)
    given = ", ".join(f'{{"seq": {seq}, "at": "2026-01-01T00:00:00Z", "kind": "phase"}}' for seq in events)
    lab.stack.sql(
        f"select beat_training_run('{lease.job.id}', '{lease.claim_id}', 0, null, '[{given}]')", role="trainer_worker"
    )
    return lease.job.id


@pytest.mark.parametrize("events", [(2147483647,), (2147483646,), (2147483646, 2147483647)])
def test_number_of_an_event_of_a_worker_does_not_stop_the_claims_of_others(supabase_lab, events):
    run_id = lost_run(supabase_lab, *events)
    assert supabase_lab.queue.claim(Worker(id="w"), str(uuid.uuid4()), 60).job.id == run_id


def test_event_that_a_rule_of_the_app_refuses_does_not_stop_the_claims(supabase_lab, rule):  # noqa: F811 - the fixture
    run_id = lost_run(supabase_lab)
    rule(EVENT_RULE, "new.kind = 'lease_expired'")
    assert supabase_lab.queue.claim(Worker(id="w"), str(uuid.uuid4()), 60).job.id == run_id
