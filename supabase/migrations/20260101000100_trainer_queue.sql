-- The state machine of the training queue: every change that a worker makes to a run is one of these calls.
--
-- Each call is atomic and idempotent. The only clock is now(). A worker that has lost its lease gets the answer
-- 'lost', and the call changes nothing.
--
-- Every search_path ends with pg_temp. Otherwise PostgreSQL would look up types such as jsonb first among the temporary
-- types of the caller, whose checks would run with the rights of the owner of the function.

-- ── helpers that the API does not expose ──

create or replace function trainer.number(value jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  -- a JSON number, or a string that contains one; null for anything else
  return case
    when jsonb_typeof(value) in ('number', 'string') and value #>> '{}' ~ '^\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*$'
      then (value #>> '{}')::numeric
  end;
end $$;

-- functions of earlier versions with other parameters; `create or replace` would fail, or keep both
drop function if exists trainer.see_worker(text, jsonb, boolean, text);
drop function if exists public.finish_training_run(uuid, uuid, text, jsonb, text, text, jsonb);
drop function if exists public.release_training_run(uuid, uuid, jsonb, jsonb);
drop function if exists trainer.can_serve(jsonb, jsonb);
drop function if exists trainer.can_serve(jsonb, numeric, numeric, jsonb);
drop function if exists trainer.requirements(jsonb);

-- Returns whether the text of a configuration is too long. A number such as 1e131000 needs 12 bytes, and its text needs
-- 131 kB. The text of many such numbers would fill the memory of the database, so the numbers of a large configuration
-- are counted first. jsonb_path_query would need a time that is quadratic in their number.
create or replace function trainer.is_too_long(configuration jsonb) returns boolean
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  if configuration is null then
    return false;
  elsif pg_column_size(configuration) > 300000 then  -- at most 4 bytes for each character
    return true;
  elsif (pg_column_size(configuration) > 4000 or pg_column_compression(configuration) is not null) and (
    select count(*) filter (where abs(number::numeric) > 1.7e308) > 10 or sum(scale(number::numeric)) > 65536
    from jsonb_array_elements(jsonb_path_query_array(configuration, 'strict $.** ? (@.type() == "number")')) as number
  ) then
    return true;
  end if;
  return length(configuration::text) > 65536;  -- a statement of its own, because PostgreSQL may reorder the parts of an `or`
end $$;

-- Returns the GPUs and the whole GB of memory per GPU that a configuration requires. A worker rejects a configuration
-- beyond the limit without reading it, so it has no requirements.
create or replace function trainer.requirements(
  configuration jsonb, out gpus integer, out gpu_memory_gb integer, out is_too_long boolean
) language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
  device jsonb;
  devices integer := 0;
begin
  is_too_long := trainer.is_too_long(configuration);
  if is_too_long then
    configuration := null;
  elsif jsonb_typeof(configuration) = 'string' then  -- the column may hold JSON text inside a JSON string
    begin
      configuration := (configuration #>> '{}')::jsonb;
    exception when others then
      configuration := null;
    end;
  end if;
  if jsonb_typeof(configuration) = 'object' then
    if jsonb_typeof(configuration -> 'requires') = 'object' then
      gpus := ceil(trainer.number(configuration -> 'requires' -> 'gpus'));
      gpu_memory_gb := ceil(trainer.number(configuration -> 'requires' -> 'gpu_memory_gb'));
    end if;
    device := configuration -> 'device';
    if jsonb_typeof(device) = 'array' then
      devices := jsonb_array_length(device);
    elsif jsonb_typeof(device) = 'string' and length(device #>> '{}') <= 1000 then
      devices := (select count(*) from regexp_split_to_table(device #>> '{}', ',') as part where part ~ '\S');
    end if;
  end if;
  gpus := greatest(coalesce(gpus, 0), case when devices between 2 and 64 then devices else 0 end);
  gpu_memory_gb := coalesce(gpu_memory_gb, 0);
end $$;

-- Returns what a worker offers. Its memory is rounded up, because a GPU that is sold with 24 GB has 23.6 GiB.
create or replace function trainer.offer(
  capabilities jsonb, out gpus integer, out gpu_memory_gb integer
) language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select coalesce(floor(trainer.number(capabilities -> 'gpus')), 0)::integer,
         coalesce(ceil(trainer.number(capabilities -> 'gpu_memory_gb')), 0)::integer
$$;

-- Rejects values that every worker would reject, with a message that an app can show. Stores the requirements of the run.
-- This is not a CHECK, because a CHECK is evaluated at every heartbeat. An older row that violates the CHECK could
-- never end, because every UPDATE of the row would fail.
create or replace function trainer.guard_request() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  needs record := trainer.requirements(new.configuration);
  problem text := case
    when length(new.run_name) > 1000 then 'run_name: longer than 1000 characters'
    when length(new.base_model) > 1000 then 'base_model: longer than 1000 characters'
    when length(new.data_yaml) > 10000 then 'data_yaml: longer than 10000 characters'
    when length(new.created_by) > 1000 then 'created_by: longer than 1000 characters'
    when length(new.project_id::text) > 200 then 'project_id: longer than 200 characters'
    when length(new.step_id::text) > 200 then 'step_id: longer than 200 characters'
    when length(new.run_group) > 200 then 'run_group: longer than 200 characters'
    when cardinality(new.run_tags) > 50 or exists (select from unnest(new.run_tags) as tag where length(tag) > 100)
      then 'run_tags: more than 50 tags, or a tag is longer than 100 characters'
    when pg_column_size(new.configuration) <= 300000
      and jsonb_path_exists(new.configuration, 'strict $.** ? (@.type() == "number" && (@ > 1.7e308 || @ < -1.7e308))')
      then 'configuration: a number is beyond 1.7e308, the largest number that a worker reads'
    when needs.is_too_long
      then 'configuration: longer than 65536 characters; send the settings only, and define the split of many images in the dataset'
    when jsonb_path_exists(new.configuration, 'strict $.**{32} ? (@.type() == "object" || @.type() == "array")')
      then 'configuration: nested deeper than 32 levels; send the settings only'
  end;
begin
  if problem is not null then
    raise exception using errcode = 'check_violation', message = problem, schema = tg_table_schema, table = tg_table_name,
      constraint = 'trainer_request_' || split_part(problem, ':', 1);
  end if;
  new.needs_gpus := needs.gpus;
  new.needs_gpu_memory_gb := needs.gpu_memory_gb;
  return new;
end $$;

-- Schema 4 and older stored fractions, and nothing for rows that were older than the trigger. Ended runs are not
-- computed here: their requirements are computed when a user requeues them.
drop trigger if exists trainer_guard_request on public.training_runs;
do $$
declare
  run record;
begin
  if (select data_type from information_schema.columns
      where table_schema = 'public' and table_name = 'training_runs' and column_name = 'needs_gpus') = 'numeric' then
    begin
      alter table public.training_runs drop column needs_gpus, drop column needs_gpu_memory_gb;
    exception when dependent_objects_still_exist then  -- a view of the app has these columns, so they keep their type
      alter table public.training_runs alter column needs_gpus set default 0, alter column needs_gpu_memory_gb set default 0;
    end;
  end if;
  if to_regclass('public.training_runs_ready_idx') is not null then
    return;  -- the requirements of all runs are stored
  end if;
  alter table public.training_runs
    add column if not exists needs_gpus integer not null default 0,
    add column if not exists needs_gpu_memory_gb integer not null default 0;
  for run in
    select r.id, needs.* from public.training_runs r cross join lateral trainer.requirements(r.configuration) as needs
    where r.status in ('queued', 'running', 'canceling')
      and (r.needs_gpus, r.needs_gpu_memory_gb) is distinct from (needs.gpus, needs.gpu_memory_gb)
  loop
    begin
      update public.training_runs set needs_gpus = run.gpus, needs_gpu_memory_gb = run.gpu_memory_gb where id = run.id;
    exception when integrity_constraint_violation or data_exception or raise_exception then
      raise warning 'the requirements of run % cannot be stored: %', run.id, sqlerrm;  -- a rule of the app rejects the row
    end;
  end loop;
end $$;
comment on column public.training_runs.needs_gpus is 'Number of GPUs that the configuration requires, set by a trigger so that a claim reads no JSON.';
comment on column public.training_runs.needs_gpu_memory_gb is 'Memory per GPU in whole GB that the configuration requires, set by a trigger.';

-- One range of this index has the runs with the same requirements, in the order of the claims.
create index if not exists training_runs_ready_idx
  on public.training_runs (needs_gpus, needs_gpu_memory_gb, priority desc, created_at, id)
  where status = 'queued' and not cancel_requested and not_before is null;

create or replace trigger trainer_guard_request
  before insert or update of run_name, base_model, data_yaml, configuration, needs_gpus, needs_gpu_memory_gb, created_by,
    project_id, step_id, run_group, run_tags
  on public.training_runs
  for each row execute function trainer.guard_request();

-- Limits the number of queued runs per user. Roles that bypass row-level security (service_role, postgres) act for the
-- app, not for one user: their runs count, but are not rejected.
create or replace function trainer.limit_queued_runs() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  most integer := (select queued_runs_per_user from trainer.settings);
begin
  if most is null or exists (
    select from pg_catalog.pg_roles
    where rolname = coalesce(nullif(current_setting('role', true), 'none'), session_user) and (rolbypassrls or rolsuper)
  ) then
    return new;
  end if;
  -- two inserts at the same time must not both see the last free place
  perform pg_advisory_xact_lock(hashtextextended('trainer.limit_queued_runs ' || new.created_by, 0));
  if most <= (
    select count(*) from (
      select from public.training_runs r
      where r.status = 'queued' and left(r.created_by, 500) = left(new.created_by, 500) and r.created_by = new.created_by
      limit most
    ) as queued
  ) then
    raise exception using errcode = 'check_violation', schema = tg_table_schema, table = tg_table_name,
      constraint = 'trainer_queued_runs_per_user',
      message = format('created_by: %s runs of this user are queued, which is the limit; wait until a run has started, or cancel a run', most);
  end if;
  return new;
end $$;

create or replace trigger trainer_limit_queued_runs before insert on public.training_runs
  for each row when (new.status = 'queued' and new.created_by is not null) execute function trainer.limit_queued_runs();

-- Cuts an error message that is too long. Rejecting it would keep the run from ending.
create or replace function trainer.cut_message() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.error_message := left(new.error_message, 10000);
  return new;
end $$;

create or replace trigger trainer_cut_message before insert or update of error_message on public.training_runs
  for each row when (length(new.error_message) > 10000) execute function trainer.cut_message();

-- Returns the next runs for a worker in the order of the claims, without a lock. After a run with `is_last`, the order is
-- not complete: runs that are not listed may precede the following runs.
--
-- The cost depends on the number of different requirements that this worker meets, not on the number of queued runs:
-- each step of the recursion jumps to the first run of the next requirements in the index, and skips those that exceed
-- the offer. More runs are listed only for the requirements with the best first runs.
-- The planner settings prevent a sort of the whole queue if the statistics are out of date.
create or replace function trainer.candidates(
  capabilities jsonb, worker_id text, listed integer
) returns table (id uuid, is_last boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
#variable_conflict use_column
declare
  offer record := trainer.offer(capabilities);
  most integer := ceil(sqrt(listed));  -- different requirements
begin
  return query
  with recursive kinds as (
    (
      select r.needs_gpus as gpus, r.needs_gpu_memory_gb as memory, r.priority, r.created_at, r.id
      from public.training_runs r
      where r.status = 'queued' and not r.cancel_requested and r.not_before is null
      order by r.needs_gpus, r.needs_gpu_memory_gb, r.priority desc, r.created_at, r.id limit 1
    )
    union all
    select next.* from kinds k cross join lateral (
      select r.needs_gpus, r.needs_gpu_memory_gb, r.priority, r.created_at, r.id
      from public.training_runs r
      where r.status = 'queued' and not r.cancel_requested and r.not_before is null
        and (r.needs_gpus, r.needs_gpu_memory_gb)
          > (k.gpus, case when k.memory < offer.gpu_memory_gb then k.memory else 2147483647 end)
      order by r.needs_gpus, r.needs_gpu_memory_gb, r.priority desc, r.created_at, r.id limit 1
    ) as next
    where k.gpus <= offer.gpus
  ), best as materialized (
    select k.gpus, k.memory, k.id, row_number() over (order by k.priority desc, k.created_at, k.id) as place
    from kinds k where k.gpus <= offer.gpus and k.memory <= offer.gpu_memory_gb
    order by k.priority desc, k.created_at, k.id limit most
  ), depth as materialized (
    select greatest(candidates.listed / greatest(count(*), 1), 1) as runs from best
  )
  select found.id, found.is_last
  from (
    select ready.id, ready.priority, ready.created_at,
      ready.place = (select runs from depth) or (s.id = ready.id and s.place = most) as is_last
    from best s cross join lateral (
      select r.id, r.priority, r.created_at, row_number() over (order by r.priority desc, r.created_at, r.id) as place
      from public.training_runs r
      where r.status = 'queued' and not r.cancel_requested and r.not_before is null
        and r.needs_gpus = s.gpus and r.needs_gpu_memory_gb = s.memory
      order by r.priority desc, r.created_at, r.id limit (select runs from depth)
    ) as ready
    union all
    select due.id, due.priority, due.created_at, false
    from (
      select r.* from public.training_runs r
      where r.status = 'queued' and not r.cancel_requested and r.not_before <= now()
      order by r.not_before limit 100
    ) as due
    where due.needs_gpus <= offer.gpus and due.needs_gpu_memory_gb <= offer.gpu_memory_gb
      and due.not_before <= now() - trainer.head_start(due.host_failures, candidates.worker_id)
  ) as found
  order by found.priority desc, found.created_at, found.id;
end $$;

create or replace function trainer.next(count integer) returns integer
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select least(count, 2147483646) + 1  -- an integer overflow would stop the queue
$$;

create or replace function trainer.back_off(failures integer) returns interval
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select least(10 * 2 ^ least(greatest(failures - 1, 0), 10), 600) * interval '1 second'
$$;

-- Returns how much later than other workers this worker can claim the run: two poll intervals if the run failed because of this worker's host.
create or replace function trainer.head_start(host_failures jsonb, worker_id text) returns interval
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select case when host_failures ? worker_id then 2 * trainer.back_off(1) else interval '0' end
$$;

-- Rejects a value of a worker that is too large. Each claim rewrites the row, so a large row could stop the queue.
create or replace function trainer.require_size(name text, bytes integer, most integer) returns void
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  if bytes > most then
    raise exception using errcode = 'invalid_parameter_value', message = format('%s: larger than %s bytes', name, most);
  end if;
end $$;

create or replace function trainer.merged(results jsonb, addition jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
  if jsonb_typeof(addition) is distinct from 'object' then
    return results;
  elsif jsonb_typeof(results) = 'object' then
    addition := results || addition;
  end if;
  perform trainer.require_size('results', pg_column_size(addition), 16777216);
  return addition;
end $$;

-- Adds an event for a change that the queue itself made to a run. The event is left out if a worker used the largest
-- number, or if a rule of the app rejects the event: otherwise one run would stop the claims of all workers.
create or replace function trainer.record(run_id uuid, attempt integer, kind text, data jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  insert into public.training_run_events (run_id, attempt, seq, at, kind, data)
  select record.run_id, record.attempt, greatest(trainer.next(coalesce(max(e.seq), 0)), 1000000), now(), record.kind, record.data
  from public.training_run_events e
  where e.run_id = record.run_id and e.attempt = record.attempt
  on conflict do nothing;
exception when integrity_constraint_violation or data_exception or raise_exception then
  raise warning 'the event % of run % cannot be stored: %', record.kind, record.run_id, sqlerrm;
end $$;

-- Returns the epoch of an event, or null. The training process writes events, so the data can be any JSON.
create or replace function trainer.epoch(data jsonb) returns integer
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select case when data ->> 'epoch' ~ '^[0-9]{1,9}$' then (data ->> 'epoch')::integer end
$$;

-- Stores each event of a worker once, and updates the epochs and the checkpoint of the run from the new events.
create or replace function trainer.store_events(run public.training_runs, events jsonb)
returns public.training_runs language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  saved record;
begin
  if jsonb_typeof(events) is distinct from 'array' then
    return run;
  end if;
  for saved in
    with stored as (
      insert into public.training_run_events (run_id, attempt, seq, at, kind, data)
      select run.id, run.attempt, (e ->> 'seq')::integer, (e ->> 'at')::timestamptz, e ->> 'kind',
             coalesce(e -> 'data', '{}')
      from jsonb_array_elements(events) as e
      on conflict do nothing
      returning seq, kind, data
    )
    select kind, trainer.epoch(data) as epoch, data from stored where kind in ('epoch', 'checkpoint') order by seq
  loop
    if saved.kind = 'epoch' then
      run.last_reported_epoch := coalesce(saved.epoch, run.last_reported_epoch);  -- may decrease: a training that starts over reports epoch 1 again
      run.last_reported_attempt := run.attempt;
      continue;
    end if;
    if saved.epoch > run.progress_epoch then
      run.progress_epoch := saved.epoch;
      run.failures := 0;
      run.host_failures := '{}';
    end if;
    if saved.data ->> 'key' is not null then
      run.checkpoint := jsonb_build_object(
        'epoch', saved.epoch, 'sha256', saved.data -> 'sha256', 'bytes', saved.data -> 'bytes', 'key', saved.data -> 'key');
      perform trainer.require_size('checkpoint', pg_column_size(run.checkpoint), 65536);
    end if;
  end loop;
  return run;
end $$;

-- Returns an amount, or null if it has too many digits for programs that list the workers.
create or replace function trainer.readable(amount numeric) returns numeric
language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select case when amount between 0 and 1e15 then round(amount, least(scale(amount), 9)) end
$$;

-- Reports that the worker is alive. If `sets_problem` is true, `problem` (or null) replaces the status message of the worker.
create or replace function trainer.see_worker(
  worker_id text, hardware jsonb default null, sets_problem boolean default false, problem text default null
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  busy integer := (
    select count(*) from public.training_runs r
    where r.status in ('running', 'canceling') and r.worker_id = see_worker.worker_id);
begin
  insert into public.trainer_workers as w (
    worker_id, status, status_message, last_seen, updated_at, current_runs, version, slots, device_type, compute_type, gpu_name, gpu_model, gpu,
    gpu_memory_gb, gpu_vram_gb, gpu_memory_mb, gpu_vram_mb, cpu_model, cpu, ram_gb)
  select see_worker.worker_id, case when problem is not null then 'unhealthy' when busy > 0 then 'busy' else 'online' end,
    left(problem, 10000), now(), now(), busy,
    left(f.version, 500), f.slots, left(f.device_type, 500), left(f.compute_type, 500), left(f.gpu_name, 500), left(f.gpu_model, 500),
    left(f.gpu, 500), trainer.readable(f.gpu_memory_gb), trainer.readable(f.gpu_vram_gb), trainer.readable(f.gpu_memory_mb),
    trainer.readable(f.gpu_vram_mb), left(f.cpu_model, 500), left(f.cpu, 500), trainer.readable(f.ram_gb)
  from jsonb_populate_record(null::public.trainer_workers, coalesce(see_worker.hardware, '{}')) as f
  where see_worker.worker_id is not null  -- an app can clear worker_id while a worker holds the lease
  on conflict (worker_id) do update set
    status = case when not sets_problem and w.status_message is not null then 'unhealthy' else excluded.status end,
    status_message = case when sets_problem then excluded.status_message else w.status_message end,
    last_seen = excluded.last_seen,
    updated_at = excluded.updated_at,
    current_runs = excluded.current_runs,
    version = coalesce(excluded.version, w.version),
    slots = coalesce(excluded.slots, w.slots),
    device_type = coalesce(excluded.device_type, w.device_type),
    compute_type = coalesce(excluded.compute_type, w.compute_type),
    gpu_name = coalesce(excluded.gpu_name, w.gpu_name),
    gpu_model = coalesce(excluded.gpu_model, w.gpu_model),
    gpu = coalesce(excluded.gpu, w.gpu),
    gpu_memory_gb = coalesce(excluded.gpu_memory_gb, w.gpu_memory_gb),
    gpu_vram_gb = coalesce(excluded.gpu_vram_gb, w.gpu_vram_gb),
    gpu_memory_mb = coalesce(excluded.gpu_memory_mb, w.gpu_memory_mb),
    gpu_vram_mb = coalesce(excluded.gpu_vram_mb, w.gpu_vram_mb),
    cpu_model = coalesce(excluded.cpu_model, w.cpu_model),
    cpu = coalesce(excluded.cpu, w.cpu),
    ram_gb = coalesce(excluded.ram_gb, w.ram_gb);
end $$;

-- Writes the columns that a worker may change.
create or replace function trainer.save(run public.training_runs) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update public.training_runs set
    status = run.status,
    worker_id = run.worker_id,
    claim_id = run.claim_id,
    attempt = run.attempt,
    failures = run.failures,
    host_failures = run.host_failures,
    lease_expires_at = run.lease_expires_at,
    heartbeat_at = run.heartbeat_at,
    not_before = run.not_before,
    checkpoint = run.checkpoint,
    progress_epoch = run.progress_epoch,
    last_reported_epoch = run.last_reported_epoch,
    last_reported_attempt = run.last_reported_attempt,
    results = run.results,
    trained_model_url = run.trained_model_url,
    error_message = run.error_message,
    started_at = run.started_at,
    completed_at = run.completed_at,
    canceled_at = run.canceled_at,
    cancel_requested = run.cancel_requested,
    updated_at = now()
  where id = run.id
$$;

-- Counts a lost attempt. Repeated host failures of the same worker count once.
create or replace function trainer.lost(run public.training_runs, host_failed boolean) returns public.training_runs
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  worker text := coalesce(run.worker_id, '');
begin
  if not host_failed or not run.host_failures ? worker then
    run.failures := trainer.next(run.failures);
  end if;
  if host_failed then
    run.host_failures := run.host_failures || jsonb_build_object(
      worker, coalesce(trainer.number(run.host_failures -> worker), 0) + 1);
  end if;
  return run;
end $$;

-- Returns the pause before the next attempt. Host failures that are not counted as lost attempts make the pause longer.
create or replace function trainer.pause_after(run public.training_runs) returns interval
language sql set search_path = pg_catalog, pg_temp as $$
  select trainer.back_off(least(run.failures + coalesce(sum(trainer.number(value) - 1), 0), 100)::integer)
  from jsonb_each(run.host_failures)
$$;

create or replace function trainer.canceled(run public.training_runs) returns public.training_runs
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  run.status := 'canceled';
  run.cancel_requested := true;
  run.canceled_at := coalesce(run.canceled_at, now());
  run.completed_at := coalesce(run.completed_at, now());
  run.error_message := coalesce(run.error_message, 'Canceled by user.');
  run.lease_expires_at := null;
  return run;
end $$;

-- Writes a run and returns true. Returns false if a constraint or trigger of the app rejects the run, so that other runs continue.
create or replace function trainer.try_save(run public.training_runs) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform trainer.save(run);
  return true;
exception when integrity_constraint_violation or data_exception or raise_exception then
  raise warning 'run % cannot become %: %', run.id, run.status, sqlerrm;
  return false;
end $$;

-- Clears the backoff of runs that every worker may claim now. Then they are in the index of the ready runs, in which
-- their order is known.
create or replace function trainer.end_backoff() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  run public.training_runs;
begin
  for run in
    select r.* from public.training_runs r
    where r.status = 'queued' and r.not_before < now()
      and (r.host_failures = '{}' or r.not_before <= now() - 2 * trainer.back_off(1))
    order by r.not_before limit 100
    for update skip locked
  loop
    run.not_before := null;
    perform trainer.try_save(run);
  end loop;
end $$;

-- Returns a run for a worker. A value beyond its limit is cut one character after the limit, and a configuration is
-- replaced by spaces: the worker rejects the run with the usual message, and does not read the value.
create or replace function trainer.cut(run public.training_runs) returns public.training_runs
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  run.run_name := left(run.run_name, 1001);
  run.base_model := left(run.base_model, 1001);
  run.data_yaml := left(run.data_yaml, 10001);
  run.created_by := left(run.created_by, 1001);
  run.run_group := left(run.run_group, 201);
  if trainer.is_too_long(run.configuration) then
    run.configuration := to_jsonb(repeat(' ', 65537));
  end if;
  return run;
end $$;

-- Returns the end of a lease. The limit ends the leases of a stolen key.
create or replace function trainer.lease_end(seconds double precision) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
  select now() + make_interval(secs => least(greatest(seconds, 0), 86400))
$$;

-- Returns the worker to which the key of the caller belongs. Null: the key serves all workers.
create or replace function trainer.key_owner() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'worker_id'
$$;

-- Raises an exception if the key of the caller belongs to another worker, or if the name is too long for lists of workers.
create or replace function trainer.require_own_name(worker_id text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  own text := trainer.key_owner();
begin
  if length(worker_id) > 1000 then
    raise exception using errcode = 'invalid_parameter_value', message = 'worker_id: longer than 1000 characters';
  end if;
  if own is not null and own is distinct from worker_id then
    raise exception using errcode = 'insufficient_privilege',
      message = format('worker_id = %s: this key belongs to the worker %s', left(worker_id, 200), own);
  end if;
end $$;

-- Locks and returns the row if this claim holds the lease of the run, and the key of the caller can use it. An expired lease becomes valid again if no other worker claimed the run.
create or replace function trainer.held(run_id uuid, claim_id uuid) returns public.training_runs
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  run public.training_runs;
begin
  select r.* into run from public.training_runs r
  where r.id = held.run_id and r.claim_id = held.claim_id
    and (r.status in ('running', 'canceling') or (r.status = 'queued' and r.lease_expires_at is not null))
    and coalesce(r.worker_id = trainer.key_owner(), true)  -- an app can clear worker_id
  for update;
  if run.status = 'queued' then
    run.status := 'running';
    run.failures := greatest(run.failures, 1) - 1;
    run.not_before := null;
    run.error_message := null;
  end if;
  return run;
end $$;

-- ── calls of a worker ──

-- Requeues or fails runs whose lease has expired, and cancels queued runs that have a cancel request.
-- Returns the number of changed runs.
create or replace function public.settle_training_runs() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  run public.training_runs;
  kind text;
  reason text;
  settled integer := 0;
begin
  for run in
    select r.* from public.training_runs r
    where r.status in ('running', 'canceling') and case
      when r.lease_expires_at is not null then r.lease_expires_at < now()
      when r.status = 'canceling' then true
      -- a run without a lease belongs to a service that does not use leases
      else coalesce(r.heartbeat_at, r.started_at, r.updated_at) < now() - interval '60 seconds'
    end
    limit 500  -- a claim must end within the API's statement timeout; the next claim settles the remaining runs
    for update skip locked
  loop
    if run.status = 'canceling' or run.cancel_requested then
      run := trainer.canceled(run);
      kind := 'canceled';
      reason := 'The run was being canceled when its worker stopped renewing the lease.';
    else
      run.failures := trainer.next(run.failures);
      kind := 'lease_expired';
      reason := 'The worker stopped renewing its lease.';
      if run.failures >= run.max_attempts then
        run.status := 'failed';
        run.completed_at := now();
        run.lease_expires_at := null;
        run.error_message := format(
          'The worker stopped %s times without progress (last: %s). Check its log and its host (process killed, out of memory, power), then requeue the run.',
          run.failures, coalesce(run.worker_id, 'unknown'));
      else
        run.status := 'queued';  -- claim_id and lease_expires_at are kept: the worker can continue if it returns before another worker claims the run
        run.not_before := case when run.failures = 1 then now() else now() + trainer.back_off(run.failures) end;
      end if;
    end if;
    if trainer.try_save(run) then
      perform trainer.record(run.id, run.attempt, kind, jsonb_build_object('reason', reason, 'worker_id', run.worker_id));
      settled := settled + 1;
    end if;
  end loop;

  for run in
    select r.* from public.training_runs r
    where r.status = 'queued' and r.cancel_requested
    limit 500
    for update skip locked
  loop
    run := trainer.canceled(run);
    if trainer.try_save(run) then
      perform trainer.record(run.id, run.attempt, 'canceled',
        jsonb_build_object('reason', 'The run was canceled before a worker claimed it.', 'worker_id', run.worker_id));
      settled := settled + 1;
    end if;
  end loop;
  return settled;
end $$;

create or replace function public.claim_training_run(
  worker_id text, claim_id uuid, lease_seconds double precision, capabilities jsonb default '{}'
) returns setof public.training_runs
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  run public.training_runs;
  offer record := trainer.offer(capabilities);
  candidate record;
  refused uuid[] := '{}';
  listed integer := 64;
begin
  perform trainer.require_own_name(claim_training_run.worker_id);
  -- a repeated call waits for the first call instead of claiming a second run
  perform pg_advisory_xact_lock(hashtextextended(claim_training_run.claim_id::text, 0));
  select r.* into run from public.training_runs r where r.claim_id = claim_training_run.claim_id for update;
  if found then
    if run.status in ('running', 'canceling') and coalesce(run.worker_id = trainer.key_owner(), true) then
      run.lease_expires_at := trainer.lease_end(lease_seconds);
      perform trainer.save(run);
      return next trainer.cut(run);
    end if;
    return;
  end if;

  perform public.settle_training_runs();
  perform trainer.end_backoff();

  <<search>>
  loop
    for candidate in select c.* from trainer.candidates(capabilities, claim_training_run.worker_id, listed) as c loop
      -- The lock and the update are in the same subtransaction. Otherwise the old version of the row would get a
      -- MultiXact, and the dead entries in the index would slow down claims until the next vacuum.
      begin
        -- null if another claim has locked or taken the run, or if a user has changed it
        select r.* into run from public.training_runs r
        where r.id = candidate.id and r.id <> all (refused) and r.status = 'queued' and not r.cancel_requested
          and (r.not_before is null or r.not_before <= now() - trainer.head_start(r.host_failures, claim_training_run.worker_id))
          and r.needs_gpus <= offer.gpus and r.needs_gpu_memory_gb <= offer.gpu_memory_gb
        for update skip locked;
        if found then
          run.status := 'running';
          run.worker_id := claim_training_run.worker_id;
          run.claim_id := claim_training_run.claim_id;
          run.attempt := trainer.next(run.attempt);
          run.started_at := coalesce(run.started_at, now());
          run.heartbeat_at := now();
          run.lease_expires_at := trainer.lease_end(lease_seconds);
          run.not_before := null;
          run.error_message := null;
          run.completed_at := null;
          perform trainer.save(run);
          exit search;
        end if;
      exception when integrity_constraint_violation or data_exception or raise_exception then
        raise warning 'run % cannot be claimed: %', candidate.id, sqlerrm;  -- a rule of the app rejects the row
        refused := refused || candidate.id;
      end;
      if candidate.is_last then
        listed := listed * 8;
        continue search;
      end if;
    end loop;
    run := null;
    exit;
  end loop;
  perform trainer.see_worker(claim_training_run.worker_id, capabilities -> 'hardware', sets_problem => true);
  if run.id is not null then
    return next trainer.cut(run);
  end if;
end $$;

-- Returns the run that a claim would return now. The row has only the columns that a worker reads of a run that it
-- does not hold, and never the fencing token: the worker whose lease expired can still hold the run.
create or replace function public.peek_training_run(capabilities jsonb default '{}')
returns setof public.training_runs
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  found public.training_runs;
  run public.training_runs;
begin
  select r.* into found from public.training_runs r
  where r.id = (select c.id from trainer.candidates(peek_training_run.capabilities, null, 1) as c limit 1);
  if found.id is null then
    return;
  end if;
  found := trainer.cut(found);
  run.id := found.id;
  run.run_name := found.run_name;
  run.status := found.status;
  run.data_yaml := found.data_yaml;
  run.base_model := found.base_model;
  run.configuration := found.configuration;
  run.created_by := found.created_by;
  run.project_id := found.project_id;
  run.priority := found.priority;
  run.attempt := found.attempt;
  run.created_at := found.created_at;
  run.started_at := found.started_at;
  run.checkpoint := found.checkpoint;
  run.last_reported_epoch := found.last_reported_epoch;
  run.last_reported_attempt := found.last_reported_attempt;
  run.run_group := found.run_group;
  run.run_tags := found.run_tags;
  return next run;
end $$;

create or replace function public.beat_training_run(
  run_id uuid, claim_id uuid, lease_seconds double precision, progress jsonb default null, events jsonb default '[]'
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  run public.training_runs := trainer.held(beat_training_run.run_id, beat_training_run.claim_id);
begin
  if run.id is null then
    return 'lost';
  end if;
  run := trainer.store_events(run, events);
  run.heartbeat_at := now();
  run.lease_expires_at := trainer.lease_end(lease_seconds);
  run.results := trainer.merged(run.results, progress);
  perform trainer.save(run);
  perform trainer.see_worker(run.worker_id);
  return case
    when run.status = 'canceling' or run.cancel_requested then 'cancel'
    when run.finish_requested then 'finish'
    else 'ok'
  end;
end $$;

create or replace function public.finish_training_run(
  run_id uuid, claim_id uuid, status text, results jsonb default null, trained_model_url text default null,
  error_message text default null, events jsonb default '[]', host_failed boolean default false
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  outcome text := finish_training_run.status;
  run public.training_runs;
begin
  if outcome is null or outcome not in ('completed', 'failed', 'canceled', 'queued') then
    raise exception 'status = %: must be completed, failed, canceled or queued', outcome using errcode = '22023';
  end if;
  run := trainer.held(finish_training_run.run_id, finish_training_run.claim_id);
  if run.id is null then
    return coalesce((
      select r.status from public.training_runs r
      where r.id = finish_training_run.run_id and r.claim_id = finish_training_run.claim_id
        and (r.status = outcome or (outcome = 'queued' and r.status in ('failed', 'canceled')))
    ), 'lost');
  end if;

  run := trainer.store_events(run, finish_training_run.events);
  run.results := trainer.merged(run.results, finish_training_run.results);
  perform trainer.require_size('trained_model_url', octet_length(finish_training_run.trained_model_url), 65536);
  run.trained_model_url := coalesce(finish_training_run.trained_model_url, run.trained_model_url);
  run.error_message := finish_training_run.error_message;
  run.lease_expires_at := null;
  if outcome = 'queued' and (run.status = 'canceling' or run.cancel_requested) then
    run.error_message := null;
    outcome := 'canceled';
  end if;
  if outcome = 'queued' then
    run := trainer.lost(run, finish_training_run.host_failed);
    outcome := case when run.failures >= run.max_attempts then 'failed' else 'queued' end;
  end if;
  case outcome
    when 'canceled' then
      run := trainer.canceled(run);
    when 'queued' then
      run.status := outcome;
      run.not_before := now() + trainer.pause_after(run);
    else
      run.status := outcome;
      run.completed_at := now();
  end case;
  perform trainer.save(run);
  perform trainer.see_worker(run.worker_id);
  return run.status;
end $$;

create or replace function public.release_training_run(
  run_id uuid, claim_id uuid, checkpoint jsonb default null, events jsonb default '[]', results jsonb default null
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  run public.training_runs := trainer.held(release_training_run.run_id, release_training_run.claim_id);
begin
  if run.id is null then
    return coalesce((
      select r.status from public.training_runs r
      where r.id = release_training_run.run_id and r.claim_id = release_training_run.claim_id
        and r.status in ('queued', 'canceled')
    ), 'lost');
  end if;

  run := trainer.store_events(run, events);
  if release_training_run.checkpoint ->> 'key' is not null then
    perform trainer.require_size('checkpoint', pg_column_size(release_training_run.checkpoint), 65536);
    run.checkpoint := release_training_run.checkpoint;
  end if;
  run.results := trainer.merged(run.results, release_training_run.results);
  if run.status = 'canceling' or run.cancel_requested then
    run := trainer.canceled(run);
  else
    run.status := 'queued';
    run.not_before := null;
    run.lease_expires_at := null;
  end if;
  perform trainer.save(run);
  perform trainer.see_worker(run.worker_id);
  return run.status;
end $$;

-- Reports that a worker is alive and claims no runs. `problem` is the reason if the worker is unhealthy.
create or replace function public.report_trainer_worker(
  worker_id text, problem text default null, hardware jsonb default null
) returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
  select trainer.require_own_name(report_trainer_worker.worker_id);
  select trainer.see_worker(report_trainer_worker.worker_id, report_trainer_worker.hardware, true, problem)
$$;

-- ── for users who queue runs ──

-- Cancels a run with the caller's own rights: anyone who can see and edit the run can cancel it.
create or replace function public.cancel_training_run(run_id uuid) returns setof public.training_runs
language sql set search_path = pg_catalog, pg_temp as $$
  update public.training_runs as r set
    cancel_requested = true,
    status = case r.status when 'queued' then 'canceled' else 'canceling' end,
    canceled_at = case r.status when 'queued' then now() else r.canceled_at end,
    completed_at = case r.status when 'queued' then now() else r.completed_at end,
    error_message = case r.status when 'queued' then 'Canceled by user.' else r.error_message end
  where r.id = cancel_training_run.run_id and r.status in ('queued', 'running')
  returning r.*
$$;

-- Deletes a run and its events with the caller's own rights, unless a worker holds a lease on it.
create or replace function public.delete_training_run(run_id uuid) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  run public.training_runs;
begin
  select r.* into run from public.training_runs r where r.id = delete_training_run.run_id for update;
  if run.id is null then
    return 'missing';
  end if;
  if run.status in ('running', 'canceling') and run.lease_expires_at > now() then
    return 'held';
  end if;
  delete from public.training_runs r where r.id = run.id;
  return case when found then 'deleted' else 'kept' end;  -- a trigger of the app can keep the row
end $$;

-- Returns one run, for a worker without the right to read the table. The row has only the columns that a worker reads
-- of other runs (the models to fine-tune from, and the checkpoints to remove), and never the fencing token.
create or replace function public.read_training_run(run_id uuid) returns setof public.training_runs
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  found public.training_runs;
  run public.training_runs;
begin
  select r.* into found from public.training_runs r where r.id = read_training_run.run_id;
  if found.id is null then
    return;
  end if;
  run.id := found.id;
  run.run_name := left(found.run_name, 1000);
  run.status := found.status;
  run.created_by := found.created_by;
  run.project_id := found.project_id;
  run.attempt := found.attempt;
  run.checkpoint := found.checkpoint;
  run.results := jsonb_build_object('artifacts', found.results -> 'artifacts');
  run.trained_model_url := found.trained_model_url;
  return next run;
end $$;

create or replace function public.trainer_schema_version() returns integer
language sql immutable set search_path = pg_catalog, pg_temp as $$ select 5 $$;

-- Returns a warning for each policy of the app that allows too much access.
-- The operator decides whether to change the policy.
create or replace function public.trainer_access_warnings() returns setof text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select format('policy "%s" on %s lets %s users %s', p.policyname, p.tablename,
                case when p.roles && array['anon', 'public']::name[] then 'anonymous' else 'all signed-in' end,
                case p.cmd when 'ALL' then 'write' else lower(p.cmd) end)
  from pg_catalog.pg_policies p
  where p.schemaname = 'public' and p.tablename in ('training_runs', 'trainer_workers', 'training_run_events')
    and p.permissive = 'PERMISSIVE' and p.cmd <> 'SELECT'
    and (p.roles && array['anon', 'public']::name[] or 'authenticated' = any (p.roles) and 'true' in (p.qual, p.with_check))
  union all
  select format('row-level security is off on %s', c.relname)
  from pg_catalog.pg_class c
  where c.relnamespace = 'public'::regnamespace and not c.relrowsecurity
    and c.relname in ('training_runs', 'trainer_workers', 'training_run_events')
$$;
