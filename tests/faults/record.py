"""A database trigger that records the changes of runs, and the rules that each change must follow."""

from __future__ import annotations

from trainer.core.job import TRANSITIONS, Status

# columns that do not change after the end of a run
LASTING = ("status", "claim_id", "attempt", "results", "trained_model_url", "error_message", "completed_at")
RECORD = """
create schema faults;
-- `path` is the path of the request: a worker calls functions, the web app writes to the table
create table faults.changes (
  n bigserial, at timestamptz default clock_timestamp(), path text default current_setting('request.path', true),
  run_id uuid, was jsonb, became jsonb);
create table faults.stale_events (run_id uuid, attempt integer, event jsonb, row jsonb);
create function faults.record_change() returns trigger language plpgsql security definer as $$
begin
  -- without the columns in which a test stores values that no client can read
  insert into faults.changes (run_id, was, became) values (new.id,
    to_jsonb(old) - array['run_name', 'base_model', 'data_yaml', 'configuration'],
    to_jsonb(new) - array['run_name', 'base_model', 'data_yaml', 'configuration']);
  return null;
end $$;
-- all changes of an ended run; of any other run, all changes except those of a heartbeat
create trigger faults_change after update on training_runs for each row when (
  old.status in ('completed', 'failed', 'canceled')
  or (old.status, old.claim_id, old.attempt, old.failures, old.error_message, old.trained_model_url, old.checkpoint)
    is distinct from
    (new.status, new.claim_id, new.attempt, new.failures, new.error_message, new.trained_model_url, new.checkpoint)
) execute function faults.record_change();
create function faults.record_stale_event() returns trigger language plpgsql security definer as $$
declare
  run public.training_runs;
begin
  select * into run from public.training_runs where id = new.run_id;
  if new.seq >= 1000000 then  -- the queue added this event; it can belong to an ended run
    return null;
  end if;
  if run.attempt <> new.attempt or run.status in ('completed', 'failed', 'canceled') then
    insert into faults.stale_events values (new.run_id, new.attempt, to_jsonb(new), to_jsonb(run));
  end if;
  return null;
end $$;
create trigger faults_event after insert on training_run_events for each row
  execute function faults.record_stale_event();
-- a short backoff; other tests check the real backoff (10 s, 20 s, …)
create or replace function trainer.back_off(failures integer) returns interval
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ select 0.3 * interval '1 second' $$;
"""


def check_change(path, was, became) -> None:
    """Check I1 to I4 and I7 for one recorded change of a row."""
    before, after = Status(was["status"]), Status(became["status"])
    if path == "/training_runs" and before.is_terminal and after is Status.QUEUED:
        # a user requeued an ended run
        left = {name: became[name] for name in ("finish_requested", "cancel_requested", "failures") if became[name]}
        assert not left, f"the requeued run still has columns of its last outcome: {left}"
        return
    assert after is before or after in TRANSITIONS[before], f"I4: {before} → {after}"
    if before.is_terminal:
        assert {n: was[n] for n in LASTING} == {n: became[n] for n in LASTING}, "I3: an ended run changed"
    if after.is_terminal:
        assert became["lease_expires_at"] is None, "I2: an ended run has a lease"
    if became["claim_id"] != was["claim_id"] or became["attempt"] != was["attempt"]:
        assert (before, after) == (Status.QUEUED, Status.RUNNING), "I1: the claimed run was not queued"
        assert became["attempt"] == was["attempt"] + 1, "I1: a claim did not increase the attempt by one"
    assert became["failures"] <= became["max_attempts"], "I7: a run has more failures than max_attempts"
