"""Unreadable rows are rejected at insert, with a message that an app can show."""

import json
import time
import uuid

import httpx
import pytest

from tests.supabase_stack import token
from trainer.core.ports import Worker

OWNER = str(uuid.uuid4())
TOO_LONG = "configuration: longer than 65536 characters; send the settings only, and define the split of many images in the dataset"
REFUSED = {
    "deep": ({"configuration": json.loads('{"a":' * 33 + "1" + "}" * 33)}, "configuration: nested deeper than 32 levels; send the settings only"),
    "long": ({"configuration": {"a": "x" * 65_536}}, TOO_LONG),
    "a device of 4 MB": ({"configuration": {"device": "," * 4_000_000}}, TOO_LONG),
    "created_by": ({"created_by": "c" * 1001}, "created_by: longer than 1000 characters"),
    "run_group": ({"run_group": "g" * 201}, "run_group: longer than 200 characters"),
    "run_tags": ({"run_tags": ["t" * 101]}, "run_tags: more than 50 tags, or a tag is longer than 100 characters"),
    "digits": ({"configuration": '{"a": [{"epochs": -1e5000}]}'}, "configuration: a number is beyond 1.7e308, the largest number that a worker reads"),
    "run_name": ({"run_name": "n" * 1001}, "run_name: longer than 1000 characters"),
    "base_model": ({"base_model": "m" * 1001}, "base_model: longer than 1000 characters"),
    "data_yaml": ({"data_yaml": "d" * 10_001}, "data_yaml: longer than 10000 characters"),
}  # fmt: skip


@pytest.fixture(params=["service", "user"])
def app(supabase, request):
    """Return a REST client like that of the web app, with the key of the service or of a signed-in user."""
    key = supabase.service_key if request.param == "service" else token("authenticated", sub=OWNER)
    headers = {"apikey": key, "Authorization": f"Bearer {key}", "Prefer": "return=representation"}
    with httpx.Client(base_url=f"{supabase.url}/rest/v1", headers=headers, timeout=60) as client:
        yield client


def body(columns):
    """Return a row as JSON. A `configuration` of type str is already JSON, because Python cannot encode all numbers."""
    row = {"run_name": "run", "created_by": OWNER, **columns}
    configuration = row.pop("configuration", None)
    text = configuration if isinstance(configuration, str) else json.dumps(configuration)
    return f'{json.dumps(row)[:-1]}, "configuration": {text}}}'


def insert(app, **columns):
    return app.post("/training_runs", content=body(columns), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_row_is_rejected_with_reason(app, case):
    columns, sentence = REFUSED[case]
    answer = insert(app, **columns)
    assert (answer.status_code, answer.json()["code"], answer.json()["message"]) == (400, "23514", sentence)


@pytest.mark.parametrize(
    "columns",
    [
        {"configuration": json.loads('{"a":' * 32 + "1" + "}" * 32)},
        {"configuration": {"splits": {f"images/{n:06}.jpg": "train" for n in range(1_500)}}},
        {"configuration": '{"lr0": 1e-300, "a": 1e300}'},
        {"run_name": "n" * 1000, "base_model": "m" * 1000, "data_yaml": "d" * 10_000},
        {"configuration": {"a": "9" * 5000}},
        {"configuration": None, "data_yaml": None},
    ],
    ids=[
        "32 levels",
        "a split of 1,500 images",
        "small and large numbers",
        "long names",
        "digits in a text",
        "null",
    ],
)
def test_row_within_limits_is_inserted(app, columns):
    assert insert(app, **columns).status_code == 201


def test_edit_beyond_limits_is_rejected_and_run_beyond_limits_can_be_canceled(supabase_lab):
    run_id = supabase_lab.insert()
    answer = supabase_lab._app.patch("/training_runs", params={"id": f"eq.{run_id}"}, json={"run_name": "n" * 1001})
    assert answer.json()["message"] == "run_name: longer than 1000 characters"
    supabase_lab.force(run_id, run_name="repeat('n', 5000)")
    supabase_lab.edit(run_id, status="canceled", cancel_requested=True)
    assert supabase_lab.queue.get(run_id).status == "canceled"


def test_heartbeat_does_not_check_unchanged_configuration(supabase):
    """Each heartbeat writes the row, but the trigger must not check unchanged columns."""
    plan = supabase.postgres.plans("""
        insert into training_runs (id, run_name, configuration) values
          ('11111111-1111-1111-1111-111111111111', 'a', jsonb_build_object('a', repeat('x', 60000)));
        select claim_training_run('w', '22222222-2222-2222-2222-222222222222', 60);
        select beat_training_run('11111111-1111-1111-1111-111111111111', '22222222-2222-2222-2222-222222222222', 60);""")
    assert plan.count("guard_request") <= 1


def test_requirements_are_stored_at_insert_and_edit(supabase_lab):
    run_id = supabase_lab.insert(configuration={"requires": {"gpus": 2, "gpu_memory_gb": "24"}})
    needs = f"select needs_gpus || ' ' || needs_gpu_memory_gb from training_runs where id = '{run_id}'"
    assert supabase_lab.stack.sql(needs) == "2 24"
    supabase_lab.edit(run_id, configuration={"device": "0,1,2"})
    assert supabase_lab.stack.sql(needs) == "3 0"
    supabase_lab.edit(run_id, needs_gpus=0)
    assert supabase_lab.stack.sql(needs) == "3 0"


def test_claim_does_not_read_configuration_of_rows_with_unmet_requirements(supabase_lab):
    supabase_lab.stack.sql("""
        insert into training_runs (run_name, priority, configuration)
        select 'r', 9, jsonb_build_object('requires', jsonb_build_object('gpus', 9), 'device', repeat(',', 60000))
        from generate_series(1, 200)""")
    good = supabase_lab.insert()
    began = time.monotonic()
    assert claim(supabase_lab).job.id == good
    assert time.monotonic() - began < 1


# ── rules of the app ──

RULES = {
    "a constraint": "alter table training_runs add constraint app_rule check (run_name <> 'refused' or status = 'queued');",
    "a NOT VALID constraint": "alter table training_runs add constraint app_rule check (run_name <> 'refused') not valid;",
    "a trigger": """
        create function app_rule() returns trigger language plpgsql as $$
        begin if new.run_name = 'refused' then raise exception 'not this one'; end if; return new; end $$;
        create trigger app_rule before update on training_runs for each row execute function app_rule();""",
}


@pytest.fixture
def queue_with_a_rule(supabase_lab):
    def make(rule, **columns):
        run_id = supabase_lab.insert(run_name="refused", priority=9)
        if columns:
            supabase_lab.force(run_id, **columns)
        supabase_lab.stack.sql(RULES[rule])
        return supabase_lab, run_id

    yield make
    supabase_lab.stack.sql("""
        alter table training_runs drop constraint if exists app_rule;
        drop function if exists app_rule cascade;""")


def claim(lab):
    return lab.queue.claim(Worker(id="w1"), str(uuid.uuid4()), 60)


@pytest.mark.parametrize("rule", RULES)
def test_row_rejected_by_app_rule_does_not_block_other_claims(queue_with_a_rule, rule):
    lab, _ = queue_with_a_rule(rule)
    good = [lab.insert() for _ in range(2)]
    assert {claim(lab).job.id for _ in good} == {*good}
    assert claim(lab) is None
    assert lab.worker("w1")["status"] == "busy"


def test_many_rows_rejected_by_app_rule_do_not_block_other_claims(queue_with_a_rule):
    lab, _ = queue_with_a_rule("a trigger")
    lab.stack.sql("insert into training_runs (run_name, priority) select 'refused', 9 from generate_series(1, 300)")
    good = lab.insert()
    assert claim(lab).job.id == good
    assert claim(lab) is None


@pytest.mark.parametrize("rule", ["a NOT VALID constraint", "a trigger"])
@pytest.mark.parametrize("status", ["running", "canceling", "queued"])
def test_row_rejected_by_app_rule_does_not_block_requeue_of_expired_run(queue_with_a_rule, rule, status):
    expired_long_ago = {
        "status": f"'{status}'",
        "lease_expires_at": "'2020-01-01'",
        "cancel_requested": str(status == "queued"),
    }
    lab, refused = queue_with_a_rule(rule, **expired_long_ago)
    expired = lab.insert()
    claim(lab)
    lab.force(expired, lease_expires_at="'2020-01-01'")
    assert claim(lab).job.id == expired
    assert [row.kind for row in lab.queue.events(expired)] == ["lease_expired"]
    assert lab.queue.events(refused) == []
