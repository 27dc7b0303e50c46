"""The tables of the SQLite queue, with the same names as in supabase/migrations/."""

from __future__ import annotations

SCHEMA_VERSION = 7

# Times are ISO 8601 in UTC and have the same length, so that sorting them as text sorts them by time.
SCHEMA = """
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
  last_reported_epoch integer not null default 0,
  last_reported_attempt integer not null default 0,
  finish_requested integer not null default 0,
  run_group text,
  run_tags text not null default '[]'
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
create index training_runs_group on training_runs (run_group, created_at desc, id) where run_group is not null;
create trigger training_runs_keep_outcome before update of status on training_runs
  when old.status in ('completed', 'failed', 'canceled') and new.status in ('canceling', 'canceled')
  begin select raise(ignore); end;
create trigger training_runs_end_has_no_lease after update of status on training_runs
  when new.status in ('completed', 'failed', 'canceled') and new.lease_expires_at is not null
  begin update training_runs set lease_expires_at = null where id = new.id; end;
-- When a user requeues an ended run, these columns are reset. The attempt number continues.
create trigger training_runs_queued_again after update of status on training_runs
  when old.status in ('completed', 'failed', 'canceled') and new.status = 'queued'
  begin
    update training_runs set finish_requested = 0, cancel_requested = 0, failures = 0, progress_epoch = 0,
      not_before = null, error_message = null, completed_at = null, canceled_at = null,
      checkpoint = case old.status when 'failed' then checkpoint end,
      last_reported_epoch = case old.status when 'failed' then last_reported_epoch else 0 end,
      last_reported_attempt = case old.status when 'failed' then last_reported_attempt else 0 end
    where id = new.id;
  end;
-- Rejects a user's requeue of a running run. A worker's requeue clears the lease, and the queue's adds a failure.
create trigger training_runs_held before update of status on training_runs
  when old.status in ('running', 'canceling') and new.status = 'queued'
    and new.lease_expires_at is not null and new.failures = old.failures
  begin select raise(abort, 'The run is running: cancel it or wait until it has ended, then requeue it.'); end;
-- The attempt number never decreases: otherwise two attempts would share a folder, objects and events.
create trigger training_runs_attempts after update of status on training_runs
  when new.attempt < old.attempt
  begin update training_runs set attempt = old.attempt where id = new.id; end;
"""
