"""The tables of the SQLite queue, with the same names as in supabase/migrations/, and how older files are upgraded."""

from __future__ import annotations

SCHEMA_VERSION = 7

# Times are ISO 8601 in UTC of one width, so that they sort as text.
_TABLES = """
create table training_runs (
  id text primary key,
  run_name text not null,
  project_id text,
  step_id text,
  status text not null default 'queued'
    check (status in ('queued', 'running', 'canceling', 'completed', 'failed', 'canceled')),
  base_model text,
  configuration text,
  data_yaml text,
  results text,
  trained_model_url text,
  created_by text,
  is_deployed integer not null default 0,
  deployment_status text,
  deployment_date text,
  deployment_url text,
  started_at text,
  completed_at text,
  canceled_at text,
  cancel_requested integer not null default 0,
  worker_id text,
  error_message text,
  created_at text not null,
  updated_at text not null,
  attempt integer not null default 0,
  max_attempts integer not null default 3,
  failures integer not null default 0,
  host_failures text not null default '{}',
  claim_id text,
  lease_expires_at text,
  heartbeat_at text,
  priority integer not null default 0,
  not_before text,
  checkpoint text,
  progress_epoch integer not null default 0,
  told_epoch integer not null default 0,
  told_attempt integer not null default 0,
  finish_requested integer not null default 0
);
create table trainer_workers (
  worker_id text primary key,
  status text not null default 'online',
  status_message text,
  last_seen text not null,
  created_at text not null,
  updated_at text not null,
  current_runs integer,
  version text,
  slots integer,
  device_type text,
  compute_type text,
  gpu_name text,
  gpu_model text,
  gpu text,
  gpu_memory_gb real,
  gpu_vram_gb real,
  gpu_memory_mb real,
  gpu_vram_mb real,
  cpu_model text,
  cpu text,
  ram_gb real
);
create table training_run_events (
  run_id text not null references training_runs (id) on delete cascade,
  attempt integer not null,
  seq integer not null,
  at text not null,
  kind text not null,
  data text not null default '{}',
  primary key (run_id, attempt, seq)
) without rowid;
create table queue_clock (
  id integer primary key check (id = 1),
  boot_id text not null,
  since_boot real not null,
  now real not null
);
create index training_runs_next on training_runs (priority desc, created_at, id) where status = 'queued';
create index training_runs_lease on training_runs (lease_expires_at) where status in ('running', 'canceling');
create index training_runs_cancel on training_runs (id) where status = 'queued' and cancel_requested;
create unique index training_runs_claim on training_runs (claim_id) where claim_id is not null;
create index training_runs_recent on training_runs (created_at desc, id);
create trigger training_runs_end_stands before update of status on training_runs
  when old.status in ('completed', 'failed', 'canceled') and new.status in ('canceling', 'canceled')
  begin select raise(ignore); end;
create trigger training_runs_end_has_no_lease after update of status on training_runs
  when new.status in ('completed', 'failed', 'canceled') and new.lease_expires_at is not null
  begin update training_runs set lease_expires_at = null where id = new.id; end;
"""

# Somebody queues an ended run again: nothing of its end is left. The number of its attempts goes on.
_QUEUED_AGAIN = """
create trigger training_runs_queued_again after update of status on training_runs
  when old.status in ('completed', 'failed', 'canceled') and new.status = 'queued'
  begin
    update training_runs set finish_requested = 0, cancel_requested = 0, failures = 0, progress_epoch = 0,
      not_before = null, error_message = null, completed_at = null, canceled_at = null,
      checkpoint = case old.status when 'failed' then checkpoint end,
      told_epoch = case old.status when 'failed' then told_epoch else 0 end,
      told_attempt = case old.status when 'failed' then told_attempt else 0 end
    where id = new.id;
  end;
"""

# A worker that gives a run back gives its lease back, too; the queue takes it with another failure counted.
_HELD = """
create trigger training_runs_held before update of status on training_runs
  when old.status in ('running', 'canceling') and new.status = 'queued'
    and new.lease_expires_at is not null and new.failures = old.failures
  begin select raise(abort, 'The run is running: cancel it or wait until it has ended, then queue it again.'); end;
"""

# An app that counts from the start would give the folder, the objects and the events of one attempt to another.
_ATTEMPTS = """
create trigger training_runs_attempts after update of status on training_runs
  when new.attempt < old.attempt
  begin update training_runs set attempt = old.attempt where id = new.id; end;
"""

SCHEMA = _TABLES + _QUEUED_AGAIN + _HELD + _ATTEMPTS

# from the version before to the one that is named
UPGRADES = {
    2: """
alter table training_runs add column told_epoch integer not null default 0;
update training_runs set told_epoch = coalesce(
  (select max(json_extract(data, '$.epoch')) from training_run_events where run_id = id and kind = 'epoch'), 0);
""",
    3: """
alter table training_runs add column host_failures text not null default '{}';
alter table trainer_workers add column status_message text;
"""
    + _QUEUED_AGAIN,
    4: """
create table queue_clock (
  id integer primary key check (id = 1),
  boot_id text not null,
  since_boot real not null,
  now real not null
);
""",
    5: _HELD,
    6: """
alter table training_runs add column told_attempt integer not null default 0;
drop trigger training_runs_queued_again;
"""
    + _QUEUED_AGAIN,
    7: _ATTEMPTS,
}
