"""The policy for private datasets in docs/security.md, in a real database."""

import re
from pathlib import Path

import pytest

from tests.postgres_server import SqlError

SECURITY = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
ADA = {"role": "authenticated", "sub": "5d3c6c0a-0000-4000-8000-000000000001"}
BOB = {"role": "authenticated", "sub": "5d3c6c0a-0000-4000-8000-000000000002"}


@pytest.fixture
def policy(supabase):
    """Apply the documented policy to a project in which signed-in users may access the storage."""
    supabase.sql("""
        create function auth.uid() returns uuid language sql stable
          as $$ select (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid $$;
        grant execute on function auth.uid() to authenticated;
        grant usage on schema storage to authenticated;
        grant all on storage.objects to authenticated;""")
    supabase.sql(re.search(r"```sql\n(create policy own_datasets.*?)```", SECURITY, re.DOTALL)[1])
    yield
    supabase.sql("""
        drop policy own_datasets on storage.objects;
        delete from storage.objects;
        revoke all on storage.objects from authenticated;
        drop function auth.uid();""")


@pytest.mark.usefixtures("policy")
def test_users_access_only_their_own_folder_of_the_datasets_bucket(supabase):
    def insert(claims, bucket, name):
        supabase.sql(
            f"insert into storage.objects (bucket_id, name) values ('{bucket}', '{name}')",
            role="authenticated",
            claims=claims,
        )

    for user in (ADA, BOB):
        insert(user, "datasets", f"{user['sub']}/cats/data.yaml")
    for bucket, name in (
        ("datasets", f"{BOB['sub']}/cats/x.jpg"),
        ("datasets", "data.yaml"),
        ("datasets", f"x/{ADA['sub']}/data.yaml"),
        ("datasets", f"{ADA['sub']}x/data.yaml"),
        ("training-artifacts", f"{ADA['sub']}/best.pt"),
    ):
        with pytest.raises(SqlError, match="row-level security"):
            insert(ADA, bucket, name)

    seen = supabase.sql("select string_agg(name, ' ') from storage.objects", role="authenticated", claims=ADA)
    assert seen == f"{ADA['sub']}/cats/data.yaml"
