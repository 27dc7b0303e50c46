"""Rules that an app adds to the real database, and a worker whose events or rows such a rule refuses."""

from __future__ import annotations

import pytest

from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401 - fixtures
from tests.unit.worker.harness import WorkerFixture
from trainer.worker.journal import Journal

EVENT_RULE = """
    create function app_rule() returns trigger language plpgsql as $$
    begin if ({condition}) then raise exception 'the app refuses this'; end if; return new; end $$;
    create trigger app_rule before insert on training_run_events for each row execute function app_rule();"""
ROW_RULE = "alter table training_runs add constraint app_rule check ({condition})"


@pytest.fixture
def rule(supabase_lab):  # noqa: F811
    def add(sql, condition):
        supabase_lab.stack.sql(sql.format(condition=condition))

    yield add
    supabase_lab.stack.sql("""
        alter table training_runs drop constraint if exists app_rule;
        drop function if exists app_rule cascade;
        drop function if exists app_refuse cascade;""")


@pytest.fixture
def worker(tmp_path, supabase_lab):  # noqa: F811
    found = WorkerFixture(tmp_path, lease_seconds=60, drain_seconds=20)
    found.queue = supabase_lab.queue
    return found


@pytest.fixture
def journal(worker):
    worker.enqueue()
    opened = Journal.create(worker.folders.journals, worker.claim())
    yield opened
    opened.close()


def epochs_of(worker, run_id):
    return [event.data["epoch"] for event in worker.queue.events(run_id) if event.kind == "epoch"]
