"""Servers for the acceptance tests."""

from tests.supabase_fixtures import supabase, supabase_servers  # noqa: F401
