"""Fixtures of the contract suites."""

from queue_adapters import queue_lab  # noqa: F401

from tests.supabase_fixtures import supabase, supabase_lab, supabase_servers  # noqa: F401
