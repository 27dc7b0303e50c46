-- Access rights. Signed-in users can queue, read and cancel their own runs. A worker can call the functions of the queue. All
-- other roles get no rights. The app's own grants and policies stay; trainer_access_warnings() lists policies that allow too much.

do $$
begin
  if not exists (select from pg_roles where rolname = 'trainer_worker') then
    create role trainer_worker nologin;
  end if;
  if exists (select from pg_roles where rolname = 'authenticator') then
    grant trainer_worker to authenticator;  -- PostgREST then accepts a JWT with "role": "trainer_worker"
  end if;
  grant usage on schema public to trainer_worker;
end $$;

-- ── functions ──

do $$
declare
  callable record;
  api_role record;
begin
  for callable in
    select p.oid::regprocedure as name, p.proname = 'cancel_training_run' as for_users,
      p.proname = 'delete_training_run' as for_service_only
    from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname in (
      'settle_training_runs', 'claim_training_run', 'peek_training_run', 'beat_training_run', 'finish_training_run',
      'release_training_run', 'report_trainer_worker', 'read_training_run', 'cancel_training_run', 'delete_training_run',
      'trainer_schema_version',
      'trainer_access_warnings')
  loop
    execute format('revoke all on function %s from public', callable.name);
    for api_role in
      select rolname as name, case
          when callable.for_users then rolname in ('authenticated', 'service_role')
          when callable.for_service_only then rolname = 'service_role'
          else rolname in ('trainer_worker', 'service_role')
        end as may_call
      from pg_roles where rolname in ('anon', 'authenticated', 'service_role', 'trainer_worker')
    loop
      execute format(case when api_role.may_call
        then 'grant execute on function %s to %I' else 'revoke all on function %s from %I' end,
        callable.name, api_role.name);
    end loop;
  end loop;
end $$;

-- ── tables ──

alter table public.training_runs enable row level security;
alter table public.trainer_workers enable row level security;
alter table public.training_run_events enable row level security;

do $$
declare
  -- The user ID and the email in the JWT, as in auth.uid() and auth.jwt(); an app may write either into created_by. The
  -- email is empty for all users who signed in anonymously or with a phone number.
  mine constant text := $mine$created_by = any (array[
    (select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')),
    (select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email', ''))])$mine$;
begin
  if exists (select from pg_roles where rolname = 'service_role') then
    grant all on public.training_runs, public.trainer_workers, public.training_run_events to service_role;
  end if;
  if exists (select from pg_roles where rolname = 'anon') then
    revoke all on public.training_run_events from anon;
  end if;
  if not exists (select from pg_roles where rolname = 'authenticated') then
    return;
  end if;

  grant select on public.training_runs, public.trainer_workers to authenticated;
  grant insert (id, run_name, project_id, step_id, status, base_model, configuration, data_yaml, created_by, run_group, run_tags)
    on public.training_runs to authenticated;
  grant update (status, cancel_requested, canceled_at, completed_at, error_message)
    on public.training_runs to authenticated;
  revoke all on public.training_run_events from authenticated;
  grant select on public.training_run_events to authenticated;

  drop policy if exists trainer_users_read on public.training_runs;
  drop policy if exists trainer_users_insert on public.training_runs;
  drop policy if exists trainer_users_cancel on public.training_runs;
  drop policy if exists trainer_users_read on public.trainer_workers;
  drop policy if exists trainer_users_read on public.training_run_events;
  execute format('create policy trainer_users_read on public.training_runs for select to authenticated using (%s)', mine);
  execute format(
    'create policy trainer_users_insert on public.training_runs for insert to authenticated'
    ' with check (status = ''queued'' and not cancel_requested and %s)', mine);
  execute format(
    'create policy trainer_users_cancel on public.training_runs for update to authenticated'
    ' using (status in (''queued'', ''running'', ''canceling'') and %1$s)'
    ' with check (status in (''canceling'', ''canceled'') and cancel_requested and %1$s)', mine);
  create policy trainer_users_read on public.trainer_workers for select to authenticated using (true);
  -- users who can read the run can read its history
  create policy trainer_users_read on public.training_run_events for select to authenticated
    using (exists (select from public.training_runs r where r.id = training_run_events.run_id));
end $$;

-- ── buckets ──

do $$
begin
  if to_regclass('storage.buckets') is null then
    return;
  end if;
  insert into storage.buckets (id, name, public)
  values ('datasets', 'datasets', false), ('training-artifacts', 'training-artifacts', false)
  on conflict do nothing;

  if to_regclass('storage.objects') is null then
    return;
  end if;
  begin
    grant usage on schema storage to trainer_worker;
    grant select on storage.buckets to trainer_worker;
    grant select, insert, update, delete on storage.objects to trainer_worker;
    drop policy if exists trainer_worker_buckets on storage.buckets;
    drop policy if exists trainer_worker_datasets on storage.objects;
    drop policy if exists trainer_worker_artifacts on storage.objects;
    create policy trainer_worker_buckets on storage.buckets for select to trainer_worker
      using (id in ('datasets', 'training-artifacts'));
    create policy trainer_worker_datasets on storage.objects for select to trainer_worker
      using (bucket_id = 'datasets');
    create policy trainer_worker_artifacts on storage.objects for all to trainer_worker
      using (bucket_id = 'training-artifacts') with check (bucket_id = 'training-artifacts');
  exception when insufficient_privilege then
    raise warning 'trainer_worker gets no access to storage (%). Let the owner of the storage schema grant it, or run the trainer with a service key.',
      sqlerrm;
  end;
end $$;

notify pgrst, 'reload schema';
