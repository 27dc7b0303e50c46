-- The tables, triggers and policies of a project of the web app, before the trainer's migrations.

create table public.projects (
  id uuid primary key default gen_random_uuid(),
  name text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create table public.sop_steps (
  id uuid primary key default gen_random_uuid(),
  project_id uuid references public.projects (id) on delete cascade,
  title text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create table public.training_runs (
  id uuid primary key default gen_random_uuid(),
  run_name text not null,
  project_id uuid references public.projects (id) on delete set null,
  step_id uuid references public.sop_steps (id) on delete set null,
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
create index training_runs_project_id_idx on public.training_runs (project_id);
create index training_runs_step_id_idx on public.training_runs (step_id);
create index training_runs_status_idx on public.training_runs (status);
create index training_runs_cancel_requested_idx on public.training_runs (cancel_requested);

create table public.trainer_workers (
  worker_id text primary key,
  status text not null default 'online',
  last_seen timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create table public.step_variant_configs (
  id uuid primary key default gen_random_uuid(),
  inference_model_id uuid references public.training_runs (id) on delete set null
);

create table public.predicted_annotations (
  id uuid primary key default gen_random_uuid(),
  run_id uuid references public.training_runs (id) on delete set null,
  step_image_id uuid,
  annotations jsonb default '[]',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create function public.set_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at = now();
  return new;
end $$;

create trigger set_training_runs_updated_at before update on public.training_runs
  for each row execute function public.set_updated_at();
create trigger set_trainer_workers_updated_at before update on public.trainer_workers
  for each row execute function public.set_updated_at();

create function public.handle_project_delete() returns trigger language plpgsql as $$
begin
  update public.training_runs
  set status = 'canceled', cancel_requested = true, canceled_at = now(), completed_at = now(),
      error_message = 'Project deleted.'
  where project_id = old.id and status in ('running', 'canceling');
  delete from public.training_runs where project_id = old.id and status = 'queued';
  return old;
end $$;

create trigger project_delete_training_runs before delete on public.projects
  for each row execute function public.handle_project_delete();

do $$
declare
  open_table text;
begin
  foreach open_table in array array[
    'projects', 'sop_steps', 'training_runs', 'trainer_workers', 'step_variant_configs', 'predicted_annotations'
  ] loop
    execute format('alter table public.%I enable row level security', open_table);
    execute format('create policy "anon all" on public.%I for all to anon using (true) with check (true)', open_table);
    execute format(
      'create policy "authenticated all" on public.%I for all to authenticated using (true) with check (true)', open_table);
  end loop;
end $$;

insert into storage.buckets (id, name, public) values ('datasets', 'datasets', true), ('sops', 'sops', false);
