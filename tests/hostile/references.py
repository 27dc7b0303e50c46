"""Helpers for the tests of hostile references."""

from __future__ import annotations

from trainer.datasets.source.reference import parse_reference

SECRET = "root:x:0:0"


def parse(text, root):
    return parse_reference(
        text,
        dataset_root=root,
        datasets_bucket="datasets",
        storage_base_url="https://abc.supabase.co",
    )


def message_of(error):
    text = str(error.value)
    assert text
    assert len(text) < 1500
    assert text.isprintable() or "\n" in text
    assert SECRET not in text
    return text
