"""Hostile users and hostile keys of workers, over the real database: neither stops the queue or acts for another worker."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.postgres_server import SqlError
from tests.supabase_stack import token
from trainer.core.errors import BadRequest
from trainer.core.job import Completed
from trainer.core.ports import Worker
from trainer.request.parse import plan_of

ADA = {"role": "authenticated", "sub": "5d3c6c0a-0000-4000-8000-000000000001", "email": "ada@example.org"}
BOB = {"role": "authenticated", "sub": "5d3c6c0a-0000-4000-8000-000000000002", "email": "bob@example.org"}
LIMIT = 100
COMMAS = "jsonb_build_object('device', repeat(',', 4000000))"


def as_user(stack, claims, script):
    return stack.sql(script, role="authenticated", claims=claims)


def insert_runs(stack, claims, count):
    as_user(
        stack,
        claims,
        f"insert into training_runs (run_name, created_by) select 'r', '{claims['email']}' from generate_series(1, {count})",
    )


def queued(stack):
    return int(stack.sql("select count(*) from training_runs where status = 'queued'"))


def claim(lab, worker="w1", **capabilities):
    return lab.queue.claim(Worker(id=worker, capabilities=capabilities), str(uuid.uuid4()), 60)


@pytest.fixture
def settings(supabase):
    """Return a function that sets the limit of queued runs per user. The default is restored after the test."""

    def limit(most):
        supabase.sql(f"update trainer.settings set queued_runs_per_user = {most}")

    yield limit
    limit(LIMIT)


# ── users: size of a row ──


def test_configuration_of_4_mb_is_rejected_for_users(supabase):
    with pytest.raises(SqlError, match="configuration: longer than 65536 characters"):
        as_user(
            supabase,
            ADA,
            f"insert into training_runs (run_name, created_by, configuration) values ('r', '{ADA['email']}', {COMMAS})",
        )


@pytest.mark.parametrize("number", ["1e131000", "1e-16000", "0e-16000"])
def test_numbers_with_a_long_text_are_rejected_before_they_fill_the_memory(supabase, number):
    """The text of this configuration would have up to 2.6 GB, more than a text can have."""
    numbers = f"jsonb_build_object('a', (select jsonb_agg('{number}'::jsonb) from generate_series(1, 20000)))"
    insert = (
        f"insert into training_runs (run_name, created_by, configuration) values ('r', '{ADA['email']}', {numbers})"
    )
    began = time.monotonic()
    with pytest.raises(SqlError, match=r"configuration: (a number is beyond|longer than 65536)"):
        as_user(supabase, ADA, insert)
    assert time.monotonic() - began < 5


def test_old_rows_with_large_configurations_are_refused_unread_and_do_not_delay_other_runs(supabase_lab):
    large = [supabase_lab.insert(priority=9) for _ in range(6)]
    for run_id in large:
        supabase_lab.force(run_id, configuration=COMMAS)
    good = supabase_lab.insert()
    began = time.monotonic()
    for _ in large:
        with pytest.raises(BadRequest, match="longer than 65536 characters"):
            plan_of(claim(supabase_lab).job.request)
    assert claim(supabase_lab).job.id == good
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "call", ["peek_training_run()", "claim_training_run('w', '22222222-2222-2222-2222-222222222222', 60)"]
)
def test_large_columns_of_an_old_row_are_cut_before_they_leave_the_database(supabase_lab, call):
    run_id = supabase_lab.insert()
    supabase_lab.force(
        run_id, configuration=COMMAS, run_name="repeat('n', 9000000)", base_model="repeat('m', 9000000)",
        data_yaml="repeat('d', 9000000)",
    )  # fmt: skip
    lengths = "length(configuration #>> '{}') || ' ' || length(run_name) || ' ' || length(base_model) || ' ' || length(data_yaml)"
    for _ in range(2):  # also if the call is repeated after a lost response
        answer = supabase_lab.stack.sql(f"select {lengths} from {call}", role="trainer_worker")
        assert answer == "65537 1001 1001 10001"


def test_error_message_of_a_user_is_cut(supabase):
    insert_runs(supabase, ADA, 1)
    as_user(
        supabase,
        ADA,
        "update training_runs set status = 'canceled', cancel_requested = true, error_message = repeat('x', 5000000)",
    )
    assert supabase.sql("select status || length(error_message) from training_runs") == "canceled10000"


# ── users: number of rows ──


def test_user_can_queue_a_limited_number_of_runs(supabase):
    insert_runs(supabase, ADA, LIMIT)
    with pytest.raises(SqlError, match=f"created_by: {LIMIT} runs of this user are queued, which is the limit"):
        insert_runs(supabase, ADA, 1)
    insert_runs(supabase, BOB, 1)
    supabase.sql("select claim_training_run('w', gen_random_uuid(), 60)")
    insert_runs(supabase, ADA, 1)
    assert queued(supabase) == LIMIT + 1


def test_one_insert_of_too_many_runs_is_rejected_as_a_whole(supabase):
    with pytest.raises(SqlError, match="which is the limit"):
        insert_runs(supabase, ADA, LIMIT + 1)
    assert queued(supabase) == 0


def test_rejection_over_rest_has_a_code_and_a_sentence(supabase, settings):
    settings(0)
    answer = post(supabase, ADA, 1)
    assert (answer.status_code, answer.json()["code"]) == (400, "23514")
    assert answer.json()["message"].startswith("created_by: 0 runs of this user are queued, which is the limit; wait")


def test_concurrent_inserts_do_not_exceed_the_limit(supabase, settings):
    settings(20)
    with ThreadPoolExecutor(12) as pool:
        codes = [answer.status_code for answer in pool.map(lambda _: post(supabase, ADA, 5), range(12))]
    assert sorted(codes) == [201] * 4 + [400] * 8
    assert queued(supabase) == 20


def post(stack, claims, count):
    headers = {"Authorization": f"Bearer {token(**claims)}", "apikey": stack.anon_key}
    rows = [{"run_name": "r", "created_by": claims["email"]}] * count
    return httpx.post(f"{stack.url}/rest/v1/training_runs", json=rows, headers=headers, timeout=60)


def test_operator_changes_or_lifts_the_limit_and_users_cannot(supabase, settings):
    for change in ("update trainer.settings set queued_runs_per_user = null", "select * from trainer.settings"):
        with pytest.raises(SqlError, match="permission denied"):
            as_user(supabase, ADA, change)
    settings(3)
    with pytest.raises(SqlError, match="created_by: 3 runs"):
        insert_runs(supabase, ADA, 4)
    settings("null")
    insert_runs(supabase, ADA, LIMIT + 1)


def test_runs_that_the_service_inserts_count_and_are_not_rejected(supabase):
    insert = f"insert into training_runs (run_name, created_by) select 'r', '{ADA['email']}' from generate_series(1, {LIMIT + 1})"
    supabase.sql(insert, role="service_role")
    assert queued(supabase) == LIMIT + 1
    with pytest.raises(SqlError, match="which is the limit"):
        insert_runs(supabase, ADA, 1)


def test_queued_runs_with_status_canceling_end_at_once(supabase):
    """Otherwise a user could leave any number of them for the next claims, and each claim would take longer."""
    for _ in range(3):
        insert_runs(supabase, ADA, LIMIT)
        as_user(supabase, ADA, "update training_runs set status = 'canceling', cancel_requested = true")
    ended = "select status || error_message || count(*) from training_runs where completed_at is not null group by status, error_message"
    assert supabase.sql(ended) == f"canceledCanceled by user.{3 * LIMIT}"


def test_runs_with_many_different_requirements_do_not_delay_claims(supabase_lab):
    supabase_lab.stack.sql("""
        insert into training_runs (run_name, configuration) select 'r', jsonb_build_object('requires',
          jsonb_build_object('gpus', n % 7, 'gpu_memory_gb', 1 + n)) from generate_series(1, 3000) as n""")
    good = supabase_lab.insert()
    began = time.monotonic()
    assert claim(supabase_lab).job.id == good
    assert claim(supabase_lab) is None
    assert claim(supabase_lab, gpus=8, gpu_memory_gb=192) is not None
    assert time.monotonic() - began < 2


def test_runs_in_backoff_do_not_delay_claims(supabase_lab):
    supabase_lab.stack.sql("""
        insert into training_runs (run_name, priority, not_before)
        select 'r', 9, now() + interval '1 hour' from generate_series(1, 3000)""")
    good = supabase_lab.insert()
    plans = supabase_lab.stack.postgres.plans("select id from claim_training_run('w', gen_random_uuid(), 60)")
    assert supabase_lab.queue.get(good).status == "running"
    assert "rows=3000" not in plans
    assert "Removed by Filter: 3000" not in plans


# ── the key of a worker ──


def held_run(lab):
    """Let the worker `victim` claim a run. Return its lease."""
    lab.insert()
    return claim(lab, "victim")


@pytest.mark.parametrize("is_expired", [False, True])
def test_no_function_returns_the_fencing_token_of_another_worker(supabase_lab, is_expired):
    lease = held_run(supabase_lab)
    if is_expired:  # the victim can still renew its lease, and another worker can claim the run
        supabase_lab.edit(lease.job.id, lease_expires_at="2020-01-01T00:00:00Z")
        supabase_lab.stack.sql("select settle_training_runs()")
    key = supabase_lab.stack.worker_key
    headers = {"Authorization": f"Bearer {key}", "apikey": supabase_lab.stack.anon_key}
    calls = {
        "read_training_run": {"run_id": lease.job.id}, "peek_training_run": {}, "settle_training_runs": {},
        "report_trainer_worker": {"worker_id": "victim"}, "trainer_access_warnings": {},
        "claim_training_run": {"worker_id": "victim", "claim_id": str(uuid.uuid4()), "lease_seconds": 60},
    }  # fmt: skip
    for name, arguments in calls.items():
        answer = httpx.post(f"{supabase_lab.stack.url}/rest/v1/rpc/{name}", json=arguments, headers=headers, timeout=60)
        assert answer.is_success, answer.text
        assert lease.claim_id not in answer.text


def test_read_run_has_only_the_columns_that_a_worker_needs(supabase_lab):
    lease = held_run(supabase_lab)
    artifacts = [{"name": "best.pt", "path": "training_runs/x/1/best.pt"}]
    results = {"artifacts": artifacts, "run_dir": "/var/lib/runs", "metrics": {"mAP": 0.5}}
    supabase_lab.queue.finish(lease, Completed(results=results, trained_model_url=None), [])
    (row,) = supabase_lab.stack.rows(f"select * from read_training_run('{lease.job.id}')", role="trainer_worker")
    told = {name for name, value in row.items() if value is not None}
    assert told == {"id", "run_name", "status", "attempt", "results"}
    assert row["results"] == {"artifacts": artifacts}


@pytest.mark.parametrize("seconds", ["1e12", "'infinity'", "'nan'"])
def test_lease_lasts_at_most_a_day(supabase, seconds):
    supabase.sql("insert into training_runs (run_name) values ('r')")
    supabase.sql(f"select claim_training_run('w', gen_random_uuid(), {seconds})", role="trainer_worker")
    assert supabase.sql("select lease_expires_at <= now() + interval '1 day' from training_runs") == "t"


@pytest.mark.parametrize(
    "call", ["claim_training_run('victim', gen_random_uuid(), 60)", "report_trainer_worker('victim', 'broken')"]
)
def test_key_with_a_worker_id_acts_only_for_this_worker(supabase, call):
    claims = {"role": "trainer_worker", "worker_id": "w1"}
    supabase.sql("insert into training_runs (run_name) values ('r')")
    with pytest.raises(SqlError, match="worker_id = victim: this key belongs to the worker w1"):
        supabase.sql(f"select {call}", role="trainer_worker", claims=claims)
    assert supabase.sql("select count(*) from trainer_workers") == "0"
    supabase.sql(f"select {call.replace('victim', 'w1')}", role="trainer_worker", claims=claims)
    assert supabase.sql("select worker_id from trainer_workers") == "w1"


@pytest.mark.parametrize(
    "call",
    [
        "claim_training_run('w1', '{claim}', 60)",
        "beat_training_run('{run}', '{claim}', 60)",
        "finish_training_run('{run}', '{claim}', 'failed')",
        "release_training_run('{run}', '{claim}')",
    ],
)
def test_key_with_a_worker_id_cannot_use_the_claim_of_another_worker(supabase_lab, call):
    lease = held_run(supabase_lab)
    before = supabase_lab.rows()
    call = call.format(run=lease.job.id, claim=lease.claim_id)
    stolen = {"role": "trainer_worker", "worker_id": "w1"}
    answer = supabase_lab.stack.sql(f"select * from {call}", role="trainer_worker", claims=stolen)
    assert (answer, supabase_lab.rows()) == ("" if "claim_training_run" in call else "lost", before)
    own = {**stolen, "worker_id": "victim"}
    call = call.replace("'w1'", "'victim'")
    assert supabase_lab.stack.sql(f"select * from {call}", role="trainer_worker", claims=own) not in ("", "lost")


def test_key_with_a_worker_id_cannot_act_without_a_name(supabase):
    supabase.sql("insert into training_runs (run_name) values ('r')")
    with pytest.raises(SqlError, match="this key belongs to the worker w1"):
        supabase.sql(
            "select claim_training_run(null, gen_random_uuid(), 60)",
            role="trainer_worker", claims={"role": "trainer_worker", "worker_id": "w1"},
        )  # fmt: skip
    assert queued(supabase) == 1
