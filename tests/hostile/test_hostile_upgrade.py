"""Rows and views of earlier versions never make an upgrade of the database fail, and never stop the claims after it."""

import time

import pytest

from tests.hostile.dataset_service import settings_in
from tests.integration.test_migrations import SCHEMA_4, claim, column, database  # noqa: F401 - a fixture


@pytest.fixture
def schema_4(database):  # noqa: F811 - the fixture
    """Return the server; its database `fresh` has schema 4, without triggers."""
    database.migrate("fresh")
    database.sql(SCHEMA_4, database="fresh")
    database.sql(
        "drop index training_runs_owner_idx, training_runs_waiting_idx; alter table training_runs disable trigger user",
        database="fresh",
    )
    return database


def upgrade(postgres):
    postgres.sql("alter table training_runs enable trigger user", database="fresh")
    for _ in range(2):
        postgres.migrate("fresh")


def test_long_owner_of_an_old_row_does_not_fail_the_upgrade(schema_4):
    """The text cannot be compressed, and is longer than the largest entry of an index."""
    column(schema_4, "insert into training_runs (run_name, created_by)"
                     " select 'r', string_agg(md5(n::text), '') from generate_series(1, 1000) as n")  # fmt: skip
    upgrade(schema_4)
    assert len(claim(schema_4)[0]["created_by"]) == 1001


def test_view_of_the_app_does_not_fail_the_upgrade(schema_4):
    column(
        schema_4,
        """
        create view my_runs as select * from training_runs;
        insert into training_runs (run_name, configuration, needs_gpu_memory_gb) values
          ('fraction', '{"requires": {"gpu_memory_gb": 23.5}}', 23.5), ('two', '{"device": "0,1"}', null), ('plain', null, null)""",
    )
    upgrade(schema_4)
    column(
        schema_4, "insert into training_runs (run_name, configuration) values ('new', '{\"requires\": {\"gpus\": 1}}')"
    )
    needs = (
        "select string_agg(run_name || needs_gpus || '/' || needs_gpu_memory_gb, ' ' order by run_name) from my_runs"
    )
    assert column(schema_4, needs) == "fraction0/24 new1/0 plain0/0 two2/0"
    assert [claim(schema_4)[0]["run_name"], claim(schema_4)] == ["plain", []]
    rest = [claim(schema_4, capabilities='\'{"gpus": 2, "gpu_memory_gb": 23.6}\'')[0]["run_name"] for _ in range(3)]
    assert sorted(rest) == ["fraction", "new", "two"]


def test_old_row_whose_text_would_fill_the_memory_is_claimed_without_its_configuration(schema_4):
    column(schema_4, "insert into training_runs (run_name, configuration) select 'r', jsonb_agg('1e131000'::jsonb)"
                     " from generate_series(1, 10000)")  # fmt: skip
    upgrade(schema_4)
    assert claim(schema_4)[0]["configuration"] == " " * 65537


def test_functions_of_earlier_versions_with_other_parameters_are_replaced(schema_4):
    """An upgrade from schema 3 failed, and the old functions stayed callable without the rules of the new ones."""
    column(schema_4, """
        drop function trainer.see_worker;
        create function trainer.see_worker(worker_id text, hardware jsonb, tells boolean, problem text)
          returns void language sql as 'select';
        create function finish_training_run(run_id uuid, claim_id uuid, status text, results jsonb default null,
          trained_model_url text default null, error_message text default null, events jsonb default '[]')
          returns text language sql as $$ select 'old' $$;
        create function release_training_run(run_id uuid, claim_id uuid, checkpoint jsonb default null, events jsonb default '[]')
          returns text language sql as $$ select 'old' $$;""")  # fmt: skip
    upgrade(schema_4)
    for call in ("finish_training_run(gen_random_uuid(), gen_random_uuid(), 'failed')",
                 "release_training_run(gen_random_uuid(), gen_random_uuid())"):  # fmt: skip
        assert column(schema_4, f"select {call}") == "lost"
    column(schema_4, "insert into training_runs (run_name) values ('r')")
    assert claim(schema_4)[0]["run_name"] == "r"


def test_old_row_with_many_numbers_does_not_delay_the_upgrade(schema_4):
    column(schema_4, "insert into training_runs (run_name, configuration) select 'r', jsonb_agg(1) from generate_series(1, 400000)")  # fmt: skip
    began = time.monotonic()
    upgrade(schema_4)
    assert claim(schema_4)[0]["configuration"] == " " * 65537
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("before", "now"), [("off", "0"), ("No", "0"), ("false", "0"), ("yes", "auto"), ("on", "auto"), ("True", "auto")]
)
def test_sandbox_setting_of_an_earlier_version_keeps_its_meaning(tmp_path, before, now):
    assert settings_in(tmp_path, sandbox=before).sandbox == now
