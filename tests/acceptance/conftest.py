"""The servers that the acceptance tests share."""

from tests.supabase_fixtures import supabase, supabase_servers  # noqa: F401
