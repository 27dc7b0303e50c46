from dataclasses import replace
from pathlib import Path

import pytest

from trainer.core.dataset import DiskRef, HttpRef, ObjectRef
from trainer.core.errors import DatasetError
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots

ROOT = Path("/data")
OURS = "https://abc.supabase.co/"


def parse(text, base=OURS, **rules):
    rules = {"allowed_buckets": ("sets",)} | rules
    return parse_reference(text, ReferenceRules(Roots(ROOT), "datasets", storage_url=base, **rules))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/mnt/a/data.yaml", "/mnt/a/data.yaml"),
        ("a/data.yaml", "/data/a/data.yaml"),
        ("  a/data.yaml\n", "/data/a/data.yaml"),
        ("a b/é.yaml", "/data/a b/é.yaml"),
        ("-rf", "/data/-rf"),
    ],
)
def test_path_is_absolute_or_relative_to_dataset_root(text, path):
    assert parse(text) == DiskRef(path=path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("storage:p/s/data.yaml", "p/s/data.yaml"),
        ("storage:/p/s/", "p/s"),
        ("STORAGE:p/s", "p/s"),
        ("storage:a:b (1)/d?.yaml", "a:b (1)/d?.yaml"),
    ],
)
def test_storage_path_is_in_default_bucket(text, key):
    assert parse(text) == ObjectRef(bucket="datasets", key=key)


def test_storage_path_can_start_with_an_allowed_bucket():
    in_default = ObjectRef(bucket="datasets", key="other/p/d.yaml")
    in_other = ObjectRef(bucket="other", key="p/d.yaml")
    only_default = ReferenceRules(Roots(ROOT), "datasets")
    both = replace(only_default, allowed_buckets=("other",))

    assert both.candidates(in_default) == (in_default, in_other)
    assert only_default.candidates(in_default) == (in_default,)
    assert both.candidates(in_other) == (in_other,)
    assert len(both.candidates(ObjectRef(bucket="datasets", key="other"))) == 1


@pytest.mark.parametrize("kind", ["public/", "sign/", "authenticated/", ""])
def test_url_of_own_storage_is_read_as_object_reference(kind):
    url = f"https://abc.supabase.co/storage/v1/object/{kind}sets/p%20q/data.yaml?token=x"
    assert parse(url) == ObjectRef(bucket="sets", key="p q/data.yaml")


@pytest.mark.parametrize(
    "base", ["https://ABC.supabase.co", "https://abc.supabase.co:443/", "https://abc.supabase.co/storage/v1"]
)
def test_any_spelling_of_own_supabase_url_is_recognized(base):
    url = "https://abc.supabase.co/storage/v1/object/public/sets/d.yaml"
    assert parse(url, base) == ObjectRef(bucket="sets", key="d.yaml")


def test_supabase_url_with_base_path_is_recognized():
    url = "http://gate:8000/base/storage/v1/object/public/sets/d.yaml"
    assert parse(url, "http://gate:8000/base") == ObjectRef(bucket="sets", key="d.yaml")


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/data.zip",
        "HTTP://example.org/data.zip",
        "https://evil.org/storage/v1/object/public/sets/d.yaml",
        "http://abc.supabase.co/storage/v1/object/public/sets/d.yaml",
        "https://abc.supabase.co:444/storage/v1/object/public/sets/d.yaml",
        "https://abc.supabase.co.evil.org/storage/v1/object/public/sets/d.yaml",
        "https://abc.supabase.co/rest/v1/training_runs",
    ],
)
def test_url_outside_own_storage_is_read_as_http_reference(url):
    assert parse(url) == HttpRef(url=url)


@pytest.fixture
def tree(tmp_path):
    for name in ("root", "extra", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "d.yaml").write_text("x")
    (tmp_path / "root/out").symlink_to(tmp_path / "outside")
    (tmp_path / "root/in").symlink_to(tmp_path / "extra")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root/loop")
    return tmp_path


def test_paths_inside_roots_are_accepted_and_symlinks_are_resolved(tree):
    roots = Roots(tree / "root", (tree / "extra",))
    assert roots.admit("d.yaml") == tree / "root/d.yaml"
    assert roots.admit(tree / "extra/d.yaml") == tree / "extra/d.yaml"
    assert roots.admit("in/d.yaml") == tree / "extra/d.yaml"


def test_symlinked_root_is_accepted(tree):
    (tree / "link").symlink_to(tree / "root")
    assert Roots(tree / "link").admit("d.yaml") == tree / "root/d.yaml"


@pytest.mark.parametrize(
    "path", ["out/d.yaml", "../outside/d.yaml", "/etc/passwd", "/", "..", "in/d.yaml", "../outside/none"]
)
def test_existing_and_missing_paths_outside_roots_are_rejected(tree, path):
    with pytest.raises(DatasetError, match=r"outside the allowed folders.*EXTRA_DATASET_ROOTS"):
        Roots(tree / "root").admit(path)


@pytest.mark.parametrize("path", ["none.yaml", "none/d.yaml", "loop", "d.yaml/x"])
def test_missing_path_is_rejected(tree, path):
    with pytest.raises(DatasetError, match="does not exist or cannot be read"):
        Roots(tree / "root").admit(path)
