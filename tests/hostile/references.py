"""Helpers for the tests of hostile references."""

from __future__ import annotations

from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots

SECRET = "root:x:0:0"


def parse(text, root, owner=None, **rules):
    rules = ReferenceRules(Roots(root), "datasets", storage_url="https://abc.supabase.co", **rules)
    return parse_reference(text, rules, owner)


def message_of(error):
    text = str(error.value)
    assert text
    assert len(text) < 1500
    assert text.isprintable() or "\n" in text
    assert SECRET not in text
    return text
