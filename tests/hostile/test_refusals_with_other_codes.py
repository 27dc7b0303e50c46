"""A rule of the app fails with the code of a wrong key or a missing function. A cancel request still arrives."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import pytest

from tests.hostile.database_rules import EVENT_RULE, epochs_of, rule, worker  # noqa: F401 - fixtures
from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401 - fixtures


def add_failure(stack, code):
    stack.sql(f"""create or replace function app_refuse() returns boolean language plpgsql as $$
        begin raise exception using errcode = '{code}'; end $$""")


@pytest.mark.parametrize("code", ["22023", "PT403", "PT409"])
def test_rule_with_code_of_wrong_key_only_drops_its_event(worker, rule, supabase_lab, code):
    add_failure(supabase_lab.stack, code)
    rule(EVENT_RULE, "case when new.kind = 'epoch' and new.data ->> 'epoch' = '2' then public.app_refuse() end")
    run_id = worker.enqueue()

    worker.work()

    assert worker.row(run_id)["status"] == "completed"
    assert epochs_of(worker, run_id) == [1, 3]
    assert worker.warnings(run_id, "event_refused")


@pytest.mark.parametrize("code", ["42501", "42P01"])
def test_cancel_arrives_while_events_fail_with_code_of_wrong_key_or_schema(worker, rule, supabase_lab, code):
    """The operator has to fix this, so the events are kept until then, but the lease is renewed."""
    add_failure(supabase_lab.stack, code)
    rule(EVENT_RULE, "case when new.seq < 1000000 then public.app_refuse() end")
    run_id = worker.enqueue()
    stopped = []

    def cancel(epoch):
        if epoch == 2:
            worker.queue.cancel(run_id)
            stopped.append(worker.trainer.stop.wait(30))
            supabase_lab.stack.sql("drop function app_rule cascade")  # the operator fixes the rule

    worker.trainer.during = cancel

    worker.work()

    assert stopped == [True]
    assert worker.row(run_id)["status"] == "canceled"
    assert epochs_of(worker, run_id) == [1]
