"""The servers that the integration tests share."""

from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401
