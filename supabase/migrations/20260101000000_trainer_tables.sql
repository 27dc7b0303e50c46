-- The trainer's tables. This file only adds objects, and can be applied more than once. Needs PostgreSQL 15 or newer.
--
-- On an empty project this creates the tables. If a web app already created `training_runs` and `trainer_workers`, their
-- columns, rows, triggers, policies and grants stay, and only the missing parts are added.

create schema if not exists trainer;  -- helpers that the API must not expose
comment on schema trainer is 'Internals of the training queue. Never expose this schema through the API.';

do $$
declare
  outsider text;
begin
  if to_regclass('public.training_runs') is null then
    create table public.training_runs (
      id uuid primary key default gen_random_uuid(),
      run_name text not null,
      project_id uuid,
      step_id uuid,
      status text not null default 'queued',
      base_model text,
      configuration jsonb,
      data_yaml text,
      results jsonb,
      trained_model_url text,
      created_by text,
      is_deployed boolean not null default false,
      deployment_status text,
      deployment_date timestamptz,
      deployment_url text,
      started_at timestamptz,
      completed_at timestamptz,
      canceled_at timestamptz,
      cancel_requested boolean not null default false,
      worker_id text,
      error_message text,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
    -- Supabase grants new tables to every role; a table that the app created keeps its grants
    for outsider in select rolname from pg_roles where rolname in ('anon', 'authenticated') loop
      execute format('revoke all on public.training_runs from %I', outsider);
    end loop;
  end if;

  if to_regclass('public.trainer_workers') is null then
    create table public.trainer_workers (
      worker_id text primary key,
      status text not null default 'online',
      last_seen timestamptz not null default now(),
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );
    for outsider in select rolname from pg_roles where rolname in ('anon', 'authenticated') loop
      execute format('revoke all on public.trainer_workers from %I', outsider);
    end loop;
  end if;
end $$;

alter table public.training_runs
  add column if not exists attempt integer not null default 0,
  add column if not exists max_attempts integer not null default 3,
  add column if not exists failures integer not null default 0,
  add column if not exists host_failures jsonb not null default '{}' check (jsonb_typeof(host_failures) = 'object'),
  add column if not exists claim_id uuid,
  add column if not exists lease_expires_at timestamptz,
  add column if not exists heartbeat_at timestamptz,
  add column if not exists priority integer not null default 0,
  add column if not exists not_before timestamptz,
  add column if not exists needs_gpus integer not null default 0,
  add column if not exists needs_gpu_memory_gb integer not null default 0,
  add column if not exists checkpoint jsonb,
  add column if not exists progress_epoch integer not null default 0,
  add column if not exists last_reported_epoch integer not null default 0,
  add column if not exists last_reported_attempt integer not null default 0,
  add column if not exists finish_requested boolean not null default false,
  add column if not exists run_group text,
  add column if not exists run_tags text[] not null default '{}';

comment on column public.training_runs.attempt is 'Number of the claim, from 1. The number is never used twice for a run. It is part of the key of every artifact and event.';
comment on column public.training_runs.failures is 'Number of lost attempts since the last progress. The run fails when this number reaches max_attempts.';
comment on column public.training_runs.host_failures is 'Number of host failures of each worker since the last progress: {worker_id: count}. Only the first host failure of a worker counts in failures.';
comment on column public.training_runs.claim_id is 'The fencing token: every write of a worker contains it. It is kept after the end of the run, so that repeated calls get the same answer. Never show it to users.';
comment on column public.training_runs.lease_expires_at is 'End of the lease. Not null for a queued run: the lease expired, and the previous worker can renew it until another worker claims the run.';
comment on column public.training_runs.not_before is 'Backoff: the run is not claimed before this time.';
comment on column public.training_runs.progress_epoch is 'The highest epoch with a checkpoint. A checkpoint of a higher epoch is progress and resets failures and host_failures.';
comment on column public.training_runs.last_reported_epoch is 'The last epoch in the history. An attempt that resumes from a later checkpoint reports the missing epochs.';
comment on column public.training_runs.last_reported_attempt is 'The attempt that reported last_reported_epoch. An attempt that resumes from an older checkpoint reports all its epochs.';
comment on column public.training_runs.checkpoint is 'The newest checkpoint in the artifacts bucket: {epoch, sha256, bytes, key}.';
comment on column public.training_runs.run_group is 'Runs that belong together, such as the runs of one search. (`group` is a reserved word.)';
comment on column public.training_runs.run_tags is 'Tags for lists and searches.';

alter table public.trainer_workers
  add column if not exists status_message text,
  add column if not exists version text,
  add column if not exists slots integer,
  add column if not exists current_runs integer,
  add column if not exists device_type text,
  add column if not exists compute_type text,
  add column if not exists gpu_name text,
  add column if not exists gpu_model text,
  add column if not exists gpu text,
  add column if not exists gpu_memory_gb numeric,
  add column if not exists gpu_vram_gb numeric,
  add column if not exists gpu_memory_mb numeric,
  add column if not exists gpu_vram_mb numeric,
  add column if not exists cpu_model text,
  add column if not exists cpu text,
  add column if not exists ram_gb numeric;

comment on column public.trainer_workers.status_message is 'The reason why the worker is unhealthy and claims no runs; null if it is healthy.';

create table if not exists public.training_run_events (
  run_id uuid not null references public.training_runs (id) on delete cascade,
  attempt integer not null,
  seq integer not null,
  at timestamptz not null,
  kind text not null,
  data jsonb not null default '{}',
  primary key (run_id, attempt, seq)
);
comment on table public.training_run_events is 'The history of each run, append-only. Events with seq >= 1000000 were written by the queue itself.';

-- set last_reported_epoch of runs that are older than the column
update public.training_runs r set last_reported_epoch = h.epoch
from (
  select e.run_id, max(case when e.data ->> 'epoch' ~ '^[0-9]{1,9}$' then (e.data ->> 'epoch')::integer end) as epoch
  from public.training_run_events e where e.kind = 'epoch' group by e.run_id
) h
where h.run_id = r.id and h.epoch > r.last_reported_epoch and r.status in ('queued', 'running', 'canceling');

create table if not exists trainer.settings (
  only_row boolean primary key default true check (only_row),
  queued_runs_per_user integer default 100 check (queued_runs_per_user >= 0)
);
comment on table trainer.settings is 'Settings of the queue, in one row. Example: update trainer.settings set queued_runs_per_user = 1000;';
comment on column trainer.settings.queued_runs_per_user is 'Maximum number of queued runs per value of created_by; null: no limit.';
insert into trainer.settings default values on conflict do nothing;

-- Partial indexes: a million finished runs do not slow down a claim.
create index if not exists training_runs_next_idx
  on public.training_runs (priority desc, created_at, id) where status = 'queued';
create index if not exists training_runs_waiting_idx
  on public.training_runs (not_before) where status = 'queued' and not_before is not null;
-- older rows can have values that are too long for an index
create index if not exists training_runs_owner_idx
  on public.training_runs (left(created_by, 500)) where status = 'queued' and created_by is not null;
create index if not exists training_runs_lease_idx
  on public.training_runs (lease_expires_at) where status in ('running', 'canceling');
create index if not exists training_runs_cancel_idx
  on public.training_runs (id) where status = 'queued' and cancel_requested;
create unique index if not exists training_runs_claim_idx
  on public.training_runs (claim_id) where claim_id is not null;
create index if not exists training_runs_recent_idx
  on public.training_runs (created_at desc, id);
create index if not exists training_runs_group_idx
  on public.training_runs (run_group, created_at desc, id) where run_group is not null;
create index if not exists training_runs_tags_idx
  on public.training_runs using gin (run_tags);

create or replace function trainer.touch_updated_at() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.updated_at := now();
  return new;
end $$;

create or replace function trainer.guard_ending() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  -- No worker can hold this run, so it ends now. If it stayed, each claim would have to end such runs.
  if old.status = 'queued' and old.lease_expires_at is null and new.status = 'canceling' then
    new.status := 'canceled';
    new.cancel_requested := true;
    new.canceled_at := now();
    new.completed_at := now();
    new.error_message := 'Canceled by user.';
  end if;
  -- a cancel that arrives after the run has ended does not change the outcome
  if old.status in ('completed', 'failed', 'canceled') and new.status in ('canceling', 'canceled') then
    return old;
  end if;
  -- Users cannot requeue a run with a lease. A worker that releases a run clears the lease. The queue requeues a run only after its lease has expired.
  if old.status in ('running', 'canceling') and new.status = 'queued' and new.lease_expires_at > now() then
    raise exception using errcode = 'check_violation', schema = tg_table_schema, table = tg_table_name,
      constraint = 'trainer_run_is_held',
      message = 'The run is running: cancel it or wait until it has ended, then requeue it.';
  end if;
  -- the attempt number never decreases: otherwise two attempts would share a folder, objects and events
  new.attempt := greatest(new.attempt, old.attempt);
  if new.status in ('completed', 'failed', 'canceled') then
    new.lease_expires_at := null;
    new.host_failures := '{}';
  end if;
  -- a completed or canceled run never resumes from its checkpoint, and the worker deletes the object of the checkpoint
  if new.status in ('completed', 'canceled') then
    new.checkpoint := null;
  end if;
  -- If a user requeues an ended run, these columns are reset. The attempt number continues.
  if old.status in ('completed', 'failed', 'canceled') and new.status = 'queued' then
    new.finish_requested := false;
    new.cancel_requested := false;
    new.failures := 0;
    new.progress_epoch := 0;
    new.not_before := null;
    new.error_message := null;
    new.completed_at := null;
    new.canceled_at := null;
    select needs.gpus, needs.gpu_memory_gb into new.needs_gpus, new.needs_gpu_memory_gb
    from trainer.requirements(new.configuration) as needs;  -- not yet computed if the run is older than schema 5
    if old.status <> 'failed' then  -- only a failed run keeps its checkpoint
      new.checkpoint := null;
      new.last_reported_epoch := 0;
      new.last_reported_attempt := 0;
    end if;
  end if;
  return new;
end $$;

create or replace trigger trainer_guard_ending before update of status on public.training_runs
  for each row when (old.status is distinct from new.status) execute function trainer.guard_ending();

do $$
declare
  touched text;
begin
  -- skip a table on which a trigger of the app already sets updated_at
  foreach touched in array array['training_runs', 'trainer_workers'] loop
    if not exists (
      select from pg_catalog.pg_trigger t
      join pg_catalog.pg_proc p on p.oid = t.tgfoid
      where t.tgrelid = ('public.' || touched)::regclass and not t.tgisinternal and p.prosrc ilike '%updated_at%'
    ) then
      execute format(
        'create trigger trainer_touch_updated_at before update on public.%I'
        ' for each row execute function trainer.touch_updated_at()', touched);
    end if;
  end loop;
end $$;
