"""The migrations are applied to an empty project, to the web app's project, to plain PostgreSQL, and twice."""

from pathlib import Path

import pytest

from tests.postgres_server import MIGRATIONS
from trainer.jobs.supabase import SCHEMA_VERSION

APP = (Path(__file__).parent / "web_app_schema.sql").read_text()

CATALOG = """
  select 'column ' || table_schema || '.' || table_name || '.' || column_name || ' ' || data_type || ' '
         || is_nullable || ' ' || coalesce(column_default, '') as line
  from information_schema.columns where table_schema in ('public', 'trainer', 'storage')
  union all select 'index ' || indexdef from pg_indexes where schemaname in ('public', 'trainer')
  union all select 'policy ' || row(p.*)::text from pg_policies p
  union all select 'trigger ' || pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
  union all select 'grant ' || row(g.*)::text from information_schema.table_privileges g where table_schema = 'public'
  union all select 'grant ' || row(g.*)::text from information_schema.column_privileges g where table_schema = 'public'
  union all select 'function ' || oid::regprocedure || ' ' || prosrc || ' ' || proacl::text || ' ' || prosecdef::text
    || ' ' || coalesce(proconfig::text, '')
    from pg_proc where pronamespace::regnamespace::text in ('public', 'trainer')
  union all select 'table ' || relname || ' ' || relrowsecurity::text || ' ' || coalesce(relacl::text, '')
    from pg_class where relnamespace = 'public'::regnamespace
  union all select 'bucket ' || row(b.*)::text from storage.buckets b
  order by 1
"""


@pytest.fixture
def database(supabase_servers):
    """Create the database `fresh`, which is like a new Supabase project, without migrations. Return its server."""
    postgres = supabase_servers.postgres
    postgres.create_database("fresh", migrated=False)
    yield postgres
    postgres.sql("drop database fresh with (force);", database="postgres")


def catalog(postgres) -> list[str]:
    return [row["line"] for row in postgres.rows(CATALOG, database="fresh")]


def claim(postgres, **arguments: str) -> list[dict]:
    given = {"worker_id": "'w'", "claim_id": "gen_random_uuid()", "lease_seconds": "60", **arguments}
    return postgres.rows(
        f"select * from claim_training_run({', '.join(f'{name} => {value}' for name, value in given.items())})",
        database="fresh",
    )


def column(postgres, query: str) -> str:
    return postgres.sql(query, database="fresh")


def test_migration_file_names_start_with_ordered_versions():
    names = [path.name for path in MIGRATIONS]
    assert len(names) == 3
    assert names == sorted(names)
    assert all(name[:14].isdigit() and name[14] == "_" for name in names)


@pytest.mark.parametrize("before", ["", APP], ids=["empty project", "the web app's project"])
def test_applying_migrations_twice_changes_nothing(database, before):
    database.sql(before, database="fresh")
    database.migrate("fresh")
    once = catalog(database)
    database.migrate("fresh")
    assert catalog(database) == once
    assert any(line.startswith("function claim_training_run") for line in once)


def test_empty_project_serves_run_and_has_private_buckets(database):
    database.migrate("fresh")
    column(database, "insert into training_runs (run_name) values ('first')")
    assert claim(database)[0]["run_name"] == "first"
    assert column(database, "select string_agg(id || public, ' ' order by id) from storage.buckets") == (
        "datasetsfalse training-artifactsfalse"
    )


def test_migrations_can_be_applied_as_one_script(database):
    database.sql("\n".join(path.read_text() for path in MIGRATIONS), database="fresh")
    assert column(database, "select trainer_schema_version()") == str(SCHEMA_VERSION)


def test_web_app_keeps_its_rows_policies_triggers_grants_and_buckets(database):
    database.sql(APP, database="fresh")
    before = set(catalog(database))
    column(
        database,
        """insert into training_runs (run_name, status, results) values
        ('done', 'completed', '{"mAP": 0.5}'), ('waiting', 'queued', null), ('odd', 'configuring', null)""",
    )
    database.migrate("fresh")
    assert before - set(catalog(database)) == set()
    assert column(database, "select string_agg(run_name || status, ' ' order by run_name) from training_runs") == (
        "donecompleted oddconfiguring waitingqueued"
    )
    assert claim(database)[0]["run_name"] == "waiting"
    assert claim(database) == []
    assert column(database, "select public from storage.buckets where id = 'datasets'") == "t"


def test_migrations_add_no_second_updated_at_trigger(database):
    database.sql(APP, database="fresh")
    database.migrate("fresh")
    triggers = column(database, "select string_agg(tgname, ' ' order by tgname) from pg_trigger where not tgisinternal"
                                " and tgrelid = 'training_runs'::regclass")  # fmt: skip
    assert triggers == (
        "set_training_runs_updated_at trainer_cut_message trainer_guard_ending trainer_guard_request trainer_limit_queued_runs"
    )


def test_updated_at_changes_on_empty_project(database):
    database.migrate("fresh")
    column(database, "insert into training_runs (run_name, updated_at) values ('a', '2020-01-01')")
    column(database, "update training_runs set run_name = 'b'")
    assert column(database, "select updated_at > '2021-01-01' from training_runs") == "t"


def test_deleting_a_project_cancels_running_and_deletes_queued_runs(database):
    database.sql(APP, database="fresh")
    database.migrate("fresh")
    column(
        database,
        """
        insert into projects (id, name) values ('11111111-1111-1111-1111-111111111111', 'p');
        insert into training_runs (run_name, project_id, created_at) values
          ('running', '11111111-1111-1111-1111-111111111111', '2020-01-01'),
          ('queued', '11111111-1111-1111-1111-111111111111', now());""",
    )
    run = claim(database, claim_id="'22222222-2222-2222-2222-222222222222'")[0]
    column(database, "delete from projects")
    held = f"run_id => '{run['id']}', claim_id => '22222222-2222-2222-2222-222222222222'"
    assert column(database, f"select beat_training_run({held}, lease_seconds => 60)") == "lost"
    assert column(database, f"select finish_training_run({held}, status => 'completed')") == "lost"
    left = database.rows(
        "select run_name, status, error_message, lease_expires_at from training_runs", database="fresh"
    )
    assert left == [
        {"run_name": "running", "status": "canceled", "error_message": "Project deleted.", "lease_expires_at": None},
    ]


def test_unreadable_rows_do_not_fail_migration_and_can_be_ended_by_worker(database):
    database.sql(APP, database="fresh")
    column(database, "insert into training_runs (run_name, configuration) values"
                     " (repeat('n', 5000), (repeat('[', 1500) || repeat(']', 1500))::jsonb)")  # fmt: skip
    database.migrate("fresh")
    run_id = column(database, "select id from claim_training_run('w', '22222222-2222-2222-2222-222222222222', 60)")
    held = f"run_id => '{run_id}', claim_id => '22222222-2222-2222-2222-222222222222'"
    assert column(database, f"select beat_training_run({held}, lease_seconds => 60)") == "ok"
    assert (
        column(database, f"select finish_training_run({held}, status => 'failed', error_message => 'Too deep.')")
        == "failed"
    )


def test_abandoned_runs_of_an_older_service_are_claimed(database):
    database.sql(APP, database="fresh")
    column(
        database,
        """insert into training_runs (run_name, status, started_at, worker_id) values
        ('orphan', 'running', now() - interval '2 hours', 'old'), ('alive', 'running', now() - interval '5 s', 'old'),
        ('stopping', 'canceling', now() - interval '2 hours', 'old')""",
    )
    database.migrate("fresh")
    assert claim(database)[0]["run_name"] == "orphan"
    assert claim(database) == []
    assert column(database, "select string_agg(run_name || status, ' ' order by run_name) from training_runs") == (
        "aliverunning orphanrunning stoppingcanceled"
    )


def test_run_can_be_claimed_on_plain_postgresql_after_migrations(supabase_servers):
    postgres = supabase_servers.postgres
    postgres.sql("create database plain;", database="postgres")
    try:
        postgres.migrate("plain")
        postgres.sql("insert into training_runs (run_name) values ('a')", database="plain")
        taken = postgres.sql("select run_name from claim_training_run('w', gen_random_uuid(), 60)", database="plain")
        assert taken == "a"
    finally:
        postgres.sql("drop database plain with (force);", database="postgres")


SCHEMA_4 = """
  drop trigger trainer_guard_request on training_runs;
  drop trigger trainer_limit_queued_runs on training_runs;
  drop function trainer.requirements(jsonb);
  drop table trainer.settings;
  alter table training_runs drop column needs_gpus, drop column needs_gpu_memory_gb;
  alter table training_runs add column needs_gpus numeric, add column needs_gpu_memory_gb numeric;
  create function trainer.requirements(configuration jsonb, out gpus numeric, out gpu_memory_gb numeric)
    language sql immutable as 'select 0, 23.5';
  create function trainer.can_serve(capabilities jsonb, configuration jsonb) returns boolean
    language sql immutable as 'select true from trainer.requirements(configuration)';
  create trigger trainer_guard_request before insert or update of configuration, needs_gpus, needs_gpu_memory_gb
    on training_runs for each row execute function trainer.guard_request();
  create or replace function public.trainer_schema_version() returns integer
    language sql immutable set search_path = pg_catalog, pg_temp as 'select 4';
"""


def test_upgrade_from_schema_4_stores_the_requirements_of_unfinished_runs(database):
    database.migrate("fresh")
    expected = set(catalog(database))
    database.sql(SCHEMA_4, database="fresh")
    column(
        database,
        """
        alter table training_runs disable trigger user;
        insert into training_runs (run_name, status, configuration, needs_gpu_memory_gb, claim_id, lease_expires_at) values
          ('fraction', 'queued', '{"requires": {"gpu_memory_gb": 23.5}}', 23.5, null, null),
          ('older than the trigger', 'queued', '{"requires": {"gpus": 2}}', null, null, null),
          ('plain', 'queued', null, null, null, null),
          ('too large', 'queued', jsonb_build_object('requires', '{"gpus": 9}'::jsonb, 'a', repeat('x', 70000)), 0, null, null),
          ('ended', 'completed', '{"device": "0,1"}', null, null, null),
          ('held', 'running', '{"device": "0,1,2"}', 3, '22222222-2222-2222-2222-222222222222', now() + interval '1 hour');
        alter table training_runs enable trigger user;
        analyze training_runs;""",
    )
    database.migrate("fresh")
    assert set(catalog(database)) == expected
    needs = "select string_agg(needs_gpus || '/' || needs_gpu_memory_gb, ' ' order by run_name) from training_runs"
    assert column(database, needs) == "0/0 0/24 3/0 2/0 0/0 0/0"
    column(database, "update training_runs set status = 'queued' where run_name = 'ended'")
    assert column(database, needs) == "2/0 0/24 3/0 2/0 0/0 0/0"
    beat = "select beat_training_run(id, claim_id, 60) from training_runs where run_name = 'held'"
    assert column(database, beat) == "ok"
    claimed = [row["run_name"] for row in iter(lambda: next(iter(claim(database)), None), None)]
    assert sorted(claimed) == ["plain", "too large"]


def test_requirements_of_a_row_that_the_app_rejects_do_not_fail_migration(database):
    database.sql(APP, database="fresh")
    column(
        database,
        """
        insert into training_runs (run_name, configuration) values ('odd', '{"device": "0,1"}'), ('good', '{"device": "0,1"}');
        alter table training_runs add constraint app_rule check (run_name <> 'odd') not valid""",
    )
    database.migrate("fresh")
    needs = "select string_agg(run_name || needs_gpus, ' ' order by run_name) from training_runs"
    assert column(database, needs) == "good2 odd0"


def test_later_migration_can_add_column(database):
    database.migrate("fresh")
    database.sql(
        "alter table training_runs add column note text;"
        "create or replace function public.trainer_schema_version() returns integer"
        " language sql immutable set search_path = pg_catalog, pg_temp as $$ select 3 $$;",
        database="fresh",
    )
    column(database, "insert into training_runs (run_name, note) values ('a', 'kept')")
    claimed = claim(database)[0]
    assert claimed["note"] == "kept"
    assert column(database, "select note from training_runs") == "kept"
