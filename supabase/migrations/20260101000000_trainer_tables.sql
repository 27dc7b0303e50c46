-- The trainer's tables: additive, and harmless when applied again. PostgreSQL 15 or newer.
--
-- On an empty project this creates them. Where a web app brought `training_runs` and `trainer_workers` along, their
-- columns, rows, triggers, policies and grants stay, and only what is missing is added.

create schema if not exists trainer;  -- helpers that no API may call
comment on schema trainer is 'Internals of the training queue; never expose it through the API.';

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
    -- Supabase grants new tables to everybody; what an app made keeps the grants that it has
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
  add column if not exists needs_gpus numeric,
  add column if not exists needs_gpu_memory_gb numeric,
  add column if not exists checkpoint jsonb,
  add column if not exists progress_epoch integer not null default 0,
  add column if not exists told_epoch integer not null default 0,
  add column if not exists told_attempt integer not null default 0,
  add column if not exists finish_requested boolean not null default false;

comment on column public.training_runs.attempt is 'Ordinal of the claim; never repeats, names the bucket prefix and the events.';
comment on column public.training_runs.failures is 'Attempts lost since the last progress; at max_attempts the run fails.';
comment on column public.training_runs.host_failures is 'How often the host of each worker failed the run since the last progress: {worker_id: times}. Only the first of each is in failures.';
comment on column public.training_runs.claim_id is 'The fence: every write of a worker carries it. Kept after the end, for replays.';
comment on column public.training_runs.lease_expires_at is 'Until when the claim is held. On a queued run: expired, and may still be revived.';
comment on column public.training_runs.not_before is 'Back-off: not to be claimed earlier.';
comment on column public.training_runs.needs_gpus is 'What the configuration requires, kept by a trigger: a claim reads no JSON. Null: from before there was one.';
comment on column public.training_runs.progress_epoch is 'The highest epoch of which a checkpoint was kept: progress since the last crash.';
comment on column public.training_runs.told_epoch is 'The epoch that the history told last; an attempt that resumes after a later one tells those between.';
comment on column public.training_runs.told_attempt is 'The attempt that told it; one that resumes from before that attempt tells all its epochs.';
comment on column public.training_runs.checkpoint is 'The newest resumable state in the bucket: {epoch, sha256, bytes, key}.';

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

comment on column public.trainer_workers.status_message is 'Why the worker is unhealthy and claims no run; null otherwise.';

create table if not exists public.training_run_events (
  run_id uuid not null references public.training_runs (id) on delete cascade,
  attempt integer not null,
  seq integer not null,
  at timestamptz not null,
  kind text not null,
  data jsonb not null default '{}',
  primary key (run_id, attempt, seq)
);
comment on table public.training_run_events is 'A run''s history, append-only. From seq 1000000 on the queue itself speaks.';

-- runs whose history began before there was such a column
update public.training_runs r set told_epoch = h.epoch
from (
  select e.run_id, max(case when e.data ->> 'epoch' ~ '^[0-9]{1,9}$' then (e.data ->> 'epoch')::integer end) as epoch
  from public.training_run_events e where e.kind = 'epoch' group by e.run_id
) h
where h.run_id = r.id and h.epoch > r.told_epoch and r.status in ('queued', 'running', 'canceling');

-- Partial, so that a million finished runs cost the claim nothing.
create index if not exists training_runs_next_idx
  on public.training_runs (priority desc, created_at, id) where status = 'queued';
create index if not exists training_runs_lease_idx
  on public.training_runs (lease_expires_at) where status in ('running', 'canceling');
create index if not exists training_runs_cancel_idx
  on public.training_runs (id) where status = 'queued' and cancel_requested;
create unique index if not exists training_runs_claim_idx
  on public.training_runs (claim_id) where claim_id is not null;
create index if not exists training_runs_recent_idx
  on public.training_runs (created_at desc, id);

create or replace function trainer.touch_updated_at() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.updated_at := now();
  return new;
end $$;

create or replace function trainer.guard_ending() returns trigger
language plpgsql set search_path = '' as $$
begin
  -- A cancel that was clicked on a stale page arrives after the end: the end stands.
  if old.status in ('completed', 'failed', 'canceled') and new.status in ('canceling', 'canceled') then
    return old;
  end if;
  -- A worker that gives a run back gives its lease back, too; the queue takes it only after the lease has expired.
  if old.status in ('running', 'canceling') and new.status = 'queued' and new.lease_expires_at > now() then
    raise exception using errcode = 'check_violation', schema = tg_table_schema, table = tg_table_name,
      constraint = 'trainer_run_is_held',
      message = 'The run is running: cancel it or wait until it has ended, then queue it again.';
  end if;
  -- an app that counts from the start would give the folder, the objects and the events of one attempt to another
  new.attempt := greatest(new.attempt, old.attempt);
  if new.status in ('completed', 'failed', 'canceled') then
    new.lease_expires_at := null;
    new.host_failures := '{}';
  end if;
  -- nothing resumes from it any more, and the worker removes its object
  if new.status in ('completed', 'canceled') then
    new.checkpoint := null;
  end if;
  -- Somebody queues an ended run again: nothing of its end is left. The number of its attempts goes on.
  if old.status in ('completed', 'failed', 'canceled') and new.status = 'queued' then
    new.finish_requested := false;
    new.cancel_requested := false;
    new.failures := 0;
    new.progress_epoch := 0;
    new.not_before := null;
    new.error_message := null;
    new.completed_at := null;
    new.canceled_at := null;
    if old.status <> 'failed' then  -- only a failed run keeps its checkpoint
      new.checkpoint := null;
      new.told_epoch := 0;
      new.told_attempt := 0;
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
  -- an app that keeps updated_at itself goes on doing so
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
